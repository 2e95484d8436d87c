"""Whatever a file of a person's holds: it is taken, or refused in one clear line.

A traceback is any other exception, a hang the suite's timeout, and no case may write outside the
folder that it was given. `make test` plays the same cases each time, `make test-all` many more.
"""

from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from compiler.errors import CompilerError
from compiler.recipe import Recipe
from harness.campaign import load_campaign
from harness.documents import read_document
from harness.errors import HarnessError
from harness.inventory import load_inventory
from tests.fleetcut.generated import QUICK, SLOW, cases, in_one_line, mutants


def as_yaml(document) -> bytes:
    return yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "surrogatepass")


def texts(good: str):
    """Files: mutants of a good one, the good one with bytes changed, and anything at all."""
    data = good.encode()
    cut = st.tuples(
        st.integers(0, len(data)), st.integers(0, 12), st.binary(max_size=12)
    ).map(lambda t: data[: t[0]] + t[2] + data[t[0] + t[1] :])  # fmt: skip
    return st.one_of(mutants(yaml.safe_load(good)).map(as_yaml), cut, st.binary(max_size=200))


BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n".encode()
    for a, b in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)
DEEP = b"version: " + b"[" * 3000 + b"]" * 3000
KNOT = b"version: &a [*a]\n"
NUL = b"version: 1\0\n"
BOM16 = "version: 1\n".encode("utf-16")
TAG = b"version: !!python/object/apply:os.system ['touch escaped']\n"

INVENTORY = """\
version: 1
boards:
  - {board_id: pi4-01, model: Raspberry Pi 4, host: 192.0.2.1, port: 22, user: pi,
     key_file: ~/.ssh/id, python: python3, cache_mib: 500, labels: {cooling: fan}}
  - {board_id: pi4-02, model: Raspberry Pi 4, host: 192.0.2.2, user: pi, exclusive_group: a}
"""
CAMPAIGN = """\
version: 1
campaign_id: nightly
seed: 3
boards: {ids: [pi4-01], labels: {cooling: fan}}
models: [{name: tiny, path: tiny.onnx}]
runtimes: [ort]
precision: [fp32, int8]
threads: [1, 2]
repeats: 2
conditions: {temp_c: [[45, 55], null], governor: [performance], freq_khz: [600000]}
skip: [{precision: int8, threads: 2}]
canary: {model: tiny, every: 5}
stopping: {samples_min: 5, samples_max: 100, max_seconds: 2.5}
timeout_s: 30
"""
RECIPE = """\
version: 1
name: lab
networks: [digits_resnet]
dataset: digits
seed: 0
weights: {digits_resnet: weights.safetensors}
training: {epochs: 3}
search: {max_accuracy_drop: 0.01}
targets:
  - {kind: onnx, name: pi4-64, machine: aarch64}
"""


def check_inventory(work: Path, data: bytes) -> None:
    path = work / "inventory.yaml"
    path.write_bytes(data)
    try:
        inventory = load_inventory(path)
        inventory.select()
    except HarnessError as error:
        in_one_line(error, path.name)


def check_campaign(work: Path, data: bytes) -> None:
    (work / "inventory.yaml").write_text(INVENTORY)
    (work / "tiny.onnx").write_bytes(b"model")
    path = work / "campaign.yaml"
    path.write_bytes(data)
    try:
        load_campaign(path, load_inventory(work / "inventory.yaml"))
    except HarnessError as error:
        in_one_line(error, path.name, "inventory.yaml")


def check_recipe(work: Path, data: bytes) -> None:
    path = work / "recipe.yaml"
    path.write_bytes(data)
    try:
        read_document(path, Recipe)
    except (HarnessError, CompilerError) as error:
        in_one_line(error, path.name)


CHECKS = {
    "inventory": (check_inventory, INVENTORY),
    "campaign": (check_campaign, CAMPAIGN),
    "recipe": (check_recipe, RECIPE),
}


def play(kind: str, work: Path, count: int) -> None:
    check, good = CHECKS[kind]
    check(work, good.encode())

    @cases(count)
    @given(texts(good))
    @example(BOMB)
    @example(DEEP)
    @example(KNOT)
    @example(NUL)
    @example(BOM16)
    @example(TAG)
    @example(b"")
    @example(b"\xff")
    def case(data: bytes) -> None:
        check(work, data)

    case()


@pytest.mark.parametrize("kind", CHECKS)
def test_files_that_people_write(kind, confined):
    play(kind, confined, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHECKS)
def test_many_more_files(kind, confined):
    play(kind, confined, SLOW)
