"""Options for numbers of every command, also of plugins, and of the benchmarks: nan and infinity are refused."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import typer

from benchmarks.__main__ import COMMANDS
from benchmarks.__main__ import main as benchmark
from dgpo_core.plugins.registry import get_registry


def functions() -> Iterator[tuple[str, Callable[..., object]]]:
    """All commands by name."""
    for command in (registered.command for registered in get_registry().commands().values()):
        if command.target:
            module, _, name = command.target.partition(":")
            found = getattr(import_module(module), name)
            made = [one.callback for one in found.registered_commands] if isinstance(found, typer.Typer) else [found]
            yield from ((f"dgpo {command.name}", function) for function in made)
    yield from ((name, import_module(module).run) for name, module in COMMANDS.items())


def numbers() -> Iterator[tuple[str, Any]]:
    """The options for floats of all commands, by the names of command and parameter."""
    for command, function in functions():
        for name, hint in get_type_hints(function, include_extras=True).items():
            if get_origin(hint) is Annotated and float in (get_args(hint)[0], *get_args(get_args(hint)[0])):
                yield f"{command} {name}", get_args(hint)[1]


def test_no_option_takes_nan_or_infinity() -> None:
    """The types of some versions of typer refuse nan, but none refuses infinity."""
    found = dict(numbers())
    known = {"dgpo plan network", "dgpo plan fit", "dgpo sample guidance", "dgpo detector-thresholds lowest",
             "gpu seconds", "cluster network"}  # fmt: skip
    assert known <= found.keys()
    for name, option in found.items():
        assert option.callback is not None, name
        for number in (math.nan, math.inf, -math.inf):
            with pytest.raises(typer.BadParameter, match="is not a finite number"):
                option.callback(number)
        assert (option.callback(1.5), option.callback(None)) == (1.5, None)


@pytest.mark.parametrize("words", [["gpu", "--tiny", "--device", "cpu", "--seconds"], ["cluster", "--network"]])
def test_the_message_names_the_option(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words, "inf"])
    with pytest.raises(SystemExit) as ended:
        benchmark()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert words[-1] in said
    assert "is not a finite number" in said
    assert list(tmp_path.iterdir()) == []
