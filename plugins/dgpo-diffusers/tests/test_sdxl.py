"""What is particular to Stable Diffusion XL; `test_families` compares it with its pipeline as it was published.

One file, for all of it stands on one tiny checkpoint, which is made once.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from diffusers.models.attention_processor import Attention
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from dgpo_core.builtin.samplers import FlowDPMSolverPP, FlowEuler
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.flow import schedules
from dgpo_core.flow.times import Times
from dgpo_core.flow.velocity import guided_velocity, interpolate, velocity_target
from dgpo_core.plugins.registry import get_registry
from dgpo_core.types import Predictions, Prompt
from dgpo_diffusers.backbone import DiffusersBackbone
from dgpo_diffusers.checkpoint_check import Index
from dgpo_diffusers.families.sdxl.backbone import SDXLBackbone
from dgpo_diffusers.families.sdxl.tiny import make_tiny_sdxl
from dgpo_diffusers.meta import _published
from dgpo_diffusers.options import DiffusersOptions
from dgpo_diffusers.testing import NOISE_LEVELS
from dgpo_diffusers.unet import NAMES
from dgpo_kit.drawing import randomize
from dgpo_lab.planning.plan import make_plan, measure_model
from dgpo_schemas.run import BackboneSection, RunConfig
from tests.edited import edit_json
from tests.families.proof import among
from tests.trained import added_weights, changed_weights

BASE = "stabilityai/stable-diffusion-xl-base-1.0"
SIZE = (32, 48)
TEXTS = ["a red circle", "two blue squares, left", "green"]
STEPS = 4
Copy = Callable[..., Path]

EULER: dict[str, Any] = {**NOISE_LEVELS, "timestep_spacing": "leading", "steps_offset": 1}
V: dict[str, Any] = {**NOISE_LEVELS, "prediction_type": "v_prediction"}
DDIM: dict[str, Any] = {**EULER, "clip_sample": False}
SCHEDULERS: dict[str, Any] = {
    "trailing": EulerDiscreteScheduler(**NOISE_LEVELS, timestep_spacing="trailing"),
    "linspace": EulerDiscreteScheduler(**NOISE_LEVELS, timestep_spacing="linspace"),
    "linear betas": EulerDiscreteScheduler(beta_start=0.0001, beta_end=0.02, timestep_spacing="leading"),
    "ddim": DDIMScheduler(**DDIM),
    "v": EulerDiscreteScheduler(**V, timestep_spacing="leading", steps_offset=1),
    "v, ddim": DDIMScheduler(**DDIM, prediction_type="v_prediction"),
    "v, zero terminal SNR": EulerDiscreteScheduler(**V, timestep_spacing="trailing", rescale_betas_zero_snr=True),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sdxl(tmp_path_factory.mktemp("sdxl") / "tiny")


@pytest.fixture(scope="module")
def backbone(checkpoint: Path) -> SDXLBackbone:
    """Not to be changed."""
    return build(checkpoint)


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Callable[[], Any]:
    """diffusers' own; what is changed of it is set anew by whoever asks."""
    return cache(lambda: load(checkpoint))


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Copy:
    """The tiny checkpoint with other settings: file below it to what changes in it."""

    def changed(**changes: dict[str, Any]) -> Path:
        directory = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
        for name, values in changes.items():
            file = {"index": "model_index.json", "scheduler": "scheduler/scheduler_config.json"}.get(
                name, f"{name}/config.json"
            )
            edit_json(directory / file, **values)
        return directory

    return changed


def load(directory: Path) -> Any:
    pipeline = StableDiffusionXLPipeline.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build(directory: Path, **section: Any) -> SDXLBackbone:
    section.setdefault("lora", {"rank": 4, "alpha": 12})
    return SDXLBackbone(
        BackboneSection(use="sdxl", checkpoint=str(directory), **section),
        DiffusersOptions(),
        device=torch.device("cpu"),
    )


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompts_of(size: tuple[int, int] = SIZE, negative: str | None = None, count: int = 3) -> list[Prompt]:
    return [Prompt(text, negative=negative, size=size) for text in TEXTS[:count]]


