"""The backbone against diffusers' own pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from peft import LoraConfig
from torch import Tensor, nn
from torch.testing import assert_close

from dgpo_core.errors import UserError
from dgpo_core.flow.velocity import guided_velocity
from dgpo_core.types import Conditioning
from dgpo_kit.given import prompts_of
from dgpo_sd3.backbone import SD3Backbone

Build = Callable[..., SD3Backbone]
Reference = Callable[..., Any]

PROMPTS = ["a red circle", "two blue squares, left", "green"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch(backbone: SD3Backbone, size: int = 3) -> tuple[Tensor, Tensor, Conditioning]:
    """Return x_sigma, sigma and conditioning."""
    x_sigma = normal(size, *backbone.latent_shape(32, 32))
    return x_sigma, torch.linspace(1, 0.3, size), backbone.encode(prompts_of(PROMPTS[:size]))


def randomize(backbone: SD3Backbone, scale: float = 0.3) -> None:
    with torch.no_grad():
        for i, parameter in enumerate(backbone.trainable().values()):
            parameter.copy_(scale * normal(*parameter.shape, seed=i))


@torch.no_grad()
def draw(backbone: SD3Backbone, noise: Tensor, texts: list[str], steps: int, guidance: float) -> Tensor:
    """Return images from Euler steps on diffusers' schedule, using only encode, velocity and decode."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    conditioning, unconditional, x = backbone.encode(prompts_of(texts)), backbone.encode(prompts_of([""])), noise
    for sigma, following in zip(scheduler.sigmas[:-1], scheduler.sigmas[1:], strict=True):
        x = x + (following - sigma) * guided_velocity(backbone, x, sigma, conditioning, unconditional, guidance)
    return backbone.decode(x)


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_sampling_loop_matches_the_pipeline(
    checkpoint: Path, build: Build, reference: Reference, guidance: float
) -> None:
    """Without T5; the families' tests have one."""
    backbone, pipeline = build(checkpoint), reference(checkpoint)
    noise = normal(2, *backbone.latent_shape(32, 48))
    expected = pipeline(
        PROMPTS[:2],
        height=32,
        width=48,
        num_inference_steps=5,
        guidance_scale=guidance,
        latents=noise,
        max_sequence_length=16,
        output_type="pt",
    ).images
    images = draw(backbone, noise, PROMPTS[:2], 5, guidance)
    assert images.shape == (2, 3, 32, 48)
    assert_close(images, expected, atol=1e-5, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 0.1, "the comparison means nothing if all images are alike"


def expected_embeddings(pipeline: Any, length: int) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        embeds, _, pooled, _ = pipeline.encode_prompt(
            PROMPTS, None, None, do_classifier_free_guidance=False, max_sequence_length=length
        )
    return embeds, pooled


@pytest.mark.parametrize("options, t5", [({"text_length": 40}, True), ({"drop_t5": True}, False)])
def test_encode_matches_the_pipeline(
    checkpoint_t5: Path, build: Build, reference: Reference, options: dict[str, Any], t5: bool
) -> None:
    encoded = build(checkpoint_t5, options).encode(prompts_of(PROMPTS))
    embeds, pooled = expected_embeddings(reference(checkpoint_t5, t5=t5), options.get("text_length", 16))
    assert_close(encoded.tensors["prompt_embeds"], embeds, atol=0, rtol=0)
    assert_close(encoded.tensors["pooled"], pooled, atol=0, rtol=0)
    assert not encoded.tensors["prompt_embeds"].requires_grad


@pytest.mark.parametrize("fixture", ["checkpoint", "checkpoint_t5"])
def test_text_length_zero_disables_t5(
    request: pytest.FixtureRequest, build: Build, reference: Reference, fixture: str
) -> None:
    directory = request.getfixturevalue(fixture)
    encoded = build(directory, {"text_length": 0}).encode(prompts_of(PROMPTS))
    embeds, _ = expected_embeddings(reference(directory), 0)
    assert embeds.shape == (3, 32, 32), "32 CLIP tokens and no T5 tokens"
    assert_close(encoded.tensors["prompt_embeds"], embeds, atol=0, rtol=0)


def test_names_and_weights_are_those_of_diffusers_own_add_adapter(checkpoint: Path, build: Build) -> None:
    """Adapters are therefore interchangeable."""
    made, base = build(checkpoint), SD3Transformer2DModel.from_pretrained(checkpoint, subfolder="transformer")
    config = LoraConfig(
        r=4, lora_alpha=12, init_lora_weights="gaussian", target_modules=list(SD3Backbone.layout.lora_targets)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base.requires_grad_(False).add_adapter(config)
    theirs = dict(base.named_parameters())
    assert list(theirs) == [name for name, _ in made.module.named_parameters()]
    assert [name for name, p in theirs.items() if p.requires_grad] == list(made.trainable())
    assert all(torch.equal(theirs[name], p) for name, p in made.module.named_parameters())


def test_default_targets_are_every_attention_projection(checkpoint: Path, build: Build) -> None:
    base = SD3Transformer2DModel.from_pretrained(checkpoint, subfolder="transformer")
    projections = {
        f"{outer}.{inner}"
        for outer, attention in base.named_modules()
        if isinstance(attention, Attention)
        for inner, layer in attention.named_modules()
        if isinstance(layer, nn.Linear)
    }
    assert "transformer_blocks.0.attn2.to_out.0" in projections, "SD3.5's second attention"
    names = {name.split(".lora_")[0] for name in build(checkpoint).trainable()}
    assert names == projections


def test_only_the_adapter_or_only_the_transformer_is_trained(checkpoint: Path, build: Build) -> None:
    lora = build(checkpoint)
    assert all(".lora_A." in n or ".lora_B." in n for n in lora.trainable())
    full = build(checkpoint, train="full", dtype="bfloat16")
    base = SD3Transformer2DModel.from_pretrained(checkpoint, subfolder="transformer")
    assert list(full.trainable()) == [n for n, _ in base.named_parameters()]
    assert full.adapter is None
    for name, parameter in full.trainable().items():
        assert parameter.requires_grad
        assert parameter.dtype == torch.float32
        assert_close(parameter, base.get_parameter(name), atol=0, rtol=0)  # no detour through bfloat16
    pipeline = full.pipeline
    for model in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
    assert not full.module.training


def test_without_adapter_runs_the_base_and_restores_everything(checkpoint: Path, build: Build) -> None:
    backbone = build(checkpoint)
    x_sigma, sigma, conditioning = batch(backbone)
    with torch.no_grad():
        base = backbone.velocity(x_sigma, sigma, conditioning)
    randomize(backbone)
    frozen = next(iter(backbone.trainable().values())).requires_grad_(False)
    with torch.no_grad():
        policy = backbone.velocity(x_sigma, sigma, conditioning)
    assert (policy - base).abs().max() > 0.05

    def off() -> Any:
        context = backbone.adapter and backbone.adapter.off()
        assert context is not None
        return context

    def run() -> Tensor:
        return backbone.velocity(x_sigma, sigma, conditioning)

    with off():
        assert torch.equal(run().detach(), base)
        with off():
            assert torch.equal(run().detach(), base)
        assert torch.equal(run().detach(), base), "an inner context must not switch the adapter on again"
    with torch.no_grad(), off():
        assert torch.equal(run(), base)
    with pytest.raises(RuntimeError, match="inside"), off():
        raise RuntimeError("inside")
    assert torch.equal(run().detach(), policy)
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in backbone.trainable().values() if p is not frozen)
    run().sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in backbone.trainable().values() if p is not frozen)


