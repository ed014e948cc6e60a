"""A dry run: everything built, a small group drawn and scored, then one micro-batch of each phase at its whole size, so
that what training takes is known before it starts. Nothing is written, and no weight, moment or random state moves."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dgpo_core.data.sources import Source, of_sources
from dgpo_core.distributed.comparing import Layout
from dgpo_core.distributed.processes import split_samples
from dgpo_core.draws import Draws
from dgpo_core.errors import DgpoError, UserError
from dgpo_core.flow.groups import by_source, compute_advantages
from dgpo_core.flow.sizes import largest
from dgpo_core.training.memory import TooLittleMemoryError, decoded_media, is_out_of_memory
from dgpo_core.training.run import Run
from dgpo_core.training.scored import reasons_of
from dgpo_core.training.scoring import Scorer
from dgpo_core.training.trainer import Trainer
from dgpo_core.types import Path, Prompt, Rollout, ScoredGroups, TrainingBatch
from dgpo_schemas.text import clean

__all__ = ["dry_run", "dry_run_training"]

SHOWN = 200
"""Characters of the prompt that was drawn."""
MEMBERS = 2
"""Samples drawn of one prompt."""
TIMES = 2
"""Training times of the update: more take longer, not more memory."""
MOST = 4096
"""Samples rolled out at once, however many a run file without `rollout.micro_batch` asks for."""
GIB = 2**30


def dry_run(trainer: Trainer) -> dict[str, Any]:
    """Build the run, draw and score one small group of each split with its rewards, then go through a rollout, scores
    and an update of the sizes that training has; returns what was found.

    Raises UserError for what a run could not start with: a reward or monitor that scores none of its samples, an
    objective that fails, a device whose memory does not hold a single sample.
    """
    with trainer.closing:
        run = trainer.build()
        prompt, rewards = _score_one(run, run.train_prompts, run.scorer)
        if run.evaluator is not None:
            _score_one(run, run.heldout_prompts, run.evaluator.scorer)
        memory = dry_run_training(run)
        found = {**run.facts(), "prompt": clean(prompt.text, SHOWN), "rewards": rewards, **memory}
        for note in run.notes():
            run.callbacks.on_warning(f"warning: {note}")
        return found


def _score_one(run: Run, prompts: Sequence[Prompt], scorer: Scorer) -> tuple[Prompt, dict[str, list[float]]]:
    """One group's scores by label, a group of the largest size."""
    draws = run.draws
    chosen = [
        prompt
        for rows in by_source(prompts).values()  # one of each source, which has rewards of its own
        for prompt in _first(_largest(run, [prompts[i] for i in rows]), 1, draws)
    ]
    scorer.expect(Layout(MEMBERS, draws.at("dry run"), [range(MEMBERS * len(chosen))]))
    with run.runtime.processes.together(run.policy.finish):
        for rollout in run.training_rollout_sampler.sample_groups(chosen, MEMBERS, draws.at("dry run"), "policy"):
            scorer.submit(decoded_media(run.backbone, rollout), rollout.prompts, samples=rollout.samples)
    scored = scorer.collect()
    found = {}
    for reward in scorer.rewards:
        label = reward.label
        asked = torch.tensor([reward.asks(prompt) for prompt in chosen for _ in range(MEMBERS)])
        values = scored.values[label][asked]
        found[label] = values.tolist()
        if len(values) and bool(values.isnan().all()):
            said = scorer.failure_of(label) or reasons_of([reward], scored)
            why = said or f"see its diagnostics: {clean(str(scored.diagnostics[label]), 1000)}"
            raise UserError(f"dry run: reward {label} scored none of {len(values)} samples: {why}")
    return chosen[0], found


def _first(prompts: Sequence[Prompt], groups: int, draws: Draws) -> list[Prompt]:
    """Those of so many groups, in the order of a run on these prompts alone."""
    return of_sources([Source("", 1, prompts)], 0, groups, draws.at("prompt order"))


