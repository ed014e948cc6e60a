"""Somebody else's reward, backbone and prompts, from templates to a training run, as author and users would do it.

The environment is a real one: they and dgpo itself are built as wheels and installed into it by pip. Only what is
large and not ours (torch and the like) comes from the environment of the tests.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
PLUGINS = {"reward": "brightness", "backbone": "tiny", "prompts": "things"}
RUN = {
    "run": {"name": "third-party", "iterations": 2, "device": "cpu", "threads": 1},
    "backbone": {"use": "tiny", "checkpoint": "none", "lora": {"rank": 2, "alpha": 4}},
    "prompts": {"train": {"use": "things"}, "heldout": {"use": "things"}},
    "rollout": {"steps": 2, "group_size": 4, "groups": 2, "resolution": 16},
    "rewards": [{"use": "brightness", "options": {"target": 0.5}}],
}


@dataclass(frozen=True)
class Environment:
    """A virtual environment with dgpo and the plugins, and the sources that the reward was built from."""

    python: Path
    source: Path

    def run(self, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [self.python, *map(str, arguments)], cwd=self.source.parent, env=clean | {"OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=check,
        )  # fmt: skip

    def dgpo(self, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "dgpo_cli", *arguments, check=check)


def build_wheel(source: Path, directory: Path) -> Path:
    """What `python -m build` makes, without an index."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(command, cwd=source, capture_output=True, check=True)
    (wheel,) = directory.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel_of_dgpo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(ROOT, tmp_path_factory.mktemp("dgpo"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, wheel_of_dgpo: Path) -> Environment:
    directory = tmp_path_factory.mktemp("third-party")
    wheels = []
    for kind, name in PLUGINS.items():
        new = [sys.executable, "-m", "dgpo_cli", "plugins", "new", kind, name, "--output", str(directory)]
        subprocess.run(new, check=True, capture_output=True)
        wheels.append(build_wheel(directory / f"dgpo-{name}", directory / "wheels" / name))
    venv.create(directory / "venv", with_pip=False)
    python = directory / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, wheel_of_dgpo, *wheels], check=True, capture_output=True)
    shared = sysconfig.get_path("purelib")
    (own,) = (directory / "venv" / "lib").glob("python*/site-packages")
    (own / "shared.pth").write_text(f"import site; site.addsitedir({shared!r})\n")
    return Environment(python, directory / "dgpo-brightness")


def code_lines(path: Path) -> int:
    """Lines with code: without blank lines, comments and docstrings."""
    text = path.read_text()
    found = {number for number, line in enumerate(text.splitlines(), 1) if line.strip() and line.strip()[0] != "#"}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found -= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(found)


def test_the_wheel_of_dgpo_holds_every_template(wheel_of_dgpo: Path) -> None:
    inside = set(zipfile.ZipFile(wheel_of_dgpo).namelist())
    templates = {str(path.relative_to(ROOT)) for path in (ROOT / "dgpo_cli/templates").rglob("*") if path.is_file()}
    assert templates
    assert templates <= inside


def test_a_whole_reward_is_fewer_than_30_lines_of_code(environment: Environment) -> None:
    """Declaration, options and implementation together, imports included."""
    lines = {path.name: code_lines(path) for path in environment.source.glob("src/*/*.py")}
    assert set(lines) == {"__init__.py", "plugin.py", "options.py", "reward.py"}
    assert sum(lines.values()) < 30, lines


def test_it_runs_what_was_installed(environment: Environment) -> None:
    """The wheels, neither the sources nor this repository."""
    code = "import dgpo_core, dgpo_cli, dgpo_schemas, dgpo_brightness as b; print(dgpo_core.__file__, b.__file__)"
    for place in environment.run("-c", code).stdout.split():
        assert Path(place).is_relative_to(environment.python.parent.parent)


def test_it_is_listed_and_shown(environment: Environment) -> None:
    listed = json.loads(environment.dgpo("plugins", "list", "--kind", "reward", "--json").stdout)
    found = {part["name"]: part for part in listed["parts"]}
    assert (found["brightness"]["distribution"], found["brightness"]["version"]) == ("dgpo-brightness", "0.1.0")
    shown = environment.dgpo("plugins", "show", "brightness").stdout
    assert "target: number at least 0 and at most 1, default 1.0" in shown


@pytest.mark.slow
def test_it_keeps_its_contract(environment: Environment) -> None:
    done = environment.dgpo("plugins", "check", "brightness")
    assert done.stdout.splitlines()[-1] == "23 passed"
    broken = environment.dgpo("plugins", "check", "brightness", "--option", "target=2", check=False)
    assert broken.returncode == 2
    assert "needs options: target must be at most 1" in broken.stdout


@pytest.mark.slow
def test_its_own_tests_pass(environment: Environment) -> None:
    tests = shutil.copytree(environment.source, environment.source.parent / "tested")
    shutil.rmtree(tests / "src")
    done = environment.run("-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", tests, check=False)
    assert done.returncode == 0, done.stdout
    assert "26 passed" in done.stdout


def test_a_run_trains_on_it_by_name(environment: Environment) -> None:
    directory = environment.source.parent
    (directory / "run.yaml").write_text(yaml.safe_dump(RUN))
    done = environment.dgpo("train", "run.yaml", check=False)
    assert done.returncode == 0, done.stderr
    run = directory / "runs" / "third-party"
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 2
    assert all(0 < record["rewards"]["brightness"]["mean"] < 1 for record in metrics)
    assert json.loads((run / "run.json").read_text())["plugins"]["dgpo-brightness"] == "0.1.0"


def test_its_adapter_is_exported(environment: Environment) -> None:
    """After the run above; one line of the backbone's author makes it."""
    run = Path("runs") / "third-party"
    refused = environment.dgpo("export", run, "--format", "kohya", check=False)
    assert (refused.returncode, refused.stderr) == (2, "--format kohya: choose one of peft\n")
    environment.dgpo("export", run, "--output", "adapter")
    written = environment.source.parent / "adapter"
    assert {p.name for p in written.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "dgpo.json"}
    config = json.loads((written / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 2, ["0", "2"])
