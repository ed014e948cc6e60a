"""A reward that records its calls, and files to score, for tests of `dgpo score`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.types import Example, Prompt, Scores
from dgpo_schemas.base import Int, Options

Run = Callable[..., Any]


class StubOptions(Options):
    """Options of the stub reward."""

    test: str = Field(default="good", description="Kind of self-test.")
    depth: Int = Field(default=1, ge=0, description="A number.")
    inner: dict[str, Any] = Field(default_factory=dict, description="A section.")


class Stub(RewardModel):
    """The mean of the red channel. Records its calls; prompts select failures."""

    media = frozenset({"image", "video"})
    range = (0.0, 1.0)
    asked: list[tuple[tuple[int, ...], list[Prompt]]] = []
    built: list[StubOptions] = []
    closed = 0

    def __init__(self, options: StubOptions, *, device: torch.device) -> None:
        super().__init__(options, device=device)
        Stub.built.append(options)
        sys.stdout.write("loading weights\n")

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            if prompt.text == "unfit":
                raise UserError(f"prompt {prompt.text!r} is unfit")

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        sys.stdout.write(f"scoring {len(media)}\n")
        Stub.asked.append((tuple(media.shape), list(prompts)))
        values = media.select(-3, 0).flatten(1).mean(1)
        missing = torch.zeros(len(media), dtype=torch.bool)
        diagnostics = []
        for i, prompt in enumerate(prompts):
            trouble = prompt.text.partition(" ")[0]
            values[i] = {"nan": float("nan"), "inf": float("inf"), "far": 7.0}.get(trouble, values[i])
            missing[i] = trouble == "blind"
            if trouble == "flickers":
                values[i] -= 0.1 * (len(Stub.asked) % 2)
            diagnostics.append({
                "reason": "it is too dark" if missing[i] else None,
                "marks": [{"text": "left half", "box": [0, 0, media.shape[-1] / 2, media.shape[-2]], "ok": True}],
                "clauses": [{"text": f"red enough: found {float(values[i]):.2f}", "ok": bool(values[i] > 0.5)}],
                "odd": [float("nan"), torch.float32, {"deep": (1, 2)}],
            })  # fmt: skip
            if trouble == "raise":
                raise RuntimeError("the lamp is broken")
        return Scores(values[:-1] if prompts[0].text == "short" else values, missing, tuple(diagnostics))

    def examples(self) -> Sequence[Example]:
        def example(name: str, red: float, good: bool, size: int = 8, prompt: str = "red") -> Example:
            return Example(name, Prompt(prompt), torch.full((3, size, size), red), good)

        pairs = {
            "good": [example("fire", 0.9, True), example("rose", 0.7, True, 12), example("sea", 0.1, False)],
            "inverted": [example("fire", 0.2, True), example("rose", 0.9, True), example("sea", 0.7, False)],
            "level": [example("fire", 0.5, True), example("rose", 0.9, True), example("sea", 0.5, False)],
            "constant": [example("fire", 0.25, True), example("sea", 0.25, False)],
            "zero": [example("fire", 0.0, True), example("sea", 0.0, False)],
            "missing": [example("fire", 0.9, True, prompt="blind"), example("sea", 0.1, False)],
            "nan": [example("fire", 0.9, True, prompt="nan"), example("sea", 0.1, False)],
            "far": [example("fire", 0.9, True, prompt="far"), example("sea", 0.1, False)],
            "raise": [example("fire", 0.9, True, prompt="raise"), example("sea", 0.1, False, 9)],
            "flickers": [example("fire", 0.9, True, prompt="flickers"), example("sea", 0.1, False)],
            "one-sided": [example("fire", 0.9, True), example("rose", 0.7, True)],
            "none": [],
        }
        return pairs[self.options.test]

    def close(self) -> None:
        Stub.closed += 1


class ImagesOnly(Stub):
    """Accepts images only, and returns diagnostics of its own form."""

    media = frozenset({"image"})

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        scores = super().score(media, prompts)
        diagnostics = tuple({"words": "a b", "count": 3, "sure": True, "share": 0.25, "more": [1]} for _ in prompts)
        return Scores(scores.values, scores.missing, diagnostics)


class Plugin:
    """The stubs."""

    @hookimpl
    def dgpo_rewards(self) -> Sequence[Component]:
        return [
            Component("stub", "Redness.", "stub_rewards:Stub", StubOptions),
            Component("images-only", "Redness.", "stub_rewards:ImagesOnly"),
        ]


def image(name: str, red: float = 0.8, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    """Write an image of one color: a red channel of 255 * red."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (round(255 * red), 0, 0)).convert(mode).save(name)
    return Path(name)


def clip(name: str, *reds: float) -> Path:
    first, *more = [Image.new("RGB", (8, 8), (round(255 * red), 0, 0)) for red in reds]
    first.save(name, save_all=True, append_images=more)
    return Path(name)
