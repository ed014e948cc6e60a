"""A plugin with rewards that fail on request, installed for workers and servers by `conftest`.

`conv` is a real network, whose last bits show whether two processes compute identically. `moody` is the same, but does
what a prompt's text says. With {"once": path} in its metadata it does so only once, and creates the path as a mark.
"""

from __future__ import annotations

import ctypes
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.media.conditions import condition_medium
from dgpo_core.types import Example, Prompt, Scores
from dgpo_kit.toy import ToyBackbone, ToyOptions
from dgpo_schemas.base import Float, Int, Options

GATE = threading.Event()
"""The prompt `wait` waits for this event, if the test and the reward share a process."""
BATCHES: list[int] = []
"""Sizes of the batches that were scored in this process."""


class ConvOptions(Options):
    """Options of the network."""

    seed: Int = Field(default=0, description="Seed of its weights.")
    scale: Float = Field(default=1.0, description="Factor of its scores.")


class Conv(RewardModel):
    """A small convolutional network with a seed for its weights."""

    media = frozenset({"image", "video"})
    range = (float("-inf"), float("inf"))
    group_by = "tag"

    def __init__(self, options: ConvOptions, *, device: torch.device) -> None:
        super().__init__(options, device=device)
        if options.seed == 13:
            raise UserError("options.seed: 13 brings bad luck")
        if options.seed == 14:
            os.kill(os.getpid(), signal.SIGKILL)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.network = nn.Sequential(
                nn.Conv2d(3, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 16, 3, stride=2), nn.Tanh(), nn.Flatten(2)
            ).to(device)

    def provenance(self) -> dict[str, Any]:
        return {"model": f"conv-{self.options.seed}", "layers": (3, 16)}

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            if prompt.text == "break":
                raise ZeroDivisionError("it is all too much")
            if prompt.text == "bad":
                raise UserError(f"the prompt {prompt.text!r} is a bad one")

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        count = len(prompts)
        frames = media.float().reshape(-1, *media.shape[-3:])
        if len(frames) == 0:
            return Scores(torch.zeros(count), torch.ones(count, dtype=torch.bool), ({"reason": "no frames"},) * count)
        values = self.network(frames).mean((1, 2)).view(count, -1).mean(1) * self.options.scale
        values = values + torch.tensor([len(prompt.text) / 7 for prompt in prompts])
        missing = torch.tensor([bool(prompt.metadata.get("missing")) for prompt in prompts])
        return Scores(values, missing, tuple({"text": p.text, "seen": dict(p.metadata)} for p in prompts))

    def examples(self) -> Sequence[Example]:
        images = torch.linspace(0, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
        return [
            Example("bright", Prompt("light", {"tag": "x"}), images[1], True),
            Example("dark", Prompt("light"), images[0, :, :4], False),
        ]


class Moody(Conv):
    """Does what prompts say, then scores."""

    def __init__(self, options: ConvOptions, *, device: torch.device) -> None:
        super().__init__(options, device=device)
        self.deeds = {
            "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
            "crash": lambda: ctypes.string_at(0),
            "exit": lambda: os._exit(3),
            "leave": lambda: sys.exit("no license"),
            "hang": lambda: time.sleep(3600),
            "wait": lambda: GATE.wait(20),
            "raise": _raise,
            "print": _print,
            "starve": _starve,
            "odd": lambda: _throw(Odd("strange")),
            "mute": lambda: _throw(Mute()),
            "interrupt": lambda: _throw(KeyboardInterrupt()),
            "generator": lambda: _throw(GeneratorExit()),
        }

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        BATCHES.append(len(prompts))
        _die_in_turn()
        for prompt in prompts:
            deed = self.deeds.get(prompt.text)
            once = prompt.metadata.get("once")
            if deed is None or (once and Path(once).exists()):
                continue
            if once:
                Path(once).touch()
            if prompt.text == "starve":
                deed(len(prompts))
            else:
                deed()
        if any(prompt.text == "short" for prompt in prompts):
            return Scores(torch.zeros(1), torch.zeros(1, dtype=torch.bool))
        scores = super().score(media, prompts)
        if prompts and prompts[0].text in ("cycle", "large"):
            odd: dict[str, object] = {"odd": {3, 1}, "large": torch.zeros(1).expand(10**10)}
            odd["cycle"] = odd
            return Scores(scores.values, scores.missing, [odd] * len(prompts))  # type: ignore[arg-type]
        return scores


class Edit(RewardModel):
    """Similarity of samples to their condition image. The diagnostics contain the fields of each prompt."""

    range = (0.0, 1.0)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            if not prompt.media:
                raise UserError("the prompt has no media")

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        values = [1 - (one - prompt.media[0].read()).abs().mean() for one, prompt in zip(media, prompts, strict=True)]
        reported = tuple(
            {
                "negative": p.negative,
                "size": p.size,
                "source": p.source,
                "fps": p.fps,
                "media": [m.kind for m in p.media],
            }
            for p in prompts
        )
        return Scores(torch.stack(values), torch.zeros(len(prompts), dtype=torch.bool), reported)

    def examples(self) -> Sequence[Example]:
        made = io.BytesIO()
        Image.new("RGB", (8, 8), (51, 102, 153)).save(made, "PNG")
        medium = condition_medium(made.getvalue())
        prompt = Prompt("keep it", media=(medium,), negative="no", size=(8, 8))
        return [Example("kept", prompt, medium.read(), True), Example("lost", prompt, 1 - medium.read(), False)]


class Film(ToyBackbone):
    """The toy backbone, declared to make videos."""

    media = "video"
    fps = 12.5


class Odd(BaseException):
    """Not an `Exception`."""


class Mute(Exception):
    """An exception whose text cannot be read."""

    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


def _throw(error: BaseException) -> None:
    raise error


def _raise() -> None:
    raise RuntimeError("the lamp is broken")


def _print() -> None:
    print("DGPO" * 10_000)  # noqa: T201
    os.write(1, b"\x00\xff rubbish\n")
    os.system("echo from a child")


def _starve(count: int) -> None:
    if count > 2:
        raise torch.OutOfMemoryError(f"{count} are too many")


def _die_in_turn() -> None:
    """Die during the batches listed in MOODY_DIES, counted in a file over all processes."""
    counter = os.environ.get("MOODY_COUNTER")
    if counter is None:
        return
    with open(counter, "a") as file:
        file.write("x")
    if str(os.stat(counter).st_size) in os.environ["MOODY_DIES"].split():
        os.kill(os.getpid(), signal.SIGKILL)


@hookimpl
def dgpo_backbones() -> Sequence[Component]:
    """A backbone for videos."""
    return [Component("film", "The toy, declared to make videos", "dgpo_placement_parts:Film", ToyOptions)]


@hookimpl
def dgpo_rewards() -> Sequence[Component]:
    """All rewards."""
    return [
        Component("conv", "A small network", "dgpo_placement_parts:Conv", ConvOptions),
        Component("moody", "A network with moods", "dgpo_placement_parts:Moody", ConvOptions),
        Component("edit", "Compares with the image to edit", "dgpo_placement_parts:Edit", Options),
    ]
