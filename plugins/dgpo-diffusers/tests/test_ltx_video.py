"""What is particular to LTX-Video; `test_families` compares it with its pipeline."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTXConditionPipeline, LTXPipeline, LTXVideoTransformer3DModel
from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.errors import UserError
from dgpo_core.flow.schedules import sigmas as sampler_times
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Prompt
from dgpo_diffusers.families.ltx_video.backbone import LTXVideoBackbone
from dgpo_diffusers.families.ltx_video.options import LTXVideoOptions
from dgpo_diffusers.families.ltx_video.times import linear_quadratic
from dgpo_diffusers.families.ltx_video.tiny import make_tiny_ltx_video
from dgpo_kit.drawing import draw, randomize
from tests.families.proof_published import adapted_layers, meta_model, operations, parameters, section, trained_steps
from tests.trained import added_weights

BASE, LARGE = "Lightricks/LTX-Video", "Lightricks/LTX-Video-0.9.7-dev"
SIZE = (64, 96)
TEXTS = ["a red circle", "two blue squares, left", "green"]
SHORT = {"frames": 17, "fps": 24.0, "text_length": 32}
EXAMPLE = Path(__file__).parents[3] / "examples" / "ltx-video-pickscore.yaml"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_ltx_video(tmp_path_factory.mktemp("ltx") / "tiny")


@pytest.fixture(scope="module")
def denoising(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As 0.9.5: of LTXConditionPipeline, with a decoder that denoises."""
    directory = make_tiny_ltx_video(tmp_path_factory.mktemp("ltx") / "later", denoising=True, shift={"shift": 1.0})
    index = directory / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "LTXConditionPipeline"}))
    return directory


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "copy")


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry()


def build(checkpoint: Path, options: dict[str, Any] | None = None, **settings: Any) -> LTXVideoBackbone:
    given = LTXVideoOptions(**(SHORT if options is None else options))
    return LTXVideoBackbone(section("ltx-video", checkpoint, **settings), given, device=torch.device("cpu"))


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# -- options, sizes and checkpoints ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"), [({"frames": 18}, "the nearest are 17 and 25"), ({"fps": 0}, "greater"), ({"fps": 121}, "less")]
)
def test_wrong_options_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        LTXVideoOptions.model_validate(wrong)


def test_possible_sizes(checkpoint: Path) -> None:
    backbone = build(checkpoint)
    assert backbone.latent_shape(64, 96) == (8, 3, 2, 3)
    assert build(checkpoint, {"frames": 1}).latent_shape(64, 96) == (8, 1, 2, 3)
    with pytest.raises(UserError, match="multiples of 32 from 32 to 16384; the nearest is 64x96"):
        backbone.latent_shape(64, 100)


def of_transformer(**config: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        found = LTXVideoTransformer3DModel.from_pretrained(directory / "transformer").config
        LTXVideoTransformer3DModel(**{**found, **config}).save_pretrained(directory / "transformer")

    return change


def of_weights(**tensors: Tensor) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        file = directory / "vae" / "diffusion_pytorch_model.safetensors"
        save_file(load_file(file) | tensors, file, {"format": "pt"})

    return change


def without_means(directory: Path) -> None:
    file = directory / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if n != "latents_mean"}, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (of_transformer(in_channels=16), "in_channels is 16; allowed is 8 with the models beside it"),
        (of_transformer(patch_size=2), "patch_size is 2; allowed is 1"),
        (of_transformer(caption_channels=32), "caption_channels is 32; allowed is 16"),
        (of_weights(latents_std=torch.zeros(8)), "latents_mean and latents_std must be finite numbers"),
        (without_means, "vae lacks 1 of the weights of AutoencoderKLLTXVideo, among them latents_mean"),
    ],
)
def test_checkpoints_that_are_refused(change: Callable[[Path], None], says: str, copy: Path) -> None:
    change(copy)
    with pytest.raises(UserError, match=says):
        build(copy)


