"""Passes of every family on an imitated MPS device: the same numbers as on the CPU, and nothing in float64.

`tests/imitated_mps.py` refuses what torch refuses there. The CPU computes the values, so this is no proof of Metal's
arithmetic, nor that it has every operator.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.utils import is_torch_mps_available

from dgpo_core.builtin.objective import DirectGroupPreference
from dgpo_core.builtin.samplers import FlowEuler
from dgpo_core.draws import Draws
from dgpo_core.training.monitors import media_statistics
from dgpo_core.training.optimizer import Optimizer
from dgpo_core.training.policy import ConditioningCache, Policy
from dgpo_core.training.rollout import RolloutSampler
from dgpo_core.training.scored import thumbnails
from dgpo_core.types import TrainingBatch
from dgpo_kit.toy import run_data
from dgpo_schemas.base import Options
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.backbone import BackboneSection
from tests.families.proof import among, proofs
from tests.imitated_mps import MPS, available, imitated

FAMILIES = proofs()
QUICK = ["sd3", "sd"]
STEPS, MEMBERS = 2, 2
ROUNDED = {"flux", "flux2-klein", "lumina2", "ltx-video", "wan", "wan-i2v"}
"""Backbones whose positions diffusers computes in float32 on MPS, and in float64 elsewhere; ltx-video's decoder with
noise differs by 1e-7 of its media."""
BOUND = 1e-3
"""Largest relative error of anything that is computed from such positions; that of gradients is the largest."""


def passes(name: str, checkpoint: Path, device: torch.device, output: Path) -> dict[str, Tensor]:
    """What a rollout, its decoded media, their statistics and an update of the weights compute."""
    proof = FAMILIES[name]
    size = proof.sizes[0]
    section = BackboneSection(
        use=proof.kind.layout.backbone, checkpoint=str(checkpoint), lora={"rank": 4, "alpha": 4}
    )  # fmt: skip
    backbone: Any = proof.kind(section, proof.options(**proof.values), device=device)
    rollout: dict[str, Any] = {"group_size": MEMBERS, "groups": 1, "resolution": list(size), "steps": STEPS}
    config = RunConfig.model_validate(
        run_data(output, rollout={**rollout, "guidance": 3.0 if backbone.supports_guidance else 1.0})
    )
    policy, conditioning = Policy(backbone, config.objective), ConditioningCache(backbone)
    prompts = [backbone.example(size).sized(size, backbone.fps)]
    sampler = RolloutSampler(
        policy, FlowEuler(Options()), conditioning, resolution=size, steps=STEPS, shift=config.rollout.shift,
        guidance=config.rollout.guidance, micro_batch=None, autocast=nullcontext,
    )  # fmt: skip
    (drawn,) = sampler.sample_groups(prompts, MEMBERS, Draws(0), "policy")
    media = backbone.decode(drawn.x0)
    weights = torch.tensor([[0.5, -0.5]], dtype=torch.float64)
    batch = TrainingBatch(
        prompts=tuple(prompts), x0=[*drawn.x0], own=range(MEMBERS), advantages=weights, signed_weights=weights,
        scored=torch.ones(1, MEMBERS, dtype=torch.bool), residual=torch.zeros(1),
    )  # fmt: skip
    optimizer = Optimizer(
        config, policy, DirectGroupPreference(config.objective, Options()), conditioning, autocast=nullcontext
    )
    sigmas = [0.7, 0.6] if "two experts" in name else [0.95, 0.9]  # the trained expert's
    found = optimizer.accumulation.add(optimizer.prepare(batch, range(1), sigmas, Draws(1)))
    gradients = {name: p.grad for name, p in policy.parameters.items() if p.grad is not None}
    made = {
        "x0": drawn.x0, "media": media, "thumbnails": thumbnails(media), **media_statistics(media), "loss": found.loss,
        **gradients,
    }  # fmt: skip
    assert {value.device for key, value in made.items() if key != "thumbnails"} == {device}
    return {key: value.cpu() for key, value in made.items()}


@pytest.mark.parametrize("name", among(FAMILIES, quick=QUICK))
def test_the_numbers_are_those_of_the_cpu(name: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Bit for bit, but for families whose positions diffusers computes in float64 where there is float64."""
    is_torch_mps_available()  # transformers keeps the answer
    expected = passes(name, checkpoint(name), torch.device("cpu"), tmp_path)
    with available(), imitated():
        found = passes(name, checkpoint(name), MPS, tmp_path)
    assert found.keys() == expected.keys()
    errors = {key: float((found[key] - value).norm() / value.norm()) for key, value in expected.items() if value.any()}
    assert max(errors.values()) <= (BOUND if FAMILIES[name].kind.layout.backbone in ROUNDED else 0.0), errors
