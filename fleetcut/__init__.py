"""The front door: one command over the harness and the compiler."""

from importlib.metadata import version

__version__ = version("fleetcut")
