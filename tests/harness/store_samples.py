"""A profile and records for tests of the store."""

from device_agents.contract import (
    BoardState,
    DeviceProfile,
    MeasurementRecord,
    RunSpec,
    Verdict,
)

PROFILE = DeviceProfile(
    hostname="b1",
    machine="aarch64",
    model="Raspberry Pi 4",
    soc=None,
    isa_features=("asimd",),
    cores=4,
    opp_freqs_khz=(600_000, 1_500_000),
    memory_bytes=1 << 30,
    kernel="6.1",
    os="Debian",
    glibc="2.36",
    python="3.11.2",
    runtime_versions=(("onnxruntime", "1.31.1"),),
    boot_id="x",
    simulated=True,
)


def record(
    repeat: int = 0, *, verdict=Verdict(True), error=None, campaign="c"
) -> MeasurementRecord:
    spec = RunSpec(campaign, "b1", "f" * 64, "ort", repeat=repeat)
    return MeasurementRecord(
        spec=spec,
        profile_sha256=PROFILE.sha256(),
        agent_sha256="a",
        boot_id="x",
        simulated=True,
        started_unix_ns=1,
        states=(
            BoardState(
                1,
                temp_c_by_zone=(("cpu", 50.0), ("gpu", None)),
                governor="ondemand",
                effective_freq_khz=1_500_000,
                battery_pct=80.0,
                power_mw=2000,
            ),
            BoardState(2, power_mw=9000),
            BoardState(3, temp_c_by_zone=(("cpu", 60.5),), power_mw=5000),
            BoardState(4, power_mw=None),
            BoardState(5, power_mw=5200),
            BoardState(6, effective_freq_khz=1_400_000, power_mw=3000),
        ),
        runtime_version="onnxruntime 1.31.1",
        peak_rss_bytes=70_000_000,
        latency_ns=() if error else (3_000_000, 1_000_000, 2_000_000),
        verdict=None if error else verdict,
        error=error,
    )
