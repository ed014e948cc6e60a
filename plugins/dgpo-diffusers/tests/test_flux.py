"""What is particular to FLUX.1; `test_families` compares it with its pipeline."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.errors import UserError
from dgpo_core.flow.schedules import sigmas as sampler_times
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Prompt
from dgpo_diffusers.families.flux.backbone import FluxBackbone
from dgpo_diffusers.families.flux.names import NAMES
from dgpo_diffusers.families.flux.options import FluxOptions
from dgpo_diffusers.families.flux.tiny import make_tiny_flux
from dgpo_kit.drawing import randomize
from dgpo_lab.planning.plan import make_plan, measure_model
from tests.families.proof_published import adapted_layers, meta_model, operations, parameters, section, trained_steps
from tests.trained import added_weights

DEV, SCHNELL = "black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-schnell"
SIZE = (32, 48)
EXAMPLE = Path(__file__).parents[3] / "examples" / "flux1-dev-pickscore.yaml"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_flux(tmp_path_factory.mktemp("flux") / "tiny")


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_flux(tmp_path_factory.mktemp("flux") / "schnell", schnell=True)


def build(checkpoint: Path, options: dict[str, Any] | None = None, **settings: Any) -> FluxBackbone:
    given = FluxOptions(**({"text_length": 16} if options is None else options))
    return FluxBackbone(section("flux", checkpoint, **settings), given, device=torch.device("cpu"))


# -- options and checkpoints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"text_length": 513}, {"text_length": 0}, {"embedded_guidance": 3500}])
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FluxOptions.model_validate(wrong)


def test_prompts_are_as_long_as_the_checkpoint_was_trained_with(checkpoint: Path, schnell: Path) -> None:
    prompts = [Prompt("a red circle", size=SIZE)]
    for directory, length in ((checkpoint, 512), (schnell, 256)):
        backbone = build(directory, {})
        assert backbone.encode(prompts).tensors["prompt_embeds"].shape[1] == length
        assert backbone.readers()[1][1] == length
    assert build(checkpoint).encode(prompts).tensors["prompt_embeds"].shape[1] == 16


def test_a_guidance_that_nothing_takes_is_refused(schnell: Path) -> None:
    with pytest.raises(
        UserError, match=r"backbone\.options\.embedded_guidance: 4 is set, but .*schnell does not support it"
    ):
        build(schnell, {"embedded_guidance": 4})


def test_a_model_for_other_inputs_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """As one that fills in masked images."""
    pipeline = FluxPipeline.from_pretrained(checkpoint)
    pipeline.transformer = FluxTransformer2DModel(**{**pipeline.transformer.config, "in_channels": 24})
    pipeline.save_pretrained(tmp_path / "fill")
    with pytest.raises(
        UserError, match="has 24 input channels, which must be four times the autoencoder's 4: it is not"
    ):
        build(tmp_path / "fill")


def test_possible_sides(checkpoint: Path) -> None:
    """Twice the autoencoder's factor, which is 4 here."""
    backbone = build(checkpoint)
    assert backbone.latent_shape(24, 40) == (4, 6, 10)
    with pytest.raises(UserError, match="multiples of 8 from 8 to 16384; the nearest is 24x48"):
        backbone.latent_shape(24, 44)


# -- times -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "shift"),
    [
        (DEV, (512, 512), 1.878),
        (DEV, (1024, 1024), 3.158),
        (DEV, (2048, 1024), 6.317),
        pytest.param(SCHNELL, (1024, 1024), 1.0, marks=pytest.mark.slow),
    ],
)
def test_times_of_published_models(name: str, size: tuple[int, int], shift: float) -> None:
    """mu goes from 0.5 at 256 tokens to 1.15 at 4096 and on; another grid would be another image."""
    schedule = meta_model("flux", name).schedule(*size, 4)
    assert (schedule.grid, schedule.terminal, schedule.first) == ("even", None, 1.0)
    assert schedule.shift == pytest.approx(shift, abs=1e-3)
    right, wrong = (sampler_times(4, replace(schedule, grid=grid)) for grid in ("even", "scheduler"))
    assert (right - wrong).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bfloat16_rounds_times(checkpoint: Path, how: str) -> None:
    """The transformer takes sigma to bfloat16, and what is a thousand times that too: 0.900 to 0.903 are two times to
    it, 900 and 904, and four in float32."""
    backbone = build(checkpoint, dtype="bfloat16" if how == "weights" else "float32")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, *backbone.latent_shape(*SIZE), generator=generator).expand(4, -1, -1, -1)
    conditioning = backbone.encode([Prompt("a red circle", size=SIZE)]).expand(4)
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


# -- the model without its weights -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry()


@pytest.mark.parametrize(("name", "billions"), [(DEV, 11.90), pytest.param(SCHNELL, 11.89, marks=pytest.mark.slow)])
def test_published_models_have_their_size_and_their_layers_are_adapted(name: str, billions: float) -> None:
    """Eight projections of 19 double blocks and three of 38 single ones; nothing outside of attention, and not
    `proj_out`, which as an ending is the layer that gives the velocity too."""
    model = meta_model("flux", name)
    assert parameters(model) / 1e9 == pytest.approx(billions, abs=0.005)
    bound = adapted_layers(model)
    assert Counter(n.split(".")[0] for n in bound) == {
        "transformer_blocks": 19 * 8, "single_transformer_blocks": 38 * 3,
    }  # fmt: skip
    assert {n.split(".")[2] for n in bound} == {"attn"}
    rows = model.encode([Prompt("a", size=(512, 512))]).tensors
    assert rows["prompt_embeds"].shape == (1, 512 if name == DEV else 256, 4096)
    assert model.latent_shape(512, 512) == (16, 64, 64)


