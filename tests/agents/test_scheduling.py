"""What the scheduler counted for a process that must share its CPU."""

import os
import signal

from device_agents.processes import fork
from device_agents.scheduling import Meter, cpu_times


def spin_until(enough) -> None:
    while not enough():
        sum(range(1000))


def run_for(ns: int) -> None:
    begin_ns = cpu_times([os.getpid()]).run_ns
    spin_until(lambda: cpu_times([os.getpid()]).run_ns - begin_ns > ns)


def test_a_process_that_shares_its_cpu_waits_as_long_as_it_runs():
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    rival = fork(lambda: spin_until(lambda: False), ())
    try:
        before = cpu_times([os.getpid()])
        run_for(100_000_000)
        after = cpu_times([os.getpid()])
    finally:
        os.kill(rival, signal.SIGKILL)
        os.waitpid(rival, 0)
        os.sched_setaffinity(0, cpus)
    ran_ns, waited_ns = after.run_ns - before.run_ns, after.wait_ns - before.wait_ns
    assert waited_ns > 0.2 * ran_ns


def test_several_processes_are_counted_together_and_each_once():
    own = os.getpid()
    once, twice = cpu_times([own]), cpu_times([own, own])
    assert twice.run_ns < 1.5 * once.run_ns
    assert cpu_times([own, os.getppid()]).run_ns >= once.run_ns


def test_a_process_that_is_gone():
    child = fork(lambda: None, ())
    os.waitpid(child, 0)
    assert cpu_times([child]) is None


def test_a_meter_sums_what_lies_between_start_and_stop(tree):
    ticks_per_s = os.sysconf("SC_CLK_TCK")

    def busy(ticks: int) -> None:
        tree.put({"proc/stat": f"cpu  {ticks} 0 0 0 0 0 0 0 0 0\n"})

    meter = Meter([os.getpid()], tree.root)
    for begin, end in ((100, 300), (900, 1000)):
        busy(begin)
        meter.start()
        run_for(20_000_000)
        busy(end)
        meter.stop()
    assert meter.busy_ns == 300 * 1_000_000_000 // ticks_per_s
    assert 40_000_000 <= meter.own_ns < 10_000_000_000
    assert meter.wait_ns >= 0


def test_a_look_that_tells_nothing_leaves_nothing_to_tell(tree):
    meter = Meter([os.getpid()], tree.root)
    meter.start()
    meter.stop()
    assert meter.busy_ns is None
    assert meter.own_ns is not None
    tree.put({"proc/stat": "cpu  1 0 0 0 0 0 0 0 0 0\n"})
    meter.start()
    meter.stop()
    assert meter.busy_ns is None
