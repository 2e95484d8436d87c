"""The schema that agent, harness and compiler agree on: standard library only, Python >= 3.8."""

from device_agents.contract.artifacts import (
    Artifact,
    ArtifactFile,
    BoardProof,
    Manifest,
    Release,
    Target,
)
from device_agents.contract.canonical import canonical_json, to_plain
from device_agents.contract.codec import (
    SCHEMA_VERSION,
    CodecError,
    decode,
    decode_object,
    encode,
)
from device_agents.contract.conditions import BoardState, Condition, Reason, Verdict
from device_agents.contract.records import (
    DeviceProfile,
    GoldenCheck,
    MeasurementRecord,
    RunError,
    RunSpec,
    StoppingRule,
    Switch,
)

__all__ = [
    "SCHEMA_VERSION",
    "Artifact",
    "ArtifactFile",
    "BoardProof",
    "BoardState",
    "CodecError",
    "Condition",
    "DeviceProfile",
    "GoldenCheck",
    "Manifest",
    "MeasurementRecord",
    "Reason",
    "Release",
    "RunError",
    "RunSpec",
    "StoppingRule",
    "Switch",
    "Target",
    "Verdict",
    "canonical_json",
    "decode",
    "decode_object",
    "encode",
    "to_plain",
]
