"""What is particular to FLUX.2 klein; `test_families` compares it with its pipeline."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import Qwen3ForCausalLM

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Prompt
from dgpo_diffusers.families.flux2_klein.backbone import Flux2KleinBackbone
from dgpo_diffusers.families.flux2_klein.names import NAMES
from dgpo_diffusers.families.flux2_klein.options import Flux2KleinOptions
from dgpo_diffusers.families.flux2_klein.tiny import make_tiny_flux2_klein
from dgpo_kit.drawing import randomize
from tests.edited import edit_json
from tests.families.proof_published import adapted_layers, meta_model, operations, parameters, section, trained_steps
from tests.trained import added_weights

BASE_4B, DISTILLED_9B = "black-forest-labs/FLUX.2-klein-base-4B", "black-forest-labs/FLUX.2-klein-9B"
SIZE = (32, 48)
EXAMPLE = Path(__file__).parents[3] / "examples" / "flux2-klein-pickscore.yaml"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_flux2_klein(tmp_path_factory.mktemp("klein") / "tiny")


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "copy")


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry()


def build(checkpoint: Path, text_length: int = 40, **settings: Any) -> Flux2KleinBackbone:
    options = Flux2KleinOptions(text_length=text_length)
    return Flux2KleinBackbone(section("flux2-klein", checkpoint, **settings), options, device=torch.device("cpu"))


# -- the autoencoder's statistics --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_statistics_of_latents_are_those_of_the_file(checkpoint: Path, dtype: str) -> None:
    """They are buffers, so copying parameters would lose them; bfloat16 would round them, and `train()` change them."""
    backbone = build(checkpoint, dtype=dtype)
    wanted = load_file(checkpoint / "vae" / "diffusion_pytorch_model.safetensors")
    x0 = torch.randn(2, *backbone.latent_shape(*SIZE), generator=torch.Generator().manual_seed(0))
    images = backbone.decode(x0)
    backbone.vae.train()
    assert backbone.decode(x0).equal(images)
    backbone.vae.eval()
    for name in ("running_mean", "running_var"):
        assert backbone.vae.get_buffer(f"bn.{name}").equal(wanted[f"bn.{name}"])
        assert not wanted[f"bn.{name}"].equal(wanted[f"bn.{name}"].bfloat16().float())
    backbone.vae.bn.reset_running_stats()
    assert (backbone.decode(x0) - images).abs().max() > 0.05, "another image without the statistics"


def test_a_checkpoint_without_statistics_is_refused(copy: Path) -> None:
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["bn.running_var"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(
        UserError, match=r"vae lacks 1 of the weights of AutoencoderKLFlux2, among them bn\.running_var"
    ):
        build(copy)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def of_weights(name: str, tensor: Tensor) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        file = directory / "vae" / "diffusion_pytorch_model.safetensors"
        save_file(load_file(file) | {name: tensor}, file, {"format": "pt"})

    return change


def of_transformer(**config: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        found = Flux2Transformer2DModel.from_pretrained(directory / "transformer").config
        Flux2Transformer2DModel(**{**found, **config}).save_pretrained(directory / "transformer")

    return change


def fewer_layers(directory: Path) -> None:
    place = directory / "text_encoder"
    config = Qwen3ForCausalLM.config_class.from_pretrained(place, num_hidden_layers=20)
    config.layer_types = config.layer_types[:20]
    Qwen3ForCausalLM(config).save_pretrained(place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_transformer(in_channels=24), r"transformer/config.json: in_channels is 24; allowed is 16 with the auto"),
        (of_transformer(joint_attention_dim=32), r"joint_attention_dim is 32; allowed is 48 with the autoencoder"),
        (of_weights("bn.running_var", torch.full((16,), -1.0)), r"vae: the mean and variance of the latents"),
        (of_weights("bn.running_mean", torch.full((16,), float("nan"))), r"must be finite numbers, variances above 0"),
        (lambda d: (d / "tokenizer" / "chat_template.jinja").unlink(), r"tokenizer has no chat template, usually"),
        (fewer_layers, r"text_encoder/config.json: num_hidden_layers is 20; allowed is at least 27, since prompts"),
    ],
)
def test_bad_checkpoints(copy: Path, change: Callable[[Path], None], message: str) -> None:
    change(copy)
    with pytest.raises(UserError, match=message):
        build(copy)


def test_possible_sides(checkpoint: Path) -> None:
    """Twice the autoencoder's factor, which is 4 here."""
    backbone = build(checkpoint)
    assert backbone.latent_shape(24, 40) == (16, 3, 5)
    with pytest.raises(UserError, match="multiples of 8 from 8 to 16384; the nearest is 24x48"):
        backbone.latent_shape(24, 44)


