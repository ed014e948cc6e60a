"""Commands are called in process, as the shell would call them, on a registry that the test knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

import dgpo_core.registry as registry_module
from dgpo_cli.main import main
from dgpo_core.builtin import plugin as builtin
from dgpo_core.registry import Registry
from dgpo_core.testing.toy import plugin as toy


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The engine's own parts and the toy's, in the place of what is installed."""
    made = Registry(discover=False)
    made.register(builtin, distribution="dgpo", version="1.0")
    made.register(toy, distribution="toy", version="2.0")
    monkeypatch.setattr(registry_module, "get_registry", lambda: made)
    return made


@pytest.fixture
def dgpo(known: Registry, capsys: pytest.CaptureFixture[str]) -> Run:
    """`dgpo("validate", path)`."""

    def run(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Outcome(caught.value.code, captured.out, captured.err)

    return run