@torch.no_grad()
def drawn(backbone: SDXLBackbone, noise: Tensor, *, size: tuple[int, int] = SIZE, guidance: float = 4.5) -> Tensor:
    """Samples as a run draws them: by the model's schedule, its start and flow-euler."""
    prompts = prompts_of(size, count=len(noise))
    rows, opposite = backbone.encode(prompts), backbone.unconditional(prompts)
    schedule, sampler = backbone.schedule(*size, STEPS), FlowEuler(None)
    scale = backbone.start(float(sampler.sigmas(STEPS, schedule)[0]))
    return sampler.sample(
        lambda x, sigma: guided_velocity(backbone, x, sigma, rows, opposite, guidance), noise * scale,
        steps=STEPS, schedule=schedule, draws=[Draws(i) for i in range(len(noise))],
    ).x0  # fmt: skip


def by_pipeline(pipeline: Any, noise: Tensor, size: tuple[int, int] = SIZE, output: str = "latent") -> Tensor:
    found: Tensor = pipeline(
        TEXTS[: len(noise)], height=size[0], width=size[1], num_inference_steps=STEPS, latents=noise,
        output_type=output, guidance_scale=4.5,
    )[0]  # fmt: skip
    return found


# -- noise levels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", among(SCHEDULERS, quick=["trailing", "v, ddim", "v, zero terminal SNR"]))
def test_latents_of_other_schedulers_are_the_pipelines(name: str, copy: Copy, pipeline: Callable[[], Any]) -> None:
    """As a run draws them, with the model's own times and start."""
    directory, judge, scheduler = copy(), pipeline(), SCHEDULERS[name]
    scheduler.save_pretrained(directory / "scheduler")
    judge.scheduler = type(scheduler).from_config(scheduler.config)
    noise = normal(2, 4, 8, 12)
    expected = by_pipeline(judge, noise)
    found = drawn(build(directory), noise)
    # At a zero SNR diffusers keeps 4096 times the noise in float32, and its states are that much coarser.
    tolerance = 1e-4 if "zero" in name else 1e-5
    assert float((found - expected).abs().max() / expected.abs().max()) < tolerance


@pytest.mark.parametrize("steps", among([1, 4, 30, 1000], quick=[4]))
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_times_and_start_are_those_of_the_checkpoints_scheduler(spacing: str, steps: int, copy: Copy) -> None:
    """Not 1, where a noise prediction means nothing, and not the noise as it is."""
    offset = 0 if steps == 1000 else 1  # 1000 leading steps with an offset end one place beyond the table
    backbone = build(copy(scheduler={"timestep_spacing": spacing, "steps_offset": offset}))
    judge = EulerDiscreteScheduler(**NOISE_LEVELS, timestep_spacing=spacing, steps_offset=offset)
    judge.set_timesteps(steps)
    ratios = judge.sigmas.double()
    for size in (SIZE, (64, 32)):
        schedule = backbone.schedule(*size, steps)
        times = FlowEuler(None).sigmas(steps, schedule)
        assert_close(times, ratios / (1 + ratios), rtol=3e-5, atol=0)  # its table is float32
        assert schedule.first == float(times[0]) < 0.94
        assert backbone.start(float(times[0])) == pytest.approx(float(judge.init_noise_sigma / (1 + ratios[0])), 3e-5)
        assert float(FlowDPMSolverPP(None).sigmas(steps, schedule)[0]) <= schedule.first


def test_times_that_it_knows(backbone: SDXLBackbone) -> None:
    assert backbone.sigma_range == pytest.approx((0.02834, 0.93596), abs=1e-5)  # of the published model
    with pytest.raises(UserError, match=r"rollout\.steps: 1001 given, this model has 1000 times"):
        backbone.schedule(*SIZE, 1001)


