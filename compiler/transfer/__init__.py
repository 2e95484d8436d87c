"""Latencies of a board that was hardly measured, from boards that were.

Method: One Proxy Device Is Enough (arXiv 2111.01203) and Scaling Up DNN Optimization for Edge
Inference (arXiv 2009.00278), with simpler estimators beside the paper's adapter.
"""
