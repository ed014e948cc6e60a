"""What is particular to Qwen-Image; `test_families` compares it with its pipeline."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from dgpo_core.builtin.timesteps import SamplerSteps
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.contracts import TimestepContext
from dgpo_core.errors import UserError
from dgpo_core.flow.schedules import sigmas as sampler_times
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Conditioning, Prompt
from dgpo_diffusers.families.qwen_image.backbone import QwenImageBackbone
from dgpo_diffusers.families.qwen_image.options import QwenImageOptions
from dgpo_diffusers.families.qwen_image.tiny import make_tiny_qwen_image
from dgpo_kit.drawing import draw, randomize
from dgpo_schemas.run import BackboneSection
from tests.trained import added_weights

BASE, LATER = "Qwen/Qwen-Image", "Qwen/Qwen-Image-2512"
SIZE = (32, 48)
EXAMPLE = Path(__file__).parents[3] / "examples" / "qwen-image-pickscore.yaml"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen_image(tmp_path_factory.mktemp("qwen") / "tiny")


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Any:
    found = QwenImagePipeline.from_pretrained(checkpoint)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry()


@pytest.fixture(scope="module")
def meta_models() -> Callable[[str], Any]:
    return cache(lambda name: QwenImageBackbone.meta_model(section(name), QwenImageOptions()))


def section(checkpoint: Path | str, **settings: Any) -> BackboneSection:
    settings.setdefault("lora", {"rank": 4, "alpha": 12})
    return BackboneSection(use="qwen-image", checkpoint=str(checkpoint), **settings)


def build(checkpoint: Path, options: dict[str, Any] | None = None, **settings: Any) -> QwenImageBackbone:
    given = QwenImageOptions(**(options or {}))
    return QwenImageBackbone(section(checkpoint, **settings), given, device=torch.device("cpu"))


def prompts(*texts: str, negative: str | None = None) -> list[Prompt]:
    return [Prompt(text, negative=negative, size=SIZE) for text in texts]


def noise(backbone: QwenImageBackbone, count: int = 1) -> Tensor:
    return torch.randn(count, *backbone.latent_shape(*SIZE), generator=torch.Generator().manual_seed(0))


# -- prompts -----------------------------------------------------------------------------------------------------------


def test_the_start_of_the_chat_template_is_dropped(checkpoint: Path, pipeline: Any) -> None:
    """34 tokens, also with the words of the tiny tokenizer; what is left depends on them."""
    backbone = build(checkpoint)
    start, end = pipeline.prompt_template_encode.split("{}")
    assert len(pipeline.tokenizer(start).input_ids) == 34 == pipeline.prompt_template_encode_start_idx
    row = backbone.encode(prompts("a red circle"))
    tokens = pipeline.tokenizer(f"{start}a red circle{end}", return_tensors="pt").input_ids
    assert row.lengths == {"prompt_embeds": (tokens.shape[1] - 34,)}
    with torch.no_grad():
        states = pipeline.text_encoder(input_ids=tokens, output_hidden_states=True).hidden_states[-1]
        bare = pipeline.text_encoder(input_ids=tokens[:, 34:], output_hidden_states=True).hidden_states[-1]
    assert_close(row.tensors["prompt_embeds"], states[:, 34:])
    assert (row.tensors["prompt_embeds"] - bare).abs().max() > 0.1


def test_padding_changes_nothing_and_would_without_its_mask(checkpoint: Path) -> None:
    backbone = build(checkpoint)
    both = backbone.encode(prompts("a red circle", "two blue squares on the left"))
    x, sigma = noise(backbone).expand(2, -1, -1, -1), torch.full((2,), 0.7)
    with torch.no_grad():
        together = backbone.velocity(x, sigma, both)
        alone = backbone.velocity(x[:1], sigma[:1], both.rows([0]))
        unmasked = backbone.velocity(x, sigma, Conditioning(both.tensors))
    assert both.rows([0]).tensors["prompt_embeds"].shape[1] < both.tensors["prompt_embeds"].shape[1]
    assert_close(together[:1], alone, atol=2e-6, rtol=0)
    assert (unmasked[:1] - alone).abs().max() > 1e-2
    assert_close(unmasked[1:], together[1:], atol=2e-6, rtol=0)


def test_prompts_are_cut_where_users_are_told(checkpoint: Path) -> None:
    """Five tokens end the template; 16 are read here."""
    backbone = build(checkpoint, {"text_length": 16})
    given = prompts(*("x" * n for n in (10, 11, 12, 30)))
    encoded = backbone.encode(given)
    assert encoded.lengths["prompt_embeds"] == (15, 16, 16, 16)
    assert backbone.truncated_prompts(given) == ([2, 3], 11)
    assert (encoded.tensors["prompt_embeds"][1] - encoded.tensors["prompt_embeds"][2]).abs().max() > 0.1


# -- guidance ----------------------------------------------------------------------------------------------------------


def test_guidance_leads_away_from_a_space(checkpoint: Path, pipeline: Any) -> None:
    """Not from an empty text; the pipeline has no guidance at all unless it is given a negative prompt."""
    backbone = build(checkpoint)
    found = backbone.unconditional(prompts("a red circle"))
    assert_close(found.tensors["prompt_embeds"], backbone.encode(prompts(" ")).tensors["prompt_embeds"])
    empty = backbone.unconditional(prompts("a red circle", negative=""))
    assert_close(empty.tensors["prompt_embeds"], backbone.encode(prompts("")).tensors["prompt_embeds"])
    assert empty.lengths != found.lengths

    x = noise(backbone)
    call = {"height": 32, "width": 48, "num_inference_steps": 2, "output_type": "latent", "return_dict": False}
    call["latents"] = QwenImagePipeline._pack_latents(x, *x.shape)
    silent, plain, guided = (
        pipeline(["a red circle"], **call, **more)[0]
        for more in ({"true_cfg_scale": 4.0}, {}, {"true_cfg_scale": 4.0, "negative_prompt": [" "]})
    )
    assert torch.equal(silent, plain)
    ours = draw(backbone, prompts("a red circle"), x, pipeline.scheduler.sigmas, 4.0)
    assert_close(QwenImagePipeline._pack_latents(ours, *ours.shape), guided, atol=2e-5, rtol=0)
    assert (guided - plain).abs().max() > 1e-2


def test_guided_velocities_have_the_norms_of_conditional_tokens(checkpoint: Path) -> None:
    """In float64, token by token: 2x2 latents of all channels, not single ones."""
    backbone = build(checkpoint)
    conditional, unconditional = torch.randn(2, 3, 4, 4, 6, dtype=torch.float64)
    found = backbone.guide(conditional, unconditional, 4.0, x_sigma=conditional, sigma=torch.ones(3))
    expected = unconditional + 4 * (conditional - unconditional)
    for b in range(3):
        for y in range(0, 4, 2):
            for x in range(0, 6, 2):
                token = (b, slice(None), slice(y, y + 2), slice(x, x + 2))
                expected[token] *= conditional[token].norm() / expected[token].norm()
    assert_close(found, expected)
    assert not torch.allclose(found.norm(dim=1), conditional.norm(dim=1), rtol=0.1)
    nothing = torch.zeros_like(conditional)
    assert torch.equal(backbone.guide(nothing, nothing, 4.0, x_sigma=nothing, sigma=torch.ones(3)), nothing)


# -- times, sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "shift"), [(512, 1.714), (1024, 2.001), (1328, 2.303)])
def test_times_of_published_models(meta_models: Callable[[str], Any], side: int, shift: float) -> None:
    """mu goes from 0.5 at 256 tokens to 0.9 at 8192, and the last time is 0.02; another grid, or times that do not end
    there, would be other images."""
    schedule = meta_models(LATER).schedule(side, side, 10)
    assert (schedule.grid, schedule.terminal, schedule.first) == ("even", 0.02, 1.0)
    assert schedule.shift == pytest.approx(shift, abs=1e-3)
    times = sampler_times(10, schedule)
    assert float(times[-2]) == pytest.approx(0.02)
    for other in ({"grid": "scheduler"}, {"terminal": None}, {"shift": 3.158}):
        assert (sampler_times(10, replace(schedule, **other)) - times).abs().max() > 0.01


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bfloat16_rounds_times(checkpoint: Path, how: str) -> None:
    """The transformer takes sigma to bfloat16: 0.900 to 0.903 are two times to it, and four in float32."""
    backbone = build(checkpoint, dtype="bfloat16" if how == "weights" else "float32")
    x = noise(backbone).expand(4, -1, -1, -1)
    conditioning = backbone.encode(prompts("a red circle")).expand(4)
    times = torch.tensor([0.900, 0.901, 0.902, 0.903])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        rounded = backbone.velocity(x, times, conditioning)
    with torch.no_grad():
        exact = build(checkpoint).velocity(x, times, conditioning)
    assert rounded.dtype == torch.float32
    assert not rounded[0].equal(rounded[1])
    assert rounded[1].equal(rounded[2])
    assert rounded[2].equal(rounded[3])
    assert all((exact[i] - exact[i + 1]).abs().max() > 1e-5 for i in range(3))


def test_possible_sides(checkpoint: Path) -> None:
    """Twice the autoencoder's factor, which is 4 here."""
    backbone = build(checkpoint)
    assert backbone.latent_shape(24, 40) == (4, 6, 10)
    with pytest.raises(UserError, match="multiples of 8 from 8 to 16384; the nearest is 24x48"):
        backbone.latent_shape(24, 44)


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            {"in_channels": 24},
            "has 24 input channels, which must be four times the autoencoder's 4: it is not a text-to",
        ),
        ({"use_additional_t_cond": True}, "use_additional_t_cond is true; allowed is false, as in text-to-image"),
    ],
)
def test_models_for_other_inputs_are_refused(
    checkpoint: Path, tmp_path: Path, setting: dict[str, Any], said: str
) -> None:
    """As those that take images, or give layers."""
    pipeline = QwenImagePipeline.from_pretrained(checkpoint)
    pipeline.transformer = QwenImageTransformer2DModel(**{**pipeline.transformer.config, **setting})
    pipeline.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=said):
        build(tmp_path / "other")


