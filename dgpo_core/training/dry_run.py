"""Dry run: build everything, sample and score a small group, then run one full-size micro-batch of each phase.

This shows whether training fits into memory before it starts. It writes nothing, and leaves weights, optimizer state
and random states unchanged.
"""

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
from dgpo_core.system.device import mps_is_available
from dgpo_core.training.memory import TooLittleMemoryError, decoded_media, is_out_of_memory
from dgpo_core.training.run import TrainingRun
from dgpo_core.training.scored import reasons_of
from dgpo_core.training.scoring import Scorer
from dgpo_core.training.times import draw_times
from dgpo_core.training.trainer import Trainer
from dgpo_core.types import Path, Prompt, Rollout, ScoredGroups, TrainingBatch
from dgpo_schemas.text import clean

__all__ = ["dry_run", "dry_run_training"]

SHOWN = 200
"""Characters of the prompt in the report."""
MEMBERS = 2
"""Samples per prompt."""
TIMES = 2
"""Timesteps of the trial update; more would take longer but not need more memory."""
MOST = 4096
"""Largest rollout batch, whatever the group sizes of a run file without `rollout.micro_batch`."""
GIB = 2**30


def dry_run(trainer: Trainer) -> dict[str, Any]:
    """Build the run, sample and score one small group per split, then run a rollout, scoring and an update at training
    size. Returns facts about the run: sizes, rewards and peak memory.

    Raises UserError if a reward or monitor scores none of its samples, the objective fails, or a single sample does not
    fit into the device's memory.
    """
    with trainer.closing:
        run = trainer.build()
        prompt, rewards = _score_one(run, run.train_prompts, run.scorer)
        if run.evaluator is not None:
            _score_one(run, run.heldout_prompts, run.evaluator.scorer)
        memory = dry_run_training(run)
        weights = {f"weights of {name}": clean(text, 200) for name, text in run.backbone.loaded_weights().items()}
        found = {**run.facts(), **weights, "prompt": clean(prompt.text, SHOWN), "rewards": rewards, **memory}
        for note in run.notes():
            run.callbacks.on_warning(f"warning: {note}")
        return found


def _score_one(run: TrainingRun, prompts: Sequence[Prompt], scorer: Scorer) -> tuple[Prompt, dict[str, list[float]]]:
    """Sample and score one group of the largest size per source; return the first prompt and the scores by label."""
    draws = run.draws
    chosen = [
        prompt
        for rows in by_source(prompts).values()  # one per source, because sources may have different rewards
        for prompt in _first(_largest(run, [prompts[i] for i in rows]), 1, draws)
    ]
    scorer.expect(Layout(MEMBERS, draws.at("dry run"), [range(MEMBERS * len(chosen))]))
    with run.runtime.processes.together(run.policy.finish):
        for rollout in run.training_rollout_sampler.sample_groups(chosen, MEMBERS, draws.at("dry run"), "policy"):
            media = decoded_media(run.backbone, rollout, training=True)
            scorer.submit(media, rollout.prompts, samples=rollout.samples)
    scored = scorer.collect()
    found = {}
    for reward in scorer.rewards:
        label = reward.label
        applies = torch.tensor([reward.asks(prompt) for prompt in chosen for _ in range(MEMBERS)])
        values = scored.values[label][applies]
        found[label] = values.tolist()
        if len(values) and bool(values.isnan().all()):
            reason = scorer.failure_of(label) or reasons_of([reward], scored)
            reason = reason or f"see its diagnostics: {clean(str(scored.diagnostics[label]), 1000)}"
            raise UserError(f"dry run: reward {label} scored none of {len(values)} samples: {reason}")
    return chosen[0], found


def _first(prompts: Sequence[Prompt], groups: int, draws: Draws) -> list[Prompt]:
    """Return the prompts of the first `groups` groups of a run on these prompts alone."""
    return of_sources([Source("", 1, prompts)], 0, groups, draws.at("prompt order"))


