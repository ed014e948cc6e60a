"""The collectives of a run's iteration: what is summed and gathered, of which size, and how often.

Without those of evaluations, checkpoints, rewards that compare samples of several ranks, and media that ranks without
rewards send (`run.reward_ranks`: on the host, while the next samples are drawn).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from dgpo_core.distributed.passes import STRIDE
from dgpo_core.distributed.processes import split_samples
from dgpo_core.distributed.sharding import gather_dtype
from dgpo_core.training.scored import THUMBNAIL
from dgpo_lab.planning.communication import Exchange, Scope

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone, Objective
    from dgpo_schemas.run import RunConfig

__all__ = ["balance_of", "exchanges_of", "shards_of"]

MEETINGS = 2
"""Meetings of an iteration of any run: whether a rank was asked to stop before it, and whether weights are finite.
Others come before collectives on GPUs (`_meetings`)."""
GATHERS = 3
"""Gathers of an iteration: metrics, seconds, memory."""
OF_ROUND = 2
"""Meetings of a round of sampling: whether a rank was asked to stop after the rollout and after scoring; and as many
gathers: scores, sizes of thumbnails."""
SCORE = 300
"""Approximate bytes of JSON of a sample's score by a reward, with its diagnostics and statistics of its media."""
FLOAT = 4


def shards_of(config: RunConfig, processes: int, machines: int) -> int:
    """Return the number of ranks over which weights are sharded; 1 if they are not."""
    if not config.run.shard:
        return 1
    return processes // machines if config.run.shard == "machine" else processes


def balance_of(config: RunConfig, processes: int) -> float:
    """Return the mean number of samples of a rank over that of the rank with most, which the others wait for."""
    rollout = config.rollout
    parts = split_samples(rollout.groups, rollout.group_size, config.optimizer.updates, processes)
    return rollout.groups * rollout.group_size / processes / max(map(len, parts))


def exchanges_of(
    config: RunConfig,
    backbone: Backbone,
    objective: Objective,
    passes: Mapping[str, Counter[str]],
    processes: int,
    machines: int,
) -> tuple[Exchange, ...]:
    """Return the exchanges of an iteration.

    passes: the passes of a rank's network by phase, and by kind: `plain`, or with `gradient`.
    """
    if processes == 1:
        return ()
    shards = shards_of(config, processes, machines)
    made = [*_gradients(config, backbone, sharded=shards > 1), *_statistics(config, objective, processes)]
    made += _scores(config, backbone)
    made += _meetings(made, passes if shards > 1 else {})
    if shards > 1:
        made += _weights(config, backbone, passes, shards, replicated=shards < processes)
        made += _agreements(config, objective, passes, processes)
    return tuple(made)


def _gradients(config: RunConfig, backbone: Backbone, *, sharded: bool) -> Iterator[Exchange]:
    """Of each update: gradients with the loss, which of them there are, and whether a rank was asked to stop."""
    updates = config.optimizer.updates_per_iteration
    if sharded and backbone.adapter is None:
        yield Exchange("loss", "all_reduce", 2 * FLOAT, updates)
        yield Exchange("norms", "all_reduce", FLOAT, updates + 1)  # of gradients, and of the change of the weights
        return
    weights = backbone.trainable().values()
    numbers = sum(p.numel() for p in weights) + len(weights) + 2
    yield Exchange("gradients", "all_reduce", FLOAT * numbers, updates)


