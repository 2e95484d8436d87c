"""The exported folder as the compiler reads it: one conversion, and refusals that name the fact."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.dataset import (
    COLUMNS,
    Dataset,
    DatasetError,
    make_dataset,
    measured_quantities,
    read_runs,
)


def row(run_id: str, **changes: Any) -> dict[str, Any]:
    full = {
        "run_id": run_id,
        "campaign_id": "c",
        "board_id": "pi4-01",
        "model_sha256": "m0",
        "model_name": "net-000",
        "runtime": "ort",
        "precision": "fp32",
        "threads": 1,
        "repeat": 0,
        "valid": True,
        "reasons": "",
        "p50_ns": 2_500_000,
        "mean_ns": 2_600_000,
        "n_samples": 3,
        "latency_ns": [2_400_000, 2_500_000, 2_900_000],
        "load_ns": 1,
        "first_inference_ns": 2,
        "temp_c_before": 41.5,
        "temp_c_max": None,
        "freq_khz": None,
        "effective_freq_khz": 1_500_000,
        "governor": None,
        "throttled": None,
        "profile_sha256": "p",
        "board_model": "Raspberry Pi 4",
        "cores": 4,
        "runtime_version": "1.31.1",
        "simulated": True,
    }
    return {**full, **changes}


def write(folder: Path, rows: list[dict[str, Any]], columns: list[str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    frame = pd.DataFrame(rows, columns=columns)
    frame.to_parquet(folder / "runs.parquet", engine="pyarrow")
    digest = hashlib.sha256((folder / "runs.parquet").read_bytes()).hexdigest()
    (folder / "dataset.json").write_text(json.dumps({"runs_sha256": digest}))
    return folder


def test_nanoseconds_become_milliseconds_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", [row("b", repeat=1), row("a")])
    runs = read_runs(folder)
    assert [run.run_id for run in runs.runs] == ["a", "b"]
    first = runs.runs[0]
    assert first.p50_ms == 2.5
    assert first.latency_ms == (2.4, 2.5, 2.9)
    assert first.temp_c_before == 41.5
    assert first.temp_c_max is None
    assert first.freq_khz is None
    assert first.throttled is None
    assert first.effective_freq_khz == 1_500_000
    assert runs.simulated
    assert runs.board_ids == ("pi4-01",)


def test_a_number_missing_in_some_rows_is_none_there_and_an_integer_elsewhere(
    tmp_path: Path,
) -> None:
    rows = [row("a", freq_khz=600_000, throttled=True), row("b", governor="performance")]
    first, second = read_runs(write(tmp_path / "d", rows)).runs
    assert (first.freq_khz, first.throttled, first.governor) == (600_000, True, None)
    assert (second.freq_khz, second.throttled, second.governor) == (None, None, "performance")


def test_only_valid_runs_unless_asked(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "d", [row("a"), row("b", valid=False, reasons="throttled,not_steady")]
    )
    assert len(read_runs(folder).runs) == 1
    invalid = read_runs(folder, include_invalid=True).runs[1]
    assert invalid.reasons == ("throttled", "not_steady")


def test_select_names_what_was_asked(tmp_path: Path) -> None:
    runs = read_runs(write(tmp_path / "d", [row("a"), row("b", board_id="pi4-02")]))
    assert runs.select(board_ids=["pi4-02"]).board_ids == ("pi4-02",)
    assert len(runs.select(campaign_ids=["c"], model_names=["net-000"], runtime="ort").runs) == 2
    with pytest.raises(DatasetError, match=r"none of its 2 runs has boards \['pi9'\], threads 4"):
        runs.select(board_ids=["pi9"], threads=4)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    whole = row("a")
    del whole[column]
    with pytest.raises(DatasetError, match=rf"runs\.parquet: lacks the columns {column}\."):
        read_runs(write(tmp_path / "d", [whole]))


@pytest.mark.parametrize(
    ("rows", "fact"),
    [
        ([], "holds no run"),
        ([row("a", valid=False)], "none of its 1 runs is valid"),
        ([row("a", p50_ns=0)], "run a on pi4-01 holds a latency that is not > 0 ns"),
        ([row("a", latency_ns=[5, -1])], "not > 0 ns"),
        ([row("a", latency_ns=[])], "not > 0 ns"),
        (
            [row("a"), row("b", board_id="pi4-02", runtime_version="1.19.2")],
            "runs of ort in 2 versions: 1.19.2 on pi4-02; 1.31.1 on pi4-01",
        ),
        ([row("a"), row("b", runtime_version=None)], "1.31.1 on pi4-01; unknown on pi4-01"),
    ],
)
def test_what_cannot_be_used_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], fact: str
) -> None:
    with pytest.raises(DatasetError, match=fact) as caught:
        read_runs(write(tmp_path / "d", rows, list(row("a"))))
    assert str(tmp_path) in str(caught.value)
    assert "Next: " in str(caught.value)


def test_two_runtimes_with_a_version_each_are_no_mixture(tmp_path: Path) -> None:
    rows = [row("a"), row("b", runtime="tflite", runtime_version="2.3.0")]
    assert len(read_runs(write(tmp_path / "d", rows)).runs) == 2


def test_files_that_are_missing_cut_or_of_two_exports_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"dataset\.json: cannot be read"):
        read_runs(tmp_path)
    folder = write(tmp_path / "d", [row("a")])
    (folder / "runs.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(DatasetError, match="not of one export"):
        read_runs(folder)
    digest = hashlib.sha256(b"PAR1 cut").hexdigest()
    (folder / "dataset.json").write_text(json.dumps({"runs_sha256": digest}))
    with pytest.raises(DatasetError, match="not a Parquet file"):
        read_runs(folder)
    (folder / "runs.parquet").unlink()
    with pytest.raises(DatasetError, match="No such file"):
        read_runs(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", "7", '{"runs_sha256"'])
def test_a_bad_dataset_json_is_refused(tmp_path: Path, text: str) -> None:
    folder = write(tmp_path / "d", [row("a")])
    (folder / "dataset.json").write_text(text)
    with pytest.raises(DatasetError, match=r"dataset\.json: cannot be read"):
        read_runs(folder)


def test_make_dataset_has_a_row_a_run(tmp_path: Path) -> None:
    rows = [
        row("a", model_sha256="m1", p50_ns=1_000_000),
        row("b", model_sha256="m2", p50_ns=2_000_000),
        row("c", model_sha256="m2", p50_ns=4_000_000, board_id="pi4-02"),
        row("d", model_sha256="other"),
    ]
    runs = read_runs(write(tmp_path / "d", rows))
    x = {"m1": np.array([1.0, 0.0]), "m2": np.array([2.0, 0.0])}
    dataset = make_dataset(runs, x, ["macs", "bytes"])
    assert dataset.y_ms.tolist() == [1, 2, 4]
    assert dataset.x[:, 0].tolist() == [1, 2, 2]
    assert dataset.board_ids == ("pi4-01", "pi4-01", "pi4-02")
    assert dataset.source_sha256 == runs.source_sha256
    assert len(make_dataset(runs, x, ["macs", "bytes"], ["pi4-01"]).y_ms) == 2
    with pytest.raises(DatasetError, match=r"1 of 2 models have a run on pi4-02, 80% are needed"):
        make_dataset(runs, x, ["macs", "bytes"], ["pi4-02"])
    assert len(make_dataset(runs, x, ["macs", "bytes"], ["pi4-02"], min_measured=0.5).y_ms) == 1
    with pytest.raises(DatasetError, match="0 of 1 models"):
        make_dataset(runs, {"m9": np.zeros(2)}, ["macs", "bytes"], min_measured=0)


def test_make_dataset_mixes_no_threads(tmp_path: Path) -> None:
    runs = read_runs(write(tmp_path / "d", [row("a"), row("b", threads=4)]))
    with pytest.raises(DatasetError, match=r"ort fp32 1 threads, ort fp32 4 threads"):
        make_dataset(runs, {"m0": np.zeros(1)}, ["macs"])


def test_a_dataset_cannot_be_written_to() -> None:
    x = np.ones((2, 1))
    dataset = Dataset(x, np.ones(2), ("a", "b"), ("macs",), "0")
    x[0, 0] = 5
    assert dataset.x[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        dataset.y_ms[0] = 2


@pytest.mark.parametrize(
    ("x", "y_ms", "names", "fact"),
    [
        (np.ones((2, 1)), np.ones(3), ("a",), "do not belong together"),
        (np.ones((0, 1)), np.ones(0), ("a",), "no run"),
        (np.ones((2, 2)), np.ones(2), ("a", "a"), "names"),
        (np.ones((2, 2)), np.ones(2), ("a",), "names"),
        (np.array([[1.0], [np.nan]]), np.ones(2), ("macs",), "macs of run 1 is not finite"),
        (np.ones((2, 1)), np.array([1.0, 0.0]), ("a",), "positive"),
    ],
)
def test_a_dataset_that_does_not_hold_together_is_refused(
    x: np.ndarray, y_ms: np.ndarray, names: tuple[str, ...], fact: str
) -> None:
    with pytest.raises(DatasetError, match=fact):
        Dataset(x, y_ms, ("b",) * len(x), names, "0")


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=5))
def test_no_latency_that_is_not_a_positive_number_comes_in(values: list[float]) -> None:
    y_ms = np.asarray(values)
    if (np.isfinite(y_ms) & (y_ms > 0)).all():
        Dataset(np.ones((len(y_ms), 1)), y_ms, ("b",) * len(y_ms), ("f",), "0")
    else:
        with pytest.raises(DatasetError, match="positive"):
            Dataset(np.ones((len(y_ms), 1)), y_ms, ("b",) * len(y_ms), ("f",), "0")


def test_energy_and_memory_where_the_board_recorded_them(tmp_path: Path) -> None:
    rows = [
        row("a", power_mw=4000.0, peak_rss_bytes=90_000_000, latency_ns=[2_000_000, 4_000_000]),
        row("b", board_id="pi4-02", power_mw=None, peak_rss_bytes=80_000_000),
    ]
    runs = read_runs(write(tmp_path / "d", rows))
    x = {"m0": np.ones(1)}
    energy = make_dataset(runs, x, ["f"], quantity="energy_mj")
    assert energy.board_ids == ("pi4-01",)
    # 4 W over a mean of 3 ms.
    assert energy.y.tolist() == [12.0]
    assert make_dataset(runs, x, ["f"], quantity="peak_rss_mb").y.tolist() == [90.0, 80.0]
    assert measured_quantities(runs, ["pi4-01"]) == ("latency_ms", "energy_mj", "peak_rss_mb")
    assert measured_quantities(runs, runs.board_ids) == ("latency_ms", "peak_rss_mb")
    with pytest.raises(DatasetError, match=r"none of 1 runs on pi4-02 recorded energy_mj\. Next:"):
        make_dataset(runs, x, ["f"], ["pi4-02"], quantity="energy_mj")
    with pytest.raises(DatasetError, match="holds energy_mj, not latency"):
        _ = energy.y_ms


def test_an_export_from_before_they_were_recorded_has_latency_only(tmp_path: Path) -> None:
    runs = read_runs(write(tmp_path / "d", [row("a")]))
    assert measured_quantities(runs, runs.board_ids) == ("latency_ms",)
    assert runs.runs[0].battery_pct is None
