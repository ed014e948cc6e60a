"""The entry point: finding commands, exit codes, and starting fast."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dgpo_cli.main as main_module
import dgpo_core
from dgpo_cli.plugin import dgpo_commands
from dgpo_core.errors import PluginError, RunStopped, UserError
from dgpo_core.hookspecs import Command, hookimpl
from dgpo_core.plugins.registry import Registry
from dgpo_kit.plugin import dgpo_commands as commands_of_the_kit
from dgpo_lab.plugin import dgpo_commands as commands_of_the_lab
from dgpo_schemas.problems import ConfigError, Problem

Run = Callable[..., Any]

COMMANDS = {one.name: one for one in [*dgpo_commands(), *commands_of_the_kit(), *commands_of_the_lab()]}

HEAVY = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "numpy",
    "matplotlib",
    "rich",
    "PIL",
    "httpx",
    "starlette",
    "uvicorn",
    "prometheus_client",
)


def add(registry: Registry, *commands: Command, distribution: str = "dgpo-more", module: str = "more") -> None:
    """Commands of a plugin."""

    def declare() -> list[Command]:
        return list(commands)

    plugin = types.ModuleType(module)
    plugin.dgpo_commands = hookimpl(declare, specname="dgpo_commands")  # type: ignore[attr-defined]
    registry.register(plugin, distribution=distribution, version="3")


def test_help_lists_every_command_with_examples(dgpo: Run) -> None:
    done = dgpo("--help")
    assert done.code == 0
    for name, command in COMMANDS.items():
        assert " " in name or f"\n  {name} " in done.out
        assert " " in name or command.summary in done.out
    assert "dgpo train examples/quickstart.yaml" in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_by_example(dgpo: Run, command: str) -> None:
    done = dgpo(*command.split(), "--help")
    assert done.code == 0
    assert f"Usage: dgpo {command} " in done.out
    assert COMMANDS[command].target == "" or f"\n      dgpo {command}" in done.out


@pytest.mark.parametrize("command", ["", "train", "plugins", "plugins show"])
def test_help_has_a_short_name(dgpo: Run, command: str) -> None:
    long, short = (dgpo(*command.split(), option) for option in ("--help", "-h"))
    assert (short.code, short.out) == (0, long.out)
    assert "--help, -h" in short.out or "-h, --help" in short.out


def test_version(dgpo: Run) -> None:
    assert dgpo("--version").out == f"dgpo {dgpo_core.__version__}\n"


def test_a_misspelled_command_points_to_the_nearest(dgpo: Run) -> None:
    done = dgpo("trian")
    assert done.code == 2
    assert "unknown command 'trian'; did you mean train?" in done.err
    assert "did you mean" not in dgpo("xyzzy").err


def test_no_command_shows_the_help(dgpo: Run) -> None:
    assert "Commands:" in "".join([(done := dgpo()).out, done.err])
    assert "Commands:" in "".join([(done := dgpo("plugins")).out, done.err])


def test_usage_errors(dgpo: Run) -> None:
    assert "RUN.yaml" in dgpo("validate").err
    assert dgpo("validate").code == 2
    assert dgpo("validate", "--nope").code == 2


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("it is wrong"), 2, "it is wrong\n"),
        (PluginError("no such plugin"), 2, "no such plugin\n"),
        (ConfigError([Problem("f:1", "a", "x"), Problem("f:2", "b", "y")]), 2, "f:1: a: x\nf:2: b: y\n"),
        (RunStopped("too many missing rewards"), 1, "too many missing rewards\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)  # fmt: skip
def test_exit_codes(
    dgpo: Run, known: Registry, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, text: str
) -> None:
    def fail() -> None:
        """Fail."""
        raise error

    module = types.ModuleType("a_command_that_fails")
    module.fail = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    add(known, Command("fail", "Fail.", "a_command_that_fails:fail"))
    done = dgpo("fail")
    assert (done.code, done.out, done.err) == (code, "", text)


def test_ctrl_c_before_a_command_runs(dgpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module, "app", interrupted)
    assert dgpo("--version").code == 130


def test_our_own_mistakes_keep_their_traceback(dgpo: Run, known: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("a_command_with_a_bug")
    module.bug = lambda: 1 / 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    add(known, Command("bug", "A bug.", "a_command_with_a_bug:bug"), distribution="dgpo")
    with pytest.raises(ZeroDivisionError):
        dgpo("bug")


def light(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a fresh interpreter; its last line of output names the heavy modules it imported."""
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('heavy:', [m for m in {HEAVY!r} if m in sys.modules]))\n"
        "from dgpo_cli.main import main\n"
        "main(sys.argv[1:])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=cwd)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["plugins", "list"], ["plugins", "show", "dgpo"], ["validate", "run.yaml"],
     ["schema", "--output", "schemas"], ["train", "--help"], ["ablate", "run.yaml", "--dry-run"]],
)  # fmt: skip
def test_light_commands_import_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "run.yaml").write_text("run: {name: x, iterations: 1}\n")
    assert light(*arguments, cwd=tmp_path).stdout.endswith("heavy: []\n")


def test_it_can_be_run_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "dgpo_cli", "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"dgpo {dgpo_core.__version__}\n")


def test_the_directory_of_a_run_in_place_of_its_file(dgpo: Run, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    for command in ("train", "validate"):
        done = dgpo(command, str(run))
        assert done.code == 2
        assert done.err == (
            f"{run}: is the directory of a run, not a run file; `dgpo train {run}/config.yaml --resume` continues it\n"
        )
