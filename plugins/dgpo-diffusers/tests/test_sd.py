"""What is particular to Stable Diffusion 1 and 2; `test_families` compares it with its pipeline, and `test_sdxl` tests
noise levels and times."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

from dgpo_core.builtin.samplers import FlowEuler
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.errors import UserError
from dgpo_core.flow.times import Times
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Prompt
from dgpo_diffusers.families.sd.backbone import SDBackbone
from dgpo_diffusers.families.sd.tiny import make_tiny_sd
from dgpo_diffusers.options import DiffusersOptions
from dgpo_diffusers.parameterization import EpsilonPrediction, VPrediction
from dgpo_diffusers.unet import NAMES
from dgpo_kit.drawing import randomize
from tests.edited import edit_json
from tests.families.proof_published import adapted_layers, meta_model, operations, parameters, section
from tests.trained import added_weights, changed_weights

FIRST, SECOND = "stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-2-1"
SIZE = (40, 48)
TEXTS = ["a red circle", "two blue squares, left", "green"]
EXAMPLE = Path(__file__).parents[3] / "examples" / "sd15-pickscore.yaml"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd(tmp_path_factory.mktemp("sd") / "tiny")


@pytest.fixture(scope="module")
def backbone(checkpoint: Path) -> SDBackbone:
    """Not to be changed."""
    return build(checkpoint)


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """The tiny checkpoint with other settings: file to what changes in it."""

    def changed(**changes: dict[str, Any]) -> Path:
        directory = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
        for name, values in changes.items():
            file = {"index": "model_index.json", "scheduler": "scheduler/scheduler_config.json"}.get(
                name, f"{name}/config.json"
            )
            edit_json(directory / file, **values)
        return directory

    return changed


def build(checkpoint: Path, **settings: Any) -> SDBackbone:
    return SDBackbone(section("sd", checkpoint, **settings), DiffusersOptions(), device=torch.device("cpu"))


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# -- conditioning ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_rows_are_the_last_states_after_the_norm(backbone: SDBackbone) -> None:
    """Not the last but one, nor without the final norm, which are other prompts to the UNet; and nothing pooled."""
    rows, p = backbone.encode([Prompt(text, size=SIZE) for text in TEXTS]).tensors, backbone.pipeline
    tokens = p.tokenizer(TEXTS, padding="max_length", max_length=32, return_tensors="pt").input_ids
    found = p.text_encoder(tokens, output_hidden_states=True)
    assert list(rows) == ["prompt_embeds"]
    assert_close(rows["prompt_embeds"], found.last_hidden_state)
    x, time = normal(3, 4, 5, 6), torch.full((3,), 500.0)

    def output(text: Tensor) -> Tensor:
        out: Tensor = backbone.network(x, time, encoder_hidden_states=text, return_dict=False)[0]
        return out

    for wrong in (found.hidden_states[-1], found.hidden_states[-2]):
        assert (output(wrong) - output(rows["prompt_embeds"])).abs().max() > 1e-2
    assert backbone.truncated_prompts([Prompt("x" * 40), Prompt("short")]) == ([0], 32)


def test_without_a_negative_text_it_is_empty(backbone: SDBackbone) -> None:
    """Not zeros, as for SDXL."""
    prompts = [Prompt("a", size=SIZE), Prompt("b", size=SIZE, negative=""), Prompt("c", size=SIZE, negative="blur")]
    found = backbone.unconditional(prompts).tensors["prompt_embeds"]
    (empty,) = backbone.encode([Prompt("", size=SIZE)]).tensors["prompt_embeds"]
    assert bool(empty.any())
    assert_close(found[0], empty)
    assert_close(found[1], empty)
    assert not torch.equal(found[2], empty)


# -- noise levels ------------------------------------------------------------------------------------------------------


def test_times_are_those_of_the_published_scheduler(copy: Callable[..., Path]) -> None:
    """The published file has no `timestep_spacing`, which is then PNDM's own, `leading`, and not that of the scheduler
    which diffusers would make of its settings."""
    directory = copy()
    path = directory / "scheduler" / "scheduler_config.json"
    settings = json.loads(path.read_text())
    del settings["timestep_spacing"], settings["prediction_type"]
    path.write_text(json.dumps(settings))
    backbone = build(directory)
    config = backbone.pipeline.scheduler.config
    assert type(backbone.pipeline.scheduler).__name__ == "PNDMScheduler"
    assert isinstance(backbone.prediction, EpsilonPrediction)
    right, wrong = (
        EulerDiscreteScheduler.from_config(config, **given) for given in ({"timestep_spacing": "leading"}, {})
    )
    for steps in (1, 4, 20, 50):
        sigmas = FlowEuler(None).sigmas(steps, backbone.schedule(*SIZE, steps))
        for judge, same in ((right, True), (wrong, False)):
            judge.set_timesteps(steps)
            ratios = judge.sigmas.double()
            assert torch.allclose(sigmas, ratios / (1 + ratios), atol=1e-6) is same
        start = float(right.init_noise_sigma) / (1 + float(right.sigmas[0]))
        assert backbone.start(float(sigmas[0])) == pytest.approx(start, rel=1e-5)


def test_a_v_prediction_that_is_taken_for_noise_is_another_image(tmp_path: Path) -> None:
    """As that of 2.1 if its scheduler_config.json were lost."""
    directory = make_tiny_sd(tmp_path / "tiny", second=True)
    assert type(StableDiffusionPipeline.from_pretrained(directory).scheduler) is DDIMScheduler
    backbone = build(directory)
    assert isinstance(backbone.prediction, VPrediction)
    x, sigma = normal(1, *backbone.latent_shape(*SIZE)), torch.tensor([0.7])
    rows = backbone.encode([Prompt("a red circle", size=SIZE)])
    with torch.no_grad():
        right = backbone.velocity(x, sigma, rows)
        backbone.prediction = EpsilonPrediction(backbone.pipeline.scheduler.config)
        wrong = backbone.velocity(x, sigma, rows)
    assert float((right - wrong).abs().max() / right.abs().max()) > 0.1


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_the_autoencoder_runs_in_float32_and_nobody_checks_images(copy: Callable[..., Path]) -> None:
    """In float16, as published, some give nan. The safety checker, which the index lists, is not there."""
    directory = copy(index={"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]})
    pipeline = StableDiffusionPipeline.from_pretrained(directory, safety_checker=None)
    pipeline.vae.half().save_pretrained(directory / "vae", variant="fp16")
    (directory / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    backbone = build(directory, dtype="bfloat16")
    assert {p.dtype for p in backbone.vae.parameters()} == {torch.float32}
    assert bool(backbone.decode(1e3 * normal(1, 4, 5, 6)).isfinite().all())
    assert backbone.pipeline.safety_checker is None


def test_possible_sides(backbone: SDBackbone) -> None:
    assert backbone.latent_shape(40, 48) == (4, 5, 6)
    with pytest.raises(UserError, match="multiples of 8 from 8 to 16384; the nearest is 40x48"):
        backbone.latent_shape(43, 48)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"scheduler": {"prediction_type": "sample"}}, "prediction_type is 'sample' of a PNDMScheduler; allowed are"),
        ({"scheduler": {"beta_schedule": "cosine"}}, "cosine"),
        ({"index": {"_class_name": "StableDiffusionXLPipeline"}}, "for this checkpoint, set use: sdxl"),
        ({"index": {"_class_name": "StableDiffusionImg2ImgPipeline"}}, "it has the same models"),
        ({"index": {"_class_name": "StableDiffusionInpaintPipeline"}}, "known pipelines: "),
    ],
)
def test_checkpoints_that_are_refused(changes: dict[str, Any], says: str, copy: Callable[..., Path]) -> None:
    with pytest.raises(UserError) as caught:
        build(copy(**changes))
    assert str(caught.value).startswith("backbone.checkpoint: ")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "unet, says",
    [
        ({"in_channels": 9}, "in_channels is 9; allowed is 4 in a UNet for text-to-image with the models beside it"),
        ({"cross_attention_dim": 24}, "cross_attention_dim is 24; allowed is 16"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'; allowed is null"),
        ({"layers_per_block": 1}, "layers_per_block is 1; allowed is 2"),
    ],
)
def test_unets_that_are_refused(unet: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        build(make_tiny_sd(tmp_path / "other", unet=unet))
    assert says in str(caught.value)


# -- adapters ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_layer_has_a_place_in_each_format(checkpoint: Path, tmp_path: Path) -> None:
    """kohya's files of this generation have diffusers' names, and diffusers reads them; ComfyUI the original ones."""
    unet = StableDiffusionPipeline.from_pretrained(checkpoint).unet
    linear = [name for name, layer in unet.named_modules() if isinstance(layer, nn.Linear)]
    backbone = build(checkpoint, lora={"rank": 3, "alpha": 12, "targets": linear})
    assert backbone.adapter is not None
    for format in backbone.adapter.formats:
        backbone.adapter.save(tmp_path / "all" / format, format)
    backbone = build(checkpoint)
    randomize(backbone)
    assert backbone.adapter is not None
    for format in ("kohya", "comfyui"):
        backbone.adapter.save(tmp_path / format, format)
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint)
    before = {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}
    pipeline.load_lora_weights(tmp_path / "kohya")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    found, wanted = changed_weights(before, pipeline.unet.state_dict()), added_weights(backbone)
    assert found.keys() == wanted.keys()
    for name, change in wanted.items():
        assert_close(found[name], change, rtol=0, atol=1e-5)
    layers = {name.rpartition(".lora_")[0] for name in load_file(next((tmp_path / "comfyui").iterdir()))}
    assert "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q" in layers
    assert layers - {""} == {
        f"diffusion_model.{name}"
        for name in NAMES.original_pairs({n.removesuffix(".weight"): (Tensor(), Tensor()) for n in wanted})
    }


# -- the model without its weights -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "millions", "width"), [(FIRST, 859.52, 768), (SECOND, 865.91, 1024)])
def test_published_models_have_their_size_and_their_layers_are_adapted(name: str, millions: float, width: int) -> None:
    """Four projections of both attentions in 16 transformer blocks, and in as many of the published models."""
    model = meta_model("sd", name)
    assert parameters(model) / 1e6 == pytest.approx(millions, abs=0.01)
    bound = adapted_layers(model)
    assert Counter(n.split(".")[-2 - n.endswith(".0")] for n in bound) == {"attn1": 16 * 4, "attn2": 16 * 4}
    assert model.latent_shape(512, 768) == (4, 64, 96)
    assert model.encode([Prompt("a", size=(512, 512))]).tensors["prompt_embeds"].shape == (1, 77, width)
    assert model.sigma_range == pytest.approx((0.02834, 0.93596), abs=1e-5)
    assert isinstance(model.prediction, VPrediction) is (name == SECOND)


@pytest.mark.slow
def test_operations_are_those_of_its_layers(backbone: SDBackbone) -> None:
    """2 n m l of each product of [l, n] with [n, m], counted by hand for the tiny UNet."""
    model = SDBackbone.meta_model(backbone.section, DiffusersOptions())
    rank, text = 4, 16

    def resnet(n: int, given: int, width: int) -> int:
        shortcut = n * given * width if given != width else 0
        return 9 * n * (given + width) * width + 32 * width + shortcut

    def transformer(n: int, width: int, tokens: int = 32) -> int:
        own = n * 4 * (width**2 + rank * 2 * width) + 2 * n**2 * width
        cross = n * 2 * (width**2 + rank * 2 * width) + tokens * 2 * (text * width + rank * (text + width))
        cross += 2 * n * tokens * width
        return own + cross + n * (8 + 4) * width**2 + 2 * n * width**2

    fine, coarse = 64, 16
    down = resnet(fine, 8, 8) * 2 + transformer(fine, 8) * 2 + coarse * 9 * 64
    down += resnet(coarse, 8, 16) + resnet(coarse, 16, 16)
    middle = 2 * resnet(coarse, 16, 16) + transformer(coarse, 16)
    up = sum(resnet(coarse, 16 + skip, 16) for skip in (16, 16, 8)) + fine * 9 * 16**2
    up += sum(resnet(fine, given + 8, 8) for given in (16, 8, 8)) + 3 * transformer(fine, 8)
    ends = 2 * fine * 9 * 4 * 8 + 8 * 32 + 32 * 32
    assert operations(model, (64, 64)) == 2 * (down + middle + up + ends)


# -- the example -------------------------------------------------------------------------------------------------------


def test_the_example_trains_at_times_of_its_samples(backbone: SDBackbone) -> None:
    """Its scheduler is that of the tiny checkpoint."""
    registry = Registry()
    config = load_run_config(EXAMPLE, registry=registry)
    DiffusersOptions.model_validate(config.backbone.options)
    assert (config.rollout.guidance, config.optimizer.learning_rate, config.backbone.checkpoint) == (5.0, 1e-4, FIRST)
    steps, times = config.rollout.steps, Times(config, backbone)
    sigmas = FlowEuler(None).sigmas(steps, backbone.schedule(512, 512, steps))
    low, high = times.training_range
    assert ((sigmas >= low) & (sigmas <= high)).tolist() == [i < 12 for i in range(steps + 1)]
    times.check_range()
