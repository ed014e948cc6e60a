"""What is particular to SANA; `tests/families` compares it with its pipeline."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel
from torch.testing import assert_close

from dgpo_core.builtin.timesteps import SamplerSteps
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.contracts import TimestepContext
from dgpo_core.errors import UserError
from dgpo_core.flow.schedules import sigmas as sampler_times
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Prompt
from dgpo_diffusers.families.sana.backbone import SanaBackbone
from dgpo_diffusers.families.sana.tiny import make_tiny_sana
from dgpo_diffusers.options import DiffusersOptions
from tests.families.proof_published import adapted_layers, meta_model, operations, parameters, section

LARGE, SMALL = (
    "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
    "Efficient-Large-Model/Sana_600M_1024px_diffusers",
)
SIZE = (32, 64)
EXAMPLE = Path(__file__).parents[3] / "examples" / "sana-pickscore.yaml"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sana(tmp_path_factory.mktemp("sana") / "tiny")


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Any:
    found: Any = SanaPipeline.from_pretrained(checkpoint)
    found.set_progress_bar_config(disable=True)
    return found


def build(checkpoint: Path, **settings: Any) -> SanaBackbone:
    return SanaBackbone(section("sana", checkpoint, **settings), DiffusersOptions(), device=torch.device("cpu"))


# -- traps -------------------------------------------------------------------------------------------------------------


def test_prompts_are_instructed_and_negative_ones_are_not(checkpoint: Path, pipeline: Any) -> None:
    """`encode_prompt` alone, without the default of the call, would leave the instruction out."""
    backbone = build(checkpoint)
    prompts = [Prompt("A red circle", negative="Blur", size=SIZE)]
    found, free = backbone.encode(prompts).tensors, backbone.unconditional(prompts).tensors
    plain, plain_mask, _, _ = pipeline.encode_prompt("A red circle", do_classifier_free_guidance=False)
    negative, mask, _, _ = pipeline.encode_prompt("Blur", do_classifier_free_guidance=False)
    assert_close(free["prompt_embeds"], negative)
    assert_close(free["mask"], mask.float())
    assert found["prompt_embeds"].shape == plain.shape == (1, 300, 16)
    assert found["mask"].sum() == plain_mask.sum() + 1, "the last token of the instruction"
    assert (found["prompt_embeds"][:, 2:14] - plain[:, 1:13]).abs().max() > 0.1
    none = backbone.unconditional([Prompt("A red circle", size=SIZE)]).tensors
    assert none["mask"].sum() == 1, "no text but the start"


def test_prompts_that_are_cut_off_are_reported(checkpoint: Path) -> None:
    """298 letters fit beside the start and the last token of the instruction."""
    backbone = build(checkpoint)
    prompts = [Prompt("a" * count, size=SIZE) for count in (298, 299, 310)]
    assert backbone.truncated_prompts(prompts) == ([1, 2], 299)
    rows = backbone.encode(prompts).tensors["prompt_embeds"]
    assert backbone.encode(prompts[:1]).tensors["mask"].all()
    assert_close(rows[1], rows[2], atol=1e-5, rtol=0)


def test_times_are_exact(checkpoint: Path, pipeline: Any) -> None:
    """The pipeline's own scheduler visits the times of `flow-dpmpp`, but tells the transformer integers."""
    backbone = build(checkpoint)
    seen: list[float] = []
    for network in (backbone.network, pipeline.transformer):
        network.register_forward_pre_hook(
            lambda module, args, given: seen.append(float(given["timestep"][0])), with_kwargs=True
        )
    pipeline("a", height=32, width=64, num_inference_steps=4, guidance_scale=1.0, output_type="latent",
             use_resolution_binning=False)  # fmt: skip
    sigmas, rounded = pipeline.scheduler.sigmas[:-1], list(seen)
    assert all(abs(t / 0.7 - round(t / 0.7)) < 1e-4 for t in rounded)
    seen.clear()
    x = torch.randn(1, *backbone.latent_shape(*SIZE), generator=torch.Generator().manual_seed(0))
    row = backbone.encode([Prompt("a", size=SIZE)])
    with torch.no_grad():
        exact, whole = (
            backbone.velocity(x, sigma.reshape(1).float(), row) for sigma in (sigmas[1], torch.tensor(rounded[1] / 700))
        )
    assert seen[0] == pytest.approx(700 * float(sigmas[1]), abs=1e-3)
    assert 0.3 < (seen[0] - rounded[1]) / 0.7 < 1
    assert (exact - whole).abs().max() > 1e-5