@pytest.mark.slow
def test_operations_are_those_of_its_layers() -> None:
    """2 n m l of each product of [l, n] with [n, m], and of attention over text and image together."""
    model = meta_model("flux", DEV)

    width, image, text, rank = 3072, 1024, 512, 4
    both = image + text
    mlp = 2 * width * 4 * width
    projections = 4 * width**2 + 4 * rank * 2 * width
    double = both * (projections + mlp) + 2 * 6 * width**2
    single = both * (3 * width**2 + 3 * rank * 2 * width + 4 * width**2 + 5 * width * width) + 3 * width**2
    attention = 2 * both**2 * width
    ends = image * 64 * width * 2 + text * 4096 * width + 2 * width**2
    times = 2 * (256 * width + width**2) + 768 * width + width**2
    expected = 19 * (double + attention) + 38 * (single + attention) + ends + times
    assert operations(model, (512, 512)) == 2 * expected


# -- adapters ----------------------------------------------------------------------------------------------------------


def test_kohyas_names_are_those_that_diffusers_reads(tmp_path: Path) -> None:
    """diffusers' converter of sd-scripts' files, which knows FLUX.1's own width alone: of every linear layer, as the
    change that it makes to a vector."""
    with torch.device("meta"):
        blocks = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    layers = {name: layer for name, layer in blocks.named_modules() if isinstance(layer, nn.Linear)}
    generator = torch.Generator().manual_seed(0)
    pairs = {
        name: tuple(torch.randn(shape, generator=generator) for shape in ((2, m.in_features), (m.out_features, 2)))
        for name, m in layers.items()
    }
    file: dict[str, Tensor] = {}
    for name, (down, up) in NAMES.original_pairs(pairs).items():  # type: ignore[arg-type]
        key = "lora_unet_" + name.replace(".", "_")
        file |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        file[f"{key}.alpha"] = torch.tensor(float(len(down)))
    read: Any = FluxPipeline.lora_state_dict(file)
    found = {key.removeprefix("transformer."): tensor for key, tensor in read.items()}
    assert {key.rpartition(".lora_")[0] for key in found} == set(layers)
    for name, (down, up) in pairs.items():
        vector = torch.randn(down.shape[1], generator=generator)
        ours, theirs = up @ (down @ vector), found[f"{name}.lora_B.weight"] @ (found[f"{name}.lora_A.weight"] @ vector)
        assert_close(theirs, ours, atol=1e-3, rtol=1e-4, msg=name)


@pytest.mark.parametrize("targets", [None, ["attn.to_k", "proj_mlp"]], ids=["usual", "some of a fused layer"])
def test_files_hold_the_whole_change(checkpoint: Path, targets: list[str] | None, tmp_path: Path) -> None:
    """ComfyUI's keys are diffusers' names; kohya's fused layers hold the same numbers and zeros."""
    backbone = build(checkpoint, lora={"rank": 3, "alpha": 5, "targets": targets})
    randomize(backbone)
    wanted = added_weights(backbone)
    assert backbone.adapter is not None
    for format in ("comfyui", "kohya"):
        backbone.adapter.save(tmp_path / format, format)
    (file,) = (load_file(path) for path in (tmp_path / "comfyui").iterdir())
    for name, change in wanted.items():
        key = f"transformer.{name.removesuffix('.weight')}"
        pair = (file[f"{key}.{end}.weight"].double() for end in ("lora_up", "lora_down"))
        assert_close(torch.linalg.multi_dot(list(pair)), change, atol=1e-5, rtol=0)
    (file,) = (load_file(path) for path in (tmp_path / "kohya").iterdir())
    for i in range(2):
        key, block = f"lora_unet_single_blocks_{i}_linear1", f"single_transformer_blocks.{i}"
        found = file[f"{key}.lora_up.weight"].double() @ file[f"{key}.lora_down.weight"].double()
        layers = [f"{block}.{layer}.weight" for layer in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
        parts = dict(zip(layers, found.split([32, 32, 32, 128]), strict=True))
        for name, part in parts.items():
            assert_close(part, wanted.get(name, torch.zeros_like(part)), atol=1e-5, rtol=0)


# -- the example -------------------------------------------------------------------------------------------------------


def test_the_example_holds_the_published_settings(registry: Registry) -> None:
    config = load_run_config(EXAMPLE, registry=registry)
    options = FluxOptions.model_validate(config.backbone.options)
    assert (options.embedded_guidance, config.rollout.guidance, config.objective.kl_cfg) == (3.5, 1.0, 1.0)
    assert (config.backbone.lora.rank, config.backbone.lora.alpha, config.optimizer.learning_rate) == (64, 128, 3e-4)
    assert (config.rollout.group_size, config.rollout.groups, config.rollout.steps) == (16, 48, 10)
    schedule = meta_model("flux", DEV).schedule(*config.rollout.height_width, config.rollout.steps)
    assert (round(schedule.shift, 3), schedule.grid) == (1.878, "even")
    assert trained_steps(config, schedule) == [i < 7 for i in range(11)], "the first 0.7 of the steps"


@pytest.mark.slow
def test_the_example_can_be_planned(registry: Registry) -> None:
    """11.9 thousand million parameters in two bytes, and 57 blocks of them."""
    config = load_run_config(EXAMPLE, registry=registry)
    plan = make_plan(config, measure_model(config, registry), registry)
    assert plan.held["transformer"] == pytest.approx(23.8e9, rel=0.01)
    assert "1.878" in plan.shift
