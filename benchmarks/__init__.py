"""Side by side with peers, each in one run: ``python -m benchmarks.NAME [--quick] --json OUT``."""
