"""Trains a bundled checkpoint from scratch: `python -m dgpo_miniature.train --out DIR [--world signs|moving|blocks]`.

One seed determines all randomness; the same machine and versions give the same weights.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

__all__ = ["SPECS", "main"]

SPECS = {
    "shapes": "dgpo_miniature.spec",
    "signs": "dgpo_miniature.signs.spec",
    "moving": "dgpo_miniature.moving.spec",
    "blocks": "dgpo_miniature.blocks.spec",
}
"""Maps a world to the module of its training."""


class Report:
    """Prints progress every few seconds."""

    def __init__(self, every: float = 10.0) -> None:
        self.start = self.last = time.monotonic()
        self.every = every
        self.losses: list[float] = []

    def __call__(self, phase: str, step: int, steps: int, loss: float) -> None:
        """Record the loss of one step."""
        self.losses.append(loss)
        now = time.monotonic()
        if now - self.last >= self.every or step == steps:
            mean = sum(self.losses) / len(self.losses)
            sys.stdout.write(f"{now - self.start:6.0f} s  {phase}: step {step} of {steps}, loss {mean:.4f}\n")
            sys.stdout.flush()
            self.last, self.losses = now, []


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m dgpo_miniature.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory for the new checkpoint")
    parser.add_argument("--world", choices=tuple(SPECS), default="shapes", help="data to train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="number of torch threads")
    parser.add_argument("--tiny", action="store_true", help="train only a few steps, to test the code")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    spec = importlib.import_module(SPECS[options.world])
    result = spec.run(spec.TINY if options.tiny else spec.TrainingSpec(), options.out, options.seed, Report())
    sys.stdout.write(json.dumps({name: round(value, 4) for name, value in result.items()}) + "\n")


if __name__ == "__main__":
    main()
