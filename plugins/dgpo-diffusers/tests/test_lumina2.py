"""What is particular to Lumina-Image 2.0; `test_families` compares it with its pipeline."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel
from torch import Tensor, nn
from torch.testing import assert_close

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.errors import UserError
from dgpo_core.flow.schedules import sigmas as sampler_times
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Conditioning, Prompt
from dgpo_diffusers.families.lumina2.backbone import Lumina2Backbone
from dgpo_diffusers.families.lumina2.names import NAMES
from dgpo_diffusers.families.lumina2.options import SYSTEM_PROMPT, Lumina2Options
from dgpo_diffusers.families.lumina2.tiny import make_tiny_lumina2
from tests.edited import edit_json
from tests.families.proof_published import adapted_layers, meta_model, operations, parameters, section, trained_steps

LUMINA = "Alpha-VLLM/Lumina-Image-2.0"
SIZE = (32, 48)
EXAMPLE = Path(__file__).parents[3] / "examples" / "lumina2-pickscore.yaml"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_lumina2(tmp_path_factory.mktemp("lumina2") / "tiny")


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "copy")


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry()


def build(checkpoint: Path, options: dict[str, Any] | None = None, **settings: Any) -> Lumina2Backbone:
    given = Lumina2Options(**{"text_length": 48, "system_prompt": "draw", **(options or {})})
    return Lumina2Backbone(section("lumina2", checkpoint, **settings), given, device=torch.device("cpu"))


# -- prompts -----------------------------------------------------------------------------------------------------------


def test_the_system_prompt_precedes_prompts_and_not_negative_ones(checkpoint: Path) -> None:
    backbone = build(checkpoint)
    prompt = Prompt("a cat", negative="blur", size=SIZE)
    for found, text in (
        (backbone.encode([prompt]), "draw <Prompt Start> a cat"),
        (backbone.unconditional([prompt]), "blur"),
        (backbone.unconditional([Prompt("a cat", size=SIZE)]), ""),
    ):
        assert int(found.tensors["mask"].sum()) == len(text)
        given = backbone.pipeline.tokenizer(text, return_tensors="pt", padding="max_length", max_length=48)
        with torch.no_grad():
            states = backbone.pipeline.text_encoder(**given, output_hidden_states=True).hidden_states
        assert_close(found.tensors["prompt_embeds"], states[-2])
    assert backbone.truncated_prompts([Prompt("x" * 28), Prompt("x" * 29)]) == ([1], 48)
    assert Lumina2Pipeline.from_pretrained(checkpoint).system_prompt == SYSTEM_PROMPT


def test_padding_does_not_change_a_row_and_without_the_mask_it_does(checkpoint: Path) -> None:
    backbone = build(checkpoint)
    rows = backbone.encode([Prompt(text, size=SIZE) for text in ("a cat", "two blue squares, left")])
    x = torch.randn(1, *backbone.latent_shape(*SIZE), generator=torch.Generator().manual_seed(0))
    times = torch.tensor([0.7])

    def velocity(tensors: dict[str, Tensor]) -> Tensor:
        count = len(tensors["mask"])
        with torch.no_grad():
            return backbone.velocity(x.expand(count, -1, -1, -1), times.expand(count), Conditioning(tensors))

    together = velocity(dict(rows.tensors))
    for i in range(2):
        length = int(rows.tensors["mask"][i].sum())
        alone = velocity({name: tensor[i : i + 1, :length] for name, tensor in rows.tensors.items()})
        assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)
    unmasked = velocity({**rows.tensors, "mask": torch.ones_like(rows.tensors["mask"])})
    assert all((unmasked[i] - together[i]).abs().max() > 1e-3 for i in range(2))


# -- guidance and times ------------------------------------------------------------------------------------------------


def test_guided_rows_of_latents_have_the_norm_of_conditional_ones(checkpoint: Path) -> None:
    """Over the width alone; over patches, channels or a whole image it is another velocity."""
    generator = torch.Generator().manual_seed(0)
    conditional, unconditional = (torch.randn(2, 4, 6, 8, generator=generator) for _ in range(2))
    given = {"x_sigma": conditional, "sigma": torch.ones(2)}
    found = build(checkpoint).guide(conditional, unconditional, 4.0, **given)
    c, u = conditional.double(), unconditional.double()
    plain = u + 4 * (c - u)
    wanted = plain * (c.square().sum(-1) / plain.square().sum(-1)).sqrt()[..., None]
    assert_close(found, wanted.float())
    for axes in ((1,), (1, 2, 3), (2, 3), (2,)):
        other = plain * (c.square().sum(axes, keepdim=True) / plain.square().sum(axes, keepdim=True)).sqrt()
        assert (found - other).abs().max() > 0.1
    assert_close(
        build(checkpoint, {"renormalize": False}).guide(conditional, unconditional, 4.0, **given), plain.float()
    )


@pytest.mark.parametrize("size", [(512, 512), (1024, 768)])
def test_the_shift_is_static(size: tuple[int, int]) -> None:
    schedule = meta_model("lumina2", LUMINA).schedule(*size, 4)
    assert (schedule.shift, schedule.grid, schedule.terminal, schedule.first) == (6.0, "even", None, 1.0)
    assert_close(sampler_times(3, schedule), torch.tensor([1, 12 / 13, 0.75, 0], dtype=torch.float64))


def test_a_dynamic_shift_depends_on_the_number_of_channels(tmp_path: Path) -> None:
    """As in the pipeline, which takes latents for tokens: the size of images does not matter."""
    backbone = build(make_tiny_lumina2(tmp_path / "dynamic", dynamic=True))
    wanted = math.exp(0.5 + (4 - 256) * (1.15 - 0.5) / (4096 - 256))
    assert [backbone.schedule(side, 64, 4).shift for side in (32, 256)] == pytest.approx([wanted, wanted])


# -- checkpoints -------------------------------------------------------------------------------------------------------


def of_transformer(**config: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        found = Lumina2Transformer2DModel.from_pretrained(directory / "transformer").config
        Lumina2Transformer2DModel(**{**found, **config}).save_pretrained(directory / "transformer")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_transformer(in_channels=8), r"transformer/config.json: in_channels is 8; allowed is 4 with the components"),
        (of_transformer(cap_feat_dim=32), r"transformer/config.json: cap_feat_dim is 32; allowed is 16 with"),
        (of_transformer(axes_lens=(48, 32, 32)), r"text_length: 48 is more than .* the most is 47"),
        (
            lambda d: edit_json(d / "model_index.json", _class_name="LuminaPipeline"),
            r"contains a LuminaPipeline; the backbone lumina2 requires a Lumina2Pipeline \(Lumina-Image 2\.0\)",
        ),
    ],
)
def test_bad_checkpoints(copy: Path, change: Callable[[Path], None], message: str) -> None:
    change(copy)
    with pytest.raises(UserError, match=message):
        build(copy)


def test_the_pipelines_former_name_is_accepted(copy: Path) -> None:
    edit_json(copy / "model_index.json", _class_name="Lumina2Text2ImgPipeline")
    assert build(copy).latent_shape(32, 48) == (4, 4, 6)


def test_possible_sides(checkpoint: Path) -> None:
    """16 pixels a position; the tiny model has 32 rows and 64 columns of them."""
    with pytest.raises(
        UserError, match="heights must be multiples of 16 from 16 to 512, widths multiples of 16 from 16"
    ):
        build(checkpoint).latent_shape(528, 1024)
    assert meta_model("lumina2", LUMINA).latent_shape(1024, 512) == (16, 128, 64)


# -- the model without its weights -------------------------------------------------------------------------------------


def test_the_published_model_has_its_size_and_its_layers_are_adapted() -> None:
    """Four projections of 26 blocks and of two refiners of each, texts and images."""
    model = meta_model("lumina2", LUMINA)
    assert parameters(model) / 1e9 == pytest.approx(2.61, abs=0.005)
    bound = adapted_layers(model)
    assert Counter(n.split(".")[0] for n in bound) == {"layers": 104, "noise_refiner": 8, "context_refiner": 8}
    assert {n.split(".", 2)[2] for n in bound} == {"attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"}
    rows = model.encode([Prompt("a", size=(512, 512))]).tensors
    assert rows["prompt_embeds"].shape == (1, 256, 2304)


@pytest.mark.slow
def test_operations_are_those_of_its_layers() -> None:
    """2 n m l of each product of [l, n] with [n, m], and of attention; a third of the heads have keys and values."""
    width, hidden, image, text, rank, time = 2304, 9216, 1024, 256, 4, 1024
    both, kv = image + text, 768
    projections = 2 * width**2 + 2 * width * kv + rank * (2 * 2 * width + 2 * (width + kv))

    def block(length: int, modulated: bool = True) -> int:
        inside = length * (projections + 3 * width * hidden) + 2 * length**2 * width
        return inside + modulated * time * 4 * width

    expected = 26 * block(both) + 2 * block(image) + 2 * block(text, modulated=False)
    expected += image * 64 * width + text * 2304 * width + 256 * time + time**2
    expected += time * width + both * width * 64  # texts are cut off after the last projection
    assert operations(meta_model("lumina2", LUMINA), (512, 512)) == 2 * expected


# -- adapters ----------------------------------------------------------------------------------------------------------


def test_names_are_those_that_diffusers_reads() -> None:
    """diffusers' converter of files with original names, which knows the layers of whole blocks of the published width;
    the keys and values, which are not adapted here, are zeros in the fused layer."""
    with torch.device("meta"):
        model = Lumina2Transformer2DModel(num_layers=1, num_refiner_layers=1, cap_feat_dim=2304)
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name.split(".")[0] in ("layers", "noise_refiner", "context_refiner")
    }
    generator = torch.Generator().manual_seed(0)
    pairs = {
        name: tuple(torch.randn(shape, generator=generator) for shape in ((2, m.in_features), (m.out_features, 2)))
        for name, m in layers.items()
        if not name.startswith("noise_refiner.0.attn.to_k")
    }
    file = {
        f"{name}.lora_{end}.weight": tensor
        for name, pair in NAMES.comfyui_pairs(pairs).items()  # type: ignore[arg-type]
        for end, tensor in zip("AB", pair, strict=True)
    }
    read: Any = Lumina2Pipeline.lora_state_dict(file)
    assert {key.removeprefix("transformer.").rpartition(".lora_")[0] for key in read} == set(layers)
    for name, layer in layers.items():
        vector = torch.randn(layer.in_features, generator=generator)
        down, up = pairs.get(name, (torch.zeros(2, layer.in_features), torch.zeros(layer.out_features, 2)))
        b, a = (read[f"transformer.{name}.lora_{end}.weight"] for end in "BA")
        assert_close(b @ (a @ vector), up @ (down @ vector), atol=1e-3, rtol=1e-4, msg=name)


# -- the example -------------------------------------------------------------------------------------------------------


def test_the_example_holds_the_models_settings(registry: Registry) -> None:
    config = load_run_config(EXAMPLE, registry=registry)
    options = Lumina2Options.model_validate(config.backbone.options)
    assert (options.renormalize, options.system_prompt, config.rollout.guidance) == (True, SYSTEM_PROMPT, 4.0)
    schedule = meta_model("lumina2", LUMINA).schedule(*config.rollout.height_width, config.rollout.steps)
    assert trained_steps(config, schedule) == [i < 7 for i in range(11)]
