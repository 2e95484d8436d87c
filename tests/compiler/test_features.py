"""Work and traffic counted by hand, and for many shapes at once as for each by itself."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.features import (
    CACHE_BYTES,
    QUANTITIES,
    feature_names,
    physics_features,
    total_macs,
)
from compiler.pruning.widths import Group, LayerShape, PruneSpace
from compiler.sampling import sample_widths


def test_a_network_small_enough_to_count_by_hand() -> None:
    space = PruneSpace(
        "tiny",
        (1, 3, 4, 4),
        (Group("a", 8, ()),),
        (
            LayerShape("conv", "conv", None, "a", 3, 8, 9, 16, 16),
            LayerShape("dw", "depthwise", "a", "a", 8, 8, 9, 16, 4),
            LayerShape("fc", "linear", "a", None, 8, 10, 1, 1, 1, in_repeat=4),
        ),
        ((4, 5, 8),),
    )
    features = dict(zip(feature_names(space), physics_features(space, (5,)), strict=True))
    assert features["conv.macs"] == 3 * 5 * 9 * 16
    assert features["conv.macs_pad8"] == 8 * 8 * 9 * 16
    assert features["conv.macs_pad16"] == 16 * 16 * 9 * 16
    assert features["conv.macs_out32"] == 3 * 32 * 9 * 16
    assert features["conv.read_bytes"] == 3 * 16 * 4
    assert features["conv.write_bytes"] == 5 * 16 * 4
    assert features["conv.weight_bytes"] == 3 * 5 * 9 * 4
    assert features["depthwise.macs"] == 5 * 9 * 4
    assert features["depthwise.macs_pad8"] == 8 * 9 * 4
    assert features["depthwise.weight_bytes"] == 5 * 9 * 4
    assert features["linear.macs"] == 5 * 4 * 10
    assert features["linear.weight_bytes"] == 5 * 4 * 10 * 4
    assert features["linear.read_bytes"] == 5 * 4 * 4
    assert features["conv9@16/1.macs_pad8"] == features["conv.macs_pad8"]
    assert features["depthwise9@4/4.macs"] == features["depthwise.macs"]
    assert len(features) == 2 * 3 * len(QUANTITIES) + len(CACHE_BYTES)


def test_a_batch_is_its_rows(mobile_space: PruneSpace) -> None:
    widths = sample_widths(mobile_space, 20, seed=3)
    batch = physics_features(mobile_space, widths)
    assert batch.shape == (20, len(feature_names(mobile_space)))
    assert np.array_equal(batch, np.stack([physics_features(mobile_space, w) for w in widths]))
    macs = total_macs(mobile_space, widths)
    assert macs.tolist() == [mobile_space.macs(w) for w in widths]
    names = feature_names(mobile_space)
    for of_a_stage in (False, True):
        columns = [n.endswith(".macs") and ("@" in n) == of_a_stage for n in names]
        assert np.array_equal(batch[:, columns].sum(axis=1), macs)


def test_a_1x1_convolution_is_a_kind_of_its_own(mobile_space: PruneSpace) -> None:
    kinds = list(dict.fromkeys(name.split(".")[0] for name in feature_names(mobile_space)))
    assert kinds[:4] == ["conv", "depthwise", "pointwise", "linear"]
    assert all("@" in stage for stage in kinds[4:-1])
    assert kinds[-1] == "network"


def test_weights_beyond_a_cache_are_those_that_it_cannot_hold() -> None:
    space = PruneSpace(
        "heavy",
        (1, 64, 2, 2),
        (Group("a", 1024, ()),),
        (
            LayerShape("first", "conv", None, "a", 64, 1024, 1, 4, 4),
            LayerShape("second", "linear", "a", None, 1024, 10, 1, 1, 1),
        ),
        ((8, 1024),),
    )
    small, large = physics_features(space, [[8], [1024]])
    names = feature_names(space)
    bytes_of_1024 = 4 * 1024 * (64 + 10)
    for cache_bytes in CACHE_BYTES:
        column = names.index(f"network.weights_beyond_{cache_bytes // 1024}_kib")
        assert small[column] == 0
        assert large[column] == max(bytes_of_1024 - cache_bytes, 0)


@pytest.mark.parametrize(
    "widths", [(8, 8), [[8] * 6], [[[8] * 7]], (0,) * 7, (8, 8, 8, -1, 8, 8, 8)]
)
def test_widths_that_do_not_fit_are_refused(mobile_space: PruneSpace, widths: object) -> None:
    with pytest.raises(ValueError, match="width"):
        physics_features(mobile_space, widths)  # type: ignore[arg-type]
