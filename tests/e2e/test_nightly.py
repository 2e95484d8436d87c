"""fleetcut nightly on simulated boards over real SSH: four things go wrong in one night, apart.

A board is slowed five times, so that no noise of a busy machine decides.
"""

import contextlib
import io
import json

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper
from prometheus_client.parser import text_string_to_metric_families

from fleetcut.cli import main
from harness.leases import Leases
from harness.store import BaselineCell, Store
from harness.virtual import rack
from harness.virtual.board import board_paths
from harness.virtual.spec import RackSpec, VirtualBoardSpec
from harness.virtual.tree import POLICY

CONV = "model=conv runtime=ort precision=fp32 threads=1"
BROKEN = "model=broken runtime=ort precision=fp32 threads=1"


def write_conv(path):
    shape = [1, 16, 32, 32]
    weights = np.random.default_rng(0).normal(size=(16, 16, 3, 3)).astype("float32")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weights, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))


class Lab:
    """A rack that is up, and the nightly job of its one campaign."""

    def __init__(self, folder):
        self.folder = folder
        self.inventory = folder / "rack" / "inventory.yaml"
        self.metrics = folder / "fleetcut.prom"

    def campaign(self, *models):
        document = {
            "version": 1,
            "campaign_id": "nightly",
            "models": [{"name": m, "path": f"{m}.onnx"} for m in models],
            "runtimes": ["ort"],
            "repeats": 8,
            "stopping": {"samples_min": 200, "samples_max": 200},
        }
        path = self.folder / "campaign.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def night(self, name, campaign, *more):
        """Exit status, the JSON answer."""
        argv = ["nightly", str(campaign), "--night", name, "--json"]
        argv += ["--inventory", str(self.inventory), "--store", str(self.folder / "lab.db")]
        argv += ["--out", str(self.folder / "pages"), "--metrics", str(self.metrics)]
        # A lax alpha asks for few pairs: on a busy machine many runs are not steady.
        argv += ["--tries", "3", "--alpha", "0.4", "--min-change", "1", *more]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            status = main(argv)
        return status, json.loads(out.getvalue())

    def baselines(self):
        with self.store() as store:
            return store.baselines("nightly")

    @contextlib.contextmanager
    def store(self):
        store = Store(self.folder / "lab.db")
        try:
            yield store
        finally:
            store.close()

    def root(self, board_id):
        return board_paths((self.folder / "rack").resolve(), board_id).root


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nightly")
    write_conv(folder / "conv.onnx")
    (folder / "broken.onnx").write_bytes(b"an upload that ended too soon")
    boards = tuple(
        VirtualBoardSpec(name, freqs_khz=(300_000, 1_500_000))
        for name in ("slowing", "dying", "weak")
    )
    rack.up(folder / "rack", RackSpec(boards=boards, seed=0))
    lab = Lab(folder)
    # A supply whose voltage is too low, as a Raspberry Pi's kernel tells it.
    alarm = lab.root("weak") / "sys/class/hwmon/hwmon7"
    alarm.mkdir(parents=True)
    (alarm / "name").write_text("rpi_volt\n")
    (alarm / "in0_lcrit_alarm").write_text("1\n")
    yield lab
    rack.down(folder / "rack")


def states(answer):
    return {(cell["board_id"], cell["model"]): cell["state"] for cell in answer["cells"]}


@pytest.fixture(scope="module")
def first(lab):
    """Exit status, answer, and the baselines that the night leaves."""
    return (*lab.night("n1", lab.campaign("conv")), lab.baselines())


@pytest.fixture(scope="module")
def second(lab, first):
    """A board slowed, one that refuses connections, one with a weak supply, a broken model."""
    (lab.root("slowing") / POLICY / "scaling_governor").write_text("powersave\n")
    inventory = yaml.safe_load(lab.inventory.read_text())
    (dying,) = [board for board in inventory["boards"] if board["board_id"] == "dying"]
    port, dying["port"] = dying["port"], 1
    lab.inventory.write_text(yaml.safe_dump(inventory))
    night = lab.night("n2", lab.campaign("conv", "broken"))
    dying["port"] = port
    lab.inventory.write_text(yaml.safe_dump(inventory))
    with lab.store() as store:
        return *night, store.summaries(["nightly.n2"]), Leases(store).uses(["dying"])


@pytest.fixture(scope="module")
def metrics(lab, second):
    """What Prometheus's own parser reads, by name."""
    return {f.name: f for f in text_string_to_metric_families(lab.metrics.read_text())}


@pytest.fixture(scope="module")
def resumed(lab, metrics):
    """The second night again, its dead board back."""
    night = lab.night("n2", lab.campaign("conv", "broken"))
    with lab.store() as store:
        return *night, store.summaries(["nightly.n2"])


