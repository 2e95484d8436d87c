"""What differs between kinds of board; everything shared is in linux.py and sysfs.py."""

from __future__ import annotations

from device_agents.platforms.jetson import Jetson
from device_agents.platforms.linux import Linux
from device_agents.platforms.raspberry_pi import GET_THROTTLED, RaspberryPi
from device_agents.sysfs import Root

__all__ = ["Jetson", "Linux", "RaspberryPi", "select"]


def select(root: Root) -> Linux:
    """The platform that the files below the root speak of."""
    compatible = (root.read_text("proc/device-tree/compatible") or "").split("\0")
    if root.exists(GET_THROTTLED) or any(c.startswith("raspberrypi,") for c in compatible):
        return RaspberryPi(root)
    if root.exists("etc/nv_tegra_release") or any(c.startswith("nvidia,tegra") for c in compatible):
        return Jetson(root)
    return Linux(root)
