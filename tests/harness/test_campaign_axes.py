"""Axes are multiplied, skipped and ordered as the file says, whatever the file says."""

import itertools
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_agents.contract import Condition
from harness.campaign import again, load_campaign
from harness.campaign_axes import is_canary, stretch_of
from harness.errors import DocumentError
from harness.inventory import load_inventory

BANDS = st.sampled_from([None, [45, 55], [65, 75], [None, 40], [80, None]])
CHARGES = st.sampled_from([None, [20, 40], [60, 100]])


def axis(values, most=2):
    return st.lists(values, min_size=1, max_size=most, unique_by=repr)


CONDITIONS = st.fixed_dictionaries(
    {},
    optional={
        "temp_c": axis(BANDS),
        "governor": axis(st.sampled_from([None, "performance", "powersave"])),
        "freq_khz": axis(st.sampled_from([None, 600_000, 1_500_000])),
        "power_mode": axis(st.sampled_from([None, "15W"])),
        "power_source": axis(st.sampled_from([None, "mains", "battery"])),
        "battery_pct": axis(CHARGES),
    },
)
CAMPAIGNS = st.fixed_dictionaries(
    {
        "version": st.just(1),
        "campaign_id": st.just("c1"),
        "seed": st.integers(0, 5),
        "models": st.just([{"name": n, "path": f"{n}.onnx"} for n in ("one", "two")]),
        "runtimes": axis(st.sampled_from(["ort", "tflite"])),
        "precision": axis(st.sampled_from(["fp32", "int8"])),
        "threads": axis(st.integers(1, 4)),
        "repeats": st.integers(1, 2),
        "conditions": CONDITIONS,
    },
    optional={
        "canary": st.fixed_dictionaries({"model": st.just("two"), "every": st.integers(1, 9)}),
        "operators": st.booleans(),
    },
)
OFTEN = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def lab(tmp_path):
    (tmp_path / "inventory.yaml").write_text(
        "version: 1\nboards:\n"
        "  - {board_id: a, model: m, host: h, user: u}\n"
        "  - {board_id: b, model: m, host: h, user: u}\n"
    )
    (tmp_path / "one.onnx").write_bytes(b"1")
    (tmp_path / "two.onnx").write_bytes(b"2")
    return tmp_path


def load(lab: Path, document: dict):
    path = lab / "campaign.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return load_campaign(path, load_inventory(lab / "inventory.yaml"))


def by_board(campaign) -> dict:
    return {
        b.board_id: [s for s in campaign.specs if s.board_id == b.board_id] for b in campaign.boards
    }


def cell(spec):
    return (spec.model_sha256, spec.runtime, spec.precision, spec.threads, spec.condition)


def document(**changes) -> dict:
    return {
        "version": 1,
        "campaign_id": "c1",
        "models": [{"name": "one", "path": "one.onnx"}, {"name": "two", "path": "two.onnx"}],
        "runtimes": ["ort"],
        **changes,
    }


def n_conditions(axes: dict) -> int:
    clocks = {(g, None) for g in axes.get("governor", [])} | {
        (None, f) for f in axes.get("freq_khz", [])
    }
    count = max(1, len(clocks))
    for name in ("temp_c", "power_mode", "power_source", "battery_pct"):
        count *= len(axes.get(name, [None]))
    return count


@OFTEN
@given(document=CAMPAIGNS)
def test_every_cell_in_every_repeat_and_every_run_once(lab, document):
    campaign = load(lab, document)
    assert len({s.run_id for s in campaign.specs}) == len(campaign.specs)
    cells = 2 * n_conditions(document["conditions"])
    for name in ("runtimes", "precision", "threads"):
        cells *= len(document[name])
    for specs in by_board(campaign).values():
        plain = [s for s in specs if not is_canary(s)]
        counts = Counter(map(cell, plain))
        assert len(counts) == cells
        assert set(counts.values()) == {document["repeats"]}
        assert [s.repeat for s in plain] == sorted(s.repeat for s in plain)
        assert {s.operators for s in plain} == {document.get("operators", False)}


