"""Commands come from plugins (`dgpo_commands`): found by name, imported when called."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import dgpo_core.plugins.registry as registry_module
from dgpo_core.errors import PluginError
from dgpo_core.hookspecs import Command, hookimpl
from dgpo_core.plugins.registry import Registry, get_registry
from dgpo_kit.contracts import HEAVY

Run = Callable[..., Any]


def brought(*commands: Command) -> types.ModuleType:
    """A plugin of commands."""

    def declare() -> Sequence[Command]:
        return commands

    plugin = types.ModuleType("a_plugin_of_commands")
    plugin.dgpo_commands = hookimpl(declare, specname="dgpo_commands")  # type: ignore[attr-defined]
    return plugin


def hello(name: str) -> None:
    """Greet somebody."""
    print(f"hello {name}")  # noqa: T201


def leave(status: int) -> None:
    """End."""
    sys.exit(status)


def test_a_command_may_end_with_an_exit_code(dgpo: Run, known: Registry) -> None:
    known.register(brought(Command("leave", "Leave.", f"{__name__}:leave")), distribution="m")
    assert (dgpo("leave", "0").code, dgpo("leave", "9").code, dgpo("leave", "9").err) == (0, 9, "")


def test_others_may_bring_commands(dgpo: Run, known: Registry) -> None:
    here = f"{__name__}:hello"
    known.register(brought(Command("greet", "Greet.", here), Command("say hello", "Say it.", here)), distribution="m")
    listed = dgpo("--help").out
    assert listed.index("\n  schema ") < listed.index("\n  greet ") < listed.index("\n  say ")
    assert "  say       Commands of m." in listed
    assert dgpo("greet", "you").out == "hello you\n"
    assert dgpo("say", "hello", "you").out == "hello you\n"
    assert "\n  hello  Say it." in dgpo("say", "--help").out
    assert "did you mean say hello?" in dgpo("say", "hullo").err


def test_a_command_of_two_owners_is_nobodys(dgpo: Run, known: Registry) -> None:
    known.register(brought(Command("report", "Another one.", "x:y")), distribution="mine")
    done = dgpo("report", "runs/x")
    assert (done.code, done.err) == (2, "command 'report' is claimed by dgpo-lab and mine: uninstall one of them\n")
    assert "report  dgpo-lab and mine claim it: uninstall one of them" in dgpo("--help").out


def test_nothing_hides_behind_the_argument_of_a_command(known: Registry) -> None:
    known.register(brought(Command("train fast", "Faster.", "x:y")), distribution="mine")
    assert "train" in known.commands()
    with pytest.raises(PluginError, match=r"^command 'train fast' is claimed by dgpo and mine"):
        known.find_command("train fast")


@pytest.mark.parametrize(
    ("target", "why"), [("no_such_module:f", "No module named 'no_such_module'"), ("json:no", "has no attribute 'no'")]
)
def test_a_broken_command_is_one_sentence(dgpo: Run, known: Registry, target: str, why: str) -> None:
    known.register(brought(Command("oops", "Broken.", target)), distribution="dgpo-oops", version="7")
    done = dgpo("oops")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"command oops of dgpo-oops 7: cannot import {target}: ")
    assert why in done.err
    assert done.err.count("\n") == 1
    assert "\n  oops  " in dgpo("--help").out.replace("oops    ", "oops  ")


@pytest.mark.parametrize("target", ["json:__name__", "os:path", "os:environ", "decimal:Decimal"])
def test_what_cannot_be_called_is_one_sentence(dgpo: Run, known: Registry, target: str) -> None:
    known.register(brought(Command("oops", "Broken.", target)), distribution="dgpo-oops", version="7")
    done = dgpo("oops")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith(f"command oops of dgpo-oops 7: {target} is neither a function with Typer's annotations")


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (Command("Shout", "x", "a:b"), "'Shout' is not a valid name"),
        (Command("a b c", "x", "a:b"), "'a b c' is not a valid name"),
        (Command("a", "", "a:b"), "a has no summary"),
        (Command("a", "x", "a.b"), "target must be 'package.module:function'"),
        (Command("a", "x", "a:b", "first"), "order must be an integer"),  # type: ignore[arg-type]
        ("a", "must return dgpo_core.hookspecs.Command, not str"),
    ],
)
def test_what_is_no_command(command: Any, why: str) -> None:
    with pytest.raises(PluginError, match=f"^dgpo_commands.*{why}"):
        Registry(discover=False).register(brought(command), distribution="d")


def test_without_the_lab_its_commands_say_what_to_install(
    dgpo: Run, known: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dgpo_cli.plugin

    bare = Registry(discover=False)
    bare.register(dgpo_cli.plugin, distribution="dgpo")
    monkeypatch.setattr(registry_module, "get_registry", lambda: bare)
    done = dgpo("report", "runs/x")
    assert (done.code, done.out) == (2, "")
    how = "it comes with dgpo-lab; in a checkout of dgpo: pip install -e plugins/dgpo-lab\n"
    assert done.err == f"unknown command 'report'; {how}"
    assert dgpo("reprot", "runs/x").err == f"unknown command 'reprot'; did you mean report? {how}"
    assert "Not installed:\n" in (listed := dgpo("--help").out)
    assert re.search(r"^  report +pip install -e plugins/dgpo-lab$", listed, re.MULTILINE)
    assert "\n  new    pip install -e plugins/dgpo-kit\n" in dgpo("plugins", "--help").out


def test_the_help_imports_no_command(tmp_path: Path) -> None:
    modules = sorted({one.command.target.partition(":")[0] for one in get_registry().commands().values()} - {""})
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print([m for m in {[*modules, *HEAVY, 'pydantic', 'rich']!r} if m in sys.modules]))\n"
        "from dgpo_cli.main import main\n"
        "main(['--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.endswith("\n[]\n"), done.stdout + done.stderr


INTERRUPTED = """
import os, signal
print("once", flush=True)
os.kill(os.getpid(), signal.SIGINT)
"""


def test_ctrl_c_while_plugins_are_found_imports_none_again(tmp_path: Path) -> None:
    (tmp_path / "slow_plugin.py").write_text(INTERRUPTED)
    (info := tmp_path / "slow_plugin-1.dist-info").mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow_plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[dgpo]\nslow = slow_plugin\n")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); from dgpo_cli.main import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("once")) == (130, 1), done.stderr
