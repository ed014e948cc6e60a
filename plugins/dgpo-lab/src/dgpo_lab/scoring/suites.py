"""`dgpo score --suite`: score the files of a folder as a benchmark, with its prompts, rewards and aggregation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_cli.suites import show_suites
from dgpo_cli.working import working
from dgpo_core.api.output import check_file
from dgpo_core.api.suites import OpenedSuite, SuiteResult, suite_record
from dgpo_core.errors import UserError
from dgpo_core.plugins.isolation import printing_aside
from dgpo_core.plugins.process_state import ProcessState
from dgpo_core.plugins.registry import get_registry
from dgpo_core.rewards import place
from dgpo_core.training.reward_calls import Reward
from dgpo_core.training.score_samples import Result, Sample
from dgpo_lab.scoring.job import check_kinds, joined, run
from dgpo_lab.scoring.layouts import looks_like_geneval, read_layout

if TYPE_CHECKING:
    import torch

    from dgpo_core.distributed.processes import Processes
    from dgpo_core.plugins.registry import Registry
    from dgpo_core.types import Prompt

__all__ = ["SuiteFiles", "of_suite", "score_suite"]

ABSENT = {"value": None, "reason": "there is no file of this sample"}
SHOWN = 60


@dataclasses.dataclass(frozen=True, slots=True)
class SuiteFiles:
    """Folders to score with a suite, and the outputs to write; see the options of `dgpo score`."""

    suite: OpenedSuite
    layout: str | None
    paths: Sequence[Path]
    batch: int
    device: str
    as_json: bool
    output: Path | None

    def check(self) -> None:
        """Raise UserError for an output that cannot be written."""
        if self.output is not None:
            check_file(self.output)

    def run(self) -> bool:
        """Score, and print the table in the main process. Returns whether no sample is missing."""
        processes, device, note = joined(self.device)
        samples = of_suite(self.suite, self.layout, self.paths, note)
        target = ", ".join(map(str, self.paths))
        result = score_suite(
            self.suite, samples, get_registry(), target=target, batch=self.batch, device=device, processes=processes
        )
        processes.leave()
        if processes.main:
            show_suites(target, [result], as_json=self.as_json, output=self.output)
        return not processes.main or not any(judge.missing for judge in result.record.rewards.values())


def of_suite(
    opened: OpenedSuite, layout: str | None, paths: Sequence[Path], note: Callable[[str], None]
) -> list[list[Sample]]:
    """Return the samples of each prompt of a suite, from folders in a layout (`layouts`).

    layout: by default GenEval's if the folder has it, else the files are numbered by prompt. `note` is told of prompts
    without files. Raises UserError for files of other prompts.
    """
    layout = layout or ("geneval" if looks_like_geneval(paths) else "numbered")
    where = {id(prompt): i for i, prompt in enumerate(opened.prompts)}
    by_text: dict[str, list[int]] = {}
    for i, prompt in enumerate(opened.prompts):
        by_text.setdefault(prompt.text, []).append(i)
    found: list[list[Sample]] = [[] for _ in opened.prompts]
    for sample in read_layout(layout, paths, opened.prompts, note):
        number = where.get(id(sample.prompt))
        if number is None:  # the layout has prompts of its own
            number = _same_text(sample, by_text, opened)
        found[number].append(dataclasses.replace(sample, prompt=opened.prompts[number]))
    empty = [prompt for prompt, samples in zip(opened.prompts, found, strict=True) if not samples]
    if empty:
        note(f"{len(empty)} of {len(found)} prompts have no files, such as {_short(empty[0])}; they count as missing")
    return found


def score_suite(
    opened: OpenedSuite,
    samples: Sequence[Sequence[Sample]],
    registry: Registry,
    *,
    target: str,
    batch: int,
    device: torch.device,
    processes: Processes,
) -> SuiteResult:
    """Score the samples of each prompt with the rewards of a suite, and aggregate them.

    Samples that a prompt lacks are missing. target: name of what is scored. Raises UserError for a reward that cannot
    score the files.
    """
    members = max(map(len, samples))
    flat = [sample for of_prompt in samples for sample in of_prompt]
    models: dict[str, Any] = {}
    scored: dict[str, list[Result]] = {}
    try:
        for block in opened.rewards:
            with printing_aside():
                with (
                    working(f"loading {block.label}", shown=processes.main),
                    ProcessState().around(f"reward {block.label}, when it was made,"),
                ):
                    models[block.label] = model = place(block, registry, device=device)
                check_kinds(model, block, flat, registry)
                reward = Reward(block.label, 1.0, model)
                scored[block.label] = run(reward, flat, batch=batch, device=device, processes=processes, cards=None)
        lines = _lines(samples, scored, members)
        record = suite_record(
            opened, [{label: line[label] for label in models} for line in lines], models, target=target
        )
    finally:
        for model in models.values():
            model.close()
    return SuiteResult(record, lines)


def _lines(
    samples: Sequence[Sequence[Sample]], scored: Mapping[str, Sequence[Result]], members: int
) -> list[Mapping[str, Any]]:
    """Return the file, and each reward's value and diagnostics, of `members` samples of each prompt."""
    lines: list[Mapping[str, Any]] = []
    number = 0
    for of_prompt in samples:
        for sample in of_prompt:
            of_sample = {label: results[number] for label, results in scored.items()}
            rewards = {label: {**one.diagnostics, "value": one.value} for label, one in of_sample.items()}
            lines.append({"file": sample.name, "prompt": sample.prompt.text, **rewards})
            number += 1
        text = of_prompt[0].prompt.text if of_prompt else None
        lines += [{"file": None, "prompt": text, **dict.fromkeys(scored, ABSENT)}] * (members - len(of_prompt))
    return lines


def _same_text(sample: Sample, by_text: Mapping[str, Sequence[int]], opened: OpenedSuite) -> int:
    """Return the suite's prompt with the text of a sample's."""
    same = by_text.get(sample.prompt.text, ())
    if len(same) != 1:
        what = "is no prompt" if not same else f"is the text of {len(same)} prompts"
        raise UserError(f"{sample.name}: {_short(sample.prompt)} {what} of the suite {opened.name}")
    return same[0]


def _short(prompt: Prompt) -> str:
    text = " ".join(prompt.text.split())
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
