"""Boards to build for: the packaged ones, files of one's own, and what a probe says."""

from __future__ import annotations

import pytest

from compiler.recipe import Recipe, RecipeTarget
from compiler.targets.board_file import (
    TargetFileError,
    board_of_profile,
    load_board,
    packaged_boards,
)
from device_agents.contract import DeviceProfile, Target
from harness.documents import read_document
from harness.errors import DocumentError

GOOD = {
    "version": "1",
    "name": "mine",
    "machine": "aarch64",
    "cpu": "cortex-a72",
    "libc": "glibc 2.31",
    "runtimes": "{tflite: 2.13.0}",
}


def written(tmp_path, **changes: str) -> str:
    path = tmp_path / "mine.yaml"
    lines = [f"{key}: {value}\n" for key, value in (GOOD | changes).items() if value]
    path.write_text("".join(lines))
    return str(path)


def test_the_packaged_boards_are_those_of_the_table():
    assert packaged_boards() == (
        "jetson-jetpack-5",
        "jetson-jetpack-6",
        "raspberry-pi-4-64",
        "raspberry-pi-5-64",
        "raspberry-pi-os-32",
        "x86-64",
    )
    for name in packaged_boards():
        board = load_board(name)
        assert board.name == name
        assert "executable" in board.kinds()
        assert board.libc.startswith("glibc ")


def test_no_form_is_made_for_a_runtime_that_the_board_has_not():
    assert load_board("raspberry-pi-os-32").kinds() == ("tflite", "executable")


def test_a_recipe_that_names_a_board_makes_every_form_of_it():
    forms = RecipeTarget(target="raspberry-pi-4-64").forms()
    assert [(kind, target.precision) for kind, target in forms] == [
        (kind, precision)
        for precision in ("fp32", "int8")
        for kind in ("onnx", "ort", "tflite", "executable", "executable-ort")
    ]
    assert forms[2][1] == Target(
        name="raspberry-pi-4-64",
        machine="aarch64",
        os="linux",
        runtime="tflite",
        cpu="cortex-a72",
        libc="glibc 2.31",
        runtime_version="2.13.0",
    )


def test_an_entry_chooses_forms_and_overrules_its_board(tmp_path):
    asked = RecipeTarget(target=written(tmp_path), kind="tflite", precision="int8", threads=4)
    ((kind, target),) = asked.forms()
    assert (kind, target.precision, target.threads, target.name) == ("tflite", "int8", 4, "mine")


def test_a_recipe_stays_the_same_when_it_is_written_and_read_back():
    target = RecipeTarget(target="x86-64")
    assert RecipeTarget.model_validate_json(target.model_dump_json()) == target


def test_another_content_of_a_named_board_is_another_recipe(tmp_path):
    def digest() -> str:
        return Recipe(
            version=1,
            name="t",
            networks=("digits_resnet",),
            targets=(RecipeTarget(target=str(tmp_path / "mine.yaml")),),
        ).sha256()

    written(tmp_path)
    before = digest()
    written(tmp_path, cpu="cortex-a76")
    assert digest() != before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"machine": ""}, "machine: is missing. Next: write for example machine: aarch64"),
        ({"libc": "2.31"}, "libc: "),
        ({"cpu": "Cortex A72"}, "cpu: string should match"),
        ({"runtimes": "{tensorflow: 2.0.1}"}, "runtimes.tensorflow"),
        ({"runtimes": "{tflite: 2.14}"}, "runtimes.tflite: 2.14 is a number to YAML"),
        ({"runtimes": "{}"}, "runtimes: "),
        ({"threads": "0"}, "threads: "),
        ({"soc": "bcm2711"}, "soc: is not a key known here"),
        ({"name": "[unclosed"}, "Next: mend the YAML"),
    ],
)
def test_errors_name_the_file_and_the_key(tmp_path, changes, said):
    path = written(tmp_path, **changes)
    with pytest.raises(TargetFileError) as refused:
        load_board(path)
    assert str(refused.value).startswith(path)
    assert said in str(refused.value)
    assert "Next: " in str(refused.value)


def test_a_recipes_error_names_the_recipes_line_and_the_boards_file(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    board = written(tmp_path, threads="none")
    recipe.write_text(
        f"version: 1\nname: t\nnetworks: [digits_resnet]\ntargets:\n  - {{target: {board}}}\n"
    )
    with pytest.raises(DocumentError) as refused:
        read_document(recipe, Recipe)
    assert str(refused.value).startswith(f"{recipe}:5: targets[0]: {board}: threads: ")


def test_an_unknown_board_is_refused_with_the_names_that_there_are():
    with pytest.raises(TargetFileError, match=r"raspberry-pi-5-64.*Next: "):
        load_board("raspberry-pi-6")
    with pytest.raises(TargetFileError, match=r"cannot be read \(No such file"):
        load_board("./absent.yaml")


def test_a_form_without_its_runtime_is_refused():
    with pytest.raises(ValueError, match="raspberry-pi-os-32 has no ort, which onnx needs"):
        RecipeTarget(target="raspberry-pi-os-32", kind="onnx")


def profile(**changes) -> DeviceProfile:
    fields = {
        "hostname": "pi", "machine": "aarch64", "model": "Raspberry Pi 4", "soc": "brcm,bcm2711",
        "isa_features": ("asimd",), "cores": 4, "opp_freqs_khz": (), "memory_bytes": None,
        "kernel": "6.1", "os": None, "glibc": "2.36", "python": "3.11.2",
        "runtime_versions": (("onnxruntime", "1.19.2"), ("tflite-runtime", "2.14.0")),
        "boot_id": None, "simulated": False,
    }  # fmt: skip
    return DeviceProfile(**fields | changes)


def test_a_profile_becomes_a_board_that_reads_back(tmp_path):
    board = board_of_profile("pi4-01", profile())
    assert (board.cpu, board.libc) == ("cortex-a72", "glibc 2.36")
    assert board.runtimes == {"ort": "1.19.2", "tflite": "2.14.0", "executable": ""}
    path = tmp_path / "pi.yaml"
    path.write_text(board.to_yaml())
    assert load_board(str(path)) == board


@pytest.mark.parametrize(
    ("changes", "cpu"),
    [
        ({"soc": "unheard,of"}, ""),
        ({"soc": None}, ""),
        ({"soc": "nvidia,tegra234"}, "cortex-a78ae"),
        ({"machine": "x86_64", "isa_features": ("sse4_1",)}, "x86-64"),
        ({"machine": "x86_64", "isa_features": ("sse4_2", "avx2", "fma", "f16c")}, "x86-64-v3"),
    ],
)
def test_a_cpu_is_named_only_where_the_profile_tells(changes, cpu):
    assert board_of_profile("b", profile(**changes)).cpu == cpu


def test_what_a_profile_leaves_out_is_not_claimed():
    board = board_of_profile("b", profile(glibc=None, runtime_versions=()))
    assert (board.libc, board.runtimes) == ("", {"executable": ""})
    with pytest.raises(TargetFileError, match="name: "):
        board_of_profile("no name", profile())
