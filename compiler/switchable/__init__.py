"""One weight set for every clock: nested sub-networks, and which of them to run at which clock.

Method: All-in-One (ICCAD 2022, arXiv 2212.05122). See docs/adr/0010-switchable-networks.md.
"""
