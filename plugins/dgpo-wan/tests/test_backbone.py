"""The backbone against diffusers' own pipeline."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor, nn
from torch.testing import assert_close

from dgpo_core.builtin.samplers import FlowEuler
from dgpo_core.draws import Draws, normal_rows
from dgpo_core.errors import UserError
from dgpo_core.training.policy import ConditioningCache, Policy
from dgpo_core.training.rollout import RolloutSampler
from dgpo_core.types import Conditioning, Prompt
from dgpo_kit.given import prompts_of
from dgpo_schemas.sections.training import ObjectiveSection
from dgpo_wan.backbone import WanBackbone
from dgpo_wan.testing import make_tiny_checkpoint

Build = Callable[..., WanBackbone]
Reference = Callable[[Path], Any]

PROMPTS = ["a red circle", "two blue squares, left", "green"]
SIZE = (32, 48)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch(backbone: WanBackbone, size: int = 3) -> tuple[Tensor, Tensor, Conditioning]:
    """Return x_sigma, sigma and conditioning; with two experts, sigmas lie on both sides of the boundary."""
    x_sigma = normal(size, *backbone.latent_shape(*SIZE))
    return x_sigma, torch.linspace(1, 0.3, size), backbone.encode(prompts_of(PROMPTS[:size]))


def randomize(backbone: WanBackbone, scale: float = 0.3) -> None:
    with torch.no_grad():
        for i, parameter in enumerate(backbone.trainable().values()):
            parameter.copy_(scale * normal(*parameter.shape, seed=i))


def sample_groups(backbone: WanBackbone, texts: list[str], steps: int, shift: float, guidance: float) -> Tensor:
    """Return x0 from the engine's rollout with the built-in Euler sampler."""
    policy = Policy(backbone, ObjectiveSection())
    rollout_sampler = RolloutSampler(
        policy, FlowEuler(None), ConditioningCache(backbone), resolution=SIZE, steps=steps, shift=shift,
        guidance=guidance, micro_batch=2, autocast=nullcontext,
    )  # fmt: skip
    prompts = [Prompt(text) for text in texts]
    return torch.cat([r.x0 for r in rollout_sampler.sample_groups(prompts, 1, Draws(0), "policy")])


def by_pipeline(pipeline: Any, texts: list[str], shape: tuple[int, ...], **how: Any) -> Tensor:
    """Return the latents that WanPipeline samples from the same noise."""
    noise = normal_rows([Draws(0).at(i, 0).at("noise") for i in range(len(texts))], shape, torch.device("cpu"))
    how = {"num_inference_steps": 5, "output_type": "latent", "num_frames": 9, "max_sequence_length": 24} | how
    out: Tensor = pipeline(texts, height=SIZE[0], width=SIZE[1], latents=noise, **how).frames
    return out


def test_prompts_have_an_effect(checkpoint: Path, build: Build) -> None:
    """Otherwise the comparison above would not test the conditioning."""
    backbone = build(checkpoint)
    x_sigma, sigma = normal(1, *backbone.latent_shape(*SIZE)).expand(2, -1, -1, -1, -1), torch.ones(2)
    with torch.no_grad():
        first, second = backbone.velocity(x_sigma, sigma, backbone.encode(prompts_of(PROMPTS[:2])))
    assert (first - second).abs().max() > 0.02


def test_encode_matches_the_pipeline(checkpoint: Path, build: Build, reference: Reference) -> None:
    encoded = build(checkpoint).encode(prompts_of([*PROMPTS, ""])).tensors["prompt_embeds"]
    with torch.no_grad():
        expected, _ = reference(checkpoint).encode_prompt(
            [*PROMPTS, ""], do_classifier_free_guidance=False, max_sequence_length=24
        )
    assert_close(encoded, expected, atol=0, rtol=0)
    assert not encoded.requires_grad
    lengths = [len(text) + 2 for text in PROMPTS]  # a leading blank, the letters, the end
    assert [int(row.any(-1).sum()) for row in encoded] == [*lengths, 1]


def test_text_encoder_saved_untied(checkpoint: Path, build: Build, tmp_path: Path) -> None:
    """Published checkpoints are saved like this, and transformers may then not initialize the embedding."""
    untied = make_tiny_checkpoint(tmp_path, tied=False)
    expected = build(checkpoint).encode(prompts_of(PROMPTS)).tensors["prompt_embeds"]
    assert_close(build(untied).encode(prompts_of(PROMPTS)).tensors["prompt_embeds"], expected, atol=0, rtol=0)


