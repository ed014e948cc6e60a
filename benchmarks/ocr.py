"""How fast the reward `ocr` reads: images a second with 1, 2, ... readers, and the latency of a single image.

    python benchmarks/ocr.py [--images N] [--side PIXELS] [--readers N] [--set OPTION=VALUE]

Images are words drawn in various sizes and colors, some on two lines, a tenth of them blank. What is read is checked
too: a fast reader that reads wrong is of no use. The processor time of an image tells what a busy machine hides.
"""

from __future__ import annotations

import argparse
import sys
import time
from random import Random
from typing import Any

import torch
import yaml
from torch import Tensor

from dgpo_core.types import Prompt
from dgpo_ocr.examples import draw
from dgpo_ocr.options import OcrOptions
from dgpo_ocr.reward import OcrReward
from dgpo_ocr.words import WORDS

TARGET = 15.0
"""Images of 256 x 256 pixels a second on two cores."""
BLANK = 10
"""One in so many images is blank."""


def images(count: int, side: int) -> tuple[Tensor, list[Prompt]]:
    """Images [count, 3, side, side] with the prompts that ask for what they show."""
    rng = Random(0)
    media, prompts = [], []
    for index in range(count):
        words = rng.sample(WORDS, rng.randint(1, 2))
        shown = "" if index % BLANK == BLANK - 1 else "\n".join(words).upper()
        light, dark = ((rng.randint(a, b), rng.randint(a, b), rng.randint(a, b)) for a, b in ((180, 255), (0, 70)))
        ink, paper = rng.sample([light, dark], 2)
        media.append(draw(shown, height=side, width=side, size=side * rng.uniform(0.09, 0.14), ink=ink, paper=paper))
        prompts.append(Prompt(f'A sign that says "{" ".join(words)}"'))
    return torch.stack(media), prompts


def measure(media: Tensor, prompts: list[Prompt], readers: int, settings: dict[str, Any]) -> tuple[float, float, float]:
    """Images a second, milliseconds of processor time an image, and the mean value of those that show a text. Engines
    are loaded and warm before."""
    reward = OcrReward(OcrOptions.model_validate({**settings, "readers": readers}), device=torch.device("cpu"))
    try:
        reward.score(media[: 4 * readers], prompts[: 4 * readers])
        started, used = time.perf_counter(), time.process_time()
        scores = reward.score(media, prompts)
        seconds, used = time.perf_counter() - started, time.process_time() - used
    finally:
        reward.close()
    shown = scores.values[[index % BLANK != BLANK - 1 for index in range(len(media))]]
    return len(media) / seconds, used / len(media) * 1e3, float(shown.mean())


def latency(media: Tensor, prompts: list[Prompt], settings: dict[str, Any]) -> float:
    """Median milliseconds of one image alone."""
    reward = OcrReward(OcrOptions.model_validate({**settings, "readers": 1}), device=torch.device("cpu"))
    taken = []
    try:
        reward.score(media[:1], prompts[:1])
        for index in range(min(30, len(media))):
            started = time.perf_counter()
            reward.score(media[index : index + 1], prompts[index : index + 1])
            taken.append(time.perf_counter() - started)
    finally:
        reward.close()
    return sorted(taken)[len(taken) // 2] * 1e3


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=96, help="images of a measurement (default 96)")
    parser.add_argument("--side", type=int, default=256, help="their side in pixels (default 256)")
    parser.add_argument("--readers", type=int, default=2, help="most readers (default 2)")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of the reward")
    arguments = parser.parse_args()
    settings = {name: yaml.safe_load(value) for name, _, value in (one.partition("=") for one in arguments.set)}
    torch.set_num_threads(1)
    media, prompts = images(arguments.images, arguments.side)
    lines = [
        f"{arguments.images} images of {arguments.side} x {arguments.side} {settings or ''}",
        f"one image alone: {latency(media, prompts, settings):.1f} ms",
    ]
    best = 0.0
    for readers in range(1, arguments.readers + 1):
        speed, used, value = measure(media, prompts, readers, settings)
        best = max(best, speed)
        lines.append(
            f"{readers} reader{'s' * (readers > 1)}: {speed:.1f} images a second, {used:.1f} ms of processor time an "
            f"image, mean reward {value:.3f}"
        )
    if arguments.side == 256 and not settings:
        lines.append(f"target: {TARGET:.0f} a second on two cores: {'met' if best >= TARGET else 'missed'}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