def _statistics(config: RunConfig, objective: Objective, processes: int) -> Iterator[Exchange]:
    """Of each update with a group that is split across ranks: statistics of all groups at all timesteps."""
    updates = config.optimizer.updates
    split = _splits(config, processes)
    if objective.needs_statistic and split:
        numbers = config.timesteps.count * (config.rollout.groups // updates) + 1
        yield Exchange("statistics of groups", "all_reduce", FLOAT * numbers, split * config.optimizer.passes)


def _splits(config: RunConfig, processes: int) -> int:
    """Return the number of updates of a pass with a group that is split across ranks."""
    size, members = config.rollout.groups // config.optimizer.updates, config.rollout.group_size
    found = 0
    for update in range(config.optimizer.updates):
        first = update * size * members
        parts = split_samples(config.rollout.groups, members, config.optimizer.updates, processes)
        starts = [next((i for i in part if first <= i < first + size * members), first) for part in parts]
        found += any((start - first) % members for start in starts)
    return found


def _scores(config: RunConfig, backbone: Backbone) -> Iterator[Exchange]:
    """Scores and thumbnails of all samples, on every rank, in each round of sampling."""
    rollout, rounds = config.rollout, len(config.rollout.rounds)
    height, width = rollout.height_width
    frames = _frames(config, backbone)
    pixels = min(height, THUMBNAIL) * min(width, THUMBNAIL) if max(height, width) > THUMBNAIL else height * width
    for members, _ in rollout.rounds:
        samples = rollout.groups * members
        yield Exchange("thumbnails", "all_gather", FLOAT * 3 * pixels * frames * samples, 1)
        yield Exchange("scores", "host_gather", SCORE * samples * len(config.rewards), 1)
    yield Exchange("metrics and times", "host_gather", SCORE, GATHERS + rounds * (OF_ROUND - 1))
    yield Exchange("whether to stop", "meeting", 8, MEETINGS + rounds * OF_ROUND)


def _meetings(made: Sequence[Exchange], passes: Mapping[str, Counter[str]]) -> Iterator[Exchange]:
    """Of ranks with GPUs on the host, since NCCL does not raise if one is gone: before each reduction and gather of
    `made`, with nothing left to compute; and before each pass and backward pass of a sharded network (`passes`), while
    queued work is computed."""
    count = sum(exchange.count for exchange in made if exchange.kind in ("all_reduce", "all_gather"))
    yield Exchange("before reductions", "meeting", 8, count)
    for phase, of in passes.items():
        if of.total():
            yield Exchange(f"before passes in {phase}", "meeting", 8, of.total() + of["gradient"], phase=phase)


def _frames(config: RunConfig, backbone: Backbone) -> int:
    frames = config.backbone.options.get("frames", getattr(backbone.options, "frames", 1))
    return int(frames) if backbone.media == "video" else 1


def _weights(
    config: RunConfig, backbone: Backbone, passes: Mapping[str, Counter[str]], shards: int, *, replicated: bool
) -> Iterator[Exchange]:
    """Each pass gathers the weights of each block, once more for a backward pass, which also reduces the gradients of
    trained weights."""
    dtype = gather_dtype(backbone, bf16=config.precision.autocast == "bf16")
    scope: Scope = "machine" if replicated else "all"
    trained = backbone.adapter is None
    for weights in _units(backbone):
        numbers = [_padded(weight, shards) for weight in weights]
        size = sum(n * (dtype or w.dtype).itemsize for n, w in zip(numbers, weights, strict=True))
        for phase, made in passes.items():
            count = made["plain"] + 2 * made["gradient"]
            if count:
                yield Exchange(f"weights in {phase}", "all_gather", size, count, scope, phase)
        gradients = passes.get("optimize", Counter())["gradient"]
        if trained and gradients:
            size = FLOAT * sum(numbers)
            yield Exchange("gradients of weights", "reduce_scatter", size, gradients, scope, "optimize")
            if replicated:
                name = "gradients of weights between machines"
                yield Exchange(name, "all_reduce", size // shards, config.optimizer.updates_per_iteration, "between")


def _units(backbone: Backbone) -> Iterator[list[nn.Parameter]]:
    """The weights that are gathered together: of each block, and those outside of blocks."""
    seen = set() if backbone.adapter is None else set(backbone.trainable().values())
    for module in (*backbone.blocks(), backbone.module):
        weights = [weight for weight in module.parameters() if weight not in seen]
        seen.update(weights)
        if weights:
            yield weights


def _padded(weight: nn.Parameter, shards: int) -> int:
    """Return the number of elements of a weight whose rows are filled up to a multiple of the shards."""
    rows = weight.shape[0] if weight.dim() else 1
    return -(-rows // shards) * shards * (weight.numel() // rows)


def _agreements(
    config: RunConfig, objective: Objective, passes: Mapping[str, Counter[str]], processes: int
) -> Iterator[Exchange]:
    """Each phase of passes begins with a gather of all ranks' passes, and meets after every few of them."""
    split = _splits(config, processes) if objective.needs_statistic else 0
    phases = len(config.rollout.rounds) + (config.optimizer.updates + split) * config.optimizer.passes
    total = sum(made.total() for made in passes.values())
    yield Exchange("order of passes", "host_gather", 10 * total * processes // phases, phases)
    yield Exchange("whether passes are left", "meeting", 8, total // STRIDE)
