"""Default sizes of micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.plugins.registry import Registry
from dgpo_core.storage.checkpoint import load
from dgpo_core.training.batch_sizes import drawn_at_once, trained_at_once
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_kit.toy import ToyBackbone
from dgpo_schemas.run import RunConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
Make = Callable[..., RunConfig]


def sized(make: Make, groups: int, members: int, **optimizer: Any) -> RunConfig:
    return make(rollout={"groups": groups, "group_size": members}, optimizer=optimizer)


@pytest.mark.parametrize(
    ("groups", "members", "expected"),
    [
        (24, 24, 24), (24, 16, 32), (6, 8, 24), (5, 8, 24), (3, 8, 24), (1, 8, 8), (8, 10, 30), (2, 32, 32),
        (2, 33, 17), (2, 48, 24), (1, 100, 25), (100, 2, 30), (4, 5, 20),
    ],
)  # fmt: skip
def test_rollouts(groups: int, members: int, expected: int, make_config: Make) -> None:
    """Worked by hand: at most 32 samples, whole groups where one fits, otherwise equal parts of one."""
    config = sized(make_config, groups, members)
    assert drawn_at_once(config, CUDA) == expected
    assert drawn_at_once(config, CPU) == groups * members
    assert drawn_at_once(make_config(rollout={"micro_batch": 7}), CUDA) == 7


def test_rollouts_have_whole_groups_or_parts_of_one(make_config: Make) -> None:
    for groups, members in product((1, 2, 3, 5, 7, 24, 33), (2, 3, 8, 11, 24, 31, 32, 33, 47, 64, 65)):
        size = drawn_at_once(sized(make_config, groups, members), CUDA)
        assert 1 <= size <= min(32, groups * members)
        assert size % members == 0 or members > 32


@pytest.mark.parametrize(
    ("groups", "members", "updates", "expected"),
    [(24, 24, 1, 24), (24, 8, 1, 32), (24, 8, 12, 16), (6, 8, 1, 24), (2, 48, 1, 48), (8, 10, 2, 20)],
)
def test_updates(groups: int, members: int, updates: int, expected: int, make_config: Make) -> None:
    """A group stays whole, whatever its size; only groups of one update share a micro-batch."""
    auto = sized(make_config, groups, members, micro_batch="auto", updates=updates)
    assert trained_at_once(auto, CUDA) == expected
    assert trained_at_once(auto, CPU) == trained_at_once(auto, CUDA, sharded=True) == members
    assert trained_at_once(sized(make_config, groups, members), CUDA) == members
    assert trained_at_once(make_config(optimizer={"micro_batch": 5}), CUDA) == 5


class Notes(Callback):
    def __init__(self) -> None:
        self.reported: list[str] = []

    def on_message(self, text: str) -> None:
        self.reported.append(text)


def test_what_fits_is_found_by_halving(make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of 4, in a device that holds 9 samples of an update: two whole groups fit."""
    sizes: list[int] = []
    velocity = ToyBackbone.velocity

    def tight(self: ToyBackbone, x: Tensor, *given: Any) -> Tensor:
        if torch.is_grad_enabled():
            sizes.append(len(x))
            if len(x) > 9:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        return velocity(self, x, *given)

    def weights(name: str, optimizer: dict[str, Any], callbacks: Sequence[Callback] = ()) -> dict[str, Tensor]:
        config = make_config(
            run={"name": name, "iterations": 2}, backbone={"options": {"double": True}}, optimizer=optimizer
        )
        trainer = Trainer(config, registry, callbacks=callbacks)
        run = trainer.build()
        run.optimizer.accumulation.micro_batch = trained_at_once(config, CUDA)
        assert trainer.train() == "finished"
        return load(sorted((run_path(config) / "checkpoints").iterdir())[-1]).weights

    wanted = weights("one-group", {})
    monkeypatch.setattr(ToyBackbone, "velocity", tight)
    notes = Notes()
    found = weights("auto", {"micro_batch": "auto"}, [notes])
    assert sizes[0] == 16
    assert set(sizes[1:]) == {8}
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-12
    assert sum("optimizer.micro_batch: 8`" in line for line in notes.reported) == 1
