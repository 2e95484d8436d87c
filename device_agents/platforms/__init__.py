"""What differs between kinds of board; everything shared is in linux.py and sysfs.py."""

from __future__ import annotations

from device_agents.platforms.jetson import Jetson
from device_agents.platforms.linux import Linux
from device_agents.platforms.raspberry_pi import GET_THROTTLED, RaspberryPi
from device_agents.platforms.tools import MACHINE, NOBODY
from device_agents.privilege import is_machine
from device_agents.sysfs import Root, call_patiently

__all__ = ["Jetson", "Linux", "RaspberryPi", "select"]


def select(root: Root) -> Linux:
    """The platform that the files below the root speak of.

    It is observed once: what hangs when it is read is found here, and read no more.
    """
    board = _select(root)
    call_patiently(root, board.observe)
    return board


def _select(root: Root) -> Linux:
    tools = MACHINE if is_machine(root) else NOBODY
    compatible = (root.read_text("proc/device-tree/compatible") or "").split("\0")
    if root.exists(GET_THROTTLED) or any(c.startswith("raspberrypi,") for c in compatible):
        return RaspberryPi(root, tools)
    if root.exists("etc/nv_tegra_release") or any(c.startswith("nvidia,tegra") for c in compatible):
        return Jetson(root, tools)
    return Linux(root)