# -- prompts and guidance ----------------------------------------------------------------------------------------------


def test_prompts_are_read_in_the_chat_template_without_thinking(checkpoint: Path) -> None:
    """Of 40 tokens, 25 are the template's; the last hidden states, or a thinking model's, are other embeddings."""
    backbone = build(checkpoint)
    assert backbone.truncated_prompts([Prompt("x" * 15), Prompt("x" * 16)]) == ([1], 40)
    (found,) = backbone.encode([Prompt("a red circle", size=SIZE)]).tensors.values()
    pipeline = Flux2KleinPipeline.from_pretrained(checkpoint)
    text = "<|im_start|>user\na red circle<|im_end|>\n<|im_start|>assistant\n{}"
    for think, same in (("<think>\n\n</think>\n\n", True), ("", False)):
        given = pipeline.tokenizer(text.format(think), return_tensors="pt", padding="max_length", max_length=40)
        with torch.no_grad():
            states = pipeline.text_encoder(**given, output_hidden_states=True).hidden_states
        assert torch.cat([states[i] for i in (9, 18, 27)], -1).allclose(found, atol=1e-4) is same
        assert not torch.cat([states[i] for i in (10, 20, 28)], -1).allclose(found, atol=1e-1)


def test_distilled_models_have_no_guidance(copy: Path) -> None:
    """Their index says so; another entry would be refused."""
    edit_json(copy / "model_index.json", is_distilled=True)
    assert not build(copy).supports_guidance
    edit_json(copy / "model_index.json", is_distilled="yes")
    with pytest.raises(UserError, match=r"is_distilled is 'yes'; allowed is true or false"):
        build(copy)
    assert [meta_model("flux2-klein", name).supports_guidance for name in (BASE_4B, DISTILLED_9B)] == [True, False]


# -- times -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "steps", "shift"), [(384, 8, 7.12), (512, 10, 7.30), (1024, 4, 9.89), (1024, 28, 8.60), (1024, 50, 7.56)]
)
def test_the_shift_depends_on_tokens_and_steps(side: int, steps: int, shift: float) -> None:
    schedule = meta_model("flux2-klein", BASE_4B).schedule(side, side, steps)
    assert (schedule.grid, schedule.terminal, schedule.first) == ("even", None, 1.0)
    assert schedule.shift == pytest.approx(shift, abs=5e-3)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize(("dtype", "autocast", "same"), [("bfloat16", False, 2), ("float32", True, 0)])
def test_bfloat16_weights_round_times(checkpoint: Path, dtype: str, autocast: bool, same: int) -> None:
    """0.901 to 0.903 are one time to a transformer in bfloat16, and three to one in float32, also under autocast."""
    backbone = build(checkpoint, dtype=dtype)
    x = torch.randn(1, *backbone.latent_shape(*SIZE), generator=torch.Generator().manual_seed(0)).expand(4, -1, -1, -1)
    conditioning = backbone.encode([Prompt("a red circle", size=SIZE)]).expand(4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = backbone.velocity(x, torch.tensor([0.900, 0.901, 0.902, 0.903]), conditioning)
    assert sum(found[i].equal(found[i + 1]) for i in range(3)) == same
    assert not found[0].equal(found[1])


# -- the model without its weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "billions", "double", "single"), [(BASE_4B, 3.876, 5, 20), (DISTILLED_9B, 9.08, 8, 24)]
)
def test_published_models_have_their_size_and_their_layers_are_adapted(
    name: str, billions: float, double: int, single: int
) -> None:
    """Eight projections of each double block, and both of each single one: the usual suffixes bind nothing there."""
    model = meta_model("flux2-klein", name)
    assert parameters(model) / 1e9 == pytest.approx(billions, abs=0.005)
    bound = adapted_layers(model)
    assert Counter(n.split(".")[0] for n in bound) == {
        "transformer_blocks": double * 8, "single_transformer_blocks": single * 2,
    }  # fmt: skip
    assert Counter(n.partition(".attn.")[2] for n in bound if n.startswith("single")) == {
        "to_qkv_mlp_proj": single, "to_out": single,
    }  # fmt: skip
    assert model.latent_shape(512, 512) == (128, 32, 32)


