"""Records in SQL: SQLite in a file, or PostgreSQL by URL for a lab.

Input: MeasurementRecords and profiles. Output: the same, queries, and which runs are known.
"""

from harness.store.address import DEFAULT_ADDRESS, StoreAddress, address_of, is_there
from harness.store.nights import earlier_nights, keep_night
from harness.store.store import BaselineCell, Query, RunSummary, Store, StoredRun

__all__ = [
    "DEFAULT_ADDRESS",
    "BaselineCell",
    "Query",
    "RunSummary",
    "Store",
    "StoreAddress",
    "StoredRun",
    "address_of",
    "earlier_nights",
    "is_there",
    "keep_night",
]
