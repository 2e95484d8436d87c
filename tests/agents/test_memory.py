"""The peak of a process's memory: seen, started again, and None where nobody knows."""

import os
import subprocess
import sys

from device_agents.memory import peak_rss_bytes, reset_peak_rss

MB = 1_000_000


def test_the_peak_is_seen_after_it_is_gone_and_starts_again():
    me = os.getpid()
    assert reset_peak_rss(me)
    start = peak_rss_bytes(me)
    data = bytearray(60 * MB)
    del data
    high = peak_rss_bytes(me)
    assert high > start + 50 * MB
    assert reset_peak_rss(me)
    assert peak_rss_bytes(me) < high - 50 * MB


def test_another_process_has_its_own():
    code = "x = bytearray(40_000_000); print('up', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        assert peak_rss_bytes(child.pid) > 40 * MB
        child.communicate(b"\n")


def test_a_process_that_is_gone_is_unknown():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert peak_rss_bytes(child.pid) is None
    assert reset_peak_rss(child.pid) is False