def test_a_saved_adapter_gives_the_policys_velocity_and_images_in_a_fresh_pipeline(
    checkpoint: Path, build: Build, reference: Reference, tmp_path: Path
) -> None:
    backbone, pipeline = build(checkpoint), reference(checkpoint)
    randomize(backbone)
    backbone.adapter.save(tmp_path / "adapter", "diffusers")
    noise = normal(2, *backbone.latent_shape(32, 32))
    arguments = {
        "prompt": PROMPTS[:2],
        "height": 32,
        "width": 32,
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "latents": noise,
        "max_sequence_length": 16,
        "output_type": "pt",
    }
    before = pipeline(**arguments).images
    pipeline.load_lora_weights(tmp_path / "adapter")
    after = pipeline(**arguments).images
    assert (after - before).abs().max() > 0.05
    assert_close(draw(backbone, noise, PROMPTS[:2], 4, 3.0), after, atol=1e-5, rtol=0)
    x_sigma, sigma, conditioning = batch(backbone)
    with torch.no_grad():
        expected = pipeline.transformer(x_sigma, *conditioning.tensors.values(), 1000 * sigma).sample
        assert_close(backbone.velocity(x_sigma, sigma, conditioning), expected, atol=1e-5, rtol=1e-5)


def test_full_weights_are_saved_for_from_pretrained(checkpoint: Path, build: Build, tmp_path: Path) -> None:
    backbone = build(checkpoint, train="full")
    randomize(backbone, 0.1)
    backbone.save_weights(tmp_path)
    loaded = SD3Transformer2DModel.from_pretrained(tmp_path)
    x_sigma, sigma, conditioning = batch(backbone)
    with torch.no_grad():
        expected = loaded(x_sigma, *conditioning.tensors.values(), 1000 * sigma).sample
        assert_close(backbone.velocity(x_sigma, sigma, conditioning), expected, atol=0, rtol=0)


