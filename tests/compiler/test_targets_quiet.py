"""Converters are silenced, and what they said is told when they fail."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest

from compiler.targets import TargetError
from compiler.targets.quiet import contained
from device_agents.contract.artifacts import Target

TARGET = Target("pi", "aarch64", "linux", "tflite")


def test_nothing_reaches_either_stream(capfd):
    with contained(TARGET, "converting"):
        print("from Python")
        os.write(1, b"from C\n")
        os.write(2, b"a log from C++\n")
    print("after")
    assert capfd.readouterr() == ("after\n", "")


def test_a_failure_carries_the_step_the_cause_and_what_was_said():
    def convert() -> None:
        with contained(TARGET, "converting"):
            os.write(2, b"cannot lower aten::strange\n")
            raise RuntimeError("no lowering")

    with pytest.raises(TargetError) as refused:
        convert()
    assert str(refused.value).startswith("pi: converting failed (RuntimeError: no lowering)")
    assert "cannot lower aten::strange" in str(refused.value)
    assert isinstance(refused.value.__cause__, RuntimeError)


def test_streams_work_again_after_a_failure(capfd):
    with pytest.raises(TargetError), contained(TARGET, "converting"):
        raise RuntimeError
    os.write(1, b"heard\n")
    assert capfd.readouterr().out == "heard\n"


def test_a_target_error_passes_unchanged():
    original = TargetError(TARGET, "fact", "step")
    with pytest.raises(TargetError) as refused, contained(TARGET, "converting"):
        raise original
    assert refused.value is original


def test_only_known_deprecations_are_ignored():
    with contained(TARGET, "converting"):
        warnings.warn("read_text is deprecated. Use files()", DeprecationWarning, stacklevel=1)
    with pytest.raises(TargetError, match="something new"), contained(TARGET, "converting"):
        warnings.warn("something new is deprecated", DeprecationWarning, stacklevel=1)


def test_importing_the_targets_imports_no_framework():
    code = (
        "import sys, compiler.artifacts, compiler.targets;"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'litert_torch', 'executorch', 'jax',"
        " 'ai_edge_litert'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
