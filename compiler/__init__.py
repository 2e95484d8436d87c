"""Offline and deterministic: the same dataset, recipe and seed give the same bytes."""
