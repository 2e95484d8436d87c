"""What an agent rightly answers to each verb, plain data. Not a test: test_bad_*.py import it."""

import json

from device_agents.contract import (
    BoardState,
    DeviceProfile,
    MeasurementRecord,
    RunSpec,
    StoppingRule,
    Verdict,
    encode,
)

SPEC = RunSpec(
    campaign_id="c", board_id="pi4-01", model_sha256="0" * 64, runtime="ort", precision="fp32",
    threads=1, repeat=0, stopping=StoppingRule(), timeout_s=60.0,
)  # fmt: skip


def documents() -> dict[str, list]:
    """Good answers of each verb, as plain data."""
    profile = json.loads(encode(_profile()))
    record = json.loads(encode(_record()))
    return {
        "probe": [profile],
        "state": [json.loads(encode(_state()))],
        "check": [{"checks": [{"name": "python", "ok": True, "fact": "f", "next_step": "n"}]}],
        "has": [{"present": [], "missing": ["0" * 64]}],
        "clean": [{"removed": 0, "freed_bytes": 0, "blobs_bytes": 0, "free_bytes": 1 << 40,
                   "sessions": ["s"]}],
        "start": [{"session": "s", "state": "started", "pid": 3}],
        "busy": [{"session": "s", "state": "busy", "fence": "0123456789abcdef:3"}],
        "attach": [
            {"seq": 1, "event": "session", "agent_sha256": "0" * 64, "boot_id": "b",
             "profile": profile},
            {"seq": 2, "event": "run_started", "run_id": "r"},
            {"seq": 3, "event": "record", "run_id": "r", "record": record},
            {"seq": 4, "event": "finished"},
            {"event": "end", "state": "finished"},
        ],
        "install": [{"installed": "0" * 64, "previous": None, "signer": None, "note": ""}],
        "deployed": [{"deployed": [{"name": "n", "current": None, "previous": None}]}],
    }  # fmt: skip


def _profile() -> DeviceProfile:
    return DeviceProfile(
        hostname="h", machine="aarch64", model="m", soc="s", isa_features=("asimd",), cores=4,
        opp_freqs_khz=(600000,), memory_bytes=1 << 32, kernel="6", os="o", glibc="2.36",
        python="3.11.2", runtime_versions=(("onnxruntime", "1"),), boot_id="b", simulated=False,
    )  # fmt: skip


def _state() -> BoardState:
    return BoardState(monotonic_ns=5, temp_c_by_zone=(("cpu", 45.5),), governor="performance")


def _record() -> MeasurementRecord:
    return MeasurementRecord(
        spec=SPEC, profile_sha256="0" * 64, agent_sha256="0" * 64, boot_id="b", simulated=False,
        started_unix_ns=1, states=(_state(),), latency_ns=(5, 6, 7), load_ns=1,
        verdict=Verdict(valid=True),
    )  # fmt: skip


GOOD_REPLIES = documents()
