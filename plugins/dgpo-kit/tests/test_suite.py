"""The suite of a component: every requirement by name, in order, and its message for missing input."""

from __future__ import annotations

import re
import threading
import time
import unittest
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import Tensor

import dgpo_kit.contracts as kit
from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.hookspecs import KINDS, Component, hookimpl
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Example, Prompt, Scores
from dgpo_kit.contracts import Check, Given, NeedsInput, component_checks, reward_checks
from dgpo_kit.toy import ToyBackbone, ToyOptions
from dgpo_schemas.base import Options
from dgpo_schemas.sections.backbone import BackboneSection

CPU = torch.device("cpu")


class Light(RewardModel):
    """Mean brightness, with examples; easy to break."""

    range = (0.0, 1.0)

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        values = media.float().mean((1, 2, 3)).clamp(0, 1)
        return Scores(values, torch.zeros(len(values), dtype=torch.bool))

    def examples(self) -> Sequence[Example]:
        return [self.example("white", 1.0, True), self.example("gray", 0.4, False)]

    def example(self, name: str, level: float, good: bool) -> Example:
        return Example(name, Prompt("a photo"), torch.full((3, 8, 8), level), good)


def named(kind: type[RewardModel], name: str, prompts: Sequence[Prompt] = ()) -> Check:
    return {check.name: check for check in reward_checks(lambda: kind(None, device=CPU), prompts)}[name]


def test_every_requirement_of_a_reward_has_a_name() -> None:
    checks = list(reward_checks(lambda: Light(None, device=CPU)))
    assert [check.name for check in checks] == [
        "builds", "declares", "prompts", "scores", "untouched", "determinism", "batch-invariance", "empty-batch",
        "sizes", "not-finite", "diagnostics", "threads", "random-state", "examples", "close",
    ]  # fmt: skip
    for check in checks:
        check.run()


def test_nothing_is_built_before_a_check_runs_and_then_once() -> None:
    built = []

    def make() -> Light:
        built.append(1)
        return Light(None, device=CPU)

    checks = list(reward_checks(make))
    assert built == []
    for check in checks:
        check.run()
    assert built == [1]


class Square(Light):
    """Fails on what is not square."""

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        if media.shape[-1] != media.shape[-2]:
            raise ValueError("only squares")
        return super().score(media, prompts)


class Raises(Light):
    """Fails on a whole batch for one image."""

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        if not media.isfinite().all():
            raise ValueError("what is that?")
        return super().score(media, prompts)


class Spreads(Light):
    """One image that is not finite spoils the others."""

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        return super().score(media + 0 * media.sum(), prompts)


class Joins(Light):
    """Cannot join no samples."""

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        values = torch.stack([one.mean() for one in media])
        return Scores(values, torch.zeros(len(values), dtype=torch.bool))


class Marks(Light):
    """Marks without a place."""

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        found = super().score(media, prompts)
        return Scores(found.values, found.missing, tuple({"marks": [{"text": "a dog"}]} for _ in prompts))


class Shares(Light):
    """Says that four calls may run at once, and keeps its work where they all see it."""

    concurrency = 4

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        self.calls = getattr(self, "calls", 0) + 1
        time.sleep(0.01)
        alone = self.calls == 1
        time.sleep(0.02)
        self.calls -= 1
        found = super().score(media, prompts)
        return found if alone else Scores(found.values * 0.5, found.missing)


class MainOnly(Light):
    """Like a library that only works where it was started."""

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("signal only works in main thread")
        return super().score(media, prompts)


class NoCount(Light):
    concurrency = True


class Upside(Light):
    def examples(self) -> Sequence[Example]:
        return [self.example("gray", 0.4, True), self.example("white", 1.0, False)]


class OnlyGood(Light):
    def examples(self) -> Sequence[Example]:
        return [self.example("white", 1.0, True)]


class Bytes(Light):
    def examples(self) -> Sequence[Example]:
        return [self.example("white", 255.0, True), self.example("black", 0.0, False)]


class Batches(Light):
    def examples(self) -> Sequence[Example]:
        return [Example(n, Prompt("x"), torch.full((1, 3, 8, 8), v), bool(v)) for n, v in (("w", 1.0), ("b", 0.0))]


class Draws(Light):
    def examples(self) -> Sequence[Example]:
        noise = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(time.perf_counter_ns()))
        return [self.example("white", 1.0, True), Example("noise", Prompt("x"), 0.5 * noise, good=False)]


class NoRange(RewardModel):
    score = Light.score


@pytest.mark.parametrize(
    ("kind", "name", "requirement"),
    [
        (NoRange, "declares", "must declare its `range`"),
        (NoCount, "declares", "`concurrency` must be an integer >= 1, got True"),
        (Joins, "empty-batch", "stack expects a non-empty TensorList"),
        (Square, "sizes", r"images of 1x9 must be scored or missing, got an error \(ValueError: only squares\)"),
        (Raises, "not-finite", r"nonfinite samples must be scored or missing, got an error \(ValueError: what"),
        (Spreads, "not-finite", "a nonfinite sample must not change the scores of other samples"),
        (Marks, "diagnostics", "set exactly one of `box` and `polygon`"),
        (Shares, "threads", "must be the same in every thread"),
        (MainOnly, "threads", "calls from another thread must not fail: .*signal only works"),
        (Upside, "examples", "good examples must score above bad ones: gray 0.4, white 1"),
        (OnlyGood, "examples", "at least one good and one bad one"),
        (Bytes, "examples", r"example white must lie in \[0, 1\]"),
        (Batches, "examples", r"example w must be \[3, H, W\] for image"),
        (Draws, "examples", "example noise must be deterministic"),
    ],
)
def test_a_violated_requirement_is_found_by_its_check(kind: type[RewardModel], name: str, requirement: str) -> None:
    check = named(kind, name, [Prompt("a photo")])
    with pytest.raises((AssertionError, RuntimeError, ValueError)) as caught:
        check.run()
    assert re.search(requirement, str(caught.value), re.DOTALL), str(caught.value)


