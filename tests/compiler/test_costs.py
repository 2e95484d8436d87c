"""Energy and peak memory are learned where boards recorded them, and only there."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.clusters import AnchorLatencies, DeviceClusters
from compiler.costs import fit_costs
from compiler.dataset import Run, Runs
from compiler.features import feature_names, physics_features
from compiler.pruning.widths import PruneSpace
from compiler.sampling import sample_widths
from compiler.surrogates import OutOfDomainError


def clusters() -> DeviceClusters:
    """A fast board with a power sensor and a slow one without."""
    median_ms = np.outer([1.0, 2.0], [1.0, 2.0, 3.0])
    noise = np.full(3, 0.005)
    latencies = AnchorLatencies(("a", "b"), ("x", "y", "z"), median_ms, noise, "0")
    return DeviceClusters(n_bootstrap=0).fit(latencies)


def run(board: str, model: str, ms: float, power_mw: float | None, peak: int | None) -> Run:
    return Run(
        run_id=f"{board}{model}", campaign_id="c", board_id=board, model_sha256=model,
        model_name=model, runtime="ort", precision="fp32", threads=1, repeat=0, valid=True,
        reasons=(), p50_ms=ms, latency_ms=(ms,), temp_c_before=None, temp_c_max=None,
        freq_khz=None, effective_freq_khz=None, governor=None, throttled=None, board_model=None,
        cores=None, runtime_version="1", simulated=True, power_mw=power_mw, peak_rss_bytes=peak,
    )  # fmt: skip


def test_each_quantity_where_it_was_recorded(mobile_space: PruneSpace) -> None:
    rng = np.random.default_rng(0)
    drawn = sample_widths(mobile_space, 32, 0)
    widths = {f"m{i:02d}": w for i, w in enumerate(drawn)}
    macs = [i for i, n in enumerate(feature_names(mobile_space)) if n.endswith(".macs")]
    runs = []
    for model, w in widths.items():
        x = physics_features(mobile_space, w)
        ms = (1 + x[macs].sum() / 4e6) * np.exp(rng.normal(0, 0.005))
        peak = round(60e6 + 4 * x.sum() / 100)
        runs += [run("a", model, ms, 4000.0, peak), run("b", model, 2 * ms, None, peak)]
    held_out = ["m05", "m10", "m20"]
    surrogates, facts = fit_costs(
        mobile_space, widths, held_out, Runs(tuple(runs), "runs.parquet", "0"), clusters(), 0
    )
    assert set(surrogates) == {("energy_mj", "c0"), ("peak_rss_mb", "c0"), ("peak_rss_mb", "c1")}
    by_cell = {(f["quantity"], f["cluster"]): f for f in facts}
    assert len(by_cell) == 4
    assert by_cell["energy_mj", "c0"]["heldout_mape"] < 0.05
    assert by_cell["energy_mj", "c0"]["n_heldout"] == 3
    assert "none of 29 runs on b recorded energy_mj" in by_cell["energy_mj", "c1"]["missing"]
    dense = physics_features(mobile_space, [mobile_space.dense_widths])
    energy_mj = surrogates["energy_mj", "c0"].predict(dense)[0][0]
    assert energy_mj == pytest.approx(4.0 * (1 + dense[0, macs].sum() / 4e6), rel=0.05)
    with pytest.raises(OutOfDomainError, match="lies outside what was measured"):
        surrogates["peak_rss_mb", "c1"].predict(10 * dense)
