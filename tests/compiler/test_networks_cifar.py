"""ResNets in the published CIFAR-10 layout: the same function, the same names, prunable trunks."""

import io
import random
import tarfile
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from compiler import data, networks, weights
from compiler.cifar_resnet import PaddedShortcut, cifar_resnet
from compiler.pruning import groups, surgery
from compiler.training import evaluate

SHARED = Path(__file__).parents[3] / "shared" / "data"
WEIGHTS = SHARED / "resnet-cifar10" / "resnet56-4bfd9763.th"
PICTURES = SHARED / "cifar10-jpg" / "cifar10-jpg.tar.gz"
TEST_PER_CLASS = 100
TRAIN_PER_CLASS = 40


@pytest.mark.parametrize("channels", [16, 32])
def test_the_shortcut_is_option_a_to_the_last_bit(channels):
    x = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    side = channels // 2  # akamaster's planes // 4, planes being 2 · channels
    padded = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, side))
    assert torch.equal(PaddedShortcut(channels, 2 * channels)(x), padded)


def test_published_layout_is_loaded_with_padding_for_shortcuts(tmp_path):
    parent = networks.build("resnet20", seed=1)
    published = {
        f"module.{name}": tensor
        for name, tensor in parent.state_dict().items()
        if "shortcut" not in name and "num_batches" not in name
    }
    torch.save({"state_dict": published, "best_prec1": 90.0}, tmp_path / "r.th")
    network = networks.build("resnet20", seed=2)
    with torch.no_grad():
        network.layer2[0].shortcut.weight.fill_(3.0)
    weights.load_into(network, tmp_path / "r.th", "resnet20")
    assert weights.sha256(network.state_dict()) == weights.sha256(parent.state_dict())


def test_a_cut_network_must_bring_its_own_shortcuts():
    network = networks.build("resnet20", seed=0)
    space = groups.trace(network, (3, 32, 32), "resnet20")
    widths = [group.channels // 2 for group in space.groups]
    small = surgery.materialise("resnet20", space, [max(8, w // 8 * 8) for w in widths], seed=0)
    state = small.state_dict()
    small.load_state_dict(state)
    # Half of layer 3's shortcut has the shape of layer 2's whole one: no padding all the same.
    del state["layer3.0.shortcut.weight"]
    with pytest.raises(RuntimeError, match=r"layer3\.0\.shortcut\.weight"):
        small.load_state_dict(state)


def test_each_stage_has_a_trunk_and_each_block_an_inside():
    space = groups.trace(networks.build("resnet56", 0), (3, 32, 32), "resnet56")
    assert len(space.groups) == 3 + 27
    trunks = {g.name: g.channels for g in space.groups if not g.name.endswith(".conv1")}
    # The root of a group is the layer that runs first.
    assert trunks == {"conv1": 16, "layer2.0.conv2": 32, "layer3.0.conv2": 64}


def test_depths():
    assert len(cifar_resnet(8).layer1) == 1
    for depth in (2, 51, 57):
        with pytest.raises(ValueError, match="6 n"):
            cifar_resnet(depth)


@pytest.fixture
def some_of_cifar(tmp_path):
    """A seeded choice of the JPEG copy, laid out as it is."""
    if not WEIGHTS.exists() or not PICTURES.exists():
        pytest.skip(f"published weights and pictures are not below {SHARED}")
    generator = random.Random(0)
    wanted = {
        (part, f"{number:04d}.jpg")
        for part, of, count in (("test", 1000, TEST_PER_CLASS), ("train", 5000, TRAIN_PER_CLASS))
        for number in generator.sample(range(of), count)
    }
    with tarfile.open(fileobj=io.BytesIO(PICTURES.read_bytes())) as archive:
        for entry in archive:
            path = Path(entry.name)
            if (path.parts[0], path.name) in wanted:
                archive.extract(entry, tmp_path, filter="data")
    return tmp_path


def test_published_weights_classify_as_published(some_of_cifar):
    """83.2 % of the JPEG copy's 10,000 with ImageNet's normalisation, 82.8 % with the copy's own.

    Of 1,000, the standard error is 1.2 points.
    """
    splits = data.load(f"cifar10:{some_of_cifar}", seed=0, input_shape=(3, 32, 32))
    assert len(splits.test_x) == 10 * TEST_PER_CLASS
    network = networks.build("resnet56", seed=0)
    weights.load_into(network, WEIGHTS, "resnet56")
    assert 0.79 < evaluate(network, splits.test_x, splits.test_y) < 0.87