def test_operations_are_those_of_its_layers() -> None:
    """2 n m l of each product of [l, n] with [n, m], and of attention over text and image together."""
    model = meta_model("flux2-klein", BASE_4B)
    width, image, text, rank = 3072, 1024, 512, 4
    both, mlp = image + text, 3 * width
    double = both * (4 * (width**2 + rank * 2 * width) + width * 3 * mlp)
    single = both * (width * (3 * width + 2 * mlp) + rank * (4 * width + 2 * mlp))
    single += both * ((width + mlp) * width + rank * (2 * width + mlp))
    attention = 2 * both**2 * width
    ends = 2 * image * 128 * width + text * 7680 * width + 2 * width**2
    times = 256 * width + width**2 + (6 + 6 + 3) * width**2
    assert operations(model, (512, 512)) == 2 * (5 * (double + attention) + 20 * (single + attention) + ends + times)


# -- adapters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["kohya", "comfyui"])
def test_names_are_those_that_diffusers_reads(checkpoint: Path, program: str, tmp_path: Path) -> None:
    """diffusers' converters of other programs' files, of every linear layer that they know."""
    base: Any = Flux2Transformer2DModel.from_pretrained(checkpoint, subfolder="transformer")
    layers = [name for name, layer in base.named_modules() if isinstance(layer, nn.Linear)]
    targets = [name for name in layers if "modulation" not in name and name != "norm_out.linear"]
    backbone = build(checkpoint, lora={"rank": 3, "alpha": 5, "targets": targets})
    randomize(backbone)
    assert backbone.adapter is not None
    backbone.adapter.save(tmp_path, program)
    (path,) = tmp_path.iterdir()
    found: Any = Flux2KleinPipeline.lora_state_dict(prepared(load_file(path), program))
    for name, change in added_weights(backbone).items():
        key = f"transformer.{name.removesuffix('.weight')}"
        pair = [found.pop(f"{key}.lora_{end}.weight").double() for end in ("B", "A")]
        assert_close(torch.linalg.multi_dot(pair), change, atol=1e-5, rtol=0)
    assert not found


def prepared(file: dict[str, Tensor], program: str) -> dict[str, Tensor]:
    """diffusers takes files with `lora_down` to be kohya's; those with original names have its own endings."""
    if program == "kohya":
        return file
    ends = {".lora_down.": ".lora_A.", ".lora_up.": ".lora_B."}
    for old, new in ends.items():
        file = {name.replace(old, new): tensor for name, tensor in file.items() if not name.endswith(".alpha")}
    return file


def test_the_modulation_of_single_blocks_has_its_original_name() -> None:
    assert NAMES.original_pairs(
        {"single_stream_modulation.linear": (torch.zeros(2, 4), torch.zeros(12, 2))}
    ).keys() == {"single_stream_modulation.lin"}


# -- the example -------------------------------------------------------------------------------------------------------


def test_the_example_holds_the_published_settings(registry: Registry) -> None:
    config = load_run_config(EXAMPLE, registry=registry)
    assert (config.backbone.checkpoint, config.rollout.guidance, config.evaluation.guidance) == (BASE_4B, 4.0, 4.0)
    assert (config.backbone.lora.rank, config.backbone.lora.alpha, config.optimizer.learning_rate) == (64, 128, 3e-4)
    assert (config.rollout.group_size, config.rollout.groups, config.rollout.steps) == (16, 48, 8)
    schedule = meta_model("flux2-klein", BASE_4B).schedule(*config.rollout.height_width, config.rollout.steps)
    assert (round(schedule.shift, 2), schedule.grid) == (7.12, "even")
    assert trained_steps(config, schedule) == [i < 6 for i in range(9)], "the first 0.7 of the steps"