def test_default_targets_are_every_attention_projection(checkpoint: Path, build: Build) -> None:
    base = WanTransformer3DModel.from_pretrained(checkpoint, subfolder="transformer")
    projections = {
        f"{outer}.{inner}"
        for outer, attention in base.named_modules()
        if isinstance(attention, WanAttention)
        for inner, layer in attention.named_modules()
        if isinstance(layer, nn.Linear)
    }
    assert len(projections) == 2 * 2 * 4
    assert {"blocks.0.attn1.to_q", "blocks.1.attn2.to_out.0"} <= projections
    names = {name.split(".lora_")[0] for name in build(checkpoint).trainable()}
    assert names == projections


def test_only_the_adapter_or_only_the_transformer_is_trained(checkpoint: Path, build: Build) -> None:
    lora = build(checkpoint)
    assert all(".lora_A." in n or ".lora_B." in n for n in lora.trainable())
    full = build(checkpoint, train="full", dtype="bfloat16")
    base = WanTransformer3DModel.from_pretrained(checkpoint, subfolder="transformer")
    assert list(full.trainable()) == [n for n, _ in base.named_parameters()]
    assert full.adapter is None
    for name, parameter in full.trainable().items():
        assert parameter.dtype == torch.float32
        assert_close(parameter, base.get_parameter(name), atol=0, rtol=0)  # no detour through bfloat16
    for model in (full.vae, full.pipeline.text_encoder):
        assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("expert", ["high", "low"])
def test_a_saved_adapter_gives_the_policys_videos_in_a_fresh_pipeline(
    two_experts: Path, build: Build, reference: Reference, tmp_path: Path, expert: str
) -> None:
    backbone, pipeline = build(two_experts, {"expert": expert}), reference(two_experts)
    randomize(backbone)
    backbone.adapter.save(tmp_path / "adapter", "diffusers")
    shape = backbone.latent_shape(*SIZE)
    before = by_pipeline(pipeline, PROMPTS, shape, guidance_scale=3.0)
    second = expert == "low"
    pipeline.load_lora_weights(tmp_path / "adapter", **({"load_into_transformer_2": True} if second else {}))
    after = by_pipeline(pipeline, PROMPTS, shape, guidance_scale=3.0)
    assert (after - before).abs().max() > 0.05
    assert_close(sample_groups(backbone, PROMPTS, 5, 3.0, 3.0), after, atol=1e-5, rtol=0)
    loaded = (pipeline.transformer_2 if second else pipeline.transformer).peft_config
    assert [(c.r, c.lora_alpha) for c in loaded.values()] == [(4, 4)], "alpha / rank is in the weights"


def test_full_weights_are_saved_for_from_pretrained(checkpoint: Path, build: Build, tmp_path: Path) -> None:
    backbone = build(checkpoint, train="full")
    randomize(backbone, 0.1)
    backbone.save_weights(tmp_path)
    loaded = WanTransformer3DModel.from_pretrained(tmp_path)
    x_sigma, sigma, conditioning = batch(backbone)
    with torch.no_grad():
        expected = loaded(x_sigma, 1000 * sigma, conditioning.tensors["prompt_embeds"]).sample
        assert_close(backbone.velocity(x_sigma, sigma, conditioning), expected, atol=0, rtol=0)


def test_experts_do_not_start_from_each_other(checkpoint: Path, two_experts: Path, build: Build) -> None:
    """Their weights have the same names and shapes (`run.init_from`)."""
    assert build(two_experts, {"expert": "low"}).trained_options() == {"expert"}
    assert build(checkpoint, {}).trained_options() == frozenset()


@pytest.mark.parametrize(
    "expert, ours, bound", [("high", 0.8, "t_min: 0.8 or more"), ("low", 0.79, "t_max: less than")]
)
def test_times_of_the_frozen_expert_are_sampled_but_not_trained(
    two_experts: Path, build: Build, expert: str, ours: float, bound: str
) -> None:
    backbone = build(two_experts, {"expert": expert})
    x_sigma, _, conditioning = batch(backbone)
    theirs = 1.59 - ours
    subfolder = "transformer_2" if expert == "high" else "transformer"
    frozen = WanTransformer3DModel.from_pretrained(two_experts, subfolder=subfolder)
    with torch.no_grad():
        randomize(backbone)
        found = backbone.velocity(x_sigma, torch.full((3,), theirs), conditioning)
        expected = frozen(x_sigma, torch.full((3,), 1000 * theirs), conditioning.tensors["prompt_embeds"]).sample
        assert_close(found, expected, atol=0, rtol=0)
    assert backbone.velocity(x_sigma, torch.full((3,), ours), conditioning).requires_grad
    with pytest.raises(UserError, match=f"sigma {theirs:.4g} .*other transformer.*expert: {expert}.*{bound}"):
        backbone.velocity(x_sigma, torch.full((3,), theirs), conditioning)


