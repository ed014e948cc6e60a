"""The inner loops never wait for the device.

They run on tensors without values that torch takes for CUDA tensors (`dgpo_lab.planning.meter`), so that every copy
between host and device is seen, with the function that asks for it and whether the host waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.builtin.objective import DirectGroupPreference
from dgpo_core.contracts import Backbone
from dgpo_core.draws import Draws
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.monitors import media_statistics
from dgpo_core.training.optimizer import Optimizer
from dgpo_core.training.policy import ConditioningCache, Policy
from dgpo_core.training.rollout import RolloutSampler
from dgpo_core.training.scored import thumbnails
from dgpo_core.types import Prompt, TrainingBatch
from dgpo_lab.planning.meter import Lap, Meter
from dgpo_lab.planning.roofline import measure_roofline
from dgpo_lab.planning.shapes import CUDA, META
from dgpo_schemas.base import Options, UseBlock
from dgpo_schemas.run import RunConfig

Make = Callable[..., RunConfig]
Allowed = dict[str, int]
PROMPTS = [Prompt("a red circle"), Prompt("two blue squares")]
MEMBERS = 3
SD3: dict[str, Any] = {
    "use": "sd3", "checkpoint": "package:dgpo_miniature/checkpoint", "options": {"text_length": 0},
}  # fmt: skip
OBJECTIVES: list[dict[str, Any]] = [{"clip": 1e-3, "kl": 0.02}, {"clip": None, "kl": 0.0, "reference": "ema_fast"}]
SAMPLERS, MODELS, GUIDANCE = ("flow-euler", "flow-dpmpp"), ("base", "policy", "ema_fast"), (1.0, 3.0)

# What may block, by the function that asks for it: at most these, for each of the following. Only ever remove entries.
A_ROLLOUT: Allowed = {}
"""A micro-batch of rollouts with guidance, whatever the number of steps."""
AN_INTERVAL: Allowed = {"dgpo_core.training.rollout RolloutSampler._check_times": 1}
"""All micro-batches of a rollout phase with rollout.guidance_interval: the times are compared at the end."""
A_DECODE: Allowed = {}
STATISTICS: Allowed = {}
"""Thumbnails and statistics of a micro-batch."""
A_MICRO_BATCH: Allowed = {}
"""A micro-batch of the optimizer, whatever the number of timesteps."""
AN_UPDATE: Allowed = {"dgpo_core.training.optimizer Optimizer.apply": 1}
"""An update of the weights: whether the gradient is finite, and its norm."""
KERNELS = {
    "roll-out step": 365, "decode": 99, "policy pass with gradient": 355, "its backward": 356,
    "training micro-batch, all passes": 1411, "update of the weights": 99,
}  # fmt: skip
"""Kernels of the miniature, rounded up. A change that adds some says why; one that removes some lowers the number."""


def within(lap: Lap, *allowed: tuple[Allowed, int]) -> None:
    """Assert that only the allowed copies block, each at most so many times."""
    limit: Counter[str] = Counter()
    for places, times in allowed:
        limit.update({place: count * times for place, count in places.items()})
    found: Counter[str] = Counter()
    for copy, count in lap.blocking.items():
        found[copy.place] += count
    assert not found - limit, f"{dict(found - limit)} block the host, beyond {dict(limit)}"


class Setting:
    """A policy on an imitated GPU, with the run's settings."""

    def __init__(self, config: RunConfig, registry: Registry) -> None:
        backbone: Backbone = registry.create("backbone", config.backbone, device=META)
        self.meter = Meter("here", *backbone.components().values())
        backbone.device = CUDA
        self.config, self.registry = config, registry
        with self.meter:
            self.policy = Policy(backbone, config.objective)
            self.conditioning = ConditioningCache(backbone)
            self.prompts = prompts = [prompt.sized(config.rollout.height_width, backbone.fps) for prompt in PROMPTS]
            self.conditioning.rows(prompts)  # prompts are encoded once, and may wait
            self.conditioning.unconditional_rows(prompts)

    def autocast(self) -> torch.autocast:
        return torch.autocast("cuda", torch.bfloat16)

    def rollout_sampler(self, sampler: str = "flow-euler", guidance: float = 3.0, **more: Any) -> RolloutSampler:
        settings = {"steps": 3, "shift": 2.0, "micro_batch": 4, **more}
        return RolloutSampler(
            self.policy, self.registry.create("sampler", UseBlock(use=sampler)), self.conditioning,
            resolution=self.config.rollout.height_width, guidance=guidance, autocast=self.autocast, **settings,
        )  # fmt: skip

    def optimizer(self, objective: dict[str, Any], micro_batch: int) -> Optimizer:
        config = self.config.model_copy(
            update={
                "objective": self.config.objective.model_copy(update=objective),
                "optimizer": self.config.optimizer.model_copy(update={"micro_batch": micro_batch}),
            }
        )
        return Optimizer(
            config, self.policy, DirectGroupPreference(config.objective, Options()), self.conditioning,
            autocast=self.autocast,
        )  # fmt: skip

    def batch(self) -> TrainingBatch:
        shape = self.policy.backbone.latent_shape(*self.config.rollout.height_width)
        count = len(PROMPTS) * MEMBERS
        weights = torch.tensor([[0.5, 0.5, -1.0], [1.0, -0.5, -0.5]], dtype=torch.float64)
        return TrainingBatch(
            prompts=tuple(self.prompts), x0=[*torch.empty(count, *shape, device=CUDA)], own=range(count),
            advantages=weights, signed_weights=weights, scored=torch.ones(2, MEMBERS, dtype=torch.bool),
            residual=torch.zeros(2),
        )  # fmt: skip