# -- prompts -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("later", [False, True])
def test_the_transformer_does_not_read_padding_and_t5_before_0_9_5_does(
    checkpoint: Path, denoising: Path, later: bool
) -> None:
    """T5 with a mask gives other embeddings; the transformer gives the same whatever stands where padding does."""
    backbone = build(denoising if later else checkpoint)
    rows = backbone.encode([Prompt("green", size=SIZE)])
    text, mask = rows.tensors["prompt_embeds"], rows.tensors["mask"]
    given = backbone.pipeline.tokenizer(["green"], padding="max_length", max_length=32, return_tensors="pt")
    bare, masked = (backbone.pipeline.text_encoder(given.input_ids, m)[0] for m in (None, given.attention_mask))
    right, wrong = (masked, bare) if later else (bare, masked)
    assert_close(text, right)
    assert (text - wrong)[mask.bool()].abs().max() > 1e-2
    x, sigma = normal(1, *backbone.latent_shape(*SIZE)), torch.tensor([0.7])
    before = backbone.velocity(x, sigma, rows)
    text[~mask.bool()] += 10.0
    assert_close(backbone.velocity(x, sigma, rows), before)


def test_prompts_are_as_long_as_the_checkpoints_pipeline_has_them(checkpoint: Path, denoising: Path) -> None:
    for directory, length in ((checkpoint, 128), (denoising, 256)):
        backbone = build(directory, {})
        assert backbone.encode([Prompt("a", size=SIZE)]).tensors["prompt_embeds"].shape[1] == length
        assert backbone.truncated_prompts([Prompt("x" * 300), Prompt("y")]) == ([0], length)


def test_the_rate_is_an_input(checkpoint: Path) -> None:
    fast = build(checkpoint, {**SHORT, "fps": 30.0})
    assert (build(checkpoint).fps, fast.fps) == (24.0, 30.0)


# -- times -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "frames", "tokens", "shift"),
    [((512, 704), 161, 7392, 25.3), pytest.param((256, 384), 81, 1056, 2.616, marks=pytest.mark.slow)],
)
def test_times_of_the_published_model(size: tuple[int, int], frames: int, tokens: int, shift: float) -> None:
    """mu goes from 0.95 at 1024 tokens to 2.05 at 4096 and on; frames count."""
    model = meta_model("ltx-video", BASE, frames=frames)
    assert model.tokens(*size) == tokens
    schedule = model.schedule(*size, 24)
    assert (schedule.grid, schedule.terminal, schedule.first) == ("even", 0.1, 1.0)
    assert schedule.shift == pytest.approx(shift, rel=2e-3)
    assert float(sampler_times(24, schedule)[-2]) == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 24, 50])
def test_the_later_grid_is_the_pipelines(steps: int) -> None:
    assert_close(torch.tensor(linear_quadratic(steps)), linear_quadratic_schedule(steps))


# -- 0.9.5 and later ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_latents_and_videos_of_later_checkpoints_are_their_pipelines(denoising: Path, guidance: float) -> None:
    """LTXConditionPipeline without conditions draws its noise itself. Its first latent frame is one frame in time, so
    that positions differ from LTXPipeline's."""
    pipeline = LTXConditionPipeline.from_pretrained(denoising)
    pipeline.set_progress_bar_config(disable=True)
    backbone = build(denoising)
    shape = (2, *backbone.latent_shape(*SIZE))
    expected = pipeline(
        prompt=TEXTS[:2], height=SIZE[0], width=SIZE[1], num_frames=17, frame_rate=24, max_sequence_length=32,
        num_inference_steps=4, guidance_scale=guidance, output_type="latent",
        generator=torch.Generator().manual_seed(0), return_dict=False,
    )[0]  # fmt: skip
    prompts = [Prompt(text, size=SIZE) for text in TEXTS[:2]]
    times = sampler_times(4, backbone.schedule(*SIZE, 4)).float()
    assert_close(times, pipeline.scheduler.sigmas, atol=1e-6, rtol=0)
    found = draw(backbone, prompts, normal(*shape), times, guidance)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    other = LTXPipeline.from_pretrained(denoising)
    with torch.no_grad():
        x, sigma = normal(*shape), torch.full((2,), 0.6)
        rows = backbone.encode(prompts)
        right = backbone.velocity(x, sigma, rows)
        wrong = other.transformer(
            x.flatten(2).transpose(1, 2), rows.tensors["prompt_embeds"], 1000 * sigma, rows.tensors["mask"], *shape[2:],
            rope_interpolation_scale=(8 / 24, 32, 32), return_dict=False,
        )[0].transpose(1, 2).reshape(shape)  # fmt: skip
    assert (right - wrong).abs().max() > 1e-3


