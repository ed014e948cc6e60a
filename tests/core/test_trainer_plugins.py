"""Components that throw in the middle of a run: named, the iterations before them saved."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dgpo_core.data.checks import check_prompts
from dgpo_core.data.prompts import load_prompts
from dgpo_core.errors import PluginError, RunStopped, UserError
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_core.types import Prompt
from dgpo_kit.toy import BrightnessOptions, BrightnessReward
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.prompts import PromptsBlock

SOURCE = """
import itertools, json, sys
from dgpo_core.contracts import AdvantageWeighting, PromptSource
from dgpo_core.errors import UserError
from dgpo_core.types import Prompt

deed = None
class Odd(BaseException): pass
class Throws(AdvantageWeighting):
    calls = 0
    def weights(self, advantages, rewards):
        type(self).calls += 1
        if self.calls > 4:  # of the second iteration's groups
            deed()
        return advantages.abs()
class Source(PromptSource):
    def prompts(self, split):
        return deed()
def refuse():
    raise UserError("nothing is left to train on")
def cyclic():
    found = {}
    found["self"] = found
    return [Prompt("a", found)]
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: Registry) -> Iterator[Callable[[str], Registry]]:
    """The toy registry with parts of a plugin, whose deed is an expression."""
    (tmp_path / "odd_parts_of_a_run.py").write_text(textwrap.dedent(SOURCE))
    monkeypatch.syspath_prepend(str(tmp_path))

    class Plugin:
        @hookimpl
        def dgpo_weightings(self) -> Sequence[Component]:
            return [Component("throws", "Throws.", "odd_parts_of_a_run:Throws")]

        @hookimpl
        def dgpo_prompt_sources(self) -> Sequence[Component]:
            return [Component("throws", "Throws.", "odd_parts_of_a_run:Source")]

    registry.register(Plugin(), distribution="odd", version="1.5")

    def make(deed: str) -> Registry:
        import odd_parts_of_a_run as module  # type: ignore[import-not-found]

        module.deed = eval(f"lambda: {deed}", vars(module))
        return registry

    yield make
    sys.modules.pop("odd_parts_of_a_run", None)


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("sys.exit(0)", "SystemExit: 0"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("(_ for _ in ()).throw(Odd('strange'))", "Odd: strange"),
        ("json.loads('{')", "JSONDecodeError: Expecting property name"),  # thrown in a library that it calls
    ],
)
def test_a_component_that_throws_stops_the_run_with_its_state_saved(
    odd: Callable[[str], Registry], make_config: Callable[..., RunConfig], deed: str, reason: str
) -> None:
    config = make_config(weighting="throws", checkpoints={"every": 100}, run={"iterations": 4}, rollout={"groups": 4})
    with pytest.raises(RunStopped) as stopped:
        Trainer(config, odd(deed)).train()
    assert str(stopped.value).startswith(f"plugin odd 1.5 failed with {reason}")
    assert str(stopped.value).endswith("the state after iteration 1 is saved; continue with --resume")
    assert sorted(p.name for p in (run_path(config) / "checkpoints").iterdir())[-1] == "000001"


@pytest.mark.parametrize(("answer", "what"), [(None, "NoneType"), (torch.zeros(1), "Tensor")])
def test_a_sampler_that_returns_something_else(
    monkeypatch: pytest.MonkeyPatch, registry: Registry, make_config: Callable[..., RunConfig], answer: Any, what: str
) -> None:
    config = make_config(checkpoints={"every": 100}, evaluation={"every": 0, "at_start": False})
    trainer = Trainer(config, registry)
    monkeypatch.setattr(type(trainer.build().sampler), "sample", lambda *_, **__: answer)
    with pytest.raises(
        PluginError, match=rf"rollout\.sampler: .* returned {what}, expected a SampleResult with x0 .* sav"
    ):
        trainer.train()


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("sys.exit(0)", "failed with SystemExit: 0"),
        ("1 / 0", "failed with ZeroDivisionError: division by zero"),
        ("None", "failed with TypeError"),
        ("['a']", "prompt 0 is a str, not a Prompt with a text"),
        ("[Prompt('a'), Prompt(3)]", "prompt 1 is a Prompt, not a Prompt with a text"),
        ("[Prompt('\\ud83d')]", "half of a character"),
        ("cyclic()", "metadata of prompt 0: ValueError: Circular reference"),
        ("(Prompt('a') for _ in itertools.count())", "yields more than 3 prompts"),
    ],
)
def test_a_source_of_prompts_that_throws_or_yields_none(
    odd: Callable[[str], Registry], monkeypatch: pytest.MonkeyPatch, deed: str, reason: str
) -> None:
    monkeypatch.setattr("dgpo_core.data.checks.MOST", 3)
    with pytest.raises(UserError, match=r"prompts\.train: throws") as caught:
        load_prompts(PromptsBlock(use="throws"), "train", odd(deed))
    assert reason in str(caught.value)


def test_a_source_that_refuses_its_options_is_named_by_its_key(odd: Callable[[str], Registry]) -> None:
    with pytest.raises(UserError, match=r"^prompts\.heldout: nothing is left to train on$"):
        load_prompts(PromptsBlock(use="throws"), "heldout", odd("refuse()"))


def test_a_reward_that_throws_at_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(self: object, prompts: Sequence[Prompt]) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(BrightnessReward, "check_prompts", leave)
    with pytest.raises(UserError, match="BrightnessReward failed to check the prompts: SystemExit: 0"):
        check_prompts(BrightnessReward(BrightnessOptions(), device=torch.device("cpu")), [Prompt("a")])
