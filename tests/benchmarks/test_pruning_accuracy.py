"""The parts of the accuracy benchmark: its peers, its search, what it trains, and its skip."""

import numpy as np
import pytest
import torch

from benchmarks import pruning_accuracy
from benchmarks.pruning_accuracy_data import absent, load
from benchmarks.pruning_accuracy_peers import peers
from benchmarks.pruning_accuracy_search import Bounds, Proxy, elites, resized
from benchmarks.pruning_accuracy_timing import interleaved_ms
from compiler import data, networks
from compiler.features import total_macs
from compiler.pruning.groups import trace
from compiler.training import TrainSettings, train


@pytest.fixture(scope="module")
def dense():
    torch.set_num_threads(1)
    return networks.build("resnet20", 0)


@pytest.fixture(scope="module")
def space(dense):
    return trace(dense, (3, 32, 32), "resnet20", width_step=4)


def _linear_ms(space):
    """Stands in for a surrogate: milliseconds in proportion to the work, 1 ms when dense."""
    dense_macs = space.macs(space.dense_widths)

    def predict(widths):
        ms = total_macs(space, widths) / dense_macs
        return ms, np.zeros(len(ms))

    return predict


def test_peers_lie_in_the_band_and_run(dense, space):
    dense_macs = space.macs(space.dense_widths)
    found = list(peers(dense, space, 0.485 * dense_macs, 0.5 * dense_macs, quick=True))
    assert {"uniform", "global"} <= {peer.name.split()[1] for peer in found}
    for peer in found:
        assert 0.485 * dense_macs <= peer.macs <= 0.5 * dense_macs
        assert peer.macs == space.macs(peer.widths) < dense_macs
        with torch.no_grad():
            assert peer.network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        # Its weights fit a network of these widths: so they are kept and loaded again.
        resized("resnet20", space, peer.widths).load_state_dict(peer.network.state_dict())
    assert all(p.shape == q.shape for p, q in zip(
        dense.parameters(), networks.build("resnet20", 0).parameters(), strict=True
    )), "the dense network was cut too"  # fmt: skip


def test_elites_are_within_the_bounds_best_first_and_the_same_for_a_seed(space):
    bounds = Bounds(macs=0.5 * space.macs(space.dense_widths), ms=0.495)

    def proxy(widths):
        return widths[0] / 16 * min(widths[-1], 40) / 40

    found = elites(space, _linear_ms(space), proxy, bounds, 20, seed=3)
    assert found == elites(space, _linear_ms(space), proxy, bounds, 20, seed=3)
    for elite in found:
        assert space.macs(space.check(elite.widths)) <= bounds.macs
        assert elite.ms <= bounds.ms
        assert elite.proxy == proxy(elite.widths)
    assert [e.proxy for e in found] == sorted((e.proxy for e in found), reverse=True)
    assert found[0].proxy > 0.9


def test_no_elites_where_nothing_is_fast_enough(space):
    bounds = Bounds(macs=0.5 * space.macs(space.dense_widths), ms=1e-6)
    assert elites(space, _linear_ms(space), lambda widths: 0.5, bounds, 2, seed=0) == []


def test_proxy_cuts_the_trained_network_and_asks_once():
    splits = data.load("digits", 0)
    network = networks.build("digits_resnet", 0)
    train(network, splits, TrainSettings(epochs=1, augment=False))
    space = trace(network, (3, 32, 32), "digits_resnet")
    proxy = Proxy(network, space, splits, 200)
    widths = tuple(g.channels // 2 for g in space.groups)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    assert 0.1 < proxy(widths) == proxy(widths) <= proxy(space.dense_widths) + 0.05
    assert proxy.n_evaluations == 2
    assert space.macs(widths) < space.macs(space.dense_widths)
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_latencies_come_round_by_round(space):
    smallest = [widths[0] for widths in space.widths_by_group]
    named = {
        "dense": resized("resnet20", space, space.dense_widths),
        "smallest": resized("resnet20", space, smallest),
    }
    ms = interleaved_ms(named, space.input_shape, rounds=3, runs=4)
    assert {name: taken.shape for name, taken in ms.items()} == {
        "dense": (3, 4),
        "smallest": (3, 4),
    }
    assert all((taken > 0).all() for taken in ms.values())


def test_fine_tuned_are_the_best_of_each_scope_or_all():
    proxies = {
        "torch-pruning uniform magnitude /1": 0.4,
        "torch-pruning uniform bn-scale /1": 0.5,
        "torch-pruning global magnitude /1": 0.6,
        "torch-pruning global magnitude /8": 0.3,
    }
    rows = [{"name": name, "proxy": proxy} for name, proxy in proxies.items()]
    best = ["torch-pruning uniform bn-scale /1", "torch-pruning global magnitude /1"]
    assert pruning_accuracy.chosen(rows, every=False) == best
    assert pruning_accuracy.chosen(rows, every=True) == list(proxies)


def test_absent_data_is_skipped_by_name_with_a_status_of_its_own(tmp_path, capsys):
    nowhere = tmp_path / "nowhere"
    status = pruning_accuracy.main(["--data", str(nowhere), "--work", str(tmp_path / "work")])
    assert status == pruning_accuracy.SKIPPED
    assert "pruning_accuracy skipped" in capsys.readouterr().out
    assert not (tmp_path / "work").exists()
    (nowhere / "train").mkdir(parents=True)
    assert str(tmp_path / "none.th") in str(absent(nowhere, tmp_path / "none.th"))


def test_a_work_folder_of_other_settings_is_refused(tmp_path):
    ask = pruning_accuracy.options
    pruning_accuracy.Run(ask(["--seed", "1"]), tmp_path)
    pruning_accuracy.Run(ask(["--seed", "1"]), tmp_path)
    with pytest.raises(pruning_accuracy.CompilerError, match="another --work"):
        pruning_accuracy.Run(ask(["--seed", "2"]), tmp_path)


def test_an_archive_is_unpacked_once_and_cut_evenly(tmp_path):
    import tarfile

    from PIL import Image

    for part, n in (("train", 4), ("test", 2)):
        for label in range(10):
            folder = tmp_path / "source" / part / str(label)
            folder.mkdir(parents=True)
            for number in range(n):
                Image.new("RGB", (32, 32), (20 * label, number, 0)).save(folder / f"{number}.png")
    root, work = tmp_path / "root", tmp_path / "work"
    root.mkdir()
    work.mkdir()
    with tarfile.open(root / "pictures.tar.gz", "w:gz") as archive:
        for part in ("train", "test"):
            archive.add(tmp_path / "source" / part, part)
    splits = load(root, work, 0, 16, 10)
    assert len(splits.train_x) == 16
    assert sorted(splits.test_y.tolist()) == list(range(10))
    assert len(load(root, work, 0, None, None).test_y) == 20
    assert len(list(work.iterdir())) == 1