def test_the_first_night_makes_the_baseline_of_what_can_be_believed(first):
    status, answer, baselines = first
    assert (status, answer["outcomes"]) == (13, ["invalid"])
    assert states(answer) == {
        ("slowing", "conv"): "new",
        ("dying", "conv"): "new",
        ("weak", "conv"): "invalid",
    }
    (weak,) = [cell for cell in answer["cells"] if cell["board_id"] == "weak"]
    assert "0 of 8 runs count" in weak["fact"]
    assert "under_voltage" in weak["fact"]
    assert baselines == {
        BaselineCell("slowing", CONV): "nightly.n1",
        BaselineCell("dying", CONV): "nightly.n1",
    }


def test_regression_dead_board_missing_and_invalid_are_told_apart(second):
    status, answer, _, (dying,) = second
    assert status == 10
    assert answer["outcomes"] == ["regression", "dead_board", "missing", "invalid"]
    assert states(answer) == {
        ("slowing", "conv"): "regression",
        ("slowing", "broken"): "missing",
        ("dying", "conv"): "dead",
        ("dying", "broken"): "dead",
        ("weak", "conv"): "invalid",
        ("weak", "broken"): "missing",
    }
    cells = {(cell["board_id"], cell["model"]): cell for cell in answer["cells"]}
    slower = cells["slowing", "conv"]
    assert slower["baseline_night"] == "nightly.n1"
    assert slower["row"]["change"] > 1
    assert slower["again"]["change"] > 1
    assert "model: " in cells["slowing", "broken"]["fact"]
    dead = {board["board_id"]: board["failure"] for board in answer["boards"] if board["failure"]}
    assert list(dead) == ["dying"]
    assert "Next:" in dead["dying"]
    assert dying.state == "quarantined"
    assert answer["simulated"] is True


def test_the_metrics_are_what_prometheus_reads(lab, metrics):
    assert metrics["fleetcut_runs"].type == "counter"
    totals = {sample.name for sample in metrics["fleetcut_runs"].samples}
    assert totals == {"fleetcut_runs_total"}
    up = {s.labels["board"]: s.value for s in metrics["fleetcut_board_up"].samples}
    assert up == {"slowing": 1.0, "dying": 0.0, "weak": 1.0}
    happened = {s.labels["outcome"] for s in metrics["fleetcut_nightly_outcome"].samples if s.value}
    assert happened == {"regression", "dead_board", "missing", "invalid"}
    (change,) = metrics["fleetcut_nightly_latency_change_ratio"].samples
    assert (change.labels["board"], change.labels["model"]) == ("slowing", "conv")
    assert change.value > 1
    assert list(lab.metrics.parent.glob("fleetcut.prom*")) == [lab.metrics]


def test_the_page_says_it_to_a_person(lab, second):
    page = (lab.folder / "pages" / "nightly.n2" / "report.html").read_text()
    for text in ("Something got slower", "A board is dead", "Results are missing", "simulated"):
        assert text in page
    assert "http" not in page


def test_the_same_night_goes_on_once_the_board_is_back(lab, second, resumed):
    status, answer, runs = resumed
    assert (status, answer["outcomes"]) == (10, ["regression", "missing", "invalid"])
    assert states(answer)["dying", "conv"] in ("same", "unclear", "faster")
    before = {run.run_id for run in second[2]}
    new = {run.board_id for run in runs if run.run_id not in before}
    assert new == {"dying"}
    assert lab.baselines()[BaselineCell("slowing", CONV)] == "nightly.n1"
    assert BaselineCell("slowing", BROKEN) not in lab.baselines()


def test_a_model_that_left_the_campaign_is_missing(lab, resumed):
    status, answer = lab.night("n2", lab.campaign("broken"))
    assert (status, answer["outcomes"]) == (12, ["missing"])
    gone = [cell["fact"] for cell in answer["cells"] if cell["model"] == "conv"]
    assert gone == ["has a baseline, and is not in the campaign any more"] * 2


def test_a_rebase_forgets_what_is_gone_and_an_earlier_night_may_be_named(lab, resumed):
    status, answer = lab.night("n2", lab.campaign("conv"), "--baseline", "nightly.n1")
    assert (status, answer["outcomes"]) == (10, ["regression", "invalid"])
    status, _ = lab.night("n2", lab.campaign("conv"), "--rebase")
    assert status == 10
    assert lab.baselines() == {
        BaselineCell("slowing", CONV): "nightly.n2",
        BaselineCell("dying", CONV): "nightly.n2",
    }
