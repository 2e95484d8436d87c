"""A campaign expands purely: the same file, boards and seed give the same runs."""

import hashlib
from pathlib import Path

import pytest

from harness.campaign import load_campaign
from harness.errors import DocumentError, HarnessError
from harness.inventory import load_inventory

INVENTORY = """\
version: 1
boards:
  - {board_id: a, model: m, host: h, user: u, labels: {room: x}}
  - {board_id: b, model: m, host: h, user: u}
"""
CAMPAIGN = """\
version: 1
campaign_id: c1
seed: 3
models: [{name: one, path: one.onnx}, {name: two, path: two.onnx}]
runtimes: [ort, tflite]
threads: [1, 2]
repeats: 3
conditions: [{}, {governor: performance}]
stopping: {samples_max: 50}
"""


@pytest.fixture
def inventory(tmp_path):
    (tmp_path / "inventory.yaml").write_text(INVENTORY)
    (tmp_path / "one.onnx").write_bytes(b"1")
    (tmp_path / "two.onnx").write_bytes(b"2")
    return load_inventory(tmp_path / "inventory.yaml")


def campaign(tmp_path: Path, text: str = CAMPAIGN) -> Path:
    path = tmp_path / "campaign.yaml"
    path.write_text(text)
    return path


def test_every_cell_on_every_board_once(tmp_path, inventory):
    loaded = load_campaign(campaign(tmp_path), inventory)
    assert len(loaded.specs) == 2 * 2 * 2 * 2 * 3 * 2
    assert len({spec.run_id for spec in loaded.specs}) == len(loaded.specs)
    assert {spec.stopping.samples_max for spec in loaded.specs} == {50}


def test_the_same_seed_gives_the_same_order_and_another_another(tmp_path, inventory):
    first = load_campaign(campaign(tmp_path), inventory).specs
    assert load_campaign(campaign(tmp_path), inventory).specs == first
    other = load_campaign(campaign(tmp_path, CAMPAIGN.replace("seed: 3", "seed: 4")), inventory)
    assert [s.model_sha256 for s in other.specs] != [s.model_sha256 for s in first]


def test_a_campaign_without_slow_states_keeps_the_order_that_it_always_had(tmp_path, inventory):
    loaded = load_campaign(campaign(tmp_path), inventory)
    names = loaded.model_names()
    order = "\n".join(
        f"{s.board_id} {names[s.model_sha256]} {s.runtime} {s.threads} {s.condition.governor} "
        f"{s.repeat}"
        for s in loaded.specs
    )
    assert hashlib.sha256(order.encode()).hexdigest()[:16] == "bff17a9a3febf752"


def test_each_board_has_its_own_order_and_each_repeat_holds_every_cell(tmp_path, inventory):
    specs = load_campaign(campaign(tmp_path), inventory).specs
    a = [s for s in specs if s.board_id == "a"]
    b = [s for s in specs if s.board_id == "b"]
    assert [s.model_sha256 for s in a] != [s.model_sha256 for s in b]
    assert [s.repeat for s in a] == [0] * 16 + [1] * 16 + [2] * 16


def test_boards_by_label(tmp_path, inventory):
    text = CAMPAIGN + "boards: {labels: {room: x}}\n"
    assert {s.board_id for s in load_campaign(campaign(tmp_path, text), inventory).specs} == {"a"}
    with pytest.raises(HarnessError, match="no board 'z'"):
        load_campaign(campaign(tmp_path, CAMPAIGN + "boards: {ids: [z]}\n"), inventory)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("runtimes: [ort, tflite]", "runtimes: [tensorflow]", ":5: runtimes[0]"),
        ("one.onnx}", "none.onnx}", "model 'one'"),
        ("{samples_max: 50}", "{samples_max: 5}", "sample bounds 30..5"),
        ("threads: [1, 2]", "threads: [0]", "threads[0]: input should be greater"),
        ("{governor: performance}", "{govenor: performance}", "known keys are: battery_pct_max"),
        ("campaign_id: c1", "campaign_id: ../x", ":2: campaign_id"),
    ],
)
def test_mistakes_say_where(tmp_path, inventory, old, new, said):
    assert old in CAMPAIGN
    with pytest.raises(DocumentError) as caught:
        load_campaign(campaign(tmp_path, CAMPAIGN.replace(old, new)), inventory)
    assert said in str(caught.value)