def test_statistics_of_latents_are_one_a_channel(checkpoint: Path, tmp_path: Path) -> None:
    pipeline = QwenImagePipeline.from_pretrained(checkpoint)
    pipeline.vae.register_to_config(latents_std=[1.0, 2.0])
    pipeline.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"vae/config\.json has 4 latents_mean and 2 latents_std for 4 channels"):
        build(tmp_path / "other")


# -- the model without its weights -------------------------------------------------------------------------------------


def test_published_models_have_their_size_and_their_layers_are_adapted(meta_models: Callable[[str], Any]) -> None:
    """Eight projections of 60 blocks, and nothing outside of attention. Both models have the same configurations."""
    known = json.loads(files("dgpo_diffusers.families.qwen_image").joinpath("qwen-image.json").read_text("utf-8"))
    assert [known[name] for name in (BASE, LATER)] == [{}, {}]
    meta_model = meta_models(LATER)
    trained = meta_model.trainable()
    adapted = {id(parameter) for parameter in trained.values()}
    count = sum(p.numel() for p in meta_model.module.parameters() if id(p) not in adapted)
    sizes = {name: sum(p.numel() for p in part.parameters()) / 1e9 for name, part in meta_model.components().items()}
    assert count / 1e9 == pytest.approx(20.43, abs=0.005)
    assert sizes["text encoders"] == pytest.approx(8.29, abs=0.005)
    assert sizes["autoencoder"] == pytest.approx(0.127, abs=0.0005)
    bound = {n.split(".lora_")[0] for n in trained}
    assert Counter(n.split(".")[0] for n in bound) == {"transformer_blocks": 60 * 8}
    assert {n.split(".")[2] for n in bound} == {"attn"}
    assert meta_model.encode(prompts("a")).tensors["prompt_embeds"].shape == (1, 512, 3584)
    assert meta_model.latent_shape(512, 512) == (16, 64, 64)


