"""The work folder of one compilation: where each stage leaves what the next one reads.

Input: a folder and the recipe it belongs to. Output: paths, and files that are written whole.
Raises CompilerError when the folder belongs to another recipe.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from compiler.errors import CompilerError
from compiler.recipe import Recipe


class WorkFolder:
    """One folder, bound to one recipe: what is in it is reused, so it must not be another's."""

    def __init__(self, root: Path, recipe: Recipe) -> None:
        self.root = root
        self.recipe = recipe
        root.mkdir(parents=True, exist_ok=True)
        owner = root / "recipe.json"
        document = {"recipe_sha256": recipe.sha256(), "recipe": recipe.model_dump(mode="json")}
        if not owner.exists():
            write_json(owner, document)
        elif read_json(owner).get("recipe_sha256") != recipe.sha256():
            raise CompilerError(
                f"{root}: was made from another recipe. Next: name another --work folder"
            )

    def dense_weights(self, network: str) -> Path:
        return self.root / "dense" / f"{network}.safetensors"

    def dense_facts(self, network: str) -> Path:
        return self.root / "dense" / f"{network}.json"

    def space(self, network: str) -> Path:
        return self.root / "spaces" / f"{network}.json"

    def proposal(self, stage: str) -> Path:
        return self.root / "proposals" / stage

    @property
    def clusters(self) -> Path:
        return self.root / "clusters.json"

    @property
    def anchor_ratios(self) -> Path:
        return self.root / "anchor_ratios.json"

    @property
    def staircases(self) -> Path:
        return self.root / "staircases.json"

    def elite_facts(self, network: str) -> Path:
        return self.root / "plans" / f"{network}.elites.json"

    def surrogate(self, network: str, cluster: str) -> Path:
        return self.root / "surrogates" / f"{network}@{cluster}.json"

    def surrogate_facts(self, network: str) -> Path:
        return self.root / "surrogates" / f"{network}.json"

    def cost_surrogate(self, network: str, cluster: str, quantity: str) -> Path:
        return self.root / "surrogates" / f"{network}@{cluster}.{quantity}.json"

    def cost_facts(self, network: str) -> Path:
        return self.root / "surrogates" / f"{network}.costs.json"

    def search_facts(self, network: str) -> Path:
        return self.root / "plans" / f"{network}.search.json"

    def plan(self, network: str) -> Path:
        return self.root / "plans" / f"{network}.json"

    def pruned_weights(self, network: str) -> Path:
        return self.root / "pruned" / f"{network}.safetensors"

    def pruned_facts(self, network: str) -> Path:
        return self.root / "pruned" / f"{network}.json"

    def designer(self, network: str) -> Path:
        """A folder: the networks that give designs without a search."""
        return self.root / "designers" / network

    def switchable_weights(self, network: str) -> Path:
        return self.root / "switchable" / f"{network}.safetensors"

    def switchable_facts(self, network: str) -> Path:
        return self.root / "switchable" / f"{network}.json"

    def resume(self, network: str) -> Path:
        """A folder: what a killed stage goes on from; removed when the network is done."""
        return self.root / "resume" / network

    @property
    def forms(self) -> Path:
        """Which artifacts were built, and wait for boards to choose among them."""
        return self.root / "forms.json"

    @property
    def waiting(self) -> Path:
        return self.root / "forms"

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def compiled(self) -> Path:
        return self.root / "compiled.json"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, and durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, document: Any) -> None:
    """JSON with sorted keys: the same content is the same bytes."""
    write_text(path, json.dumps(document, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """What ``write_json`` wrote. Raises CompilerError naming the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CompilerError(
            f"{path}: cannot be read ({error}). Next: remove it; the stage that made it runs again"
        ) from None