@OFTEN
@given(document=CAMPAIGNS)
def test_the_order_is_the_seeds(lab, document):
    first = load(lab, document).specs
    assert load(lab, document).specs == first
    other = load(lab, {**document, "seed": document["seed"] + 1}).specs
    assert Counter(cell(s) for s in other if not is_canary(s)) == Counter(
        cell(s) for s in first if not is_canary(s)
    )


@OFTEN
@given(document=CAMPAIGNS)
def test_a_repeat_reaches_each_slow_state_once(lab, document):
    for specs in by_board(load(lab, document)).values():
        plain = [s for s in specs if not is_canary(s)]
        for _, repeat in itertools.groupby(plain, lambda s: s.repeat):
            stretches = [k for k, _ in itertools.groupby(stretch_of(s.condition) for s in repeat)]
            assert len(stretches) == len(set(stretches))
            charges = [k for k, _ in itertools.groupby(charge for charge, _ in stretches)]
            assert len(charges) == len(set(charges))


@OFTEN
@given(document=CAMPAIGNS.filter(lambda d: "canary" in d))
def test_a_canary_runs_first_last_and_after_every_n(lab, document):
    every = document["canary"]["every"]
    campaign = load(lab, document)
    two = campaign.models[1].sha256
    in_file_order = [s.condition for s in load(lab, {**document, "seed": 0}).specs]
    for specs in by_board(campaign).values():
        assert is_canary(specs[0])
        assert is_canary(specs[-1])
        lengths = [
            len(list(group)) for canary, group in itertools.groupby(specs, is_canary) if not canary
        ]
        assert set(lengths[:-1]) <= {every}
        assert 1 <= lengths[-1] <= every
        assert sum(map(is_canary, specs)) == len(lengths) + 1
        for before, canary in itertools.pairwise(specs):
            if is_canary(canary):
                assert stretch_of(canary.condition) == stretch_of(before.condition)
        canaries = [s for s in specs if is_canary(s)]
        assert {s.model_sha256 for s in canaries} == {two}
        assert {cell(s)[1:4] for s in canaries} == {
            (document["runtimes"][0], document["precision"][0], document["threads"][0])
        }
        assert len({s.condition for s in canaries}) <= len(set(map(stretch_of, in_file_order)))
        assert not any(s.operators for s in canaries)


def test_another_seed_gives_another_order(lab):
    axes = document(threads=[1, 2, 3], repeats=2, conditions={"temp_c": [[40, 50], [60, 70]]})
    assert [cell(s) for s in load(lab, {**axes, "seed": 1}).specs] != [
        cell(s) for s in load(lab, {**axes, "seed": 2}).specs
    ]


def test_a_canary_stays_under_the_first_condition_of_its_stretch(lab):
    axes = {"temp_c": [[45, 55], [65, 75]], "governor": ["powersave", "performance"]}
    specs = load(
        lab, document(repeats=3, conditions=axes, canary={"model": "one", "every": 2})
    ).specs
    assert {(s.condition.temp_c_min, s.condition.governor) for s in specs if is_canary(s)} == {
        (45.0, "powersave"),
        (65.0, "powersave"),
    }


def test_axes_become_conditions(lab):
    axes = {
        "temp_c": [[45, 55], None],
        "governor": ["performance"],
        "freq_khz": [600_000],
        "battery_pct": [[None, 40]],
    }
    found = {s.condition for s in load(lab, document(conditions=axes)).specs}
    assert found == {
        Condition(governor="performance", temp_c_min=45, temp_c_max=55, battery_pct_max=40),
        Condition(governor="performance", battery_pct_max=40),
        Condition(freq_khz=600_000, temp_c_min=45, temp_c_max=55, battery_pct_max=40),
        Condition(freq_khz=600_000, battery_pct_max=40),
    }
    assert {s.condition for s in load(lab, document(conditions={})).specs} == {Condition()}


