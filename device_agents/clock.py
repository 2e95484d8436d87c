"""The clock that a core really runs at: a chain of dependent additions, timed.

Input: nothing but the CPU. Output: kHz, or None on a machine for which no chain is written here.
One addition waits for the one before and takes one cycle on every core we know of, so cycles are
counted by the program and time by CLOCK_MONOTONIC: no calibration and no word of the kernel's.

Why machine code: a Python loop, or hashlib, has no known number of cycles, so it could only be
calibrated against the clock that cpufreq claims, and a constant lie would calibrate itself away.
The idea is sbc-bench's and mhz's (https://github.com/wtarreau/mhz).

Limits: it is the clock of the core that the calling thread runs on, while that core is busy; an
emulator's figure is how fast it emulates; other work on the core can only lower a trial, so the
highest of several is taken, and a core that is never free for 0.2 ms reads low.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import struct
import time
from typing import Callable, Optional

_CHAIN = 256
"""Additions in a row: the loop's own branch is then under 1 %, and the code fits every cache."""

_TRIALS_NS = (1_000_000,) * 5 + (200_000,) * 20
"""Long ones, for which a late wake-up counts little, and short ones, which fit between others'
time slices: the highest of all stands."""

_SEARCH_NS = 100_000

Chain = Callable[[int], int]


def effective_freq_khz(
    chain: Optional[Chain] = None, clock_ns: Callable[[], int] = time.perf_counter_ns
) -> Optional[int]:
    """The calling thread's core in kHz; about 9 ms. None when it cannot be measured here.

    chain(n) runs n times 256 dependent additions; by default this machine's own.
    """
    run = chain or native_chain()
    if run is None:
        return None
    best_khz = 0.0
    rounds_per_ns = _rounds_per_ns(run, clock_ns)
    for trial_ns in _TRIALS_NS:
        rounds = max(1, round(trial_ns * rounds_per_ns))
        start_ns = clock_ns()
        run(rounds)
        elapsed_ns = clock_ns() - start_ns
        if elapsed_ns > 0:
            best_khz = max(best_khz, rounds * _CHAIN * 1e6 / elapsed_ns)
    return round(best_khz) or None


def _rounds_per_ns(run: Chain, clock_ns: Callable[[], int]) -> float:
    """How fast rounds go, roughly. The search itself wakes a core that had clocked down."""
    rounds = 16
    while True:
        start_ns = clock_ns()
        run(rounds)
        elapsed_ns = clock_ns() - start_ns
        if elapsed_ns >= _SEARCH_NS or rounds >= 1 << 20:
            return rounds / max(1, elapsed_ns)
        rounds *= 2


@functools.lru_cache(maxsize=None)
def native_chain() -> Optional[Chain]:
    """The chain of this machine as a function; None where the machine or its rules forbid it."""
    code = machine_code(os.uname().machine, struct.calcsize("P") * 8)
    if code is None or not hasattr(os, "memfd_create"):
        return None
    try:
        return _mapped(code)
    except OSError:
        # Hardened kernels refuse executable memory (vm.memfd_noexec, SELinux execmem).
        return None


def machine_code(machine: str, bits: int) -> Optional[bytes]:
    """Code of ``void chain(long rounds)`` for one machine; None where none is written.

    bits: of the process, not of the kernel.
    """
    if machine == "x86_64" and bits == 64:
        # 1: 256 × add rax, rdx; dec rdi; jnz 1b; ret
        loop = b"\x48\x01\xd0" * _CHAIN + b"\x48\xff\xcf"
        return loop + b"\x0f\x85" + struct.pack("<i", -(len(loop) + 6)) + b"\xc3"
    if machine == "aarch64" and bits == 64:
        # 1: 256 × add x1, x1, x2; subs x0, x0, #1; b.ne 1b; ret
        back = 0x54000001 | ((-(_CHAIN + 1) & 0x7FFFF) << 5)
        return struct.pack(f"<{_CHAIN + 3}I", *[0x8B020021] * _CHAIN, 0xF1000400, back, 0xD65F03C0)
    if machine in ("armv7l", "armv8l", "aarch64") and bits == 32:
        # 1: 256 × add r1, r1, r2; subs r0, r0, #1; bne 1b; bx lr. ARM's pc is 8 bytes ahead.
        back = 0x1A000000 | (-(_CHAIN + 3) & 0xFFFFFF)
        return struct.pack(f"<{_CHAIN + 3}I", *[0xE0811002] * _CHAIN, 0xE2500001, back, 0xE12FFF1E)
    return None


def _mapped(code: bytes) -> Optional[Chain]:
    """The code as a callable, from a memory file that is never writable and executable at once.

    The kernel synchronises the instruction cache when it maps a file's page as executable.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    fd = os.memfd_create("fleetcut-clock")
    try:
        os.write(fd, code)
        prot = mmap.PROT_READ | mmap.PROT_EXEC
        address = libc.mmap(None, len(code), prot, mmap.MAP_PRIVATE, fd, 0)
    finally:
        os.close(fd)
    if address is None or address == ctypes.c_void_p(-1).value:
        return None
    # PYFUNCTYPE keeps the interpreter's lock: no other thread of ours enters a trial.
    prototype = ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_long)
    chain: Chain = prototype(address)
    return chain
