"""Weights: safetensors in and out, one identity, legacy files without running their code."""

import hashlib
import os
import pickle

import pytest
import torch

from compiler import weights


def state():
    generator = torch.Generator().manual_seed(0)
    return {
        "b.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "a.steps": torch.tensor(7),
        "c.bias": torch.zeros(0),
    }


def test_round_trip_and_identity(tmp_path):
    path = tmp_path / "deep" / "w.safetensors"
    digest = weights.save(state(), path)
    assert digest == weights.sha256(state()) == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = weights.load(path)
    assert {name: t.shape for name, t in loaded.items()} == {n: t.shape for n, t in state().items()}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state().items())
    assert sorted(os.listdir(path.parent)) == ["w.safetensors"]


def test_identity_ignores_order_and_memory_layout_but_no_value():
    shuffled = dict(reversed(state().items()))
    shuffled["b.weight"] = shuffled["b.weight"].contiguous(memory_format=torch.channels_last)
    assert weights.sha256(shuffled) == weights.sha256(state())
    changed = state()
    changed["b.weight"][0, 0, 0, 0] += 1e-6
    assert weights.sha256(changed) != weights.sha256(state())


def test_tied_tensors_are_stored_in_full(tmp_path):
    tensor = torch.ones(3)
    weights.save({"x": tensor, "y": tensor}, tmp_path / "w.safetensors")
    assert torch.equal(weights.load(tmp_path / "w.safetensors")["y"], tensor)


def test_legacy_torch_files(tmp_path):
    torch.save(state(), tmp_path / "plain.pt")
    torch.save({"state_dict": state(), "epoch": 3}, tmp_path / "nested.pth")
    digest = weights.sha256(state())
    assert weights.sha256(weights.load(tmp_path / "plain.pt")) == digest
    assert weights.sha256(weights.load(tmp_path / "nested.pth")) == digest


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("bomb-went-off",))


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Bomb()}, "bomb.pt")
    (tmp_path / "plain_bomb.pt").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.pt", "plain_bomb.pt"):
        with pytest.raises(weights.WeightsError, match=name):
            weights.load(tmp_path / name)
    assert not (tmp_path / "bomb-went-off").exists()


def test_files_that_hold_no_weights(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"not weights")
    with pytest.raises(weights.WeightsError, match=r"w\.safetensors: not a safetensors file"):
        weights.load(tmp_path / "w.safetensors")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(weights.WeightsError, match="not a state dict"):
        weights.load(tmp_path / "list.pt")
    for missing in ("none.safetensors", "none.pt"):
        with pytest.raises(FileNotFoundError):
            weights.load(tmp_path / missing)