class Moving(RewardModel):
    """Of videos: how much changes from frame to frame."""

    media = frozenset({"video"})
    range = (0.0, 1.0)
    group_by = "tag"

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        change = media.diff(dim=1).abs().flatten(1)
        missing = torch.full((len(media),), media.shape[1] < 2)
        return Scores(change.mean(1).nan_to_num(0.0) if change.shape[1] else torch.zeros(len(media)), missing)


def test_videos_are_made_for_a_reward_of_videos() -> None:
    """With the key that it groups by; a single frame is missing, which is an answer."""
    for check in reward_checks(lambda: Moving(None, device=CPU)):
        if check.name == "examples":
            with pytest.raises(unittest.SkipTest, match="the reward has no examples"):
                check.run()
        else:
            check.run()


class Picky(Light):
    """Wants a quoted text."""

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            if '"' not in prompt.text:
                raise UserError(f"prompt {prompt.text!r}: no quoted text")

    def examples(self) -> Sequence[Example]:
        return ()


def test_a_reward_that_refuses_the_generated_prompts_needs_some() -> None:
    with pytest.raises(NeedsInput, match=r"prompts: it has no examples\(\) and rejects the generated prompts .*quoted"):
        named(Picky, "scores").run()
    named(Picky, "scores", [Prompt('a sign that says "OPEN"')]).run()
    with pytest.raises(UserError, match="no quoted text") as caught:
        named(Picky, "scores", [Prompt("a sign")]).run()
    assert not isinstance(caught.value, NeedsInput)


# -- by name --------------------------------------------------------------------------------------------------------


class Labeled(Options):
    """Needs a label."""

    label: str = Field(description="What it is called.")
    size: int = Field(default=1, ge=1, description="How large.")


def of_reward(implementation: str, options: type[Options] | None = None) -> Registry:
    class Plugin:
        @hookimpl
        def dgpo_rewards(self) -> list[Component]:
            return [Component("made", "A reward", implementation, options)]

    registry = Registry(discover=False)
    registry.register(Plugin(), distribution="made")
    return registry


def run(checks: Sequence[Check], name: str) -> None:
    next(check for check in checks if check.name == name).run()


def test_required_options_are_asked_for() -> None:
    registry = of_reward("dgpo_kit.toy:BrightnessReward", Labeled)
    checks = list(component_checks(registry, "reward", "made"))
    with pytest.raises(NeedsInput, match=r"options: label is missing \(What it is called\)"):
        run(checks, "builds")
    with pytest.raises(unittest.SkipTest, match="some are required"):
        run(checks, "options-round-trip")
    with pytest.raises(NeedsInput, match=r"options: size must be at least 1"):
        run(list(component_checks(registry, "reward", "made", Given({"label": "x", "size": 0}))), "builds")
    run(list(component_checks(registry, "reward", "made", Given({"label": "x"}))), "options-round-trip")


def test_a_backbone_is_checked_in_both_ways_of_training(registry: Registry) -> None:
    checks = list(component_checks(registry, "backbone", "toy"))
    names = [check.name for check in checks if "-" in check.name]
    assert {name.split("-")[0] for name in names} >= {"lora", "full"}
    with pytest.raises(unittest.SkipTest, match="there is no adapter"):
        run(checks, "full-adapter")
    skipped = set()
    for check in checks:
        try:
            check.run()
        except unittest.SkipTest:  # it would skip this test
            skipped.add(check.name)
    of_adapters = {"full-adapter", "full-merged", "full-save-adapter", "full-formats"}
    unused = ("dtype", "fast", "gradient-checkpointing", "package")
    assert skipped == of_adapters | {"lora-save-weights"} | {
        f"{train}-{key}" for train in ("lora", "full") for key in unused
    }


class Whole(ToyBackbone):
    """Trains every weight, whatever its section says."""

    def __init__(self, section: BackboneSection, options: ToyOptions, *, device: torch.device) -> None:
        super().__init__(section.model_copy(update={"train": "full"}), options, device=device)
        self.section = section


def test_a_backbone_without_an_adapter_is_checked_in_one() -> None:
    class Plugin:
        @hookimpl
        def dgpo_backbones(self) -> list[Component]:
            return [Component("whole", "Trains every weight", f"{__name__}:Whole", ToyOptions)]

    registry = Registry(discover=False)
    registry.register(Plugin(), distribution="whole")
    checks = list(component_checks(registry, "backbone", "whole"))
    with pytest.raises(unittest.SkipTest, match=r"supports only `train: full`: .* whole has no adapter"):
        run(checks, "lora-builds")
    run(checks, "full-save-weights")


def test_a_checkpoint_that_is_missing_is_asked_for(registry: Registry) -> None:
    checks = list(component_checks(registry, "backbone", "toy", Given(section={"checkpoint": "missing"})))
    with pytest.raises(NeedsInput, match="missing: no such directory"):
        run(checks, "lora-builds")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_suite_and_a_function(kind: str) -> None:
    functions: dict[str, Any] = vars(kit)
    assert {f"{kind}_checks", f"check_{kind}"} <= set(functions)