@pytest.fixture
def setting(name: str, make_config: Make, registry: Registry) -> Setting:
    config = make_config()
    if name == "sd3":
        data = config.model_dump(mode="json", exclude_unset=True)
        config = RunConfig.model_validate(data | {"backbone": SD3, "rollout": data["rollout"] | {"resolution": 64}})
    return Setting(config, registry)


def test_every_way_to_wait_is_noticed() -> None:
    """What the other tests rely on."""
    with Meter("here") as meter:
        value, rows = torch.ones((), device=CUDA), torch.zeros(2, 3, device=CUDA)
        ways: dict[str, Callable[[], Any]] = {
            "item": value.item, "tolist": rows.tolist, "bool": lambda: bool(value), "float": lambda: float(value),
            "nonzero": rows.nonzero, "cpu": rows.cpu, "host copy": lambda: torch.zeros(3).copy_(rows[0]),
            "new": lambda: rows.new_tensor([1.0, 2.0]), "to": lambda: torch.zeros(3).to(CUDA),
            "made": lambda: torch.tensor([1, 2], device=CUDA), "list": lambda: rows[[1, 0]],
            "index": lambda: rows[torch.tensor([1, 0])], "device copy": lambda: rows.copy_(torch.zeros(2, 3)),
        }  # fmt: skip
        for way, act in ways.items():
            with meter.lap() as lap:
                act()
            assert lap.blocking.total() == 1, way
        for quiet in (lambda: torch.zeros(3).to(CUDA, non_blocking=True), lambda: rows * 2.0, lambda: rows + value):
            with meter.lap() as lap:
                quiet()  # type: ignore[no-untyped-call]
            assert not lap.blocking
        with pytest.raises(RuntimeError, match="same device"):
            rows + torch.zeros(3)


