"""Stored runs as a dataset folder: Parquet that pandas or DuckDB read alone, with provenance.

Input: a Store. Output: FOLDER/runs.parquet and FOLDER/dataset.json, replaced as a whole.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from device_agents.contract import SCHEMA_VERSION, DeviceProfile
from harness.energy import energy_uj
from harness.errors import StoreError
from harness.statistics import median_ns
from harness.store import Query, Store, StoredRun
from harness.store.migrating import REVISION

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Exported:
    """What was written. sha256: of runs.parquet."""

    folder: Path
    n_runs: int
    sha256: str
    simulated: bool


def export(
    store: Store,
    folder: Path,
    campaign_ids: Iterable[str] | None = None,
    *,
    include_invalid: bool = False,
    query: Query | None = None,
) -> Exported:
    """Write the dataset. Only valid runs unless asked; runs that failed have no latency to export.

    campaign_ids: instead of the query's. Raises StoreError when nothing fits or the folder holds
    something else.
    """
    asked = replace(query or Query(), valid=None if include_invalid else True)
    if campaign_ids is not None:
        asked = replace(asked, campaign_ids=tuple(sorted(campaign_ids)))
    profiles = store.profiles()
    rows = [_row(run, profiles) for run in store.find(asked) if run.record.latency_ns]
    if not rows:
        raise StoreError(
            f"{store.address}: no {'' if include_invalid else 'valid '}run of "
            f"{', '.join(asked.campaign_ids or ()) or 'any campaign'} fits. Next: fleetcut results"
        )
    if folder.exists() and not (folder / "dataset.json").exists() and any(folder.iterdir()):
        raise StoreError(f"{folder}: holds other files. Next: name an empty folder")
    import pandas as pd  # slow to import, and no other verb needs it

    frame = pd.DataFrame(rows).sort_values("run_id", ignore_index=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        digest = _write(staging, frame, str(store.address), asked)
        _replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Exported(folder, len(frame), digest, bool(frame["simulated"].any()))


def _write(folder: Path, frame: pd.DataFrame, source: str, asked: Query) -> str:
    frame.to_parquet(folder / "runs.parquet", engine="pyarrow", compression="zstd", index=False)
    digest = hashlib.sha256((folder / "runs.parquet").read_bytes()).hexdigest()
    provenance = {
        "schema": SCHEMA_VERSION,
        "runs_sha256": digest,
        "n_runs": len(frame),
        "campaign_ids": sorted(set(frame["campaign_id"])),
        "asked_campaign_ids": None if asked.campaign_ids is None else list(asked.campaign_ids),
        "include_invalid": asked.valid is None,
        "simulated": bool(frame["simulated"].any()),
        "runtime_versions": sorted(set(frame["runtime_version"].dropna())),
        "agent_sha256": sorted(set(frame["agent_sha256"])),
        "source": source,
        "query": asdict(asked),
        "versions": {
            "fleetcut": importlib.metadata.version("fleetcut"),
            "records": SCHEMA_VERSION,
            "tables": REVISION,
        },
        "counts": {
            "runs": len(frame),
            "valid": int(frame["valid"].sum()),
            "boards": int(frame["board_id"].nunique()),
            "models": int(frame["model_sha256"].nunique()),
            "samples": int(frame["n_samples"].sum()),
        },
        "model_sha256": sorted(set(frame["model_sha256"])),
        "profile_sha256": sorted(set(frame["profile_sha256"])),
    }
    (folder / "dataset.json").write_text(json.dumps(provenance, indent=1, sort_keys=True) + "\n")
    return digest


def _replace(staging: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(staging, folder)
        return
    # dataset.json goes last: its hash tells a reader whether both files belong together.
    for name in ("runs.parquet", "dataset.json"):
        os.replace(staging / name, folder / name)


def _row(run: StoredRun, profiles: dict[str, DeviceProfile]) -> dict[str, object]:
    record = run.record
    spec = record.spec
    before = record.states[0] if record.states else None
    profile = profiles.get(record.profile_sha256)
    temps_c = [t for t in (s.temp_c() for s in record.states) if t is not None]
    verdict = record.verdict
    # The states of a measured run: before the load, after warm-up, during the timed loop, after.
    during_mw = [s.power_mw for s in record.states[2:-1] if s.power_mw is not None]
    return {
        "run_id": record.run_id,
        "campaign_id": spec.campaign_id,
        "board_id": spec.board_id,
        "model_sha256": spec.model_sha256,
        "model_name": run.model_name,
        "runtime": spec.runtime,
        "precision": spec.precision,
        "threads": spec.threads,
        "repeat": spec.repeat,
        "valid": verdict is not None and verdict.valid,
        "reasons": ",".join(r.value for r in verdict.reasons) if verdict else "",
        "p50_ns": median_ns(record.latency_ns),
        "mean_ns": round(sum(record.latency_ns) / len(record.latency_ns)),
        "n_samples": len(record.latency_ns),
        "latency_ns": list(record.latency_ns),
        "load_ns": record.load_ns,
        "first_inference_ns": record.first_inference_ns,
        "temp_c_before": before.temp_c() if before else None,
        "temp_c_max": max(temps_c) if temps_c else None,
        "freq_khz": before.freq_khz() if before else None,
        "effective_freq_khz": before.effective_freq_khz if before else None,
        "effective_freq_khz_after": record.states[-1].effective_freq_khz if before else None,
        "power_mw": statistics.median(during_mw) if during_mw else None,
        "energy_uj": energy_uj(record),
        "battery_pct": before.battery_pct if before else None,
        "peak_rss_bytes": record.peak_rss_bytes,
        "governor": before.governor if before else None,
        "throttled": before.throttled if before else None,
        "profile_sha256": record.profile_sha256,
        "board_model": profile.model if profile else None,
        "machine": profile.machine if profile else None,
        "cores": profile.cores if profile else None,
        "isa_features": ",".join(profile.isa_features) if profile else None,
        "runtime_version": record.runtime_version,
        "agent_sha256": record.agent_sha256,
        "simulated": record.simulated,
    }
