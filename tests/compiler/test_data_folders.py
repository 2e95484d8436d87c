"""Pictures from folders: read, split, normalised, augmented; mistakes named with the way on."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from compiler import data, image_data, training
from compiler.errors import CompilerError

CLASSES = ("ant", "bee", "cat")
TRAIN, TEST = 20, 4


def picture(path, width=32, height=32, level=128, seed=0):
    rng = np.random.default_rng([seed, level])
    pixels = np.clip(rng.normal(level, 30, (height, width, 3)), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    for position, name in enumerate(CLASSES):
        for part, count in (("train", TRAIN), ("test", TEST)):
            for number in range(count):
                path = tmp_path / part / name / f"{number:04d}.png"
                picture(path, level=60 + 60 * position, seed=number + 100 * (part == "test"))
    (tmp_path / "train" / "ant" / ".DS_Store").write_bytes(b"of no interest")
    return tmp_path


@pytest.fixture
def splits(root):
    return data.load(f"imagefolder:{root}", seed=0)


def keys(x):
    return {one.numpy().tobytes() for one in x[:]}


def test_parts_are_stratified_disjoint_and_whole(splits):
    assert torch.bincount(splits.train_y).tolist() == [18] * 3
    assert torch.bincount(splits.val_y).tolist() == [2] * 3
    assert torch.bincount(splits.test_y).tolist() == [TEST] * 3
    train, val, test = keys(splits.train_x), keys(splits.val_x), keys(splits.test_x)
    assert (len(train), len(val), len(test)) == (54, 6, 12)
    assert not train & val
    assert not (train | val) & test
    # In random order: what is recalibrated on the first of them sees every class.
    assert len(set(splits.train_y[:12].tolist())) == 3


def test_bytes_are_kept_and_normalised_floats_come_out(root, splits):
    assert splits.train_x.stored.dtype == torch.uint8
    everything = splits.train_x[:]
    assert everything.dtype == torch.float32
    assert everything.shape == splits.train_x.shape == (54, 3, 32, 32)
    assert everything.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (everything.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3
    # The test part is seen through the training part's figures.
    raw = torch.from_numpy(np.asarray(Image.open(root / "test" / "ant" / "0000.png")).copy())
    expected = (raw.permute(2, 0, 1) / 255 - splits.train_x.mean) / splits.train_x.std
    assert torch.allclose(splits.test_x[0], expected, atol=1e-6)
    assert torch.equal(splits.test_x[torch.tensor([3, 1])], splits.test_x[:][[3, 1]])
    assert torch.equal(torch.cat(list(splits.test_x.split(5))), splits.test_x[:])
    assert [len(part) for part in splits.test_x.split(5)] == [5, 5, 2]


def test_the_seed_decides_the_split(root, splits):
    again, other = (data.load(f"imagefolder:{root}", seed=seed) for seed in (0, 1))
    assert torch.equal(again.train_x.stored, splits.train_x.stored)
    assert torch.equal(again.val_x[:], splits.val_x[:])
    assert keys(other.train_x) != keys(splits.train_x)
    assert torch.equal(other.test_x.stored, splits.test_x.stored)


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 48, 40), (1, 32, 32)])
def test_pictures_are_brought_to_the_networks_shape(root, shape):
    picture(root / "train" / "bee" / "wide.png", width=100, height=37)
    found = data.load(f"imagefolder:{root}", seed=0, input_shape=shape)
    assert found.train_x.shape[1:] == found.test_x.shape[1:] == shape


def test_the_centre_of_a_large_picture_is_kept(tmp_path):
    pixels = np.zeros((64, 128, 3), dtype=np.uint8)
    pixels[:, 32:96] = 200
    Image.fromarray(pixels).save(tmp_path / "x.png")
    found = image_data._decode(tmp_path / "x.png", (3, 32, 32))
    assert found.shape == (32, 32, 3)
    assert found[:, 1:-1].min() == found.max() == 200


def test_it_trains_evaluates_and_recalibrates(splits):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip
    settings = training.TrainSettings(epochs=12, batch=9, lr=0.05)
    result = training.train(network, splits, settings)
    assert result.val_accuracy == 1.0
    training.recalibrate_batch_norm(network, splits.train_x[:20])
    assert training.evaluate(network, splits.test_x, splits.test_y) == 1.0


def test_small_pictures_are_shifted_and_flipped(splits):
    batch = splits.train_x[:1].repeat(64, 1, 1, 1)
    before = batch.clone()
    torch.manual_seed(0)
    first = data.augment(splits.name, batch)
    torch.manual_seed(0)
    assert torch.equal(data.augment(splits.name, batch), first)
    assert torch.equal(batch, before)
    assert first.shape == batch.shape
    padded = nn.functional.pad(batch[0], (4, 4, 4, 4))
    cuts = [padded[:, top : top + 32, left : left + 32] for top in range(9) for left in range(9)]
    allowed = torch.stack([flip for cut in cuts for flip in (cut, cut.flip(2))])
    chosen = [int((allowed == one).flatten(1).all(1).nonzero()[0]) for one in first]
    assert len(set(chosen)) > 30
    assert {index % 2 for index in chosen} == {0, 1}


def test_large_pictures_are_rescaled_cuts():
    batch = torch.randn(4, 3, 96, 80, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    first = image_data.augment_pictures(batch)
    torch.manual_seed(0)
    assert torch.equal(image_data.augment_pictures(batch), first)
    assert first.shape == batch.shape
    assert not torch.equal(first, batch)


def test_a_constant_channel_is_only_centred():
    stored = torch.full((2, 1, 4, 4), 51, dtype=torch.uint8)
    mean, std = image_data.normalisation(stored)
    assert (float(mean), float(std)) == (pytest.approx(0.2), 1.0)


def empty_class(root):
    (root / "train" / "dog").mkdir()


def no_picture(root):
    (root / "train" / "bee" / "notes.txt").write_text("not a picture")


def cut_short(root):
    path = root / "test" / "cat" / "0002.png"
    path.write_bytes(path.read_bytes()[:200])


def stray_file(root):
    (root / "train" / "readme.md").write_text("x")


def other_size(root):
    picture(root / "train" / "cat" / "z.png", width=40)


def other_size_in_test(root):
    for path in (root / "test").glob("*/*"):
        picture(path, width=16, height=16)


def lonely(root):
    for part in ("train", "test"):
        picture(root / part / "dog" / "0.png")


def only_in_test(root):
    picture(root / "test" / "dog" / "0.png")


def gone(root):
    (root / "test").rename(root / "validation")


MISTAKES = [
    (empty_class, r"train/dog: a class without pictures\. Next: "),
    (no_picture, r"train/bee/notes\.txt: not a picture \(UnidentifiedImageError\)\. Next: "),
    (cut_short, r"test/cat/0002\.png: not a picture .*Next: "),
    (stray_file, r"train/readme\.md: a file where class folders belong\. Next: "),
    (other_size, r"cat/z\.png: 40 x 32 pixels, .*ant/0000\.png has 32 x 32\. Next: "),
    (other_size_in_test, r"train/ are \(3, 32, 32\), in test/ \(3, 16, 16\)\. Next: "),
    (lonely, r"train/dog: one picture cannot both train and validate\. Next: "),
    (only_in_test, r"class dog is in one of train/ and test/ only\. Next: "),
    (gone, r"/test: no such folder, or nothing in it\. Next: .*train/CLASS/FILE"),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES, ids=[m.__name__ for m, _ in MISTAKES])
def test_mistakes_are_named_with_the_next_step(root, mistake, message):
    mistake(root)
    with pytest.raises(CompilerError, match=message) as caught:
        data.load(f"imagefolder:{root}", seed=0)
    assert "\n" not in str(caught.value)


def test_names_and_shapes_that_lead_nowhere(root):
    for kind in ("cifar10", "imagefolder"):
        with pytest.raises(CompilerError, match=rf"never downloaded\. Next: .*{kind}:PATH"):
            data.load(kind, seed=0)
    with pytest.raises(CompilerError, match="3 classes of .* are not CIFAR-10"):
        data.load(f"cifar10:{root}", seed=0)
    with pytest.raises(CompilerError, match=r"pictures of 3x32x32, the network takes 3x224x224"):
        data.load(f"cifar10:{root}", seed=0, input_shape=(3, 224, 224))
    with pytest.raises(CompilerError, match=r"digits has pictures of 3x32x32, .* takes 1x8x8"):
        data.load("digits", seed=0, input_shape=(1, 8, 8))
    with pytest.raises(CompilerError, match=r"1 or 3 channels, the network takes 4"):
        data.load(f"imagefolder:{root}", seed=0, input_shape=(4, 32, 32))
    with pytest.raises(CompilerError, match="choose one of digits, cifar10:PATH, imagefolder:PATH"):
        data.load("mnist", seed=0)
