"""What is particular to Z-Image; `tests/families` compares it with its pipeline."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers
from torch import Tensor, nn
from torch.testing import assert_close

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.errors import UserError
from dgpo_core.flow.schedules import sigmas as sampler_times
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Conditioning, Prompt
from dgpo_diffusers.families.z_image.backbone import ZImageBackbone
from dgpo_diffusers.families.z_image.names import COMFYUI, kohya_pairs
from dgpo_diffusers.families.z_image.options import ZImageOptions
from dgpo_diffusers.families.z_image.tiny import make_tiny_z_image
from tests.families.proof_published import adapted_layers, meta_model, operations, parameters, section, trained_steps

BASE, TURBO = "Tongyi-MAI/Z-Image", "Tongyi-MAI/Z-Image-Turbo"
SIZE = (32, 48)
EXAMPLE = Path(__file__).parents[3] / "examples" / "z-image-pickscore.yaml"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_z_image(tmp_path_factory.mktemp("z-image") / "tiny")


def build(checkpoint: Path, options: dict[str, Any] | None = None, **settings: Any) -> ZImageBackbone:
    return ZImageBackbone(
        section("z-image", checkpoint, **settings), ZImageOptions(**(options or {})), device=torch.device("cpu")
    )


def noise(backbone: ZImageBackbone, batch: int) -> Tensor:
    return torch.randn(batch, *backbone.latent_shape(*SIZE), generator=torch.Generator().manual_seed(0))


# -- traps -------------------------------------------------------------------------------------------------------------


def test_the_velocity_points_from_the_image_to_the_noise(checkpoint: Path) -> None:
    """The transformer's own output, at 1 - sigma, points to the image."""
    backbone = build(checkpoint)
    x, sigma = noise(backbone, 1), torch.tensor([0.75])
    row = backbone.encode([Prompt("a red circle", size=SIZE)])
    with torch.no_grad():
        found = backbone.velocity(x, sigma, row)
        (out,) = backbone.network([x[0, :, None]], torch.tensor([0.25]), [row.tensors["prompt_embeds"][0]])[0]
    assert_close(found[0], -out[:, 0])


def test_captions_keep_their_lengths(checkpoint: Path) -> None:
    """Chat tokens and letters; a row is the same alone as beside a longer one, and prompts are left as they were."""
    backbone = build(checkpoint)
    prompts = [Prompt(text, size=SIZE) for text in ("green", "two blue squares, on the left of a fence")]
    rows = backbone.encode(prompts)
    assert rows.lengths["prompt_embeds"] == (19 + 5, 19 + 40)
    assert [prompt.text for prompt in prompts] == ["green", "two blue squares, on the left of a fence"]
    assert_close(rows.rows([0]).tensors, backbone.encode(prompts[:1]).tensors, atol=1e-5, rtol=0)
    x, sigma = noise(backbone, 2), torch.tensor([0.5, 0.5])
    with torch.no_grad():
        assert_close(backbone.velocity(x, sigma, rows)[:1], backbone.velocity(x[:1], sigma[:1], rows.rows([0])))
        padded = Conditioning({"prompt_embeds": rows.tensors["prompt_embeds"][:1]})
        wrong = backbone.velocity(x[:1], sigma[:1], padded)
        assert (wrong - backbone.velocity(x[:1], sigma[:1], rows.rows([0]))).abs().max() > 1e-2
    assert backbone.truncated_prompts([Prompt("a" * 493), Prompt("a" * 494)]) == ([1], 493)


def test_a_distilled_checkpoint_has_no_guidance(checkpoint: Path, tmp_path: Path) -> None:
    """Its scheduler's shift tells, or an option."""
    turbo = make_tiny_z_image(tmp_path / "turbo", turbo=True)
    assert build(checkpoint).supports_guidance
    assert not build(turbo).supports_guidance
    assert build(turbo, {"distilled": False}).supports_guidance
    assert not build(checkpoint, {"distilled": True}).supports_guidance


def test_bfloat16_does_not_round_times(checkpoint: Path) -> None:
    """Times remain float32 until they are embedded: 0.1 and 0.1001 are one number in bfloat16, and two times."""
    backbone = build(checkpoint, dtype="bfloat16")
    row = backbone.encode([Prompt("a red circle", size=SIZE)]).expand(2)
    assert torch.tensor(0.100).bfloat16() == torch.tensor(0.1001).bfloat16()
    with torch.no_grad():
        one, other = backbone.velocity(noise(backbone, 1).expand(2, -1, -1, -1), torch.tensor([0.9, 0.8999]), row)
    assert not one.equal(other)


