"""`dgpo score`: score image and video files with a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgpo_cli import options as shared
from dgpo_cli.working import working

if TYPE_CHECKING:
    from dgpo_core.api.suites import OpenedSuite
    from dgpo_core.training.score_samples import Sample
    from dgpo_lab.scoring.suites import SuiteFiles
    from dgpo_schemas.sections.rewards import RewardBlock

__all__ = ["score"]


class Layout(StrEnum):
    """Folders as benchmarks lay them out (`scoring.layouts`)."""

    GENEVAL = "geneval"
    DPG = "dpg"
    NUMBERED = "numbered"
    T2I_COMPBENCH = "t2i-compbench"


def score(
    context: typer.Context,
    reward: Annotated[
        str,
        typer.Argument(
            help="A reward's name (`dgpo plugins list --kind reward`), a YAML file with one reward as for "
            "`dgpo serve`, a run file or a run directory; with --suite a directory of files.",
            metavar="REWARD",
        ),
    ],
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Images, videos, or directories of them, read in natural order: 2.png before 10.png (without "
            "grid.png, film strips and *.annotated.html; a note names other skipped files).",
            metavar="FILE",
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The prompt of every file.")] = None,
    metadata: Annotated[
        str | None,
        typer.Option(help="The prompt's metadata for the reward, as JSON or in a file.", metavar="JSON|@FILE"),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A .txt, .jsonl or .json file with one entry per file, in order or with the file name under `file`."
        ),
    ] = None,
    layout: Annotated[
        Layout | None,
        typer.Option(
            help="Directories as a benchmark lays them out: geneval (recognized by itself), dpg (grids of two by two), "
            "numbered (7.png or 7_0.png by the line of --prompts), t2i-compbench."
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help="Score directories as a benchmark (`dgpo plugins list --kind suite`): its prompts, rewards and table.",
            metavar="NAME",
        ),
    ] = None,
    suite_option: Annotated[
        list[str] | None,
        typer.Option("--suite-option", help="An option of the suite; may be repeated.", metavar="NAME.KEY=VALUE"),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", help="An option of the reward; may be repeated.", metavar="KEY=VALUE"),
    ] = None,
    label: Annotated[str | None, typer.Option("--reward", help="The reward of a run to use.", metavar="LABEL")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the JSON to a file.")] = None,
    annotate: Annotated[
        Path | None,
        typer.Option(
            help="Output directory for annotated pages, NAME.annotated.html and an index, that show what the reward "
            "detected and why it gave the score."
        ),
    ] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Score the reward's own good and bad examples instead of files.")
    ] = False,
    repeat: Annotated[
        int | None,
        typer.Option(
            min=2, help="Score the examples so often, and compare how much a value varies with how far examples differ."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Batch size, for files of the same resolution.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    worker_python: Annotated[
        str | None, typer.Option(help="Score in a worker process with this Python interpreter.", metavar="PATH")
    ] = None,
    urls: Annotated[
        list[str] | None, typer.Option("--url", help="URL of a reward server (`dgpo serve`); may be repeated.")
    ] = None,
    token_variable: Annotated[
        str | None, typer.Option(help="Environment variable that contains the servers' token.", metavar="NAME")
    ] = None,
    processes: shared.Processes = 1,
) -> None:
    """Score image and video files with any reward, and show the reasons.

    Prints a row per file, in order: the value, then each requirement of the prompt and whether it is met. A file that
    cannot be read or scored has no value (it does not count as 0) and its row gives the reason.

    Exit code 0: every file was scored. 1: some files were not scored, or the self-test failed. 2: invalid arguments.

    Examples:

        dgpo score ocr sign.png --prompt 'a sign that says "OPEN"'

        dgpo score pickscore samples --prompts prompts.txt --annotate seen

        dgpo score --self-test geneval --option detector=shapes

        dgpo score outputs --suite geneval --suite-option geneval.detector=mask2former
    """
    from dgpo_cli.launch import in_processes, left_to_launcher

    how = None if layout is None else layout.value
    job: Job | SuiteFiles
    if suite is not None or suite_option:
        others = {
            "--prompt": prompt, "--metadata": metadata, "--prompts": prompts, "--option": options, "--reward": label,
            "--annotate": annotate, "--self-test": self_test, "--worker-python": worker_python, "--url": urls,
            "--token-variable": token_variable, "--repeat": repeat,
        }  # fmt: skip
        opened = _opened(suite, suite_option or (), [name for name, value in others.items() if value])
        job = _suite_files(opened, how, [Path(reward), *(files or ())], batch, device, as_json, output)
    else:
        block = _block(
            reward, label=label, options=options or (),
            worker_python=worker_python, urls=urls or (), token_variable=token_variable,
        )  # fmt: skip
        job = Job(
            block, tuple(files or ()), prompt, metadata, prompts, self_test, batch, device, as_json, output, annotate,
            how, repeat,
        )  # fmt: skip
    job.check()
    in_processes(context, processes)
    with left_to_launcher():
        passed = job.run()
    if not passed:
        raise typer.Exit(1)


def _block(reward: str, **how: Any) -> RewardBlock:
    from dgpo_core.plugins.registry import get_registry
    from dgpo_lab.scoring.block import reward_block

    return reward_block(reward, get_registry(), **how)


def _opened(suite: str | None, options: Sequence[str], others: Sequence[str]) -> OpenedSuite:
    """Open the suite. Raises UserError for options that a suite does not go together with."""
    from dgpo_cli.suites import opened_suites
    from dgpo_core.errors import UserError

    if suite is None:
        raise UserError(f"--suite-option {options[0]}: requires --suite NAME")
    if others:
        raise UserError(f"--suite {suite}: has its own prompts and rewards; remove {' and '.join(others)}")
    (opened,) = opened_suites([suite], options)
    return opened


def _suite_files(opened: OpenedSuite, *how: Any) -> SuiteFiles:
    from dgpo_lab.scoring.suites import SuiteFiles

    return SuiteFiles(opened, *how)


@dataclass(frozen=True, slots=True)
class Job:
    """The reward, the samples to score, and the outputs to write."""

    block: RewardBlock
    files: Sequence[Path]
    prompt: str | None
    metadata: str | None
    prompts: Path | None
    self_test: bool
    batch: int
    device: str
    as_json: bool
    output: Path | None
    annotate: Path | None
    layout: str | None = None
    repeat: int | None = None

    def check(self) -> None:
        """Raise UserError for what does not go together, and for places that cannot be written, before the work."""
        from dgpo_core.api.output import check_file
        from dgpo_core.errors import UserError
        from dgpo_core.system.files import why_not_writable

        given = {
            "a file": self.files,
            "--prompt": self.prompt,
            "--metadata": self.metadata,
            "--prompts": self.prompts,
        }
        surplus = [name for name, value in given.items() if value]
        if self.self_test and surplus:
            raise UserError(f"--self-test: scores the reward's own examples; remove {' and '.join(surplus)}")
        if self.repeat is not None and not self.self_test:
            raise UserError(f"--repeat {self.repeat}: requires --self-test")
        if not self.self_test and not self.files:
            raise UserError("FILE: missing; give the files to score, or --self-test")
        if self.layout is not None and (self.prompt is not None or self.metadata is not None):
            raise UserError(f"--layout {self.layout}: gives each file its prompt; remove --prompt and --metadata")
        if self.output is not None:
            check_file(self.output)
        reason = why_not_writable(self.annotate) if self.annotate is not None else None
        if reason is not None:
            raise UserError(f"--annotate {self.annotate}: cannot be written: {reason}")

    def _samples(self, note: Callable[[str], None]) -> list[Sample]:
        """Return the samples of the files, with their prompts."""
        from dgpo_lab.scoring.job import of_files
        from dgpo_lab.scoring.layouts import looks_like_geneval, of_layout

        given = self.prompt is not None or self.metadata is not None or self.prompts is not None
        layout = self.layout
        if layout is None and not given and looks_like_geneval(self.files):
            layout = "geneval"
            note(f"{self.files[0]}: read as GenEval's layout, with the prompts in its metadata.jsonl")
        if layout is not None:
            return of_layout(layout, self.files, self.prompts, note)
        return of_files(self.files, self.prompt, self.metadata, self.prompts, note) if self.files else []

    def run(self) -> bool:
        """Score and print the results. Returns whether every file was scored or the self-test passed.

        Only the main process prints.
        """
        from dgpo_core.plugins.isolation import printing_aside
        from dgpo_core.plugins.process_state import ProcessState
        from dgpo_core.plugins.registry import get_registry
        from dgpo_core.rewards import place
        from dgpo_core.training.reward_calls import Reward
        from dgpo_lab.scoring.cards import Cards
        from dgpo_lab.scoring.job import check_kinds, joined, of_examples, run
        from dgpo_lab.scoring.output import print_results, print_self_test
        from dgpo_lab.scoring.selftest import examples_of, failures

        label, registry = self.block.label, get_registry()
        processes, device, note = joined(self.device)
        samples = self._samples(note)
        with printing_aside():  # keeps the output of rewards out of the results
            with (
                working(f"loading {label}", shown=processes.main),
                ProcessState().around(f"reward {label}, when it was made,"),  # file names are relative to the cwd
            ):
                model = place(self.block, registry, device=device)
            try:
                check_kinds(model, self.block, samples, registry)
                examples = examples_of(model, label) if self.self_test else []
                rounds = [
                    run(
                        Reward(label, 1.0, model), samples or of_examples(examples),
                        batch=self.batch, device=device, processes=processes,
                        cards=Cards(self.annotate, label) if self.annotate and n == 0 else None,
                    )
                    for n in range(self.repeat or 1)
                ]  # fmt: skip
            finally:
                model.close()
        processes.leave()
        if not processes.main:
            return True
        if not self.self_test:
            return print_results(rounds[0], as_json=self.as_json, output=self.output)
        found = failures(examples, rounds)
        print_self_test(label, examples, rounds, found, as_json=self.as_json, output=self.output)
        return not found