def _largest(run: TrainingRun, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """Return the prompts of the largest size, which need the most memory."""
    resolution = run.training_rollout_sampler.resolution
    most = largest(prompts, resolution)
    return [prompt for prompt in prompts if (prompt.size or resolution) == most]


def dry_run_training(run: TrainingRun) -> dict[str, str]:
    """Roll out and score one micro-batch, and run one update with full-size micro-batches; restore the state
    bit-exactly.

    Returns the peak memory of each phase, the maximum over all ranks.
    """
    runtime = run.runtime
    found: dict[str, str] = {}

    @contextmanager
    def measured(phase: str) -> Iterator[list[str]]:
        details: list[str] = []
        runtime.forget_peak_memory()
        yield details
        peak = max(run.runtime.processes.all_gather_object(runtime.peak_memory()))
        found[f"peak memory, {phase}"] = f"{peak / GIB:.2f} GiB on {runtime.device}, {details[0]}"

    with _preserved_random_states(), run.policy.unchanged():
        with measured("rollout") as details:
            rollout = _sample_groups(run)
            details.append(f"{len(rollout.samples)} samples at once")
        with measured("scoring") as details:
            details.append(f"{_score(run, rollout)} samples at once")
        with measured("update") as details:
            details.append(f"micro-batches of {_update(run, rollout)}")
    return found


def _sample_groups(run: TrainingRun) -> Rollout:
    """Sample the first micro-batch of this rank's part of an iteration, after one of candidates, if there are any."""
    section, draws = run.config.rollout, run.draws
    per_rank = -(-section.groups * section.group_size // run.runtime.processes.count)
    size = min(run.training_rollout_sampler.micro_batch or per_rank, per_rank, MOST)
    prompts = _first(_largest(run, run.train_prompts), -(-size // section.group_size), draws)
    candidates, trained = run.exploration_sampler, run.training_rollout_sampler
    key, path = draws.at("dry run"), run.objective.needs_path
    with run.runtime.processes.together(run.policy.finish):
        if candidates is not None:
            for _ in candidates.sample_groups(prompts, section.group_size, key, "policy", samples=range(size)):
                pass
        return next(
            trained.sample_groups(prompts, section.group_size, key, "policy", samples=range(size), keep_path=path)
        )


def _score(run: TrainingRun, rollout: Rollout) -> int:
    """Score the samples of a rollout and return their number.

    For rewards that compare samples, some are submitted again, in micro-batches of at most the same size, to complete
    the last group.
    """
    scorer, members = run.scorer, max(members for members, _ in run.config.rollout.rounds)
    media = decoded_media(run.backbone, rollout, training=True)
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


def _update(run: TrainingRun, rollout: Rollout) -> int:
    """Run one update with a new optimizer, so that only the policy's weights must be restored; return the micro-batch
    size. Raises UserError with the objective's name if plugin code fails."""
    config, optimizer = run.config, run.make_optimizer()
    micro_batch, policy = optimizer.micro_batch, run.timesteps
    # Enough groups to fill a micro-batch on every rank, up to those of an update.
    needed = -(-micro_batch * run.runtime.processes.count // config.rollout.group_size)
    groups = min(needed, config.rollout.groups // config.optimizer.updates)
    timestep_state = deepcopy(policy.state_dict())
    try:
        batch = _batch(run, rollout, groups * config.optimizer.updates)
        draws = run.draws.at("dry run")
        sigmas, weights = draw_times(policy, config.timesteps.count, run.timestep_context(0), draws.at("timesteps"))
        factors = None if weights is None else weights.tolist()[:TIMES]
        key = draws.at("optimise")
        optimizer.update(optimizer.prepare(batch, range(groups), sigmas.tolist()[:TIMES], key, factors))
    except TooLittleMemoryError as error:
        raise TooLittleMemoryError(f"dry run: {error}; {_what_fit(rollout)}") from error
    except DgpoError:
        raise
    except Exception as error:
        if is_out_of_memory(error):  # AdamW's moments are allocated in addition to the gradients
            size = optimizer.micro_batch
            raise TooLittleMemoryError(
                f"dry run: optimizer.micro_batch: the device runs out of memory in an update with micro-batches of "
                f"{size}; set `optimizer.micro_batch: {max(1, size // 2)}` or less; {_what_fit(rollout)}"
            ) from error
        blamed = run.registry.blame(error)
        if blamed is None:
            raise
        raise UserError(f"dry run: the update with objective {config.objective.use} failed: {blamed}") from error
    finally:
        policy.load_state_dict(timestep_state)
    if optimizer.micro_batch < micro_batch:
        run.callbacks.on_warning(
            f"warning: optimizer.micro_batch: {micro_batch} samples do not fit into the device's memory, "
            f"{optimizer.micro_batch} do; set `optimizer.micro_batch: {optimizer.micro_batch}`"
        )
    return min(optimizer.micro_batch, groups * config.rollout.group_size)


def _what_fit(rollout: Rollout) -> str:
    return f"the rollout of {len(rollout.samples)} samples and their scoring did fit"


def _batch(run: TrainingRun, rollout: Rollout, groups: int) -> TrainingBatch:
    """Make groups by repeating the samples of a rollout; all members have a nonzero weight, half of them positive."""
    members = run.config.rollout.group_size
    local = split_samples(groups, members, run.config.optimizer.updates, run.runtime.processes.count)[
        run.runtime.processes.rank
    ]
    rows = [i % len(rollout.samples) for i in range(len(local))]
    rewards = torch.linspace(0, 1, members, dtype=torch.float64).expand(groups, members)
    scored = torch.ones(groups, members, dtype=torch.bool)
    drawn = ScoredGroups(
        prompts=tuple(rollout.prompts[(g * members) % len(rollout.prompts)] for g in range(groups)),
        x0=tuple(rollout.x0[rows]), own=local, rewards=rewards, summed=rewards, scored=scored,
        per_reward={reward.label: rewards for reward in run.rewards},
        diversity=torch.zeros(groups, dtype=torch.float64), paths=_rows(rollout.path, rows),
    )  # fmt: skip
    batch = compute_advantages(drawn, run.config.advantages, run.weighting, run.objective)
    side = torch.where(rewards > 0.5, 1.0, -1.0).to(batch.signed_weights)
    return replace(batch, signed_weights=torch.where(batch.signed_weights == 0, side, batch.signed_weights))


def _rows(path: Path | None, rows: Sequence[int]) -> tuple[Path, ...]:
    if path is None or not rows:
        return ()
    log_probs, means = (None if one is None else one[:, rows] for one in (path.log_probs, path.means))
    return (Path(path.states[:, rows], path.sigmas, log_probs, means),)


@contextmanager
def _preserved_random_states() -> Iterator[None]:
    """Restore the global random generators on exit: dgpo uses keyed draws, but plugins may use the global ones."""
    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    mps = torch.mps.get_rng_state() if mps_is_available() else None
    try:
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
            yield
    finally:
        random.setstate(python)
        if mps is not None:
            torch.mps.set_rng_state(mps)
        assert isinstance(numpy, Mapping)
        np.random.set_state(numpy)
