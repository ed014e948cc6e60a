"""Plugins that misbehave while they are imported: named, set aside or put right, and nobody else hears of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dgpo_core.errors import PluginError, UserError
from dgpo_core.plugins.isolation import ctrl_c, isolated, undone
from dgpo_core.plugins.registry import Registry

HEAD = "from dgpo_core.hookspecs import Component, hookimpl\n"
SOUND = """
@hookimpl
def dgpo_weightings():
    return [Component("sound", "Fine.", "{0}:Sound")]

from dgpo_core.contracts import AdvantageWeighting
class Sound(AdvantageWeighting):
    def weights(self, advantages, rewards): return advantages.abs()
"""
Install = Callable[..., Registry]


def write(directory: Path, name: str, source: str) -> None:
    (directory / f"{name}.py").write_text(HEAD + textwrap.dedent(source))
    info = directory / f"{name}-1.5.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(f"[dgpo]\n{name} = {name}\n")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(**modules: str) -> Registry:
        for name, source in modules.items():
            write(tmp_path, name, source)
            monkeypatch.delitem(sys.modules, name, raising=False)
        return Registry()

    return make


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os; os._exit(0)", r"Exited: os\._exit\(0\) \(at .*odd_plugin\.py:2\)"),
        ("from os import _exit; _exit(3)", r"Exited: os\._exit\(3\)"),
        ("import sys; sys.exit()", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class Odd(BaseException): pass\nraise Odd('strange')", r"Odd: strange \(at .*odd_plugin\.py:3\)"),
        ("raise GeneratorExit", "GeneratorExit"),
        (
            "class Mute(Exception):\n    def __str__(self): raise SystemExit\n    __repr__ = __str__\nraise Mute",
            r"Mute: \(no message: __str__ raised SystemExit\)",
        ),
        ("raise RuntimeError('a\\x1b[2Jb')", r"RuntimeError: a\\x1b\[2Jb"),
        ("import warnings\nwith warnings.catch_warnings():\n    warnings.simplefilter('error'); warnings.warn('old')",
         "UserWarning: old"),
        ("def f(): f()\nf()", "RecursionError"),
        ("import no_such_module_at_all", r"No module named 'no_such_module_at_all' \(at .*odd_plugin\.py:2\)"),
        ("@hookimpl\ndef dgpo_weightings():\n    import os; os._exit(0)", r"dgpo_weightings failed with Exited: os"),
        ("@hookimpl\ndef dgpo_weightings():\n    raise KeyboardInterrupt", "dgpo_weightings failed with KeyboardInt"),
        ("@hookimpl\ndef dgpo_weightings():\n    import itertools\n    "
         "return itertools.repeat(Component('x', 's', 'a:B'))",
         "dgpo_weightings declares more than 1000 components"),
        ("def __getattr__(name): raise KeyboardInterrupt\ndef __dir__(): return ['dgpo_x']", "KeyboardInterrupt"),
    ],
)  # fmt: skip
def test_what_ends_or_throws_is_set_aside_by_name(install: Install, source: str, reason: str) -> None:
    registry = install(odd_plugin=source, sound_plugin=SOUND.format("sound_plugin"))
    (broken,) = [b for b in registry.broken if b.distribution == "odd_plugin"]
    assert re.search(reason, broken.reason), broken.reason
    registry.create("weighting", "sound")


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import os; os.chdir('/')", "the working directory"),
        ("import sys; sys.path.insert(0, '/nowhere')", "the beginning of sys.path"),
        ("import sys; sys.path.clear()", "the beginning of sys.path"),
        ("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)", "the signal handlers"),
        ("import signal; signal.signal(signal.SIGTERM, lambda *_: None)", "the signal handlers"),
        ("import locale; locale.setlocale(locale.LC_ALL, 'C.UTF-8' if locale.setlocale(locale.LC_ALL) == 'C' else 'C')",
         "the locale"),
        ("import torch; torch.set_default_dtype(torch.float64)", "torch's default dtype"),
        ("import torch; torch.set_default_device('meta')", "torch's default device"),
        ("import torch; torch.set_grad_enabled(False)", "torch's grad mode"),
        ("import logging; logging.disable(60)", "the level at which logging is disabled"),
    ],
)  # fmt: skip
def test_what_is_changed_for_all_is_put_back_and_named(
    install: Install, caplog: pytest.LogCaptureFixture, source: str, what: str
) -> None:
    def state() -> object:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        device, grad = torch.get_default_device(), torch.is_grad_enabled()
        return os.getcwd(), handlers, torch.get_default_dtype(), device, grad, sys.path[0], sys.stdout, os._exit

    before = state()
    registry = install(odd_plugin=source + SOUND.format("odd_plugin"))
    before = (*before[:5], sys.path[0], *before[6:])  # type: ignore[index]
    assert state() == before
    assert f"plugin odd_plugin of odd_plugin 1.5 changed {what} when it was imported" in caplog.text
    registry.create("weighting", "sound")


def test_what_it_adds_to_the_path_comes_last(install: Install, tmp_path: Path) -> None:
    (tmp_path / "vendored").mkdir()
    (tmp_path / "vendored" / "bundled_helper.py").write_text("x = 1")
    source = f"import sys; sys.path.insert(0, {str(tmp_path / 'vendored')!r})" + SOUND.format("bundled_helper")
    registry = install(odd_plugin=source)
    assert sys.path[-1] == str(tmp_path / "vendored")
    with pytest.raises(PluginError, match="cannot import bundled_helper:Sound: AttributeError"):
        registry.create("weighting", "sound")


@pytest.mark.parametrize(
    "source",
    [
        "print('noise')",
        "import os; os.write(1, b'noise')",
        "import os; os.system('echo noise')",
        "import sys; print('noise'); sys.stdout.close()",
    ],
)
def test_what_is_printed_is_no_result(install: Install, capfd: pytest.CaptureFixture[str], source: str) -> None:
    registry = install(odd_plugin=source + SOUND.format("odd_plugin"))
    registry.create("weighting", "sound")
    print("result")  # noqa: T201
    found = capfd.readouterr()
    assert found.out == "result\n"
    assert "noise" in found.err


def test_a_child_that_was_forked_may_exit(install: Install) -> None:
    source = "import os\nif not (child := os.fork()): os._exit(7)\nassert os.waitpid(child, 0)[1] == 7 << 8"
    assert not [b for b in install(odd_plugin=source).broken if b.distribution == "odd_plugin"]


def test_ctrl_c_itself_ends_the_command(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        install(odd_plugin="import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    assert "interrupted while plugin odd_plugin of odd_plugin 1.5 was imported" in caplog.text
    assert signal.getsignal(signal.SIGINT) is before


def test_only_the_key_counts_as_ctrl_c() -> None:
    with ctrl_c() as pressed, pytest.raises(KeyboardInterrupt):
        raise KeyboardInterrupt
    assert not pressed()


def test_what_imports_change_is_undone_and_named(tmp_path: Path) -> None:
    here, streams, path = os.getcwd(), (sys.stdout, sys.stderr), list(sys.path)
    with undone() as changed:
        pass
    assert changed == []
    with undone() as changed:
        os.chdir(tmp_path)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        torch.set_default_dtype(torch.float64)
        sys.path.insert(0, "odd")
        sys.stderr = sys.stdout
    assert set(changed) == {
        "the working directory", "the signal handlers", "torch's default dtype", "the beginning of sys.path",
        "the standard streams",
    }  # fmt: skip
    assert (os.getcwd(), (sys.stdout, sys.stderr), sys.path) == (here, streams, [*path, "odd"])
    assert (signal.getsignal(signal.SIGTERM), torch.get_default_dtype()) == (signal.SIG_DFL, torch.float32)
    sys.path.remove("odd")


def test_an_import_that_takes_long_is_named(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr("dgpo_core.plugins.isolation.SLOW", 0.01)
    reported = threading.Event()
    monkeypatch.setattr("dgpo_core.plugins.isolation.log.warning", lambda *_: reported.set())
    with isolated("plugin x of y 1"):
        assert reported.wait(10)


@pytest.mark.parametrize(
    ("init", "reason"),
    [
        ("raise RuntimeError('no weights')", r"RuntimeError: no weights \(at .*odd_plugin\.py:\d+\)"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("from dgpo_core.errors import UserError; raise UserError('options.x: is odd')", "^options.x: is odd$"),
    ],
)
def test_a_component_that_cannot_be_built_is_named(install: Install, init: str, reason: str) -> None:
    source = SOUND.format("odd_plugin") + f"    def __init__(self, options):\n        {init}\n"
    registry = install(odd_plugin=source)
    with pytest.raises(UserError, match=reason) as caught:
        registry.create("weighting", "sound")
    if "odd" not in reason[:12]:
        assert (
            str(caught.value).startswith("weighting sound of odd_plugin 1.5: could not be built: ")
            or "options.x" in reason
        )


def test_one_damaged_distribution_hides_no_other(install: Install, tmp_path: Path) -> None:
    info = tmp_path / "torn-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torn\nVersion: 1\n")
    (info / "entry_points.txt").write_bytes(b"[dgpo]\nno equals sign\n\xff\xfe\n")
    registry = install(sound_plugin=SOUND.format("sound_plugin"))
    assert "sound" in registry.components("weighting")
    (torn,) = [b for b in registry.broken if b.distribution == "torn"]
    assert torn.reason.startswith("its entry_points.txt cannot be read: ")


def test_commands_go_on_beside_a_plugin_that_wants_to_end_them(tmp_path: Path) -> None:
    write(tmp_path, "leaver", "print('noise')\nimport os; os._exit(0)")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "dgpo_cli", "plugins", "list", "--json"],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    import json

    (broken,) = [b for b in json.loads(done.stdout)["broken"] if b["distribution"] == "leaver"]
    assert "os._exit(0)" in broken["reason"]
    assert "noise" in done.stderr
