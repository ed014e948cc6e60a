"""The steps of `dgpo score`: collect samples from files or a reward's examples, score them, and write annotations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import typer

from dgpo_cli.working import working
from dgpo_core.data.checks import check_prompts
from dgpo_core.distributed.processes import Processes
from dgpo_core.errors import UserError
from dgpo_core.media.files import MediaError, Medium, check_files, kind_of, read_media
from dgpo_core.media.kinds import adapter, one_of, plural
from dgpo_core.system.device import choose_device
from dgpo_core.training.reward_calls import Reward
from dgpo_core.training.score_samples import Result, Sample, score_samples
from dgpo_core.types import Example
from dgpo_lab.scoring.cards import Cards
from dgpo_lab.scoring.listing import expand
from dgpo_lab.scoring.prompts import prompts_for

if TYPE_CHECKING:
    from dgpo_core.contracts import RewardBase
    from dgpo_core.plugins.registry import Registry
    from dgpo_schemas.sections.rewards import RewardBlock

__all__ = ["check_kinds", "joined", "of_examples", "of_files", "run"]


TIMEOUT = 1800.0
"""Seconds that a process waits for the other ranks."""


def joined(device: str) -> tuple[Processes, torch.device, Callable[[str], None]]:
    """Join the other ranks, and return them, the device that `--device` names, and a function that prints a note in the
    main process."""
    found = choose_device(device, "--device")
    processes = Processes.join(cpu=found.type == "cpu", timeout=TIMEOUT)

    def note(text: str) -> None:
        if processes.main:
            typer.echo(f"note: {text}", err=True)

    return processes, found, note


def of_files(
    paths: Sequence[Path],
    text: str | None,
    metadata: str | None,
    source: Path | None,
    note: Callable[[str], None],
) -> list[Sample]:
    """Return a sample for each file, with its prompt.

    `note` receives a message about the files of a directory that are skipped. Raises UserError for missing files, for
    prompts that do not match the files, and for videos if the video reader is not installed.
    """
    files = expand(paths, note)
    check_files(files)
    prompts = prompts_for(files, text=text, metadata=metadata, source=source, note=note)
    return [Sample(str(file), prompt, partial(read_media, file)) for file, prompt in zip(files, prompts, strict=True)]


def check_kinds(model: RewardBase, block: RewardBlock, samples: Sequence[Sample], registry: Registry) -> None:
    """Raise UserError if the reward cannot score any of the files because all of them are of the other kind."""
    if not samples:
        return
    for sample in samples:
        kind = kind_of(Path(sample.name))
        if kind is None or kind in model.media:
            return  # files that cannot be scored are reported in their rows
    assert kind is not None
    others = {1: "", 2: ", as is the other file"}.get(len(samples), f", as are the other {len(samples) - 1} files")
    advice = ""
    if shows := adapter(registry, kind, model.media):
        advice = f"; to score single frames: dgpo score {shows} --option reward={block.use}"
    raise UserError(f"{samples[0].name}: is {one_of(kind)}{others}; {block.label} scores {plural(model.media)}{advice}")


def of_examples(examples: Sequence[Example]) -> list[Sample]:
    """Return a sample for each example of a reward."""
    return [Sample(e.name, e.prompt, partial(Medium, e.media.detach().cpu().float())) for e in examples]


def run(
    reward: Reward,
    samples: Sequence[Sample],
    *,
    batch: int,
    device: torch.device,
    processes: Processes,
    cards: Cards | None,
) -> list[Result]:
    """Score samples and return one result for each, in order. Raises UserError for a prompt that the reward refuses."""
    check_prompts(reward.model, [sample.prompt for sample in samples])
    with working("scoring", shown=processes.main) as work:
        number = itertools.count(1)
        scored = score_samples(
            reward, samples, batch=batch, device=device, processes=processes,
            done=lambda: work.count(next(number), len(samples)),
        )  # fmt: skip
    if not processes.main:
        return scored.results
    for text in scored.notes:
        typer.echo(f"note: {text}", err=True)
    if cards is not None:
        for sample, result in zip(samples, scored.results, strict=True):
            with suppress(MediaError):  # an unreadable file has nothing to show
                cards.write(result, sample.load().tensor)
        cards.finish()
    return scored.results
