"""`dgpo validate`: check a run file without loading anything heavy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgpo_cli.options import Overrides, Preset

if TYPE_CHECKING:
    from dgpo_core.data.sources import Source
    from dgpo_core.plugins.registry import Registry
    from dgpo_core.types import Prompt
    from dgpo_schemas.run import RunConfig
    from dgpo_schemas.sections.prompts import PromptsBlock

__all__ = ["checked", "validate"]

File = Annotated[
    Path | None, typer.Argument(help="The run file (YAML); not required with --explain.", metavar="RUN.yaml")
]
Explain = Annotated[
    list[str] | None,
    typer.Option(
        "--explain",
        help="Explain a key or a section instead, such as rollout.group_size: meaning, type, default, effect on a "
        "resumed run, and where the file sets it. May be repeated; files may have mistakes.",
        metavar="KEY",
    ),
]


def validate(
    file: File = None,
    overrides: Overrides = None,
    preset: Preset = None,
    explain: Explain = None,
) -> None:
    """Check a run file without loading models.

    Checks keys, values, plugins and their options, prompts, and weights that a plugin includes. Every mistake is shown
    with its line. No model is loaded; `dgpo train --dry-run` also loads it.

    A run file needs four sections:

        run: {name: first, iterations: 200}

        backbone: {use: sd3, checkpoint: models/sd35-medium}

        prompts: {train: train.txt, heldout: heldout.txt}

        rewards: [{use: pickscore}]

    Examples:

        dgpo validate run.yaml --set optimizer.learning_rate=1e-4

        dgpo validate --explain rollout.group_size --explain objective

        dgpo validate run.yaml --explain rewards.0.options
    """
    from dgpo_core.config.pipeline import load_run_config
    from dgpo_core.errors import UserError
    from dgpo_core.plugins.registry import get_registry

    registry = get_registry()
    if explain:
        from dgpo_cli.explain import explained

        for line in explained(explain, file, overrides or (), preset or (), registry):
            typer.echo(line)
        return
    if file is None:
        raise UserError("RUN.yaml: name the run file to check, or a key to explain with --explain KEY")
    config = load_run_config(file, overrides or (), registry, preset=preset)
    summary, warnings = checked(config, registry)
    typer.echo(f"{file}: valid")
    for line in summary:
        typer.echo(f"  {line}")
    for warning in warnings:
        typer.echo(f"  warning: {warning}")


def checked(config: RunConfig, registry: Registry) -> tuple[list[str], list[str]]:
    """Check what a run file names, without loading models, and return lines about the run, and warnings.

    Raises UserError for settings that the backbone does not support, included weights that are not there, and prompts
    that cannot be read.
    """
    from dgpo_core.data.notes import guided, notes, overlap, unheard
    from dgpo_core.data.prompts import load_sources, some_of_each
    from dgpo_core.plugins.sections import asks_for_more, check_section
    from dgpo_core.weights import resolve_checkpoint
    from dgpo_core.weights.packages import PACKAGE

    if config.backbone.checkpoint.startswith(PACKAGE):  # other paths may exist only on the machine that trains
        resolve_checkpoint(config.backbone.checkpoint)
    if asks_for_more(config.backbone):  # otherwise the backbone's class, a slow import, is not needed
        check_section(registry.implementation(registry.find("backbone", config.backbone.use)), config.backbone)
    if config.starts_elsewhere:
        from dgpo_core.training.starting import check_start

        check_start(config, here=False)
    # All prompts are read before the file is reported as valid.
    train = load_sources(config.prompts, "train", registry)
    heldout = load_sources(config.prompts, "heldout", registry)
    evaluated = heldout[0].prompts if len(heldout) == 1 else some_of_each(heldout, config.evaluation.prompts)
    learned, held = (_flat(sources) for sources in (train, heldout))
    warning = overlap(learned, evaluated, config.evaluation.prompts)
    truncated_prompts = unheard([*learned, *held], guided(config))
    warnings = [*filter(None, [warning]), *notes(learned), *notes(held), *filter(None, [truncated_prompts])]
    return list(_summary(config, train, heldout)), warnings


def _summary(config: RunConfig, train: Sequence[Source], heldout: Sequence[Source]) -> Iterator[str]:
    """Yield lines that summarize the run."""
    from dgpo_core.flow.sizes import different, named

    run, rollout, backbone = config.run, config.rollout, config.backbone
    samples = rollout.groups * rollout.group_size
    yield (
        f"{run.name}: {_iterations(run.iterations)} of {rollout.groups} groups x {rollout.group_size} samples\n"
        f"    = {samples:,} samples per iteration, {samples * run.iterations:,} in total"
    )
    trained = f"LoRA of rank {backbone.lora.rank}" if backbone.train == "lora" else "all weights"
    yield f"backbone: {backbone.use} from {backbone.checkpoint}, {trained}"
    guidance = f"guidance {rollout.guidance:g}" if rollout.guidance > 1 else "no guidance"
    if rollout.guidance_interval is not None:
        low, high = rollout.guidance_interval
        guidance += f" at sigma in [{low:g}, {high:g}]"
    sampler, sizes = rollout.sampler.use, named(different([*_flat(train), *_flat(heldout)], rollout.height_width))
    shift = "the model's own shift" if rollout.shift == "auto" else f"shift {rollout.shift:g}"
    yield f"rollout: {sampler}, {rollout.steps} steps, {shift}, {guidance}, {sizes}"
    if rollout.explore is not None:
        yield (
            f"groups: {rollout.best} best and {rollout.group_size - rollout.best} worst of "
            f"{rollout.explore.candidates} candidates of {rollout.explore.steps} steps"
        )
    yield "rewards: " + ", ".join(
        f"{reward.weight:g} x {f'{reward.transform} of ' if reward.transform else ''}{reward.label}"
        for reward in config.rewards
    )
    updates, passes, count = config.optimizer.updates, config.optimizer.passes, config.timesteps.count
    repeated = f"{passes} passes of " if passes > 1 else ""
    yield (
        f"objective: {config.objective.use}, {count} {'timestep' if count == 1 else 'timesteps'} per sample, "
        f"sigma in {_times(config)}, {repeated}{updates} {'update' if updates == 1 else 'updates'} per iteration"
    )
    yield f"training prompts: {_prompts(config.prompts.blocks('train'), train)}"
    if config.prompts.heldout is None:
        yield "evaluation: none, there are no held-out prompts"
    else:
        every = config.evaluation.every
        when = ("every iteration" if every == 1 else f"every {every} iterations") if every else "when the run ends"
        yield f"evaluation: {when}; held-out prompts: {_prompts(config.prompts.blocks('heldout'), heldout)}"


def _iterations(count: int) -> str:
    return f"{count} iteration{'' if count == 1 else 's'}"


def _flat(sources: Sequence[Source]) -> list[Prompt]:
    return [prompt for source in sources for prompt in source.prompts]


def _times(config: RunConfig) -> str:
    """Return the range of training times as text: sigmas, or the configured values if the model has its own shift.

    Without t_max the range ends at the model's largest sigma, at most 1."""
    section, shift = config.timesteps, config.rollout.shift
    ends = (section.t_min, section.t_max) if shift == "auto" else config.training_range(shift)
    low, high = (1.0 if end is None else end for end in ends)
    return "[" + ", ".join(end if isinstance(end, str) else f"{end:.4g}" for end in (low, high)) + "]"