def test_skipped_cells_are_left_out(lab):
    skipping = document(
        runtimes=["ort", "tflite"],
        precision=["fp32", "int8"],
        conditions={"governor": [None, "performance"]},
        skip=[{"runtime": "tflite", "precision": "int8"}, {"model": "one", "governor": None}],
    )
    campaign = load(lab, skipping)
    one = campaign.models[0].sha256
    cells = {
        (s.model_sha256 == one, s.runtime, s.precision, s.condition.governor)
        for s in campaign.specs
    }
    assert cells == {
        (is_one, runtime, precision, governor)
        for is_one in (True, False)
        for runtime, precision in (("ort", "fp32"), ("ort", "int8"), ("tflite", "fp32"))
        for governor in (None, "performance")
        if not (is_one and governor is None)
    }


def test_models_of_equal_bytes_are_measured_once(lab):
    (lab / "two.onnx").write_bytes(b"1")
    specs = load(lab, document()).specs
    assert [s.board_id for s in specs] == ["a", "b"]


def test_measured_again_neither_cells_nor_canaries_meet_old_numbers(lab):
    specs = load(lab, document(repeats=200, canary={"model": "one", "every": 3})).specs
    seen = {s.run_id for s in specs}
    total = len(seen)
    for attempt in range(1, 4):
        specs = again(specs, {s.run_id for s in specs}, attempt)
        seen |= {s.run_id for s in specs}
        assert len(seen) == total * (attempt + 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"conditions": {"temp": [[1, 2]]}}, ":11: conditions.temp: is not a key known here"),
        ({"conditions": {"temp": [[1, 2]]}}, "known keys are: battery_pct, freq_khz"),
        ({"conditions": {"a\nb": 1}}, "conditions.'a\\nb': is not a key known here"),
        ({"conditions": {"temp_c": []}}, "conditions.temp_c: list should have at least 1"),
        ({"conditions": {"temp_c": [[55, 45]]}}, "the band from 55 to 45 is empty"),
        ({"conditions": {"temp_c": [[55, 45]]}}, "'temp_c: [[45, 55], [65, 75]]'"),
        ({"conditions": {"temp_c": [[None, None]]}}, "a band without ends"),
        ({"conditions": {"temp_c": [[45]]}}, "conditions.temp_c[0]: list should have at least 2"),
        ({"conditions": {"temp_c": [[45, float("nan")]]}}, "should be a finite number"),
        ({"conditions": {"freq_khz": 600_000}}, "'freq_khz: [600000, 1500000]'"),
        ({"conditions": {"freq_khz": [1, 1]}}, "1 stands twice"),
        ({"conditions": {"battery_pct": [[20, 120]]}}, "conditions.battery_pct[0][1]"),
        (
            {"conditions": {"freq_khz": [*range(1, 201)], "power_mode": [*map(str, range(60))]}},
            "12000 conditions, more than 10000",
        ),
        ({"conditions": [{"temp_c_min": 60, "temp_c_max": 50}]}, "temp_c_min, temp_c_max from 60"),
        ({"conditions": [{}, {"freq_khz": 1}, {}]}, "conditions: {} stands twice"),
        ({"conditions": []}, "conditions: list should have at least 1 item"),
        ({"precision": "fp16"}, "precision[0]: input should be 'fp32' or 'int8'"),
        ({"threads": [2, 2]}, "threads: 2 stands twice"),
        ({"models": [{"name": "one", "path": "one.onnx"}] * 2}, "models: one stands twice"),
        ({"skip": [{}]}, "skip[0]: an entry without keys"),
        ({"skip": [{"runtime": "tflite"}]}, "skip[0]: fits no cell"),
        ({"skip": [{"runtime": "ort"}]}, "skip: leaves no cell"),
        ({"canary": {"model": "three", "every": 2}}, "canary.model: 'three' has no cell"),
        (
            {"canary": {"model": "one", "every": 2}, "skip": [{"model": "one"}]},
            "canary.model: 'one'",
        ),
        ({"canary": {"model": "one", "every": 0}}, "canary.every: input should be greater"),
        ({"canary": {"model": "one", "every": 1}, "repeats": 1000}, "write 'every: 3' or more"),
        ({"repeats": 1000, "threads": [*range(1, 64)]}, "multiply to 126000 runs on a board"),
    ],
)
def test_mistakes_name_the_key_and_what_to_write(lab, changes, said):
    with pytest.raises(DocumentError) as caught:
        load(lab, document(**changes))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