def test_possible_sides(checkpoint: Path) -> None:
    """Twice the autoencoder's factor, which is 4 here, up to 32 positions."""
    backbone = build(checkpoint)
    assert backbone.latent_shape(24, 40) == (4, 6, 10)
    with pytest.raises(UserError, match="multiples of 8 from 8 to 256; the nearest is 24x48"):
        backbone.latent_shape(24, 44)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("transformer", {"siglip_feat_dim": 8}, r"siglip_feat_dim is 8; allowed is null"),
        ("transformer", {"axes_lens": [256, 32, 32]}, r"axes_lens begins with 256; allowed is at least 514"),
        ("tokenizer", {}, r"tokenizer has no chat template"),
    ],
)
def test_other_checkpoints_are_refused(tmp_path: Path, file: str, changes: dict[str, Any], message: str) -> None:
    directory = make_tiny_z_image(tmp_path / "tiny")
    if file == "tokenizer":
        (directory / "tokenizer" / "chat_template.jinja").unlink()
    else:
        pipeline = ZImagePipeline.from_pretrained(directory)
        config = {k: v for k, v in pipeline.transformer.config.items() if not k.startswith("_")}
        pipeline.transformer = ZImageTransformer2DModel(**config | changes)
        pipeline.save_pretrained(directory)
    with pytest.raises(UserError, match=message):
        build(directory)


# -- published models --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry()


@pytest.mark.parametrize(
    ("name", "shift", "guided"), [(BASE, 6.0, True), pytest.param(TURBO, 3.0, False, marks=pytest.mark.slow)]
)
def test_published_models(name: str, shift: float, guided: bool) -> None:
    """Their size, the adapted layers (four projections of 30 blocks, and of two each for image and text), and times."""
    model = meta_model("z-image", name)
    assert parameters(model) == 6_154_908_736
    bound = adapted_layers(model)
    assert Counter(n.split(".")[0] for n in bound) == {"layers": 120, "noise_refiner": 8, "context_refiner": 8}
    assert {n.split(".")[2] for n in bound} == {"attention"}
    assert model.latent_shape(512, 768) == (16, 64, 96)
    assert model.supports_guidance == guided
    schedule = model.schedule(512, 512, 4)
    assert (schedule.shift, schedule.grid, schedule.terminal, schedule.first) == (shift, "even", None, 1.0)
    right, wrong = (sampler_times(4, replace(schedule, grid=grid)) for grid in ("even", "scheduler"))
    assert (right - wrong).abs().max() > 0.05


@pytest.mark.slow
def test_operations_are_those_of_its_layers() -> None:
    """2 n m l of each product of [l, n] with [n, m], and of attention; the last layer runs over the text too."""
    model = meta_model("z-image", BASE)
    width, hidden, image, text, rank, embedded = 3840, 10240, 1024, 512, 4, 256

    def block(tokens: int, *, modulated: bool = True) -> int:
        layers = tokens * (4 * width**2 + 3 * width * hidden + 4 * rank * 2 * width)
        return layers + 2 * tokens**2 * width + modulated * embedded * 4 * width

    blocks = 30 * block(image + text) + 2 * block(image) + 2 * block(text, modulated=False)
    ends = image * 64 * width + text * 2560 * width + (image + text) * 64 * width + embedded * width
    assert operations(model, (512, 512)) == 2 * (blocks + ends + 2 * embedded * 1024)


# -- adapters ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(checkpoint: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Of every linear layer."""
    model: Any = ZImageTransformer2DModel.from_pretrained(checkpoint, subfolder="transformer")
    generator = torch.Generator().manual_seed(0)
    return {
        name: (
            torch.randn(2, layer.in_features, generator=generator),
            torch.randn(layer.out_features, 2, generator=generator),
        )
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    }


def test_comfyuis_names_are_those_of_its_checkpoints(pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
    """diffusers' converter of checkpoints in that form is the inverse."""
    file = {f"{name}.weight": up @ down for name, (down, up) in COMFYUI.original_pairs(pairs).items()}
    found: Any = convert_z_image_transformer_checkpoint_to_diffusers(file)
    assert found.keys() == {f"{name}.weight" for name in pairs}
    for name, (down, up) in pairs.items():
        assert_close(found[f"{name}.weight"], up @ down, atol=1e-5, rtol=0, msg=name)
    assert all(name.startswith("diffusion_model.") for name in COMFYUI.comfyui_pairs(pairs))


def test_kohyas_names_are_those_that_diffusers_reads(pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
    file: dict[str, Tensor] = {}
    for name, (down, up) in kohya_pairs(pairs).items():
        key = "lora_unet_" + name.replace(".", "_")
        file |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(2.0)}
    read: Any = ZImagePipeline.lora_state_dict(file)
    found = {key.removeprefix("transformer."): tensor for key, tensor in read.items()}
    assert {key.rpartition(".lora_")[0] for key in found} == set(pairs)
    for name, (down, up) in pairs.items():
        assert_close(found[f"{name}.lora_B.weight"] @ found[f"{name}.lora_A.weight"], up @ down)


# -- the example -------------------------------------------------------------------------------------------------------


def test_the_example_holds_the_published_settings(registry: Registry) -> None:
    config = load_run_config(EXAMPLE, registry=registry)
    assert (config.rollout.guidance, config.evaluation.guidance, config.objective.kl_cfg) == (5.0, 5.0, 1.0)
    assert (config.backbone.lora.rank, config.backbone.lora.alpha, config.optimizer.learning_rate) == (64, 128, 3e-4)
    assert (config.rollout.group_size, config.rollout.groups, config.rollout.steps) == (16, 48, 10)
    schedule = meta_model("z-image", BASE).schedule(*config.rollout.height_width, config.rollout.steps)
    assert trained_steps(config, schedule) == [i < 5 for i in range(11)], "the first half of the steps"
