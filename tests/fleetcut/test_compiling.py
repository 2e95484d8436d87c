"""fleetcut compile with something wrong: one line that says where, and no traceback."""

import pytest

from fleetcut.cli import main

NETWORKS = """
import torch
from torch import nn

class Mixing(nn.Sequential):
    input_shape = (3, 32, 32)
    def __init__(self):
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(nn.Conv2d(3, 8, 3), *pooled, nn.Linear(8, 10))
    def forward(self, x):
        return torch.cumsum(super().forward(x), dim=1)

def nothing():
    return None
nothing.input_shape = (3, 32, 32)
"""
RECIPE = """
version: 1
name: t
networks: [{networks}]
training: {{epochs: 1}}
search: {search}
targets: [{{kind: onnx, name: here, machine: x86_64}}]
"""


@pytest.fixture
def compile_with(tmp_path, monkeypatch, capsys):
    (tmp_path / "wrongnets.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(networks: str, search: str = "{}") -> tuple[int, str]:
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE.format(networks=networks, search=search))
        status = main(["compile", str(path), "--work", str(tmp_path / "work")])
        return status, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("wrongnets:Mixing", "wrongnets:Mixing: cannot prune through cumsum"),
        ("wrongnets:nothing", "network wrongnets:nothing: the factory returned NoneType"),
        ("wrongnets:absent", "network wrongnets:absent"),
    ],
)
def test_a_network_that_cannot_be_pruned_is_named(compile_with, network, message):
    status, said = compile_with(f'"{network}"')
    assert status == 1
    assert message in said
    assert "Next: " in said
    assert "Traceback" not in said
    # Told before anything was trained.
    assert "train" not in said.replace("trained", "")


@pytest.mark.parametrize(
    ("search", "where"),
    [
        ("{objective: fastest}", "search.objective"),
        ("{objective: slo}", "search: objective slo needs slo_ms of digits_resnet"),
        ("{slo_ms: {digits_resnet: 0}}", "search.slo_ms.digits_resnet"),
        ("{slo_ms: {digits_resnet: .inf}}", "search.slo_ms.digits_resnet"),
        ("{slo_ms: {resnet50: 5.0}}", "search: slo_ms of resnet50, which is not among"),
    ],
)
def test_a_recipe_whose_objective_is_wrong_says_where(compile_with, search, where):
    status, said = compile_with("digits_resnet", search)
    assert status == 2
    assert where in said
    assert "Traceback" not in said


def test_a_mode_that_lacks_its_clocks_is_told_where_they_go(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(networks="digits_resnet", search="{}"))
    arguments = ["compile", str(path), "--work", str(tmp_path / "work"), "--mode", "switchable"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "switchable: mode switchable needs two clocks at least in freq_khz" in said
    assert "Traceback" not in said
    path.write_text(path.read_text() + "mode: switchable\nswitchable: {freq_khz: [600000]}\n")
    assert main(["compile", str(path), "--work", str(tmp_path / "work")]) == 2
    said = capsys.readouterr().err
    assert "recipe.yaml:9" in said
    assert "two clocks at least" in said
    assert not (tmp_path / "work").exists()
