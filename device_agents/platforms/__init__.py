"""What differs between kinds of board; everything shared is in sysfs.py and telemetry.py."""
