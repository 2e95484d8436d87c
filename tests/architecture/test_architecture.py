"""The map holds: who may import whom, what a module may weigh, and what the agent may need."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("fleetcut", "harness", "compiler", "device_agents")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
MOST_LINES = 450


def test_import_contracts_hold():
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_of_the_agent_only_the_contract_may_be_imported():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = [c for c in listed["contracts"] if c["name"].startswith("Of the agent only")]
    agent = ROOT / "device_agents"
    modules = {f"device_agents.{p.stem}" for p in agent.glob("*.py") if p.stem != "__init__"}
    packages = {f"device_agents.{p.parent.name}" for p in agent.glob("*/__init__.py")}
    assert set(contract["forbidden_modules"]) == modules | packages - {"device_agents.contract"}


def test_top_level_is_the_map():
    # Only what git tracks: a checkout may hold work folders of its user.
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    folders = {Path(name).parts[0] for name in listed if "/" in name}
    assert folders <= {*PACKAGES, "tests", "benchmarks", "docs", ".ci"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_says_what_it_is_for_and_stays_small(path):
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "a module begins with its purpose"
    assert len(text.splitlines()) <= MOST_LINES


def test_no_init_files_below_tests():
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_outside_its_runtimes_the_agent_needs_the_standard_library_only():
    foreign = set()
    for path in sorted((ROOT / "device_agents").rglob("*.py")):
        if "runtimes" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            foreign |= {n for n in names if n.split(".")[0] not in sys.stdlib_module_names}
    assert {name.split(".")[0] for name in foreign} <= {"device_agents"}
