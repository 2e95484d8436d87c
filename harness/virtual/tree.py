"""A board's root as the kernel would show it: sys/, proc/ and etc/ below one folder.

Input: a spec, a BoardPhysics, a boot_id. Output: files, each replaced whole by rename.
Only a file whose text changed is touched, so that an agent's write is never undone unseen.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from harness.virtual.physics import BoardPhysics, charge_pct
from harness.virtual.spec import GOVERNORS, MODEL, VirtualBoardSpec

POLICY = "sys/devices/system/cpu/cpufreq/policy0"
WRITABLE = ("scaling_governor", "scaling_min_freq", "scaling_max_freq", "scaling_setspeed")
"""What a program on the board may write in POLICY, as root may on hardware."""

_THERMAL = "sys/class/thermal"
_BATTERY = "sys/class/power_supply/BAT0"
_RAIL = "sys/class/hwmon/hwmon0"
_RAIL_MV = 5_000
_TEMP_STEP_MC = 100


class BoardTree:
    """The folder ``root``, and what was last put there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._spool = root.with_name(root.name + ".spool")
        self._shown: dict[str, str] = {}

    def create(self, spec: VirtualBoardSpec, boot_id: str, state: BoardPhysics) -> None:
        """The root as it is after a boot, without what an earlier one left in it.

        What is right already stays: some file systems take milliseconds to remove a file.
        """
        for folder in (self.root, self._spool):
            folder.mkdir(parents=True, exist_ok=True)
        files = static_files(spec, boot_id) | dynamic_files(spec, state)
        links = {f"sys/devices/system/cpu/cpu{i}/cpufreq" for i in range(spec.cores)}
        self._shown = {}
        for path in sorted(self.root.rglob("*"), reverse=True):  # what is in a folder before it
            name = str(path.relative_to(self.root))
            if path.is_file() and not path.is_symlink() and name in files:
                self._shown[name] = path.read_text(encoding="utf-8", errors="replace")
            elif path.is_symlink() or path.is_file():
                path.unlink()
            else:
                with contextlib.suppress(OSError):  # it is not empty
                    path.rmdir()
        self.publish(files)
        for name in links:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).symlink_to("../cpufreq/policy0")

    def publish(self, files: Mapping[str, str]) -> None:
        """Shows every file whose text is not what was last shown. Keys are relative to root."""
        for name, text in files.items():
            if self._shown.get(name) != text:
                self._replace(name, text)

    def read_policy(self, name: str) -> str:
        """What stands in a cpufreq file now; "" when a program on the board has removed it."""
        try:
            return (self.root / POLICY / name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def settle_policy(self, name: str, written: str, text: str) -> None:
        """A program wrote ``written``: now the file says ``text``, rewritten if it differs."""
        key = f"{POLICY}/{name}"
        self._shown[key] = text
        if written.strip() != text.strip():
            self._replace(key, text)

    def _replace(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        spooled = self._spool / "next"
        spooled.write_text(text, encoding="utf-8")
        writable = name.startswith(POLICY) and path.name in WRITABLE
        spooled.chmod(0o644 if writable else 0o444)
        os.replace(spooled, path)
        self._shown[name] = text


def policy_files(state: BoardPhysics) -> dict[str, str]:
    """The writable cpufreq files, by name, as a kernel shows them."""
    return {
        "scaling_governor": f"{state.governor}\n",
        "scaling_min_freq": f"{state.min_khz}\n",
        "scaling_max_freq": f"{state.max_khz}\n",
        "scaling_setspeed": (
            "<unsupported>\n" if state.setspeed_khz is None else f"{state.setspeed_khz}\n"
        ),
    }


def dynamic_files(spec: VirtualBoardSpec, state: BoardPhysics) -> dict[str, str]:
    """Everything that physics moves, in the kernel's units: m°C, kHz, µV, µA, 0.1 °C, mV, mA, µW.

    scaling_cur_freq is what was requested; cpuinfo_cur_freq is firmware's word, which knows of its
    own cap and nothing of slow silicon.
    """
    temp_mc = round(state.temp_c * 1000 / _TEMP_STEP_MC) * _TEMP_STEP_MC
    rail_ma = round(state.power_w * 1e6 / _RAIL_MV / 10) * 10
    files = {f"{POLICY}/{name}": text for name, text in policy_files(state).items()}
    files |= {
        f"{POLICY}/scaling_cur_freq": f"{state.requested_khz}\n",
        f"{POLICY}/cpuinfo_cur_freq": f"{min(state.requested_khz, state.running_khz)}\n",
        f"{_THERMAL}/thermal_zone0/temp": f"{temp_mc}\n",
        f"{_THERMAL}/cooling_device0/cur_state": f"{state.cooling_state}\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": f"{state.throttle_bits:x}\n",
        f"{_RAIL}/curr1_input": f"{rail_ma}\n",
        f"{_RAIL}/power1_input": f"{rail_ma * _RAIL_MV}\n",
    }
    return files | _battery_files(spec, state)


def _battery_files(spec: VirtualBoardSpec, state: BoardPhysics) -> dict[str, str]:
    pct = charge_pct(spec, state)
    if pct is None:
        return {}
    voltage_uv = round((3.3 + 0.9 * pct / 100) * 100) * 10_000
    current_ua = round(state.power_w * 1e12 / voltage_uv / 10_000) * 10_000
    battery_temp_c = state.ambient_c + (state.temp_c - state.ambient_c) / 4
    return {
        f"{_BATTERY}/capacity": f"{round(pct)}\n",
        f"{_BATTERY}/voltage_now": f"{voltage_uv}\n",
        f"{_BATTERY}/current_now": f"{current_ua}\n",
        f"{_BATTERY}/temp": f"{round(battery_temp_c * 10)}\n",
    }


def static_files(spec: VirtualBoardSpec, boot_id: str) -> dict[str, str]:
    """Everything that stays as it is until the next boot."""
    cpus = "0" if spec.cores == 1 else f"0-{spec.cores - 1}"
    files = {f"sys/devices/system/cpu/{name}": f"{cpus}\n" for name in _CPU_MASKS}
    files |= {
        f"{POLICY}/affected_cpus": " ".join(str(i) for i in range(spec.cores)) + "\n",
        f"{POLICY}/scaling_available_governors": " ".join(GOVERNORS) + "\n",
        f"{POLICY}/scaling_available_frequencies": " ".join(map(str, spec.freqs_khz)) + " \n",
        f"{POLICY}/scaling_driver": "fleetcut-virtual\n",
        f"{POLICY}/cpuinfo_min_freq": f"{spec.freqs_khz[0]}\n",
        f"{POLICY}/cpuinfo_max_freq": f"{spec.freqs_khz[-1]}\n",
        f"{_THERMAL}/thermal_zone0/type": "cpu-thermal\n",
        f"{_THERMAL}/thermal_zone0/trip_point_0_temp": f"{round(spec.soft_trip_c * 1000)}\n",
        f"{_THERMAL}/thermal_zone0/trip_point_0_type": "passive\n",
        f"{_THERMAL}/thermal_zone0/trip_point_1_temp": f"{round(spec.hard_trip_c * 1000)}\n",
        f"{_THERMAL}/thermal_zone0/trip_point_1_type": "hot\n",
        f"{_THERMAL}/cooling_device0/type": "cpufreq-cpu0\n",
        f"{_THERMAL}/cooling_device0/max_state": f"{len(spec.freqs_khz) - 1}\n",
        f"{_RAIL}/name": "ina219\n",
        f"{_RAIL}/in1_label": "VDD_IN\n",
        f"{_RAIL}/in1_input": f"{_RAIL_MV}\n",
    }
    if spec.battery is not None:
        files |= {f"{_BATTERY}/type": "Battery\n", f"{_BATTERY}/status": "Discharging\n"}
    return files | _identity_files(spec, boot_id)


_CPU_MASKS = ("online", "possible", "present")


def _identity_files(spec: VirtualBoardSpec, boot_id: str) -> dict[str, str]:
    total_kb = spec.memory_bytes // 1024
    return {
        "proc/cpuinfo": _cpuinfo(spec),
        "proc/meminfo": (
            f"MemTotal:       {total_kb:>8} kB\n"
            f"MemFree:        {total_kb * 3 // 4:>8} kB\n"
            f"MemAvailable:   {total_kb * 7 // 8:>8} kB\n"
            f"SwapTotal:      {0:>8} kB\nSwapFree:       {0:>8} kB\n"
        ),
        "proc/device-tree/model": f"{MODEL}\0",
        "proc/sys/kernel/hostname": f"{spec.board_id}\n",
        "proc/sys/kernel/osrelease": f"{platform.release()}\n",
        "proc/sys/kernel/random/boot_id": f"{boot_id}\n",
        "sys/class/dmi/id/product_name": f"{MODEL}\n",
        "etc/hostname": f"{spec.board_id}\n",
        "etc/os-release": (
            'PRETTY_NAME="fleetcut virtual board OS (simulated)"\n'
            'NAME="fleetcut virtual board OS"\nID=fleetcut-virtual\nVERSION_ID="1"\n'
        ),
        "etc/machine-info": "DEPLOYMENT=simulated\nCHASSIS=embedded\n",
    }


def _cpuinfo(spec: VirtualBoardSpec) -> str:
    """The host's own flags, for runtimes really run on them, under a name that says simulated."""
    try:
        host = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        host = "processor\t: 0\n"
    kept = [
        line
        for line in host.split("\n\n", 1)[0].splitlines()
        if line.split(":")[0].strip().lower() not in ("processor", "model name", "cpu mhz")
    ]
    blocks = (
        "\n".join([f"processor\t: {i}", f"model name\t: {MODEL}", *kept]) for i in range(spec.cores)
    )
    return "\n\n".join(blocks) + f"\n\nModel\t\t: {MODEL}\n"
