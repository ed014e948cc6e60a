"""Places where rewards run that plugins declare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from dgpo_core.errors import PluginError
from dgpo_core.hookspecs import hookimpl
from dgpo_core.plugins.registry import Registry


def places(returned: Any) -> Registry:
    """A registry with a plugin that declares these places."""

    class Plugin:
        @hookimpl
        def dgpo_reward_transports(self) -> Any:
            return returned() if callable(returned) else returned

    registry = Registry(discover=False)
    registry.register(Plugin(), distribution="far", version="1.5")
    return registry


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (None, "dgpo_reward_transports failed with TypeError"),
        (lambda: 1 / 0, "dgpo_reward_transports failed with ZeroDivisionError"),
        ({"worker": "far_place.connect"}, "dgpo_reward_transports: worker: must be 'package.module:connect'"),
        ({"worker": print}, "dgpo_reward_transports: worker: must be 'package.module:connect'"),
        ({"a worker": "far_place:connect"}, "dgpo_reward_transports: 'a worker' is not a key of a reward's section"),
    ],
)
def test_what_is_no_place(returned: Any, reason: str) -> None:
    with pytest.raises(PluginError) as refused:
        places(returned)
    assert reason in str(refused.value)


def test_what_a_place_throws_is_its_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far_place.py").write_text("def connect(block, *, device, where):\n    1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = places({"worker": "far_place:connect"})
    try:
        with pytest.raises(ZeroDivisionError) as thrown:
            registry.transport("worker")(None, device=None, where="")
    finally:
        sys.modules.pop("far_place", None)
    blamed = registry.blame(thrown.value)
    assert blamed is not None
    assert blamed.startswith("plugin far 1.5 failed with ZeroDivisionError")