def test_operations_are_those_of_its_layers(meta_models: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """2 n m l of each product of [l, n] with [n, m], and of attention over text and image together; three blocks, as
    all are alike."""
    meta_model = meta_models(LATER)
    monkeypatch.setattr(meta_model.network, "transformer_blocks", meta_model.network.transformer_blocks[:3])
    x = torch.zeros(1, *meta_model.latent_shape(512, 512), device="meta")
    conditioning = meta_model.encode(prompts("a"))
    width, image, text, rank = 3072, 1024, 512, 4
    both = image + text
    projections = 4 * width**2 + 4 * rank * 2 * width
    block = both * (projections + 8 * width**2) + 2 * 6 * width**2 + 2 * both**2 * width
    ends = image * 64 * width * 2 + text * 3584 * width + 2 * width**2
    expected = 3 * block + ends + 256 * width + width**2
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        meta_model.velocity(x, torch.zeros(1, device="meta"), conditioning)
    assert counter.get_total_flops() == 2 * expected


# -- adapters ----------------------------------------------------------------------------------------------------------


def test_targets_that_bind_nothing_are_named(checkpoint: Path) -> None:
    """`img_mlp.net.2.proj` is among the defaults of another program, whose adapter lacks that layer silently."""
    with pytest.raises(UserError, match=r"img_mlp\.net\.2\.proj.*img_mlp\.net\.2"):
        build(checkpoint, lora={"rank": 2, "alpha": 2, "targets": ["attn.to_q", "img_mlp.net.2.proj"]})
    bound = build(checkpoint, lora={"rank": 2, "alpha": 2, "targets": ["img_mlp.net.2", "img_mlp.net.0.proj"]})
    assert len(bound.trainable()) == 2 * 2 * 2


def test_every_linear_layer_has_a_place_in_each_format(checkpoint: Path, tmp_path: Path) -> None:
    """ComfyUI looks up diffusers' names; kohya's file is read by diffusers' converter."""
    base: Any = QwenImageTransformer2DModel.from_pretrained(checkpoint, subfolder="transformer")
    linear = [name for name, layer in base.named_modules() if isinstance(layer, nn.Linear)]
    backbone = build(checkpoint, lora={"rank": 3, "alpha": 5, "targets": linear})
    randomize(backbone)
    assert {n.split(".lora_")[0] for n in backbone.trainable()} == set(linear)
    assert backbone.adapter is not None
    assert backbone.adapter.formats == ("diffusers", "peft", "kohya", "comfyui")
    for format in backbone.adapter.formats:
        backbone.adapter.save(tmp_path / format, format)
    comfyui, kohya = (load_file(next((tmp_path / format).iterdir())) for format in ("comfyui", "kohya"))
    read: Any = QwenImagePipeline.lora_state_dict(dict(kohya))
    wanted = added_weights(backbone)
    assert {f"{name}.weight" for name in linear} == wanted.keys()
    for name, change in wanted.items():
        key = f"transformer.{name.removesuffix('.weight')}"
        for file, ends in ((comfyui, ("lora_up", "lora_down")), (read, ("lora_B", "lora_A"))):
            up, down = (file[f"{key}.{end}.weight"].double() for end in ends)
            assert_close(up @ down, change, atol=1e-5, rtol=0)


# -- the example -------------------------------------------------------------------------------------------------------


def test_the_example_holds_the_published_settings(meta_models: Callable[[str], Any], registry: Registry) -> None:
    config = load_run_config(EXAMPLE, registry=registry)
    assert (config.rollout.guidance, config.evaluation.guidance, config.objective.kl_cfg) == (4.0, 4.0, 1.0)
    assert (config.backbone.lora.rank, config.backbone.lora.alpha, config.optimizer.learning_rate) == (64, 128, 3e-4)
    assert (config.rollout.group_size, config.rollout.groups, config.rollout.steps) == (16, 48, 10)
    schedule = meta_models(config.backbone.checkpoint).schedule(*config.rollout.height_width, config.rollout.steps)
    sigmas = sampler_times(config.rollout.steps, schedule)
    t_min, t_max = config.training_range(schedule.shift)
    assert ((sigmas >= t_min) & (sigmas <= t_max)).tolist() == [i < 7 for i in range(11)], "the first 7 of 10 steps"
    context = TimestepContext(sigmas, t_min, t_max, schedule.shift, 1, config.run.iterations)
    SamplerSteps(None).check(context, config.timesteps.count)
