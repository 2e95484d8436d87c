"""Training and distillation are reproducible to the byte; figures mean what they say."""

import dataclasses

import pytest
import torch
from torch import nn

from compiler import data, networks, training, weights
from compiler.training import Distillation, TrainSettings


def tiny(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stem = networks.ConvBlock(3, 8, 3, stride=2)
        blocks = [networks.SeparableBlock(8, 16, 2), networks.SeparableBlock(16, 32, 1)]
        return networks.Classifier(stem, blocks, 32, classes=10)


@pytest.fixture(scope="module")
def splits():
    whole = data.load("digits", seed=0)
    return dataclasses.replace(whole, train_x=whole.train_x[:320], train_y=whole.train_y[:320])


@pytest.fixture(scope="module")
def teacher(splits):
    network = tiny()
    training.train(network, splits, TrainSettings(epochs=8, lr=0.03, augment=False))
    return network


def sha(network):
    return weights.sha256(network.state_dict())


def test_the_same_seed_gives_the_same_bytes(splits):
    digests = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(digests))  # what the caller did before must not matter
        network = tiny()
        training.train(network, splits, TrainSettings(epochs=2, seed=seed))
        digests.append(sha(network))
    assert digests[0] == digests[1] != digests[2]


def test_training_leaves_the_callers_generator_alone(splits):
    before = torch.random.get_rng_state()
    training.train(tiny(), splits, TrainSettings(epochs=1, batch=160))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_progress_tells_each_epoch(splits):
    told = []
    settings = TrainSettings(epochs=2, augment=False)
    result = training.train(tiny(), splits, settings, lambda *step: told.append(step))
    assert [(done, total) for done, total, _ in told] == [(1, 2), (2, 2)]
    last = dict(told[-1][2])
    assert last.pop("seconds_left") == 0
    assert told[0][2]["seconds_left"] > 0
    assert last == {"train_loss": result.train_loss, "val_accuracy": result.val_accuracy}
    assert told[1][2]["train_loss"] < told[0][2]["train_loss"]


def test_training_learns_and_leaves_eval_mode(splits, teacher):
    assert not teacher.training
    assert training.evaluate(teacher, splits.test_x, splits.test_y) > 0.6


def test_distillation_moves_the_student_towards_the_teacher(splits, teacher):
    def distance(student):
        with torch.inference_mode():
            return float((student(splits.val_x) - teacher(splits.val_x)).abs().mean())

    before = sha(teacher)
    student, again = tiny(seed=1), tiny(seed=1)
    untrained = distance(student.eval())
    teacher.train()
    settings, soft = TrainSettings(epochs=2, lr=0.02), Distillation(alpha=1.0)
    training.distil(student, teacher, splits, settings, soft)
    assert teacher.training
    teacher.eval()
    assert sha(teacher) == before
    assert distance(student) < untrained
    training.distil(again, teacher, splits, settings, soft)
    assert sha(again) == sha(student)


def test_accuracy_is_a_fraction_and_the_mode_is_put_back():
    class Says(nn.Module):
        def forward(self, x):
            assert not self.training
            return nn.functional.one_hot(x[:, 0, 0, 0].long(), 4).float()

    network = Says()
    x = torch.arange(300).remainder(4).float().reshape(-1, 1, 1, 1)
    y = torch.arange(300).remainder(4)
    y[:75] = 3 - y[:75]
    assert training.evaluate(network, x, y) == pytest.approx(225 / 300)
    assert network.training
    with pytest.raises(ValueError, match="labels as pictures"):
        training.evaluate(network, x[:0], y[:0])
    with pytest.raises(ValueError, match="labels as pictures"):
        training.evaluate(network, x, y[:5])


def test_recalibration_takes_statistics_of_the_pictures_and_nothing_else():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)).eval()
    x = torch.randn(200, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 2
    training.recalibrate_batch_norm(network, x)
    norm = network[0]
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, x.var((0, 2, 3)))
    assert norm.momentum == 0.1
    assert not any(module.training for module in network.modules())
    assert torch.equal(norm.weight, torch.ones(3))
    with pytest.raises(ValueError, match="two pictures"):
        training.recalibrate_batch_norm(network, x[:1])


def test_recalibration_repairs_wrong_statistics(splits, teacher):
    broken = tiny()
    broken.load_state_dict(teacher.state_dict())
    for module in broken.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    training.recalibrate_batch_norm(broken, splits.train_x)
    whole = training.evaluate(teacher, splits.val_x, splits.val_y)
    assert training.evaluate(broken, splits.val_x, splits.val_y) > whole - 0.1


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch": 1}, {"lr": 0.0}, {"weight_decay": -1.0}, {"label_smoothing": 1.0}],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match="needed|lies in"):
        TrainSettings(**wrong)


def test_what_cannot_train_says_why(splits):
    with pytest.raises(ValueError, match="temperature"):
        Distillation(temperature=0.0)
    with pytest.raises(ValueError, match="do not fill a batch of 999"):
        training.train(tiny(), splits, TrainSettings(batch=999))
    network = tiny()
    with torch.no_grad():
        network.head.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="smaller lr"):
        training.train(network, splits, TrainSettings(epochs=1, augment=False, batch=160))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_mobilenet", "digits_resnet"])
def test_the_demos_networks_reach_97_percent(name):
    network, whole = networks.build(name, seed=0), data.load("digits", seed=0)
    training.train(network, whole, TrainSettings())
    assert training.evaluate(network, whole.test_x, whole.test_y) >= 0.97
