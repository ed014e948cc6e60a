"""What `dgpo plugins new` writes, of every kind: installed as it is, it passes its own tests, and the linters."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from dgpo_core.plugins.registry import get_registry
from dgpo_kit.scaffold import BASES, LONGEST_NAME, Scaffold, render, write

KINDS = get_registry().kinds


@dataclass(frozen=True)
class Generated:
    """One distribution of each kind in `sources`, and `over`, those that stand on a base; all installed in `site`."""

    directory: Path
    sources: list[Path]
    over: list[Path]
    site: Path

    def run(self, *command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        paths = os.pathsep.join(filter(None, [str(self.site), os.environ.get("PYTHONPATH")]))
        return subprocess.run(
            [sys.executable, "-m", *map(str, command)], cwd=cwd or self.directory, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def generate(kind: str, name: str, directory: Path, over: str = "") -> Path:
    scaffold = Scaffold(KINDS[kind], name, over)
    write(render(scaffold), directory / scaffold.distribution)
    return directory / scaffold.distribution


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Generated:
    directory = tmp_path_factory.mktemp("templates")
    sources = [generate(kind, f"my-{kind}", directory) for kind in KINDS]
    over = [generate(kind, f"over-{base}", directory, base) for base, kind in BASES.items()]
    wheels, site = directory / "wheels", directory / "site"
    for source in (*sources, *over):
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
        subprocess.run(build, cwd=source, check=True, capture_output=True)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, *map(str, wheels.glob("*.whl"))], check=True, capture_output=True)
    return Generated(directory, sources, over, site)


def test_their_own_tests_pass(generated: Generated) -> None:
    """All in one process, which is quicker; each has the same options for pytest."""
    tests = [source / "tests" for source in generated.sources]
    options = ["-q", "-W", "error", "-p", "no:cacheprovider", "--import-mode=importlib", "-c", os.devnull]
    done = generated.run("pytest", *options, "--rootdir", generated.directory, *tests)
    assert done.returncode == 0, done.stdout
    assert "failed" not in done.stdout


@pytest.mark.slow
def test_they_keep_their_contracts(generated: Generated) -> None:
    done = generated.run("dgpo_cli", "plugins", "check", *(f"my-{kind}" for kind in KINDS))
    assert done.returncode == 0, done.stdout
    assert "FAIL" not in done.stdout
    assert {(kind, f"my-{kind}") for kind in KINDS} <= {tuple(line.split()[:2]) for line in done.stdout.splitlines()}


@pytest.mark.slow
def test_types_are_right(generated: Generated) -> None:
    """Every package, and every test module with a name of its own."""
    files = [source / "src" for source in generated.sources]
    files += [test for source in generated.sources for test in source.glob("tests/test_[!c]*.py")]
    cache = generated.directory / "cache"
    done = generated.run("mypy", "--config-file=", "--strict", "--cache-dir", cache, *files)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_those_over_a_base_pass_their_tests_and_have_right_types(generated: Generated) -> None:
    """As their own pyproject.toml says; what they stand on makes their tests long."""
    for source in generated.over:
        tests = generated.run("pytest", "-q", "-W", "error", "-p", "no:cacheprovider", cwd=source)
        assert tests.returncode == 0, tests.stdout
        types = generated.run("mypy", "--cache-dir", generated.directory / "cache", cwd=source)
        assert types.returncode == 0, types.stdout


@pytest.mark.slow
def test_those_over_a_base_keep_their_contracts_on_the_checkpoint_that_they_make(generated: Generated) -> None:
    for source in generated.over:
        name = source.name.removeprefix("dgpo-")
        made = generated.run("dgpo_cli", "plugins", "tiny", name, "tiny")
        assert made.returncode == 0, made.stderr
        done = generated.run("dgpo_cli", "plugins", "check", name, "--checkpoint", "tiny")
        assert done.returncode == 0, done.stdout
        assert "FAIL" not in done.stdout


@pytest.mark.parametrize("name", ["x", "a-b-c", "n" * LONGEST_NAME])
def test_the_linters_have_nothing_to_say(name: str, tmp_path: Path) -> None:
    """Whatever the length of the name."""
    for kind, over in [*((kind, "") for kind in KINDS), *((kind, base) for base, kind in BASES.items())]:
        (tmp_path / f"{kind}{over}").mkdir()
        source = generate(kind, name, tmp_path / f"{kind}{over}", over)
        for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
            done = subprocess.run(
                [sys.executable, "-m", "ruff", *command, "."], cwd=source, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout
