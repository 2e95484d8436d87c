"""What differs between kinds of board; everything shared is in linux.py and sysfs.py."""

from __future__ import annotations

from device_agents.platforms.linux import Linux
from device_agents.sysfs import Root, call_patiently

__all__ = ["Linux", "select"]


GET_THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"
"""Where the Raspberry Pi's firmware tells by sysfs."""


def select(root: Root) -> Linux:
    """The platform that the files below the root speak of.

    It is observed once: what hangs when it is read is found here, and read no more.
    """
    board = _select(root)
    call_patiently(root, board.observe)
    return board


def _select(root: Root) -> Linux:
    """A kind of board is imported where it is one: the agent starts on all of them."""
    compatible = (root.read_text("proc/device-tree/compatible") or "").split("\0")
    if root.exists(GET_THROTTLED) or any(c.startswith("raspberrypi,") for c in compatible):
        from device_agents.platforms.raspberry_pi import RaspberryPi
        from device_agents.platforms.tools import tools_of

        return RaspberryPi(root, tools_of(root))
    if root.exists("etc/nv_tegra_release") or any(c.startswith("nvidia,tegra") for c in compatible):
        from device_agents.platforms.jetson import Jetson
        from device_agents.platforms.tools import tools_of

        return Jetson(root, tools_of(root))
    return Linux(root)