@pytest.mark.parametrize(
    ("name", "sampler", "model", "guidance"),
    [*(("toy", *how) for how in product(SAMPLERS, MODELS, GUIDANCE)), ("sd3", "flow-euler", "policy", 3.0)],
)
def test_rolling_out_and_decoding(sampler: str, model: Any, guidance: float, setting: Setting) -> None:
    """Micro-batches of 4 and 2; more steps do not copy more."""
    meter, backbone = setting.meter, setting.policy.backbone
    with meter:
        for steps in (3, 7):
            with meter.lap() as lap:
                drawn = setting.rollout_sampler(sampler, guidance, steps=steps)
                rollouts = list(drawn.sample_groups(PROMPTS, MEMBERS, Draws(0), model))
            assert [len(rollout.samples) for rollout in rollouts] == [4, 2]
            within(lap, (A_ROLLOUT, 2))
        with meter.lap() as lap:
            media = backbone.decode(rollouts[0].x0)
        within(lap, (A_DECODE, 1))
        assert media.is_cuda
        with meter.lap() as lap:
            thumbnails(media)
            media_statistics(media)
        within(lap, (STATISTICS, 1))


@pytest.mark.parametrize("name", ["toy"])
def test_which_steps_are_guided_is_known_in_advance(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    scales: list[float] = []
    velocity = setting.policy.velocity

    def spied(*given: Any) -> Tensor:
        scales.append(given[-1])
        return velocity(*given)

    monkeypatch.setattr(setting.policy, "velocity", spied)
    with setting.meter as meter, meter.lap() as lap:
        sampler = setting.rollout_sampler(steps=4, micro_batch=None, guidance_interval=[0.5, 0.95])
        list(sampler.sample_groups(PROMPTS, MEMBERS, Draws(0), "policy"))
    assert scales == [1.0, 3.0, 3.0, 1.0]
    within(lap, (A_ROLLOUT, 1), (AN_INTERVAL, 1))


@pytest.mark.parametrize(
    ("name", "objective", "micro_batch"),
    [("toy", one, size) for one in OBJECTIVES for size in (2, 100)] + [("sd3", OBJECTIVES[0], 2)],
)
def test_an_update(objective: dict[str, Any], micro_batch: int, setting: Setting) -> None:
    """Two groups of 3, in micro-batches of 1 and 2, or in one; more timesteps do not copy more."""
    micro_batches = 4 if micro_batch == 2 else 1
    with setting.meter as meter:
        optimizer, batch = setting.optimizer(objective, micro_batch), setting.batch()
        for sigmas in ([0.8, 0.4], [0.8, 0.6, 0.4, 0.2]):
            with meter.lap() as lap:
                optimizer.accumulation.add(optimizer.prepare(batch, range(2), sigmas, Draws(1)))
            within(lap, (A_MICRO_BATCH, micro_batches))
            assert all(p.grad is not None for p in setting.policy.parameters.values())
        with meter.lap() as lap:
            (result,) = optimizer.step(batch, torch.tensor([0.8, 0.4]), Draws(1))
        within(lap, (A_MICRO_BATCH, micro_batches), (AN_UPDATE, 1))
    assert not result.skipped
    assert optimizer.updates == 1


def test_kernels_of_the_miniature(make_config: Make, registry: Registry) -> None:
    data = make_config().model_dump(mode="json", exclude_unset=True)
    rollout = {"resolution": 64, "group_size": 4, "groups": 1, "micro_batch": 4, "steps": 4, "guidance": 2.0}
    config = RunConfig.model_validate(
        data | {
            "backbone": SD3 | {"dtype": "bfloat16"}, "rollout": data["rollout"] | rollout,
            "optimizer": {"micro_batch": 4}, "timesteps": {"count": 2}, "precision": {"autocast": "bf16"},
            "objective": {"use": "dgpo", "kl": 0.02, "clip": 0.01},
        }
    )  # fmt: skip
    found = measure_roofline(config, registry).passes
    counted = {one.name: -int(-one.kernels // 1) for one in found}
    assert counted.keys() == KERNELS.keys()
    assert {name: n for name, n in counted.items() if n > KERNELS[name]} == {}, "more kernels than before"
    assert {name: n for name, n in counted.items() if n < 0.9 * KERNELS[name]} == {}, "lower the numbers to these"
