"""What options change in a plan of a tiny FLUX.1, against counts by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_diffusers.families.flux.backbone import FluxBackbone
from dgpo_diffusers.families.flux.options import FluxOptions
from dgpo_diffusers.families.flux.tiny import make_tiny_flux
from dgpo_kit.toy import plugin, run_data
from dgpo_lab.planning.iteration import Iteration
from dgpo_lab.planning.plan import Model, Plan, make_plan, measure_model
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.backbone import BackboneSection

STEPS, SAMPLES, SIDE = 6, 8, 32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_flux(tmp_path_factory.mktemp("flux") / "tiny")


@pytest.fixture(scope="module")
def registry() -> Registry:
    made = Registry()
    made.register(plugin, distribution="toy")
    return made


@pytest.fixture
def run_of(checkpoint: Path) -> Callable[..., RunConfig]:
    """`run_of({"quantize": ...}, rollout={...})`: 8 samples in one micro-batch."""

    def make(options: dict[str, Any] | None = None, **changes: dict[str, Any]) -> RunConfig:
        rollout = {"steps": STEPS, "sampler": "flow-euler", "shift": "auto", "resolution": SIDE, "groups": 2}
        data = run_data(Path("unused"), rollout={**rollout, "group_size": 4, **changes.pop("rollout", {})}, **changes)
        chosen = {"text_length": 16, **(options or {})}
        backbone = {"use": "flux", "checkpoint": str(checkpoint), "dtype": "bfloat16", "options": chosen}
        data["backbone"] = {**backbone, "lora": {"rank": 2, "alpha": 2}}
        data["run"] |= {"device": "auto"}  # bitsandbytes is not for the CPU
        return RunConfig.model_validate(data)

    return make


def planned(config: RunConfig, registry: Registry) -> tuple[Model, Iteration, Plan]:
    model = measure_model(config, registry)
    made = Iteration(config, model.backbone, registry, model.meter, model.laps)
    return model, made, make_plan(config, model, registry)


@pytest.mark.parametrize("method", ["torchao-int8", "torchao-float8", "bnb-int8", "bnb-nf4"])
def test_quantized_weights(run_of: Callable[..., RunConfig], registry: Registry, checkpoint: Path, method: str) -> None:
    """A byte for each weight and four for each output; or half a byte, and four bytes for each 64 weights."""
    section = BackboneSection(use="flux", checkpoint=str(checkpoint), train="full", dtype="bfloat16")
    network = FluxBackbone.meta_model(section, FluxOptions()).network
    inside = [
        module.weight
        for blocks in (network.transformer_blocks, network.single_transformer_blocks)
        for module in blocks.modules()
        if isinstance(module, nn.Linear)
    ]
    count, outputs = sum(w.numel() for w in inside), sum(len(w) for w in inside)
    stored = count // 2 + 4 * count // 64 if method == "bnb-nf4" else count + 4 * outputs
    (plain, one, _), (quantized, other, _) = (
        planned(run_of(options), registry)
        for options in ({}, {"quantize": {"method": method, "components": ["denoiser"]}})
    )
    assert plain.held["transformer"] - quantized.held["transformer"] == 2 * count - stored
    assert {**plain.held, "transformer": 0} == {**quantized.held, "transformer": 0}
    assert other.operations == one.operations
    largest = 2 * max(w.numel() for w in inside)
    for phase in ("rollout", "optimize"):
        assert abs(other.peaks[phase] - one.peaks[phase]) <= largest, "one layer is dequantized at a time"


def test_guidance_interval(run_of: Callable[..., RunConfig], registry: Registry) -> None:
    """The schedule of the tiny checkpoint at this size has `STEPS` times, of which those up to 0.6 are guided."""
    model, alone, _ = planned(run_of(), registry)
    step = alone.operations["rollout"] // STEPS
    schedule = model.backbone.schedule(SIDE, SIDE, STEPS)
    even = [1 - i / STEPS for i in range(STEPS)]
    times = [schedule.shift * t / (1 + (schedule.shift - 1) * t) for t in even]
    within = sum(t <= 0.6 for t in times)
    assert 0 < within < STEPS
    for interval, guided in ((None, STEPS), ([0.0, 0.6], within)):
        how = {"guidance": 2.0, "guidance_interval": interval}
        assert planned(run_of(rollout=how), registry)[1].operations["rollout"] == (STEPS + guided) * step
    with pytest.raises(UserError, match=r"^rollout\.guidance_interval: none of the sampler's 6 times"):
        planned(run_of(rollout={"guidance": 2.0, "guidance_interval": [0.0, 0.01]}), registry)


def test_tiny_decoder(run_of: Callable[..., RunConfig], registry: Registry, tmp_path: Path) -> None:
    """Two operations for each multiplication of its convolutions; evaluations keep the autoencoder."""
    from diffusers import AutoencoderTiny

    blocks = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 2, 1)}
    widths = {"encoder_block_out_channels": (8,) * 3, "decoder_block_out_channels": (8,) * 3}
    tiny: Any = AutoencoderTiny(latent_channels=4, **blocks, **widths).eval()
    tiny.save_pretrained(tmp_path)
    total = 0

    def count(layer: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += 2 * output.numel() * layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]

    for module in tiny.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        tiny.decode(torch.zeros(1, 4, SIDE // 4, SIDE // 4))
    plain_model, plain, plan = planned(run_of(evaluation={"every": 1}), registry)
    small = planned(run_of({"tiny_decoder": str(tmp_path)}, evaluation={"every": 1}), registry)
    both = {"tiny_decoder": {"checkpoint": str(tmp_path), "evaluation": True}}
    everywhere = planned(run_of(both, evaluation={"every": 1}), registry)
    assert small[1].operations["decode"] == SAMPLES * total < plain.operations["decode"]
    assert small[0].held["tiny decoder"] == 4 * sum(p.numel() for p in tiny.decoder.parameters())
    assert small[0].held["autoencoder"] == plain_model.held["autoencoder"], "for evaluations"
    assert small[2].evaluation == plan.evaluation
    full = plain.operations["decode"] // SAMPLES
    assert plain.evaluated - everywhere[1].evaluated == full - total


def test_rollout_cache(run_of: Callable[..., RunConfig], registry: Registry) -> None:
    """A predicted step costs a whole one without the attention layers: their projections, and two products of every
    token with every other."""
    cache = {"use": "taylorseer", "interval": 2, "full_steps": 2}
    model, cached, _ = planned(run_of({"rollout_cache": cache}), registry)
    _, exact, _ = planned(run_of(), registry)
    assert cached.operations["optimize"] == exact.operations["optimize"]
    assert cached.evaluated == exact.evaluated
    network: Any = model.backbone.module
    text, image, rank = 16, (SIDE // 8) ** 2, 2
    attention = 0
    for blocks in (network.transformer_blocks, network.single_transformer_blocks):
        for block in blocks:
            attention += 4 * (text + image) ** 2 * 32
            for name, layer in block.attn.named_modules():
                if isinstance(layer, nn.Linear) and "lora" not in name:
                    both = "add" not in name and blocks is network.single_transformer_blocks
                    tokens = text + image if both else text if "add" in name else image
                    adapter = 2 * rank * (layer.in_features + layer.out_features)
                    attention += tokens * (2 * layer.in_features * layer.out_features + adapter)
    predicted = sum(step >= 2 and (step - 2 - 1) % 2 != 0 for step in range(STEPS))
    saved = exact.operations["rollout"] - cached.operations["rollout"]
    assert saved % (SAMPLES * attention) == 0
    assert saved // (SAMPLES * attention) == predicted


def test_what_a_run_refuses_is_refused(run_of: Callable[..., RunConfig], registry: Registry, tmp_path: Path) -> None:
    cached = run_of({"rollout_cache": {"use": "taylorseer"}}, rollout={"sampler": "flow-sde"})
    path = cached.model_copy(update={"objective": cached.objective.model_copy(update={"use": "flow-grpo"})})
    with pytest.raises(UserError, match="approximate its predictions in rollouts, but objective: flow-grpo compares"):
        planned(path, registry)
    schnell = make_tiny_flux(tmp_path / "schnell", schnell=True)
    plain = run_of(rollout={"guidance": 2.0})
    guided = plain.model_copy(update={"backbone": plain.backbone.model_copy(update={"checkpoint": str(schnell)})})
    with pytest.raises(UserError, match=r"^rollout\.guidance: 2 is not possible: backbone: flux has no unconditional"):
        planned(guided, registry)
    with pytest.raises(UserError, match=r"^backbone\.options\.tiny_decoder: .* does not exist"):
        planned(run_of({"tiny_decoder": str(tmp_path / "no.safetensors")}), registry)


def test_an_adapter_to_start_from_must_fit(
    run_of: Callable[..., RunConfig], registry: Registry, tmp_path: Path
) -> None:
    """It is read as by a run, if it is there."""
    file = tmp_path / "adapter.safetensors"
    plain = run_of()
    lora = plain.backbone.lora.model_copy(update={"init": str(file)})
    config = plain.model_copy(update={"backbone": plain.backbone.model_copy(update={"lora": lora})})
    measure_model(config, registry)
    layer = "transformer.transformer_blocks.0.attn.to_q"
    for inputs in (32, 33):
        pair = {f"{layer}.lora_A.weight": torch.ones(2, inputs), f"{layer}.lora_B.weight": torch.ones(32, 2)}
        safetensors.torch.save_file(pair, file)
        if inputs == 32:
            measure_model(config, registry)
    with pytest.raises(
        UserError, match=r"^backbone\.lora\.init: .* has an update of shape \[32, 33\], but this model's"
    ):
        measure_model(config, registry)
