"""Offline and deterministic: the same dataset, recipe and seed give the same bytes."""

import os

# Offline: onnxruntime's wheels send events to their makers, from 1.31 on, unless told not to.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