def _largest(run: Run, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """Those of the largest size: what takes the most memory is what may not fit."""
    resolution = run.training_rollout_sampler.resolution
    most = largest(prompts, resolution)
    return [prompt for prompt in prompts if (prompt.size or resolution) == most]


def dry_run_training(run: Run) -> dict[str, str]:
    """One micro-batch rolled out and scored, and one update by micro-batches of the whole size; afterwards all is bit
    for bit as before. Returns the peak of memory of each, the largest of all processes."""
    runtime = run.runtime
    found: dict[str, str] = {}

    @contextmanager
    def measured(what: str) -> Iterator[list[str]]:
        said: list[str] = []
        runtime.forget_peak_memory()
        yield said
        peak = max(run.runtime.processes.all_gather_object(runtime.peak_memory()))
        found[f"peak memory, {what}"] = f"{peak / GIB:.2f} GiB on {runtime.device}, {said[0]}"

    with _random_states_kept(), run.policy.unchanged():
        with measured("rollout") as said:
            rollout = _sample_groups(run)
            said.append(f"{len(rollout.samples)} samples at once")
        with measured("scoring") as said:
            said.append(f"{_score(run, rollout)} samples at once")
        with measured("update") as said:
            said.append(f"micro-batches of {_update(run, rollout)}")
    return found


def _sample_groups(run: Run) -> Rollout:
    """The first micro-batch of an iteration, or of this process's part of it."""
    section, draws = run.config.rollout, run.draws
    own = -(-section.groups * section.group_size // run.runtime.processes.count)
    size = min(run.training_rollout_sampler.micro_batch or own, own, MOST)
    some = _largest(run, run.train_prompts)
    prompts = _first(some, -(-size // section.group_size), draws)
    drawn = run.training_rollout_sampler.sample_groups(
        prompts, section.group_size, draws.at("dry run"), "policy",
        samples=range(size), keep_path=run.objective.needs_path,
    )  # fmt: skip
    with run.runtime.processes.together(run.policy.finish):
        return next(drawn)


def _score(run: Run, rollout: Rollout) -> int:
    """Score the samples of a rollout; the number of them. Where a reward compares, some are shown again, in
    micro-batches of no larger size, until the group is whole in which they end."""
    scorer, members = run.scorer, run.config.rollout.group_size
    media = decoded_media(run.backbone, rollout)
    count = total = len(media)
    if any(reward.compares for reward in scorer.rewards):
        total = -(-count // members) * members
    scorer.expect(Layout(members, run.draws.at("dry run"), [range(total)]))
    for start in range(0, total, count):
        samples = range(start, min(start + count, total))
        prompts = [rollout.prompts[sample // members * members] for sample in samples]
        scorer.submit(media[: len(samples)], prompts, samples=samples)
    scorer.collect()
    return count


def _update(run: Run, rollout: Rollout) -> int:
    """One update, by an optimizer of its own, from which only the policy's weights have to be put back; the size of its
    micro-batches. Raises UserError, with the objective's name, for what a plugin throws."""
    config, optimizer = run.config, run.make_optimizer()
    asked, policy = optimizer.micro_batch, run.timesteps
    # As many groups as fill a micro-batch of every process, up to those of an update.
    wanted = -(-asked * run.runtime.processes.count // config.rollout.group_size)
    groups = min(wanted, config.rollout.groups // config.optimizer.updates)
    remembered = deepcopy(policy.state_dict())
    try:
        batch = _batch(run, rollout, groups * config.optimizer.updates)
        draws = run.draws.at("dry run")
        sigmas = policy.draw(config.timesteps.count, run.timestep_context(0), draws.at("timesteps"))
        optimizer.update(optimizer.prepare(batch, range(groups), sigmas.tolist()[:TIMES], draws.at("optimise")))
    except TooLittleMemoryError as error:
        raise TooLittleMemoryError(f"dry run: {error}; {_fitted(rollout)}") from error
    except DgpoError:
        raise
    except Exception as error:
        if is_out_of_memory(error):  # beside the gradients there are AdamW's moments
            size = optimizer.micro_batch
            raise TooLittleMemoryError(
                f"dry run: optimizer.micro_batch: the device runs out of memory in an update with micro-batches of "
                f"{size}; set `optimizer.micro_batch: {max(1, size // 2)}` or less; {_fitted(rollout)}"
            ) from error
        blamed = run.registry.blame(error)
        if blamed is None:
            raise
        raise UserError(f"dry run: the update with objective {config.objective.use} failed: {blamed}") from error
    finally:
        policy.load_state_dict(remembered)
    if optimizer.micro_batch < asked:
        run.callbacks.on_warning(
            f"warning: optimizer.micro_batch: the device's memory does not hold {asked} samples; "
            f"{optimizer.micro_batch} fitted: set `optimizer.micro_batch: {optimizer.micro_batch}`"
        )
    return min(optimizer.micro_batch, groups * config.rollout.group_size)


def _fitted(rollout: Rollout) -> str:
    return f"the rollout of {len(rollout.samples)} samples and their scores fitted"


def _batch(run: Run, rollout: Rollout, groups: int) -> TrainingBatch:
    """Groups made of the samples of a rollout, repeated, whose members all count: half of them as the better ones."""
    members = run.config.rollout.group_size
    own = split_samples(groups, members, run.config.optimizer.updates, run.runtime.processes.count)[
        run.runtime.processes.rank
    ]
    rows = [i % len(rollout.samples) for i in range(len(own))]
    rewards = torch.linspace(0, 1, members, dtype=torch.float64).expand(groups, members)
    scored = torch.ones(groups, members, dtype=torch.bool)
    drawn = ScoredGroups(
        prompts=tuple(rollout.prompts[(g * members) % len(rollout.prompts)] for g in range(groups)),
        x0=tuple(rollout.x0[rows]), own=own, rewards=rewards, summed=rewards, scored=scored, per_reward={},
        diversity=torch.zeros(groups, dtype=torch.float64), paths=_rows(rollout.path, rows),
    )  # fmt: skip
    batch = compute_advantages(drawn, run.config.advantages, run.weighting)
    side = torch.where(rewards > 0.5, 1.0, -1.0).to(batch.signed_weights)
    return replace(batch, signed_weights=torch.where(batch.signed_weights == 0, side, batch.signed_weights))


def _rows(path: Path | None, rows: Sequence[int]) -> tuple[Path, ...]:
    if path is None or not rows:
        return ()
    log_probs = None if path.log_probs is None else path.log_probs[:, rows]
    return (Path(path.states[:, rows], path.sigmas, log_probs),)


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """The global generators are as before: everything has a key, but what plugins call may draw."""
    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    try:
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
            yield
    finally:
        random.setstate(python)
        assert isinstance(numpy, Mapping)
        np.random.set_state(numpy)