def test_samples_that_start_at_one_are_others(backbone: SDXLBackbone, pipeline: Callable[[], Any]) -> None:
    """What the start is for: noise at sigma 1, and a time held at the end of the range, is another image."""
    judge, noise = pipeline(), normal(1, 4, 8, 12)
    judge.scheduler = EulerDiscreteScheduler(**EULER)
    expected = by_pipeline(judge, noise)
    rows, opposite = backbone.encode(prompts_of(count=1)), backbone.unconditional(prompts_of(count=1))
    x, times = noise, torch.cat([torch.ones(1), schedules.sigmas(STEPS, backbone.schedule(*SIZE, STEPS)).float()])
    with torch.no_grad():
        for sigma, following in pairwise(times):
            known = sigma.clamp(max=backbone.sigma_range[1])
            x = x + (following - sigma) * guided_velocity(backbone, x, known, rows, opposite, 4.5)
    assert float((x - expected).abs().max() / expected.abs().max()) > 0.05


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_weighted_error_is_the_networks_own(kind: str, copy: Copy) -> None:
    """That of diffusers' training script: the UNet at x_vp of whole places against the noise, or VP v."""
    backbone = build(copy(scheduler={"prediction_type": kind}))
    judge = EulerDiscreteScheduler(**EULER)
    x0, noise = normal(3, 4, 8, 12), normal(3, 4, 8, 12, seed=1)
    places = torch.tensor([10, 500, 990])
    alphas = judge.alphas_cumprod[places].double()
    alpha, s = (root.view(-1, 1, 1, 1) for root in (alphas.sqrt(), (1 - alphas).sqrt()))
    sigma = (s / (alpha + s)).flatten().float()
    rows = backbone.encode(prompts_of())
    wanted = noise if kind == "epsilon" else alpha * noise - s * x0
    with torch.no_grad():
        output = backbone.predict(backbone.network, (alpha * x0 + s * noise).float(), places.float(), rows)
        velocity = backbone.velocity(interpolate(x0, noise, sigma), sigma, rows)
    nothing = torch.zeros(3)
    p = Predictions(
        velocity, velocity_target(x0, noise), sigma, nothing, nothing, nothing,
        loss_weight=backbone.loss_weight(sigma),
    )  # fmt: skip
    expected = (output - wanted).double().square().mean((1, 2, 3))
    found = p.error(p.velocity, p.target)
    assert_close(found.double(), expected, rtol=1e-4, atol=0)
    bare = (p.velocity - p.target).square().mean((1, 2, 3))
    assert float(bare[-1] / found[-1]) > (150 if kind == "epsilon" else 1.1), "unweighted it is another loss"


def test_times_between_two_places_are_not_rounded(backbone: SDXLBackbone) -> None:
    """At a level half-way in log alpha^2 the UNet is asked at the half."""
    levels = EulerDiscreteScheduler(**EULER).alphas_cumprod.double().log()
    alpha2 = ((levels[500] + levels[501]) / 2).exp()
    alpha, s = alpha2.sqrt(), (1 - alpha2).sqrt()
    sigma, x_vp = (s / (alpha + s)).float().expand(3), normal(3, 4, 8, 12)
    rows = backbone.encode(prompts_of())

    def by_unet(place: float) -> Tensor:
        epsilon = backbone.predict(backbone.network, x_vp, torch.full((3,), place), rows)
        velocity: Tensor = (epsilon - (x_vp / (alpha + s)).float()) / (1 - sigma).view(-1, 1, 1, 1)
        return velocity

    with torch.no_grad():
        found = backbone.velocity((x_vp / (alpha + s)).float(), sigma, rows)
        assert_close(found, by_unet(500.5), rtol=0, atol=2e-4)
        assert min(float((found - by_unet(place)).abs().max()) for place in (500.0, 501.0)) > 5e-3


# -- conditioning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [True, False, None])
def test_without_a_negative_text_the_text_is_zeros_where_the_checkpoint_says_so(zeros: bool | None, copy: Copy) -> None:
    backbone = build(copy(index={"force_zeros_for_empty_prompt": zeros}))
    mixed = [Prompt("a", size=SIZE), Prompt("b", size=SIZE, negative=""), Prompt("c", size=SIZE, negative="blur")]
    found = backbone.unconditional(mixed).tensors
    empty = backbone.encode([Prompt("", size=SIZE)]).tensors
    for name in ("prompt_embeds", "pooled"):
        assert bool(empty[name].any())
        assert_close(found[name][0], torch.zeros_like(empty[name][0]) if zeros else empty[name][0])
        assert_close(found[name][1], empty[name][0])
        assert not torch.equal(found[name][1], found[name][2])
    assert found["time_ids"].tolist() == [[32, 48, 0, 0, 32, 48]] * 3