def _prompts(blocks: Sequence[PromptsBlock], sources: Sequence[Source]) -> str:
    """Describe the prompt blocks; several with their names, shares and rewards."""
    from dgpo_schemas.sections.prompts import SourceBlock

    total = sum(source.weight for source in sources)
    reported = []
    for block, source in zip(blocks, sources, strict=True):
        words = _block(block, source.prompts)
        if isinstance(block, SourceBlock):
            rewards = "all rewards" if block.rewards is None else ", ".join(block.rewards)
            if isinstance(block.rewards, dict):
                rewards = ", ".join(f"{weight:g} x {label}" for label, weight in block.rewards.items())
            words = f"{block.source} ({source.weight / total:.0%}; {words}; {rewards})"
        reported.append(words)
    return ", ".join(reported)


def _block(block: PromptsBlock, found: Sequence[Prompt]) -> str:
    if block.file is not None:
        return f"{len(found)} from {block.file}{_more(found)}"
    return f"from the source {block.use}" + (f", the first {block.limit}" if block.limit else "") + _more(found)


def _more(found: Sequence[Prompt]) -> str:
    """Describe the media, negative prompts, sizes and sources of prompts, in parentheses."""
    from dgpo_core.data.notes import counted
    from dgpo_core.data.prompts import counts

    reported = counted(counts(found))
    return f" ({', '.join(reported)})" if reported else ""
