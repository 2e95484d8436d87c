"""Digits: disjoint, stratified, normalised, reproducible; augmentation seeded and mild."""

import pytest
import torch

from compiler import data


@pytest.fixture(scope="module")
def splits():
    return data.load("digits", seed=0)


def test_parts_are_stratified_and_cover_the_set(splits):
    sizes = len(splits.train_x), len(splits.val_x), len(splits.test_x)
    assert sum(sizes) == 1797
    assert sizes[2] == 450
    for labels in (splits.train_y, splits.val_y, splits.test_y):
        counts = torch.bincount(labels, minlength=10)
        assert counts.min() >= 0.8 * len(labels) / 10


def test_pictures_fit_any_image_network(splits):
    assert splits.train_x.shape[1:] == (3, 32, 32)
    assert splits.train_x.dtype == torch.float32
    assert splits.train_y.dtype == torch.int64
    assert abs(float(splits.train_x.mean())) < 1e-4
    assert abs(float(splits.train_x.std()) - 1) < 1e-4


def test_no_test_picture_is_trained_on(splits):
    def keys(x):
        return {picture.numpy().tobytes() for picture in x}

    assert not keys(splits.test_x) & (keys(splits.train_x) | keys(splits.val_x))
    assert not keys(splits.val_x) & keys(splits.train_x)


def test_the_seed_decides_the_split(splits):
    again, other = data.load("digits", seed=0), data.load("digits", seed=1)
    assert torch.equal(again.test_x, splits.test_x)
    assert torch.equal(again.train_y, splits.train_y)
    assert not torch.equal(other.test_y, splits.test_y)


def test_augmentation_disturbs_each_picture_by_itself(splits):
    batch = splits.train_x[:1].repeat(4, 1, 1, 1)
    before = batch.clone()
    torch.manual_seed(0)
    first = data.augment("digits", batch)
    torch.manual_seed(0)
    assert torch.equal(data.augment("digits", batch), first)
    assert torch.equal(batch, before)
    assert first.shape == batch.shape
    assert not torch.equal(first[0], first[1])
    # Mild: still closer to its own picture than pictures of other digits are.
    assert (first - batch).abs().mean() < (splits.train_x[1:20] - batch[0]).abs().mean()


def test_unknown_data_set():
    with pytest.raises(ValueError, match="choose one of digits"):
        data.load("mnist", seed=0)
    with pytest.raises(ValueError, match="choose one of digits"):
        data.augment("mnist", torch.zeros(1, 3, 32, 32))
