"""Starting weights: from the recipe into the dense stage, or refused with the way on."""

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from compiler import networks, weights
from compiler.compile import compile_fleet
from compiler.errors import CompilerError
from compiler.recipe import Recipe, RecipeTarget, Training
from compiler.work import read_json

NETWORK = """
from torch import nn
def tiny():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2),
    )
tiny.input_shape = (3, 16, 16)
"""
NAME = "startnet:tiny"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A network of one's own, and a folder of pictures larger than it takes."""
    (tmp_path / "startnet.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 4)):
        for name, level in (("dark", 60), ("light", 190)):
            for number in range(count):
                path = tmp_path / "pictures" / part / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.clip(rng.normal(level, 20, (24, 20, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(path)
    return tmp_path


def recipe(place, **changes):
    return Recipe(
        **{
            "version": 1,
            "name": "t",
            "networks": (NAME,),
            "dataset": f"imagefolder:{place / 'pictures'}",
            "training": Training(epochs=2, batch_size=8),
            "targets": (RecipeTarget(kind="onnx", name="here", machine="x86_64"),),
        }
        | changes
    )


def silent(*_step):
    pass


def test_starting_weights_are_kept_at_0_epochs_and_trained_on_otherwise(place):
    start = networks.build(NAME, seed=9).state_dict()
    digest = weights.save(start, place / "start.safetensors")
    given = {NAME: str(place / "start.safetensors")}
    as_they_are = recipe(place, weights=given, training=Training(epochs=0))
    compile_fleet(as_they_are, None, place / "kept", silent)
    facts = read_json(place / "kept" / "dense" / f"{NAME}.json")
    assert facts["started_from_sha256"] == facts["weights_sha256"] == digest
    compile_fleet(recipe(place, weights=given), None, place / "tuned", silent)
    facts = read_json(place / "tuned" / "dense" / f"{NAME}.json")
    assert facts["started_from_sha256"] == digest != facts["weights_sha256"]
    assert facts["val_accuracy"] == 1.0


def test_starting_weights_that_changed_since_are_refused(place):
    path = place / "start.safetensors"
    weights.save(networks.build(NAME, seed=9).state_dict(), path)
    asked = recipe(place, weights={NAME: str(path)}, training=Training(epochs=0))
    compile_fleet(asked, None, place / "work", silent)
    content = path.read_bytes()
    weights.save(networks.build(NAME, seed=8).state_dict(), path)
    with pytest.raises(CompilerError, match=r"start\.safetensors: changed since .*Next: .*--work"):
        compile_fleet(asked, None, place / "work", silent)
    path.write_bytes(content)
    compile_fleet(asked, None, place / "work", silent)
    path.unlink()
    compile_fleet(asked, None, place / "work", silent)


def test_a_data_parallel_torch_file_is_unwrapped(place):
    start = networks.build(NAME, seed=9).state_dict()
    wrapped = {f"module.{name}": tensor for name, tensor in start.items()}
    torch.save({"state_dict": wrapped}, place / "start.pth.tar")
    network = networks.build(NAME, seed=0)
    weights.load_into(network, place / "start.pth.tar", NAME)
    assert weights.sha256(network.state_dict()) == weights.sha256(start)


def test_weights_that_do_not_fit_are_named(place):
    network = networks.build(NAME, seed=0)
    state = network.state_dict()
    weights.save({n: t for n, t in state.items() if n != "5.bias"}, place / "less.safetensors")
    weights.save({**state, "5.bias": torch.zeros(3)}, place / "other.safetensors")
    (place / "junk.safetensors").write_bytes(b"junk")
    for file, message in {
        "less": r"less\.safetensors: does not fit startnet:tiny: .*5\.bias.*Next: ",
        "other": r"other\.safetensors: does not fit .*size mismatch for 5\.bias.*Next: ",
        "junk": "not a safetensors file",
        "none": r"none\.safetensors: cannot be read \(No such file.*Next: ",
    }.items():
        asked = recipe(place, weights={NAME: str(place / f"{file}.safetensors")})
        with pytest.raises(CompilerError, match=message) as caught:
            compile_fleet(asked, None, place / file, silent)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"resnet56": "x.th"}}, "weights for resnet56, which is not among"),
        ({"training": Training(epochs=0)}, "0 epochs leave startnet:tiny with random weights"),
        ({"fine_tuning": Training(epochs=0)}, "one epoch at least"),
    ],
)
def test_recipes_that_make_no_sense(place, changes, message):
    with pytest.raises(ValidationError, match=message):
        recipe(place, **changes)


def test_more_classes_than_the_network_tells_apart(place):
    for part in ("train", "test"):
        folder = place / "pictures" / part / "medium"
        folder.mkdir()
        for number in range(3):
            Image.new("RGB", (20, 24), (128, 128, number)).save(folder / f"{number}.png")
    with pytest.raises(CompilerError, match=r"tells 2 classes apart, .* has 3\. Next: "):
        compile_fleet(recipe(place), None, place / "work", silent)


def test_digits_for_a_network_of_another_size(place):
    with pytest.raises(CompilerError, match="the network takes 3x16x16"):
        compile_fleet(recipe(place, dataset="digits"), None, place / "work", silent)
