"""The shapes a network can be cut to, and one chosen shape.

Input: what groups.py traced. Output: PruneSpace (every legal width vector) and PruningPlan (one
of them, with the channels that stay), both JSON; plain data, no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Widths = tuple[int, ...]
"""One width per group, in the order of PruneSpace.groups."""


@dataclass(frozen=True)
class Member:
    """A slice of one parameter tensor that goes with a group's channels.

    module: dotted name in the network. axis: 0 (outputs) or 1 (inputs).
    repeat: consecutive entries along the axis per channel (height · width after a flatten, else 1).
    """

    module: str
    axis: int
    repeat: int = 1


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together. channels: how many the dense network has."""

    name: str
    channels: int
    members: tuple[Member, ...]


@dataclass(frozen=True)
class LayerShape:
    """One weighted layer, enough to count its work at any widths.

    kind: "conv", "depthwise" or "linear". in_group, out_group: names of groups, None where the
    width is fixed. kernel_area: kh · kw. out_positions: output height · width. in_positions: the
    same of its input. in_repeat: entries per input channel (after a flatten).
    """

    name: str
    kind: str
    in_group: str | None
    out_group: str | None
    in_channels: int
    out_channels: int
    kernel_area: int
    in_positions: int
    out_positions: int
    in_repeat: int = 1

    def macs(self, c_in: int, c_out: int) -> int:
        """Multiply-accumulates of one inference at these channels."""
        fan_in = 1 if self.kind == "depthwise" else c_in * self.in_repeat
        return fan_in * c_out * self.kernel_area * self.out_positions


@dataclass(frozen=True)
class PruneSpace:
    """Every legal shape of one network.

    widths_by_group: for each group its legal widths, ascending, the dense width last.
    """

    network: str
    input_shape: tuple[int, ...]
    groups: tuple[Group, ...]
    layers: tuple[LayerShape, ...]
    widths_by_group: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if len(self.groups) != len(self.widths_by_group):
            raise ValueError("a prune space lists legal widths for every group")
        for group, widths in zip(self.groups, self.widths_by_group, strict=True):
            if not widths or list(widths) != sorted(set(widths)) or widths[-1] != group.channels:
                raise ValueError(
                    f"group {group.name}: legal widths {widths} must ascend to {group.channels}"
                )

    @property
    def dense_widths(self) -> Widths:
        return tuple(group.channels for group in self.groups)

    def index(self, group_name: str) -> int:
        """Position of a group in every width vector. Raises KeyError."""
        for position, group in enumerate(self.groups):
            if group.name == group_name:
                return position
        raise KeyError(group_name)

    def check(self, widths: Sequence[int]) -> Widths:
        """The same widths as a tuple. Raises ValueError naming the first illegal one."""
        if len(widths) != len(self.groups):
            raise ValueError(f"{len(widths)} widths for {len(self.groups)} groups")
        for group, legal, width in zip(self.groups, self.widths_by_group, widths, strict=True):
            if width not in legal:
                raise ValueError(f"group {group.name}: width {width} is not one of {legal}")
        return tuple(int(width) for width in widths)

    def layer_channels(self, widths: Sequence[int]) -> list[tuple[LayerShape, int, int]]:
        """(layer, input channels, output channels) at these widths, in the network's order."""
        by_name = {g.name: w for g, w in zip(self.groups, widths, strict=True)}
        return [
            (
                layer,
                layer.in_channels if layer.in_group is None else by_name[layer.in_group],
                layer.out_channels if layer.out_group is None else by_name[layer.out_group],
            )
            for layer in self.layers
        ]

    def macs(self, widths: Sequence[int]) -> int:
        """Multiply-accumulates of one inference at these widths."""
        return sum(layer.macs(c_in, c_out) for layer, c_in, c_out in self.layer_channels(widths))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> PruneSpace:
        """Raises ValueError for a document that is not a prune space."""
        try:
            data = json.loads(text)
            return cls(
                network=str(data["network"]),
                input_shape=tuple(data["input_shape"]),
                groups=tuple(
                    Group(g["name"], g["channels"], tuple(Member(**m) for m in g["members"]))
                    for g in data["groups"]
                ),
                layers=tuple(LayerShape(**layer) for layer in data["layers"]),
                widths_by_group=tuple(tuple(w) for w in data["widths_by_group"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a prune space: {error}") from None


@dataclass(frozen=True)
class PruningPlan:
    """Which channels stay: the whole of what surgery needs.

    kept_by_group: (group name, ascending channel indices of the dense network).
    parent_sha256: hash of the dense weights that the indices refer to.
    predicted_ms_by_cluster: (cluster label, ms).
    """

    network: str
    parent_sha256: str
    kept_by_group: tuple[tuple[str, tuple[int, ...]], ...]
    predicted_ms_by_cluster: tuple[tuple[str, float], ...]
    seed: int

    def widths(self, space: PruneSpace) -> Widths:
        """The plan's width vector. Raises ValueError where it does not fit the space."""
        kept: Mapping[str, tuple[int, ...]] = dict(self.kept_by_group)
        names = [group.name for group in space.groups]
        if sorted(kept) != sorted(names):
            raise ValueError(f"plan covers groups {sorted(kept)}, the space has {sorted(names)}")
        for group in space.groups:
            indices = kept[group.name]
            if list(indices) != sorted(set(indices)) or not indices:
                raise ValueError(f"group {group.name}: kept channels must ascend and not be empty")
            if indices[0] < 0 or indices[-1] >= group.channels:
                raise ValueError(f"group {group.name}: kept channels leave 0..{group.channels - 1}")
        return tuple(len(kept[name]) for name in names)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Raises ValueError for a document that is not a plan."""
        try:
            data: dict[str, Any] = json.loads(text)
            return cls(
                network=str(data["network"]),
                parent_sha256=str(data["parent_sha256"]),
                kept_by_group=tuple((str(n), tuple(k)) for n, k in data["kept_by_group"]),
                predicted_ms_by_cluster=tuple(
                    (str(c), float(ms)) for c, ms in data["predicted_ms_by_cluster"]
                ),
                seed=int(data["seed"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a pruning plan: {error}") from None

    def sha256(self) -> str:
        return hashlib.sha256(self.to_json().encode("utf-8")).hexdigest()
