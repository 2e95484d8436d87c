"""A campaign measured every night and compared with the night that was made its baseline.

Input: a campaign, the boards' health, stored runs. Output: a NightReport: page, JSON, metrics.
"""