def loss_of(backbone: WanBackbone) -> Tensor:
    x_sigma, sigma, conditioning = batch(backbone)
    return (backbone.velocity(x_sigma, sigma, conditioning) - normal(*x_sigma.shape, seed=9)).square().mean()


@pytest.mark.parametrize("autocast", [False, True])
def test_a_float32_adapter_trains_on_a_half_precision_base(checkpoint: Path, build: Build, autocast: bool) -> None:
    exact, backbone = build(checkpoint), build(checkpoint, dtype="bfloat16")
    parameters = backbone.trainable()
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert backbone.encode(prompts_of([""])).tensors["prompt_embeds"].dtype == torch.bfloat16
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2)
    losses = []
    for _ in range(4):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(backbone)
        assert loss.dtype == torch.float32
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(loss_of(exact).item(), rel=0.02)
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_compile_changes_nothing(build: Build, tmp_path: Path) -> None:
    single = make_tiny_checkpoint(tmp_path, layers=1)  # half the time to compile
    plain, compiled = build(single), build(single, compile=True)
    assert list(plain.trainable()) == list(compiled.trainable())
    for backbone in (plain, compiled):
        randomize(backbone)
    x_sigma, sigma, conditioning = batch(plain)
    calls = torch._dynamo.utils.counters["stats"]["calls_captured"]
    with torch.no_grad():
        expected = plain.velocity(x_sigma, sigma, conditioning)
        assert_close(compiled.velocity(x_sigma, sigma, conditioning), expected, atol=1e-5, rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > calls, "nothing was compiled"


@pytest.mark.parametrize("chunk", [1, 2, 8])
def test_decode_is_chunked_and_float32(checkpoint: Path, build: Build, reference: Reference, chunk: int) -> None:
    backbone, vae = build(checkpoint, {"decode_chunk": chunk}, dtype="bfloat16"), reference(checkpoint).vae
    x0 = 2 * normal(3, *backbone.latent_shape(*SIZE))
    mean, std = (torch.tensor(n).view(1, -1, 1, 1, 1) for n in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        expected = vae.decode(x0 * std + mean).sample.transpose(1, 2) / 2 + 0.5
    sizes: list[int] = []
    backbone.vae.post_quant_conv.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    with torch.autocast("cpu", torch.bfloat16):
        videos = backbone.decode(x0.requires_grad_())
    assert sizes == {1: [1, 1, 1], 2: [2, 1], 8: [3]}[chunk]
    assert videos.dtype == torch.float32
    assert not videos.requires_grad
    assert_close(videos, expected, atol=1e-4, rtol=0)  # as above


@pytest.mark.parametrize("frames, latent", [(1, 1), (5, 2), (33, 9), (81, 21)])
def test_latent_shape_matches_the_pipeline(
    checkpoint: Path, build: Build, reference: Reference, frames: int, latent: int
) -> None:
    drawn = reference(checkpoint).prepare_latents(1, 4, 64, 48, frames, torch.float32, "cpu", torch.Generator())
    assert build(checkpoint, {"frames": frames}).latent_shape(64, 48) == drawn.shape[1:] == (4, latent, 8, 6)


@pytest.mark.parametrize(
    "size, nearest", [((33, 32), "32x32"), ((32, 45), "32x48"), ((24, 600), "32x512"), ((0, 8), "16x16")]
)
def test_impossible_sizes_are_refused(checkpoint: Path, build: Build, size: tuple[int, int], nearest: str) -> None:
    message = f"{size[0]}x{size[1]} .* multiples of 16 from 16 to 512; the nearest is {nearest}"
    with pytest.raises(UserError, match=message):
        build(checkpoint).latent_shape(*size)


def test_too_many_frames_are_refused(checkpoint: Path, build: Build) -> None:
    with pytest.raises(UserError, match=r"frames: 129 exceeds the position embeddings .*; the maximum is 125"):
        build(checkpoint, {"frames": 129}).latent_shape(*SIZE)


def test_truncated_prompts(build: Build, checkpoint: Path) -> None:
    """A text is not truncated if changing its last letter changes the encoding."""
    backbone = build(checkpoint, {"text_length": 16})
    lengths = [1, 12, 13, 14, 15, 16, 17, 60]
    encoded = [
        [backbone.encode(prompts_of(["a" * (n - 1) + last])).tensors["prompt_embeds"] for last in "bc"] for n in lengths
    ]
    seen = [not torch.equal(*pair) for pair in encoded]
    assert set(seen) == {True, False}
    truncated_prompts, limit = backbone.truncated_prompts(prompts_of(["a" * n for n in lengths]))
    assert [i not in truncated_prompts for i in range(len(lengths))] == seen
    assert (limit, list(backbone.truncated_prompts(prompts_of([]))[0])) == (16, [])
