"""Passes of every family on an imitated GPU: nothing makes the host wait for it, apart from what a table names.

As in `tests/core/test_host_syncs.py`, with the tiny checkpoints of the families.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

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
from dgpo_lab.planning.meter import Lap, Meter
from dgpo_lab.planning.shapes import CUDA
from dgpo_schemas.base import Options
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.backbone import BackboneSection
from tests.families.proof import among, proofs

FAMILIES = proofs()
QUICK = ["flux", "qwen-image", "sdxl", "wan-i2v"]
STEPS, MEMBERS = 2, 2

LUMINA2 = {"diffusers.models.transformers.transformer_lumina2 Lumina2RotaryPosEmbed._get_freqs_cis"}
QWEN_IMAGE_2_1 = {
    f"diffusers.models.transformers.transformer_qwenimage21 {function}"
    for function in (
        "QwenImage21Rope.forward", "QwenImage21Rope.forward.<locals>.<listcomp>",
        "QwenImage21Transformer2DModel.build_token_metadata", "QwenImage21Transformer2DModel.forward",
        "_qwenimage21_prefix_segments",
    )
}  # fmt: skip
EXPERTS = {"dgpo_diffusers.backbone DiffusersBackbone._output"}
WAITS: dict[str, set[str]] = {
    # Positions are tables on the host, indexed by the lengths of the prompts in every pass.
    "lumina2": LUMINA2, "lumina2, dynamic shift": LUMINA2,
    # The layout of text and image tokens is read back from the device in every pass.
    "qwen-image-2.1": QWEN_IMAGE_2_1,
    # Which of the two experts predicts depends on the time of each sample.
    "wan, two experts": EXPERTS, "wan-i2v, two experts": EXPERTS,
}  # fmt: skip
"""Functions that wait for the device in a pass of a denoiser, by family. Only ever remove entries."""


def places(lap: Lap) -> set[str]:
    return {copy.place for copy in lap.blocking}


@pytest.mark.parametrize("name", among(FAMILIES, quick=QUICK))
def test_nothing_waits_for_the_device(name: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    proof = FAMILIES[name]
    size = proof.sizes[0]
    section = BackboneSection(
        use=proof.kind.layout.backbone, checkpoint=str(checkpoint(name)), dtype="bfloat16",
        lora={"rank": 4, "alpha": 4},
    )  # fmt: skip
    backbone: Any = proof.kind.meta_model(section, proof.options(**proof.values))
    modules = [*backbone.components().values(), *backbone.offloaded_modules().values()]
    rollout: dict[str, Any] = {"group_size": MEMBERS, "groups": 1, "resolution": list(size), "steps": STEPS}
    config = RunConfig.model_validate(
        run_data(tmp_path, rollout={**rollout, "guidance": 3.0 if backbone.supports_guidance else 1.0})
    )
    found: dict[str, set[str]] = {}
    with Meter("here", *modules) as meter:
        backbone.device = CUDA
        policy, conditioning = Policy(backbone, config.objective), ConditioningCache(backbone)
        prompts = [backbone.example(size).sized(size, backbone.fps)]
        conditioning.rows(prompts)  # prompts are encoded once, and may wait
        conditioning.unconditional_rows(prompts)

        def autocast() -> torch.autocast:
            return torch.autocast("cuda", torch.bfloat16)

        def counted(what: str, work: Callable[[], Any]) -> Any:
            with meter.lap() as lap:
                made = work()
            if places(lap):
                found[what] = places(lap)
            return made

        sampler = RolloutSampler(
            policy, FlowEuler(Options()), conditioning, resolution=size, steps=STEPS, shift=config.rollout.shift,
            guidance=config.rollout.guidance, micro_batch=None, autocast=autocast,
        )  # fmt: skip
        list(sampler.sample_groups(prompts, 1, Draws(0), "policy"))  # tables that are copied to the device once
        (drawn,) = counted("rollout", lambda: list(sampler.sample_groups(prompts, MEMBERS, Draws(0), "policy")))
        media = counted("decode", lambda: backbone.decode(drawn.x0))
        counted("statistics", lambda: (thumbnails(media), media_statistics(media)))
        weights = torch.tensor([[0.5, -0.5]], dtype=torch.float64)
        batch = TrainingBatch(
            prompts=tuple(prompts), x0=[*drawn.x0], own=range(MEMBERS), advantages=weights, signed_weights=weights,
            scored=torch.ones(1, MEMBERS, dtype=torch.bool), residual=torch.zeros(1),
        )  # fmt: skip
        optimizer = Optimizer(
            config, policy, DirectGroupPreference(config.objective, Options()), conditioning, autocast=autocast
        )
        sigmas = [0.95, 0.9]
        counted("update", lambda: optimizer.accumulation.add(optimizer.prepare(batch, range(1), sigmas, Draws(1))))
        assert any(p.grad is not None for p in policy.parameters.values())
    waits = WAITS.get(name, set())
    assert found.get("rollout", set()) <= waits
    assert found.get("update", set()) <= waits
    assert not found.keys() - {"rollout", "update"}
    assert bool(found) == bool(waits), "remove the family from the table"