def test_other_layers_than_attention_cannot_be_adapted(checkpoint: Path) -> None:
    """The MLPs are convolutions: endings of other families bind nothing, and are refused."""
    for targets in (["ff.net.0.proj"], ["to_q", "ff.net.2"], ["ff.conv_point"]):
        with pytest.raises(UserError, match=r"lora\.targets"):
            build(checkpoint, lora={"rank": 2, "alpha": 2, "targets": targets})
    backbone = build(checkpoint)
    bound = {name.split(".lora_")[0] for name in backbone.trainable()}
    assert Counter(".".join(name.split(".")[2:]) for name in bound) == {
        f"{attention}.{layer}": 2 for attention in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")
    }
    assert backbone.adapter is not None
    assert backbone.adapter.formats == ("diffusers", "peft")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_embeds": True}, r"guidance_embeds is true; allowed is false"),
        ({"out_channels": 8}, r"out_channels is 8; allowed is 4"),
        ({"caption_channels": 24}, r"caption_channels is 24; allowed is 16"),
    ],
)
def test_other_checkpoints_are_refused(checkpoint: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    found: Any = SanaPipeline.from_pretrained(checkpoint)
    config = {k: v for k, v in found.transformer.config.items() if not k.startswith("_")}
    found.transformer = SanaTransformer2DModel(**config | changes)
    found.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=message):
        build(tmp_path / "other")


# -- published models --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry()


@pytest.mark.parametrize(
    ("name", "billions", "blocks"), [(LARGE, 1.60, 20), pytest.param(SMALL, 0.59, 28, marks=pytest.mark.slow)]
)
def test_published_models(name: str, billions: float, blocks: int) -> None:
    """Their size, the adapted layers (four projections of two attentions in every block), sides and times."""
    model = meta_model("sana", name)
    assert parameters(model) / 1e9 == pytest.approx(billions, abs=0.005)
    bound = adapted_layers(model)
    assert Counter(n.split(".")[2] for n in bound) == {"attn1": 4 * blocks, "attn2": 4 * blocks}
    assert model.latent_shape(1024, 768) == (32, 32, 24)
    with pytest.raises(UserError, match="multiples of 32 from 32 to 16384; the nearest is 1024x1024"):
        model.latent_shape(1024, 1016)
    schedule = model.schedule(1024, 1024, 4)
    assert (schedule.shift, schedule.grid, schedule.terminal, schedule.first) == (3.0, "scheduler", None, 1.0)
    euler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    euler.set_timesteps(4)
    assert_close(sampler_times(4, schedule).float(), euler.sigmas, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_operations_are_those_of_its_layers() -> None:
    """2 n m l of each product of [l, n] with [n, m]; linear attention over the image, the usual one over the text, and
    MLPs of convolutions."""
    model = meta_model("sana", LARGE)
    width, image, text, rank, hidden, head = 2240, 1024, 300, 4, 5600, 32
    lora = rank * 2 * width
    linear = 70 * 2 * (head + 1) * head * image
    own = image * 4 * (width**2 + lora) + linear
    cross = (2 * image + 2 * text) * (width**2 + lora) + 2 * image * text * width
    mlp = image * (width * 2 * hidden + 9 * 2 * hidden + hidden * width)
    ends = image * 32 * width * 2 + text * (2304 + width) * width
    times = 256 * width + width**2 + width * 6 * width
    assert operations(model, (1024, 1024)) == 2 * (20 * (own + cross + mlp) + ends + times)


# -- the example -------------------------------------------------------------------------------------------------------


def test_the_example(registry: Registry) -> None:
    config = load_run_config(EXAMPLE, registry=registry)
    assert (config.rollout.guidance, config.evaluation.guidance, config.objective.kl_cfg) == (4.5, 4.5, 1.0)
    assert (config.backbone.lora.rank, config.backbone.lora.alpha) == (64, 128)
    sampler: Any = registry.create("sampler", config.rollout.sampler)
    schedule = meta_model("sana", LARGE).schedule(*config.rollout.height_width, config.rollout.steps)
    sigmas = sampler.sigmas(config.rollout.steps, schedule)
    t_min, t_max = config.training_range(schedule.shift)
    assert ((sigmas >= t_min) & (sigmas <= t_max)).tolist() == [i < 7 for i in range(11)], "the first 0.7 of the steps"
    context = TimestepContext(sigmas, t_min, t_max, schedule.shift, 1, config.run.iterations)
    SamplerSteps(None).check(context, config.timesteps.count)
