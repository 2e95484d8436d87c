"""A killed training goes on to the bytes of an unbroken one; another's checkpoint is refused."""

import dataclasses
import os
import signal
import subprocess
import sys

import pytest
import safetensors
import torch
from torch import nn

from compiler import data, devices, networks, training, weights
from compiler.checkpoints import Checkpoint
from compiler.training import Distillation, TrainSettings

EPOCHS = 3
SETTINGS = TrainSettings(epochs=EPOCHS, lr=0.02, seed=5)


class Killed(BaseException):
    pass


class Tiny(nn.Module):
    """Every kind of layer whose state or memory layout could get lost, and one that draws."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            networks.ConvBlock(3, 8, 3, stride=2),
            networks.SeparableBlock(8, 16, 2),
            nn.Dropout(0.2),
        )
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def tiny(seed=1):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tiny()


@pytest.fixture(scope="module")
def splits():
    whole = data.load("digits", seed=0)
    return dataclasses.replace(whole, train_x=whole.train_x[:160], train_y=whole.train_y[:160])


def sha(network):
    return weights.sha256(network.state_dict())


def run(kind, splits, checkpoint=None, progress=None, settings=SETTINGS):
    """Trained or distilled from the start or the checkpoint: (hash of the weights, result)."""
    network = tiny()
    if kind == "train":
        result = training.train(network, splits, settings, progress, checkpoint)
    else:
        result = training.distil(
            network, tiny(7), splits, settings, Distillation(), progress, checkpoint
        )
    return sha(network), result


@pytest.fixture(scope="module")
def unbroken(splits):
    return {kind: run(kind, splits) for kind in ("train", "distil")}


def kill_after(epoch):
    def progress(done, _total, _figures):
        if done == epoch:
            raise Killed

    return progress


@pytest.mark.parametrize("kind", ["train", "distil"])
@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_killed_after_any_epoch_it_ends_in_the_same_bytes(splits, unbroken, tmp_path, kind, epoch):
    checkpoint = Checkpoint(tmp_path / "c.safetensors")
    with pytest.raises(Killed):
        run(kind, splits, checkpoint, kill_after(epoch))
    told = []
    torch.manual_seed(99)  # what happened before must not matter
    found = run(kind, splits, checkpoint, lambda *step: told.append(step[0]))
    assert found == unbroken[kind]
    assert told == list(range(epoch + 1, EPOCHS + 1))


def test_killed_between_two_checkpoints_it_goes_back_to_the_first(splits, unbroken, tmp_path):
    checkpoint = Checkpoint(tmp_path / "c.safetensors", every=2)
    with pytest.raises(Killed):
        run("train", splits, checkpoint, kill_after(1))
    assert not checkpoint.path.exists()
    told = []
    assert run("train", splits, checkpoint, lambda *s: told.append(s[0])) == unbroken["train"]
    assert told == [1, 2, 3]
    assert run("train", splits, checkpoint, kill_after(3)) == unbroken["train"]


PROGRAM = """
import dataclasses, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import test_checkpoints as t
t.torch.set_num_threads(int(sys.argv[2]))  # as this process has them: sums depend on it
whole = t.data.load("digits", seed=0)
splits = dataclasses.replace(whole, train_x=whole.train_x[:160], train_y=whole.train_y[:160])
def progress(done, total, figures):
    print(done, flush=True)
    if done == 2:
        sys.stdin.read()
t.run("distil", splits, t.Checkpoint(Path(sys.argv[1])), progress)
"""


def test_a_process_killed_for_real_resumes_to_the_same_bytes(splits, unbroken, tmp_path):
    program = PROGRAM.format(folder=os.path.dirname(__file__))
    checkpoint = Checkpoint(tmp_path / "c.safetensors", note=pytest.fail)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(checkpoint.path), str(torch.get_num_threads())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["1\n", "2\n"]
        process.send_signal(signal.SIGKILL)
    told = []
    assert run("distil", splits, checkpoint, lambda *s: told.append(s[0])) == unbroken["distil"]
    assert told == [3]


@pytest.mark.parametrize("change", ["settings", "data", "weights", "teacher", "kind"])
def test_a_checkpoint_of_another_training_is_set_aside(splits, tmp_path, change):
    notes, told = [], []
    checkpoint = Checkpoint(tmp_path / "c.safetensors", note=notes.append)
    student, teacher, settings = tiny(), tiny(7), SETTINGS
    with pytest.raises(Killed):
        run("distil", splits, checkpoint, kill_after(2))
    assert notes == []
    if change == "settings":
        settings = dataclasses.replace(settings, lr=0.03)
    elif change == "data":
        y = splits.train_y.clone()
        y[0] = (y[0] + 1) % 10
        splits = dataclasses.replace(splits, train_y=y)
    elif change == "weights":
        student = tiny(2)
    elif change == "teacher":
        teacher = tiny(8)
    if change == "kind":
        training.train(student, splits, settings, lambda *s: told.append(s[0]), checkpoint)
    else:
        training.distil(
            student,
            teacher,
            splits,
            settings,
            Distillation(),
            lambda *s: told.append(s[0]),
            checkpoint,
        )
    assert told == [1, 2, 3]
    (note,) = notes
    assert "of other settings, data or weights: training starts anew" in note


def test_a_damaged_checkpoint_is_set_aside(splits, unbroken, tmp_path):
    notes = []
    checkpoint = Checkpoint(tmp_path / "c.safetensors", note=notes.append)
    checkpoint.path.write_bytes(b"half a file")
    assert run("train", splits, checkpoint) == unbroken["train"]
    assert notes == ["c.safetensors is damaged: training starts anew"]
    weights.save({"a": torch.zeros(1)}, checkpoint.path)
    assert run("train", splits, checkpoint) == unbroken["train"]
    assert len(notes) == 2


def test_a_checkpoint_is_plain_tensors_and_json(splits, tmp_path):
    checkpoint = Checkpoint(tmp_path / "c.safetensors")
    run("train", splits, checkpoint)
    with safetensors.safe_open(checkpoint.path, "pt") as file:
        names = list(file.keys())
        assert set(file.metadata()) == {"training"}
    assert {name.split("/")[0] for name in names} == {"network", "optimiser", "generator"}
    assert os.listdir(tmp_path) == ["c.safetensors"]


def test_bfloat16_trains_and_resumes_where_the_cpu_has_it(splits, tmp_path):
    settings = dataclasses.replace(SETTINGS, precision="bf16")
    try:
        devices.autocast_type(torch.device("cpu"), "bf16")
    except devices.PrecisionError:
        pytest.skip("this CPU has no bfloat16 arithmetic")
    checkpoint = Checkpoint(tmp_path / "c.safetensors")
    whole = run("distil", splits, settings=settings)
    with pytest.raises(Killed):
        run("distil", splits, checkpoint, kill_after(1), settings)
    assert run("distil", splits, checkpoint, settings=settings) == whole
    assert whole[0] != run("distil", splits)[0]
    assert whole[1].train_loss == pytest.approx(run("distil", splits)[1].train_loss, rel=0.1)


def test_precision_of_each_device(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert devices.autocast_type(cpu, "auto") is None
    assert devices.autocast_type(cuda, "fp32") is None
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert devices.autocast_type(cuda, "auto") is torch.float16
    with pytest.raises(devices.PrecisionError, match=r"no bfloat16.*Next: .*auto"):
        devices.autocast_type(cuda, "bf16")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert devices.autocast_type(cuda, "auto") is torch.bfloat16
    assert devices.autocast_type(cuda, "bf16") is torch.bfloat16
