"""The contract: one hash for one value, and nothing malformed is believed."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agents.contract import (
    ArtifactFile,
    BoardState,
    CodecError,
    Condition,
    MeasurementRecord,
    RunError,
    RunSpec,
    StoppingRule,
    Target,
    Verdict,
    canonical_json,
    decode,
    encode,
    to_plain,
)
from device_agents.contract.codec import from_plain

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def spec(**changes) -> RunSpec:
    return RunSpec(
        **{"campaign_id": "c", "board_id": "b", "model_sha256": "m", "runtime": "ort"} | changes
    )


def record(**changes) -> MeasurementRecord:
    fields = {
        "spec": spec(),
        "profile_sha256": "p",
        "agent_sha256": "a",
        "boot_id": None,
        "simulated": True,
        "started_unix_ns": 1,
        "states": (BoardState(5, temp_c_by_zone=(("cpu", None), ("gpu", 40.5))),),
        "latency_ns": (3, 4),
        "verdict": Verdict(True),
    }
    return MeasurementRecord(**fields | changes)


@pytest.mark.parametrize(
    "value",
    [
        spec(),
        spec(condition=Condition(freq_khz=600_000, temp_c_max=60.0), timeout_s=2.5),
        record(),
        record(latency_ns=(), verdict=None, error=RunError("timeout", "x", "y")),
    ],
)
def test_what_is_encoded_comes_back_equal(value):
    assert decode(type(value), encode(value)) == value


def test_the_run_id_is_of_the_content():
    assert spec().run_id == spec(timeout_s=60).run_id == decode(RunSpec, encode(spec())).run_id
    assert spec(repeat=1).run_id != spec().run_id
    assert spec(stopping=StoppingRule(samples_max=201)).run_id != spec().run_id


def test_a_record_holds_exactly_one_of_verdict_and_error():
    with pytest.raises(ValueError, match="exactly one"):
        record(error=RunError("timeout", "x", "y"))
    with pytest.raises(ValueError, match="exactly one"):
        record(verdict=None)
    with pytest.raises(ValueError, match="at least one latency"):
        record(latency_ns=())
    with pytest.raises(ValueError, match="positive"):
        record(latency_ns=(0,))


def test_a_newer_schema_says_what_to_do():
    document = json.loads(encode(spec())) | {"schema": 99}
    with pytest.raises(CodecError, match="update fleetcut"):
        decode(RunSpec, json.dumps(document))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("threads",), "1", "body.threads: is '1', expected int"),
        (("threads",), True, "expected int"),
        (("threads",), 0, "threads >= 1"),
        (("condition", "freq_khz"), 1.5, "body.condition.freq_khz"),
        (("condition",), [], "expected an object"),
        (("stopping", "samples_min"), 10_000, "sample bounds"),
        (("surprise",), 1, "body.surprise: is not a field of RunSpec"),
    ],
)
def test_what_does_not_fit_is_named(path, value, said):
    document = json.loads(encode(spec()))
    place = document["body"]
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(CodecError) as caught:
        decode(RunSpec, json.dumps(document))
    assert said in str(caught.value)


@given(junk=st.text(max_size=200) | st.binary(max_size=200))
def test_junk_is_an_error_and_never_a_traceback(junk):
    with pytest.raises(CodecError):
        decode(MeasurementRecord, junk)


@given(
    place=st.sampled_from(sorted(json.loads(encode(record()))["body"])),
    value=json_values,
)
def test_any_value_in_any_field_is_refused_or_fits(place, value):
    document = json.loads(encode(record()))
    document["body"][place] = value
    try:
        found = decode(MeasurementRecord, json.dumps(document))
    except CodecError as error:
        assert len(str(error)) < 400  # noqa: PT017 - either outcome is right
    else:
        assert isinstance(found, MeasurementRecord)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../b", "a//b", ".", "a/."])
def test_a_file_name_never_leaves_its_artifact(name):
    with pytest.raises(ValueError, match="leaves its folder"):
        ArtifactFile(name, "0" * 64, 1)


def test_one_value_has_one_hash():
    assert canonical_json({"b": 1.0, "a": (1, 2)}) == canonical_json({"a": [1, 2], "b": 1})
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json({"a": float("nan")})


def test_a_target_written_before_it_named_cpu_and_libc_keeps_its_hash():
    before = {
        "name": "pi", "machine": "aarch64", "os": "linux", "runtime": "ort",
        "precision": "fp32", "threads": 1,
    }  # fmt: skip
    target = from_plain(Target, before)
    assert canonical_json(target) == canonical_json(before)
    whole = dataclasses.replace(
        target, cpu="cortex-a72", libc="glibc 2.31", runtime_version="1.19.2"
    )
    assert from_plain(Target, to_plain(whole)) == whole
    assert b'"cpu":"cortex-a72"' in canonical_json(whole)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"precision": "fp16"}, "fp16"), ({"threads": 0}, "threads"), ({"libc": "2.31"}, "glibc 2")],
)
def test_a_target_that_means_nothing_is_refused(changes, said):
    plain = {"name": "pi", "machine": "aarch64", "os": "linux", "runtime": "ort"} | changes
    with pytest.raises(CodecError, match=said):
        from_plain(Target, plain)