def loss_of(backbone: SD3Backbone) -> Tensor:
    x_sigma, sigma, conditioning = batch(backbone)
    return (backbone.velocity(x_sigma, sigma, conditioning) - normal(*x_sigma.shape, seed=9)).square().mean()


def test_a_float32_adapter_trains_on_a_half_precision_base(checkpoint: Path, build: Build) -> None:
    exact, backbone = build(checkpoint), build(checkpoint, dtype="bfloat16")
    assert backbone.module.dtype == torch.bfloat16
    parameters = backbone.trainable()
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert backbone.encode(prompts_of([""])).tensors["pooled"].dtype == torch.bfloat16
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2)
    losses = []
    for _ in range(4):
        loss = loss_of(backbone)
        assert loss.dtype == torch.float32
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(loss_of(exact).item(), rel=0.02)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_velocity_under_autocast_is_float32_and_trains(checkpoint: Path, build: Build, dtype: str) -> None:
    backbone = build(checkpoint, dtype=dtype)
    randomize(backbone)
    exact = loss_of(backbone).item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(backbone)
        x0 = normal(1, *backbone.latent_shape(32, 32))
        images, embeds = backbone.decode(x0), backbone.encode(prompts_of(PROMPTS)).tensors["prompt_embeds"]
    assert loss.item() == pytest.approx(exact, rel=0.02)
    assert loss.item() != exact, "autocast did nothing"
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.trainable().values())
    # Decoding and cached embeddings do not depend on autocast.
    assert torch.equal(images, backbone.decode(x0))
    assert torch.equal(embeds, backbone.encode(prompts_of(PROMPTS)).tensors["prompt_embeds"])


@pytest.mark.parametrize("chunk", [1, 2, 8])
def test_decode_matches_the_pipeline(checkpoint: Path, build: Build, reference: Reference, chunk: int) -> None:
    backbone, pipeline = build(checkpoint, {"decode_chunk": chunk}, dtype="bfloat16"), reference(checkpoint)
    x0 = 4 * normal(3, *backbone.latent_shape(32, 32))
    with torch.no_grad():
        z = x0 / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
        expected = pipeline.image_processor.postprocess(pipeline.vae.decode(z).sample, output_type="pt")
    sizes: list[int] = []
    backbone.vae.decoder.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    images = backbone.decode(x0.requires_grad_())
    assert sizes == {1: [1, 1, 1], 2: [2, 1], 8: [3]}[chunk]
    assert images.dtype == torch.float32
    assert not images.requires_grad
    assert images.min() >= 0
    assert images.max() <= 1
    assert_close(images, expected, atol=1e-5, rtol=0)


def test_latent_shape_matches_the_pipeline(checkpoint: Path, build: Build, reference: Reference) -> None:
    pipeline = reference(checkpoint)
    drawn = pipeline.prepare_latents(1, 4, 64, 24, torch.float32, "cpu", torch.Generator().manual_seed(0))
    assert build(checkpoint).latent_shape(64, 24) == drawn.shape[1:] == (4, 16, 6)


@pytest.mark.parametrize(
    "size, nearest", [((33, 32), "32x32"), ((32, 29), "32x32"), ((72, 64), "64x64"), ((0, 500), "8x64")]
)
def test_impossible_sizes_are_refused(checkpoint: Path, build: Build, size: tuple[int, int], nearest: str) -> None:
    message = f"{size[0]}x{size[1]} .* multiples of 8 from 8 to 64; the nearest is {nearest}"
    with pytest.raises(UserError, match=message):
        build(checkpoint).latent_shape(*size)


@pytest.mark.parametrize(("t5", "length"), [(False, 0), (True, 16), (True, 48)])
def test_truncated_prompts_are_counted_without_warnings(
    request: pytest.FixtureRequest, build: Build, t5: bool, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A text is not truncated if changing its last letter changes the encoding."""
    backbone = build(request.getfixturevalue("checkpoint_t5" if t5 else "checkpoint"), {"text_length": length})
    lengths = [1, 14, 15, 16, 29, 30, 31, 32, 46, 47, 48, 200]
    encoded = [[backbone.encode(prompts_of(["a" * (n - 1) + last])).tensors for last in "bc"] for n in lengths]
    seen = [any(not torch.equal(one[key], other[key]) for key in one) for one, other in encoded]
    assert set(seen) == {True, False}
    truncated_prompts, limit = backbone.truncated_prompts(prompts_of(["a" * n for n in lengths]))
    assert [i not in truncated_prompts for i in range(len(lengths))] == seen
    assert limit == max(32, length)
    assert list(backbone.truncated_prompts(prompts_of([]))[0]) == []
    assert caplog.text == ""
