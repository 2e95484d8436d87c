"""The benchmark of faults counts what it says it counts, and plays a few for real."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks import faults
from benchmarks.faults_kinds import KINDS
from benchmarks.faults_lane import Lane, Result, _fault
from device_agents.contract import (
    BoardState,
    Condition,
    GoldenCheck,
    MeasurementRecord,
    RunError,
    RunSpec,
    Verdict,
)
from harness.executor import Work
from harness.store import Store

SPEC = RunSpec(
    "c", "b", "0" * 64, "ort", golden=GoldenCheck("1" * 64, "2" * 64, 1e-3),
    condition=Condition(governor="powersave"),
)  # fmt: skip
GOOD = MeasurementRecord(
    SPEC, "3" * 64, "4" * 64, "boot", True, 1, (BoardState(1, governor="powersave"),),
    latency_ns=(1, 2, 3), max_abs_err=0.0, verdict=Verdict(True),
)  # fmt: skip


def test_every_kind_is_played_in_turn_and_keeps_its_number():
    everything = faults.cases(3, None)
    assert len(everything) == 3 * len(KINDS)
    assert len(KINDS) * faults.EACH >= 200
    only = faults.cases(3, "reboot")
    assert len(only) == 3
    assert set(only) <= set(everything)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"spec": replace(SPEC, repeat=1)}, "was not asked for"),
        ({"max_abs_err": 0.1}, "0.1 off"),
        ({"max_abs_err": None}, "None off"),
        ({"max_abs_err": float("nan")}, "nan off"),
        ({"simulated": False}, "not called simulated"),
        ({"states": (BoardState(1, governor="performance"),)}, "ran under ['performance']"),
        ({"verdict": None, "latency_ns": (), "error": RunError("crashed", "x", "y")}, "crashed: x"),
    ],
)
def test_what_is_wrong_with_a_record(change, said):
    assert said in (found := _fault(replace(GOOD, **change), SPEC, frozenset()))
    assert bool(found) == bool(said)


def test_an_error_that_the_fault_excuses_is_right():
    record = replace(GOOD, verdict=None, latency_ns=(), error=RunError("crashed", "x", "y"))
    assert _fault(record, SPEC, frozenset({"crashed"})) == ""


def test_a_missing_record_counts_as_lost(tmp_path):
    store = Store(tmp_path / "a.db")
    store.add(GOOD, "tiny")
    store.close()
    missing = replace(SPEC, repeat=1)
    result = Result(0, "x", "b")
    work = Work("c", (), (SPEC, missing), {}, {})
    Lane._judge(object.__new__(Lane), tmp_path / "a.db", work, frozenset(), result)
    assert (result.lost, result.duplicated, result.wrong) == (1, 0, 0)
    assert not result.is_good


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="missing: root, to fill disks")
def test_the_quick_run_holds(tmp_path):
    out = tmp_path / "faults.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", "--quick", "--json", out],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    bars = json.loads(out.read_text())["bars"]
    assert all(bar["holds"] for bar in bars)
    assert sum(bar["op"] == "==" for bar in bars) == 5
