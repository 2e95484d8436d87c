"""Governor and clock limits of a cpufreq policy: written, read back, put back.

Input: a sysfs Root and a policy's folder. Output: Limits. Raises RunFailedError ("condition").
The kernel refuses a minimum above the maximum, so the two are written in the order that fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

from device_agents.errors import RunFailedError
from device_agents.platforms.linux import policy_name
from device_agents.privilege import PERMISSION, write
from device_agents.sysfs import Root


@dataclass(frozen=True)
class Limits:
    """What one policy is set to; None is unreadable and is not put back."""

    policy: str
    governor: Optional[str]
    min_khz: Optional[int]
    max_khz: Optional[int]


def read_limits(root: Root, policy: str) -> Limits:
    return Limits(
        policy,
        root.read_text(f"{policy}/scaling_governor"),
        root.read_int(f"{policy}/scaling_min_freq"),
        root.read_int(f"{policy}/scaling_max_freq"),
    )


def set_governor(root: Root, policy: str, governor: str) -> None:
    available = (root.read_text(f"{policy}/scaling_available_governors") or "").split()
    if available and governor not in available:
        raise RunFailedError(
            "condition",
            f"{policy_name(policy)} has no governor {governor[:40]!r}",
            f"use one of {', '.join(available)}",
        )
    _write(root, f"{policy}/scaling_governor", governor)


def set_range(
    root: Root, policy: str, min_khz: int, max_khz: int, may_be_capped: bool = False
) -> None:
    """Both limits, the one first that keeps maximum >= minimum throughout.

    may_be_capped: a limit that reads lower than it was written is taken: the kernel keeps the
    request and holds the clock down for heat. Raises RunFailedError.
    """
    present_max_khz = root.read_int(f"{policy}/scaling_max_freq")
    raises = present_max_khz is not None and min_khz > present_max_khz
    writes = [("scaling_min_freq", min_khz), ("scaling_max_freq", max_khz)]
    for name, khz in reversed(writes) if raises else writes:
        _write(root, f"{policy}/{name}", str(khz), may_be_capped)


def offers(root: Root, policy: str, freq_khz: int) -> bool:
    """Whether freq_khz is an operating point, or within the limits where none is listed."""
    listed = root.read_ints(f"{policy}/scaling_available_frequencies")
    if listed:
        return freq_khz in listed
    low_khz, high_khz = _hardware_range_khz(root, policy)
    return low_khz is not None and high_khz is not None and low_khz <= freq_khz <= high_khz


def restore(root: Root, limits: Limits, throttled: bool) -> None:
    """Put a policy back as it was, as far as it goes. Raises RunFailedError."""
    try:
        if limits.min_khz is not None and limits.max_khz is not None:
            set_range(root, limits.policy, limits.min_khz, limits.max_khz, throttled)
    finally:
        # Last: on a Raspberry Pi a governor only acts again once a file is written after
        # throttling.
        if limits.governor is not None:
            set_governor(root, limits.policy, limits.governor)


def is_lowered(root: Root, limits: Limits) -> bool:
    """Whether the maximum reads below the hardware's: by its user, or by the kernel for heat.

    scaling_max_freq shows the lowest of all requests, a cooling device's among them.
    """
    _, most_khz = _hardware_range_khz(root, limits.policy)
    return limits.max_khz is not None and most_khz is not None and limits.max_khz < most_khz


def _hardware_range_khz(root: Root, policy: str) -> Tuple[Optional[int], Optional[int]]:
    return (
        root.read_int(f"{policy}/cpuinfo_min_freq"),
        root.read_int(f"{policy}/cpuinfo_max_freq"),
    )


def _write(root: Root, path: str, value: str, may_be_capped: bool = False) -> None:
    name = "/".join(path.split("/")[-2:])
    try:
        write(root, path, value)
    except OSError as error:
        raise RunFailedError(
            "condition", f"{name} cannot be set to {value} ({error.strerror})", PERMISSION
        ) from None
    found = root.read_text(path)
    capped_khz = root.read_int(path) if may_be_capped else None
    if found != value and not (capped_khz is not None and capped_khz < int(value)):
        raise RunFailedError(
            "condition",
            f"{name} is {found!r} after writing {value!r}",
            "see what else governs the clock on this board",
        )