def test_conditioning_depends_on_the_size(backbone: SDXLBackbone) -> None:
    wide, high = ([Prompt("a red circle", size=size)] for size in (SIZE, (64, 32)))
    one, other = backbone.encode(wide), backbone.encode(high)
    assert other.tensors["time_ids"].tolist() == [[64, 32, 0, 0, 64, 32]]
    assert torch.equal(one.tensors["prompt_embeds"], other.tensors["prompt_embeds"])
    x, sigma = normal(1, 4, 8, 12), torch.tensor([0.5])
    with torch.no_grad():
        difference = backbone.velocity(x, sigma, one) - backbone.velocity(x, sigma, other)
    assert difference.abs().max() > 0.1


def test_rows_are_both_encoders_last_states_but_one(backbone: SDXLBackbone) -> None:
    rows, p = backbone.encode(prompts_of()).tensors, backbone.pipeline
    states = []
    for tokenizer, encoder in ((p.tokenizer, p.text_encoder), (p.tokenizer_2, p.text_encoder_2)):
        tokens = tokenizer(TEXTS, padding="max_length", max_length=32, truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            found = encoder(tokens, output_hidden_states=True)
        states.append(found.hidden_states[-2])
    assert_close(rows["prompt_embeds"], torch.cat(states, -1))
    assert_close(rows["pooled"], found.text_embeds)
    assert backbone.truncated_prompts([Prompt("x" * 40), Prompt("short")]) == ([0], 32)


# -- the autoencoder ---------------------------------------------------------------------------------------------------


def test_images_of_an_autoencoder_with_statistics_are_the_pipelines(copy: Copy) -> None:
    directory = copy(vae={"latents_mean": [1.5, -2.0, 0.5, 3.0], "latents_std": [2.0, 0.3, 1.1, 5.0]})
    noise = normal(2, 4, 8, 12)
    expected = by_pipeline(load(directory), noise, output="pt")
    backbone = build(directory)
    latents = drawn(backbone, noise)
    assert_close(backbone.decode(latents), expected, rtol=0, atol=1e-4)
    config = backbone.vae.config
    plain = (backbone.vae.decode(latents / config.scaling_factor, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)
    assert (plain - expected).abs().max() > 0.1


def test_the_autoencoder_runs_in_float32_and_nobody_marks_images(checkpoint: Path, tmp_path: Path) -> None:
    """In float16, as published, it gives nan."""
    directory = Path(shutil.copytree(checkpoint, tmp_path / "half"))
    half = load(directory).vae.half()
    half.save_pretrained(directory / "vae", variant="fp16")
    (directory / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    backbone = build(directory, dtype="bfloat16")
    assert {p.dtype for p in backbone.vae.parameters()} == {torch.float32}
    assert {p.dtype for n, p in backbone.module.named_parameters() if "lora" not in n} == {torch.bfloat16}
    images = backbone.decode(1e3 * normal(1, 4, 8, 12))
    assert bool(images.isfinite().all())
    assert backbone.pipeline.watermark is None
    assert backbone.settings(Index(Path("x"), {}))["add_watermarker"] is False


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"scheduler": {"prediction_type": "sample"}}, "prediction_type is 'sample' of a EulerDiscrete"),
        ({"scheduler": {"timestep_type": "continuous"}}, "others with a table of betas"),
        ({"scheduler": {"beta_schedule": "cosine"}}, "cosine"),
        ({"scheduler": {"rescale_betas_zero_snr": True}}, "with rescale_betas_zero_snr; allowed is v_prediction"),
        ({"index": {"force_zeros_for_empty_prompt": "yes"}}, "force_zeros_for_empty_prompt is 'yes'; allowed is true"),
        ({"index": {"_class_name": "StableDiffusion3Pipeline"}}, "for this checkpoint, set use: sd3"),
        ({"index": {"_class_name": "StableDiffusionXLPAGPipeline"}}, "it has the same models"),
        ({"index": {"_class_name": "StableDiffusionXLImg2ImgPipeline"}}, "known pipelines: "),
    ],
)  # fmt: skip
def test_checkpoints_that_are_refused(changes: dict[str, Any], says: str, copy: Copy) -> None:
    with pytest.raises(UserError) as caught:
        build(copy(**changes))
    assert str(caught.value).startswith("backbone.checkpoint: ")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "unet, says",
    [
        ({"in_channels": 9}, "in_channels is 9; allowed is 4"),
        ({"cross_attention_dim": 16}, "cross_attention_dim is 16; allowed is 24"),
        ({"projection_class_embeddings_input_dim": 56}, "input_dim is 56; allowed is 64"),
        ({"layers_per_block": 1}, "layers_per_block is 1; allowed is 2"),
        ({"time_cond_proj_dim": 4}, "time_cond_proj_dim is 4; allowed is null"),
    ],
)
def test_unets_that_are_refused(unet: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        build(make_tiny_sdxl(tmp_path / "other", unet=unet))
    assert says in str(caught.value)


# -- adapters ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everywhere(checkpoint: Path) -> SDXLBackbone:
    """An adapter of every linear layer, as a target that is taken must not fail in an export."""
    unet = UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet")
    names = [name for name, module in unet.named_modules() if isinstance(module, nn.Linear)]
    backbone = build(checkpoint, lora={"rank": 3, "alpha": 12, "targets": names})
    assert {name.split(".lora_")[0] for name in backbone.trainable()} == set(names)
    randomize(backbone)
    return backbone


def saved(backbone: SDXLBackbone, directory: Path, format: str) -> None:
    assert backbone.adapter is not None
    backbone.adapter.save(directory, format)


def test_the_default_targets_are_both_attentions(backbone: SDXLBackbone) -> None:
    wanted = {
        f"{name}.{projection}"
        for name, module in backbone.module.named_modules()
        if isinstance(module, Attention)
        for projection in ("to_q", "to_k", "to_v", "to_out.0")
    }
    assert {name.split(".lora_")[0] for name in backbone.trainable()} == wanted
    assert {name.split(".")[-2 - name.endswith(".0")] for name in wanted} == {"attn1", "attn2"}


@pytest.mark.parametrize("format", among(["diffusers", "kohya"], quick=["diffusers"]))
def test_the_pipeline_adds_what_was_trained(
    format: str, everywhere: SDXLBackbone, checkpoint: Path, tmp_path: Path
) -> None:
    """diffusers knows kohya's names too."""
    saved(everywhere, tmp_path, format)
    pipeline = load(checkpoint)
    before = {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}
    pipeline.load_lora_weights(tmp_path)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    found, wanted = changed_weights(before, pipeline.unet.state_dict()), added_weights(everywhere)
    assert found.keys() == wanted.keys()
    for name, change in wanted.items():
        assert_close(found[name], change, rtol=0, atol=1e-5)


def test_comfyui_finds_the_same_layers_below_its_own_prefix(everywhere: SDXLBackbone, tmp_path: Path) -> None:
    """It makes kohya's keys of its own by writing underscores for dots (`model_lora_keys_unet` of comfy/lora.py)."""
    files = []
    for format in ("kohya", "comfyui"):
        saved(everywhere, tmp_path / format, format)
        files.append(load_file(tmp_path / format / "pytorch_lora_weights.safetensors"))
    kohya, comfyui = files

    def flat(name: str) -> str:
        layer, what = name.removeprefix("diffusion_model.").split(".lora_" if ".lora_" in name else ".alpha")
        return f"lora_unet_{layer.replace('.', '_')}" + (f".lora_{what}" if ".lora_" in name else ".alpha")

    assert all(name.startswith("diffusion_model.") for name in comfyui)
    assert {flat(name): tensor.sum() for name, tensor in comfyui.items()} == {n: t.sum() for n, t in kohya.items()}


def original_name(name: str) -> str:
    (found,) = NAMES.original_pairs({name: (torch.empty(1, 1), torch.empty(1, 1))})
    return found


def test_the_published_models_layers_are_found_by_their_original_names() -> None:
    """By diffusers' reading of them; with three outer blocks, of which the tiny checkpoint has two."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**_published(SDXLBackbone, "sdxl")[BASE]["unet"])
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684
    names = [n for n, m in unet.named_modules() if isinstance(m, nn.Linear) and "embedding" not in n]
    kohya = {"lora_unet_" + original_name(name).replace(".", "_"): name for name in names}
    assert len(kohya) == len(names) > 700
    found = _maybe_map_sgm_blocks_to_diffusers(dict(kohya), unet.config)
    blocks = {"input_blocks": "down_blocks", "middle_block": "mid_block", "output_blocks": "up_blocks"}
    blocks["emb_layers_1"] = "time_emb_proj"
    for key, name in found.items():
        for theirs, ours in blocks.items():
            key = key.replace(theirs, ours)
        assert key == "lora_unet_" + name.replace(".", "_")
    assert original_name("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q") == (
        "input_blocks.4.1.transformer_blocks.0.attn1.to_q"
    )


# -- without weights ---------------------------------------------------------------------------------------------------


def layer_operations(module: nn.Module, run: Callable[[], Any]) -> int:
    """Of linear layers and convolutions as hooks see them, two for a multiplication and an addition; and of both
    products of each attention."""
    total = 0

    def count(layer: Any, given: Any, named: Any, output: Any) -> None:
        nonlocal total
        if isinstance(layer, nn.Linear):
            total += 2 * output.numel() * layer.in_features
        elif isinstance(layer, nn.Conv2d):
            total += 2 * output.numel() * layer.in_channels * math.prod(layer.kernel_size)
        else:
            hidden, context = given[0], named.get("encoder_hidden_states")
            keys = hidden.shape[1] if context is None else context.shape[1]
            total += 4 * hidden.shape[0] * hidden.shape[1] * keys * layer.inner_dim

    kinds = (nn.Linear, nn.Conv2d, Attention)
    handles = [m.register_forward_hook(count, with_kwargs=True) for m in module.modules() if isinstance(m, kinds)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return total


@torch.no_grad()
def pass_of_two(one: DiffusersBackbone, size: tuple[int, int]) -> Tensor:
    x, sigma = torch.zeros(2, *one.latent_shape(*size), device=one.device), torch.full((2,), 0.5, device=one.device)
    return one.velocity(x, sigma, one.encode(prompts_of(count=2)))


def meta_operations(section: BackboneSection, options: DiffusersOptions, size: tuple[int, int]) -> int:
    meta_model = SDXLBackbone.meta_model(section, options)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        pass_of_two(meta_model, size)
    return int(counter.get_total_flops())


def test_operations_are_those_of_its_layers(backbone: SDXLBackbone) -> None:
    found = meta_operations(backbone.section, backbone.options, (64, 96))
    assert found == layer_operations(backbone.module, lambda: pass_of_two(backbone, (64, 96))) > 0


@pytest.mark.slow
def test_the_published_model_is_known_by_name() -> None:
    section = BackboneSection(use="sdxl", checkpoint=BASE, lora={"rank": 64, "alpha": 64})
    meta_model = SDXLBackbone.meta_model(section, DiffusersOptions())
    assert meta_model.latent_shape(1024, 1024) == (4, 128, 128)
    assert {n: tuple(t.shape) for n, t in meta_model.encode([Prompt("a", size=(1024, 1024))]).tensors.items()} == {
        "prompt_embeds": (1, 77, 2048),
        "pooled": (1, 1280),
        "time_ids": (1, 6),
    }
    schedule = meta_model.schedule(1024, 1024, 30)
    assert (schedule.first, meta_model.start(schedule.first)) == pytest.approx((0.91985, 0.92334), abs=1e-5)


# -- the example -------------------------------------------------------------------------------------------------------


def example(*changes: str) -> RunConfig:
    return load_run_config(Path(__file__).parents[3] / "examples" / "sdxl-pickscore.yaml", changes, get_registry())


def test_the_example_trains_at_times_of_its_samples(backbone: SDXLBackbone) -> None:
    """Its scheduler is that of the tiny checkpoint."""
    config = example()
    DiffusersOptions.model_validate(config.backbone.options)
    steps, times = config.rollout.steps, Times(config, backbone)
    sigmas = FlowEuler(None).sigmas(steps, backbone.schedule(1024, 1024, steps))
    low, high = times.training_range
    assert high == backbone.sigma_range[1]
    assert ((sigmas >= low) & (sigmas <= high)).tolist() == [i < 12 for i in range(steps + 1)]
    times.check_range()
    for count in (steps, 30):
        times.check_sampler("rollout.steps", FlowEuler(None), count, (1024, 1024))


@pytest.mark.slow
def test_the_example_is_planned(checkpoint: Path) -> None:
    """On the tiny model: a plan of the published one takes a minute."""
    config = example(f"backbone.checkpoint={checkpoint}")
    model = measure_model(config, get_registry())
    plan = make_plan(config, model, get_registry())
    guided = meta_operations(config.backbone, DiffusersOptions(), config.rollout.height_width)
    assert plan.operations["rollout"] > 576 * 20 * guided > 0
    assert plan.operations["optimize"] > 0
    frozen = UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet").num_parameters()
    assert model.held["unet"] == 2 * frozen