def test_decoding_that_adds_noise_is_the_same_every_time(denoising: Path) -> None:
    """For every row, whatever was drawn before and beside; without the noise it is another video."""
    backbone = build(denoising)
    x0 = normal(1, *backbone.latent_shape(*SIZE)).expand(2, -1, -1, -1, -1)
    with torch.random.fork_rng(devices=[]):
        first = backbone.decode(x0)
        state = torch.get_rng_state()
        torch.randn(3)
        again = backbone.decode(x0[:1])
        assert not torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[0], again[0])
    for changed in ({"decode_noise": 0.0}, {"decode_timestep": 0.5}):
        other = build(denoising, {**SHORT, **changed}).decode(x0[:1])
        assert (other[0] - first[0]).abs().max() > 1e-3


# -- adapters ----------------------------------------------------------------------------------------------------------


def test_comfyuis_names_are_the_original_ones(checkpoint: Path, tmp_path: Path) -> None:
    """Every linear layer has a place; no program of kohya's trains this model."""
    base: Any = LTXVideoTransformer3DModel.from_pretrained(checkpoint, subfolder="transformer")
    linear = [name for name, layer in base.named_modules() if isinstance(layer, nn.Linear)]
    backbone = build(checkpoint, lora={"rank": 3, "alpha": 5, "targets": linear})
    randomize(backbone)
    assert backbone.adapter is not None
    assert backbone.adapter.formats == ("diffusers", "peft", "comfyui")
    backbone.adapter.save(tmp_path, "comfyui")
    file = load_file(next(tmp_path.iterdir()))
    renamed = {"proj_in": "patchify_proj", "time_embed": "adaln_single"}
    for name, change in added_weights(backbone).items():
        layer = name.removesuffix(".weight")
        for ours, theirs in renamed.items():
            layer = layer.replace(ours, theirs)
        up, down = (file.pop(f"diffusion_model.{layer}.lora_{end}.weight").double() for end in ("up", "down"))
        assert_close(up @ down, change, atol=1e-5, rtol=0)
    assert all(name.endswith(".alpha") for name in file)


# -- the model without its weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "billions", "layers"), [(BASE, 1.92, 28), pytest.param(LARGE, 13.0, 48, marks=pytest.mark.slow)]
)
def test_published_models_have_their_size_and_their_layers_are_adapted(name: str, billions: float, layers: int) -> None:
    """Four projections of both attentions in every block."""
    model = meta_model("ltx-video", name, frames=161)
    assert parameters(model) / 1e9 == pytest.approx(billions, abs=0.05)
    bound = adapted_layers(model)
    assert Counter(n.split(".")[2] for n in bound) == {"attn1": layers * 4, "attn2": layers * 4}
    assert model.latent_shape(512, 704) == (128, 21, 16, 22)
    later = name == LARGE
    assert model.conditional is later
    length = 256 if later else 128
    assert model.encode([Prompt("a", size=(512, 704))]).tensors["prompt_embeds"].shape == (1, length, 4096)
    schedule = model.schedule(512, 704, 4)
    assert (schedule.shift == 1, schedule.terminal) == ((True, None) if later else (False, 0.1))


@pytest.mark.slow
def test_operations_are_those_of_its_layers() -> None:
    """2 n m l of each product of [l, n] with [n, m], and of both attentions."""
    model = meta_model("ltx-video", BASE, frames=81)
    width, n, text, rank = 2048, 1056, 128, 4
    projection = width**2 + rank * 2 * width
    block = n * (4 * projection + 2 * projection + 8 * width**2) + text * 2 * projection
    block += 2 * n**2 * width + 2 * n * text * width
    ends = 2 * n * 128 * width + text * (4096 * width + width**2) + 256 * width + width**2 + 6 * width**2
    assert operations(model, (256, 384)) == 2 * (28 * block + ends)


# -- the example -------------------------------------------------------------------------------------------------------


def test_the_example_holds_its_settings(registry: Registry) -> None:
    config = load_run_config(EXAMPLE, registry=registry)
    options = LTXVideoOptions.model_validate(config.backbone.options)
    assert (config.backbone.checkpoint, options.frames, options.fps) == (BASE, 81, 25.0)
    assert (config.rollout.guidance, config.rollout.group_size, config.optimizer.learning_rate) == (4.0, 8, 3e-4)
    schedule = meta_model("ltx-video", BASE, frames=81).schedule(*config.rollout.height_width, config.rollout.steps)
    assert trained_steps(config, schedule) == [i < 15 for i in range(25)]
