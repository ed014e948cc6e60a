"""What other programs make of a written adapter: every layer's weight changes by what the policy adds to it.

The judges are diffusers and peft themselves. kohya-ss's scripts and ComfyUI are no packages; what their loaders do is
written anew, and the way from their names back to diffusers' is diffusers' converter of original checkpoints.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

from dgpo_diffusers.adapter_files import DiffusersAdapter
from dgpo_kit.drawing import randomize
from dgpo_kit.given import prompts_of
from dgpo_sd3.backbone import SD3Backbone
from tests.trained import added_weights, changed_weights

Build = Callable[..., SD3Backbone]
Reference = Callable[..., Any]
Weights = dict[str, Tensor]
FILE = "pytorch_lora_weights.safetensors"

EVERY_LINEAR = [
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("net.0.proj", "net.2", "norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out"),
    *("context_embedder", "linear_1", "linear_2"),
]
PUBLISHED = [
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
]
LORAS: dict[str, dict[str, Any]] = {
    "three-times": {"rank": 4, "alpha": 12},
    "as-it-is": {"rank": 4, "alpha": 4, "targets": PUBLISHED},
    "fraction": {"rank": 3, "alpha": 0.7, "targets": ["attn.to_k", "attn2.to_v"]},
    "every-linear": {"rank": 2, "alpha": 5, "targets": EVERY_LINEAR},
}


def randomized(build: Build, checkpoint: Path, lora: str) -> SD3Backbone:
    backbone = build(checkpoint, lora=LORAS[lora])
    randomize(backbone)
    return backbone


def base(checkpoint: Path) -> Any:
    return SD3Transformer2DModel.from_pretrained(checkpoint, subfolder="transformer")


def same(found: Weights, expected: Weights, tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    assert max(float(change.abs().max()) for change in expected.values()) > 0.1
    for name, change in expected.items():
        assert_close(found[name].double(), change, atol=tolerance, rtol=0, msg=name)


# -- diffusers and peft themselves -----------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", [True, False], ids=["with-metadata", "without"])
@pytest.mark.parametrize("lora", LORAS)
def test_diffusers(
    build: Build, reference: Reference, checkpoint: Path, tmp_path: Path, lora: str, metadata: bool
) -> None:
    """Without metadata: as read by a version that does not support it, from the tensors alone."""
    backbone, pipeline = randomized(build, checkpoint, lora), reference(checkpoint)
    backbone.adapter.save(tmp_path / "ad", "diffusers")
    before = copy.deepcopy(pipeline.transformer.state_dict())
    pipeline.load_lora_weights(tmp_path / "ad" if metadata else load_file(tmp_path / "ad" / FILE))
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    same(changed_weights(before, pipeline.transformer.state_dict()), added_weights(backbone))


@pytest.mark.parametrize("lora", LORAS)
def test_peft(build: Build, checkpoint: Path, tmp_path: Path, lora: str) -> None:
    backbone, transformer = randomized(build, checkpoint, lora), base(checkpoint)
    backbone.adapter.save(tmp_path, "peft")
    before = copy.deepcopy(transformer.state_dict())
    merged: Any = PeftModel.from_pretrained(transformer, tmp_path)
    assert len(list(merged.peft_config)) == 1
    same(changed_weights(before, merged.merge_and_unload().state_dict()), added_weights(backbone))


def test_metadata_is_compatible_with_every_version_of_peft(build: Build, checkpoint: Path, tmp_path: Path) -> None:
    backbone = randomized(build, checkpoint, "three-times")
    for format in ("diffusers", "peft"):
        backbone.adapter.save(tmp_path, format)
    with safe_open(tmp_path / FILE, "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert metadata == {f"transformer.{key}": config[key] for key in ("r", "lora_alpha", "target_modules")}
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 4, "LORA")
    assert config["base_model_name_or_path"] == str(checkpoint)


def test_velocity_of_a_fresh_pipeline_with_the_adapter(
    build: Build, reference: Reference, checkpoint: Path, tmp_path: Path
) -> None:
    """For each format, read as above: compares predictions, not only weights."""
    backbone = randomized(build, checkpoint, "every-linear")
    noise = torch.Generator().manual_seed(0)
    x_sigma, sigma = torch.randn(2, *backbone.latent_shape(32, 32), generator=noise), torch.tensor([1.0, 0.4])
    conditioning = backbone.encode(prompts_of(["a red circle", "two blue squares"]))
    with torch.no_grad():
        expected = backbone.velocity(x_sigma, sigma, conditioning)
        for format in DiffusersAdapter.formats:
            backbone.adapter.save(tmp_path / format, format)
            pipeline = reference(checkpoint)
            if format == "diffusers":
                pipeline.load_lora_weights(tmp_path / format)
            elif format == "peft":
                PeftModel.from_pretrained(pipeline.transformer, tmp_path / format)
            else:
                read = {"kohya": by_kohya, "comfyui": by_comfyui}[format]
                found = read(pipeline.transformer, load_file(tmp_path / format / FILE))
                state = pipeline.transformer.state_dict()
                pipeline.transformer.load_state_dict(state | {n: state[n] + d.float() for n, d in found.items()})
            velocity = pipeline.transformer(x_sigma, *conditioning.tensors.values(), 1000 * sigma).sample
            # Rounding errors grow with these large weights, so the tolerance is relative to the largest value.
            assert float((velocity - expected).abs().max() / expected.abs().max()) < 1e-5, format


# -- kohya-ss and ComfyUI, written anew ------------------------------------------------------------------------------


def original_layers(transformer: Any) -> dict[str, tuple[int, int]]:
    """Return the linear layers of the original MMDiT of this size with their outputs and inputs."""
    config = transformer.config
    width, dual = config.num_attention_heads * config.attention_head_dim, config.dual_attention_layers
    text, pooled = config.joint_attention_dim, config.pooled_projection_dim
    layers = {
        "context_embedder": (width, text), "t_embedder.mlp.0": (width, 256), "t_embedder.mlp.2": (width, width),
        "y_embedder.mlp.0": (width, pooled), "y_embedder.mlp.2": (width, width),
        "final_layer.linear": (config.patch_size**2 * config.out_channels, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }  # fmt: skip
    for i in range(config.num_layers):
        last = i == config.num_layers - 1
        for stream, parts, ends in (("x_block", 9 if i in dual else 6, False), ("context_block", 6, last)):
            inside = {"attn.qkv": (3 * width, width), "adaLN_modulation.1": ((2 if ends else parts) * width, width)}
            if not ends:
                inside |= {"attn.proj": (width, width), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
            if stream == "x_block" and i in dual:
                inside |= {"attn2.qkv": (3 * width, width), "attn2.proj": (width, width)}
            layers |= {f"joint_blocks.{i}.{stream}.{name}": shape for name, shape in inside.items()}
    return layers


def in_diffusers_names(transformer: Any, change: Weights) -> Weights:
    """Convert changes of the original layers to changes of diffusers' weights, with diffusers' own converter."""
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    whole = {f"{name}.weight": change.get(name, torch.zeros(s)) for name, s in original_layers(transformer).items()}
    whole |= {f"{name}.bias": torch.zeros(s[0]) for name, s in original_layers(transformer).items()}
    norms = [f"{n.removesuffix('qkv')}ln_{x}.weight" for n in original_layers(transformer) if "qkv" in n for x in "qk"]
    whole |= {name: torch.zeros(width // transformer.config.num_attention_heads) for name in norms}
    whole |= {
        "pos_embed": torch.zeros(1),
        "x_embedder.proj.weight": torch.zeros(1),
        "x_embedder.proj.bias": torch.zeros(1),
    }
    converted = convert_sd3_transformer_checkpoint_to_diffusers(whole)
    assert set(converted) == set(transformer.state_dict())
    return {name: tensor for name, tensor in converted.items() if bool(tensor.any())}


def scaled(file: Weights, key: str, seen: set[str], *, down: str = "lora_down", up: str = "lora_up") -> Tensor | None:
    """Return alpha / rank * up @ down of one layer; without an alpha, up @ down. Both programs use this rule."""
    names = [f"{key}.{down}.weight", f"{key}.{up}.weight"]
    if names[1] not in file:
        return None
    first, second = (file[name].double() for name in names)
    seen |= {*names, f"{key}.alpha"}
    alpha = file.get(f"{key}.alpha")
    return (1.0 if alpha is None else float(alpha) / len(first)) * second @ first


def by_kohya(transformer: Any, file: Weights) -> Weights:
    """sd-scripts' networks/lora_sd3.py: `lora_unet_` and the original name with underscores, then `merge_to`."""
    seen: set[str] = set()
    change = {n: scaled(file, f"lora_unet_{n}".replace(".", "_"), seen) for n in original_layers(transformer)}
    assert not set(file) - seen, "keys that sd-scripts does not know"
    assert all(key in file for key in seen), "sd-scripts wants an alpha for every layer"
    return in_diffusers_names(transformer, {name: c for name, c in change.items() if c is not None})


def by_comfyui(transformer: Any, file: Weights) -> Weights:
    """comfy/lora.py: `model_lora_keys_unet` for SD3 with the slices of `mmdit_to_diffusers`, then `load_lora`."""
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    last = transformer.config.num_layers - 1
    inside = {
        "context_block.adaLN_modulation.1": "norm1_context.linear", "context_block.attn.proj": "attn.to_add_out",
        "context_block.mlp.fc1": "ff_context.net.0.proj", "context_block.mlp.fc2": "ff_context.net.2",
        "x_block.adaLN_modulation.1": "norm1.linear", "x_block.attn.proj": "attn.to_out.0",
        "x_block.attn2.proj": "attn2.to_out.0", "x_block.mlp.fc1": "ff.net.0.proj", "x_block.mlp.fc2": "ff.net.2",
    }  # fmt: skip
    outside = {
        "context_embedder": "context_embedder", "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    }  # fmt: skip
    Place = tuple[str, slice, bool]  # the original layer, its rows, whether their halves change places
    places: dict[str, Place] = {theirs: (ours, slice(None), "adaLN" in ours) for ours, theirs in outside.items()}
    for i in range(last + 1):
        block, theirs = f"joint_blocks.{i}", f"transformer_blocks.{i}"
        for original, name in inside.items():
            swapped = i == last and name == "norm1_context.linear"
            places[f"{theirs}.{name}"] = (f"{block}.{original}", slice(None), swapped)
        for k, letter in enumerate("qkv"):
            rows = slice(k * width, (k + 1) * width)
            places[f"{theirs}.attn.to_{letter}"] = (f"{block}.x_block.attn.qkv", rows, False)
            places[f"{theirs}.attn.add_{letter}_proj"] = (f"{block}.context_block.attn.qkv", rows, False)
            places[f"{theirs}.attn2.to_{letter}"] = (f"{block}.x_block.attn2.qkv", rows, False)
    keys: dict[str, Place] = {}
    for name in original_layers(transformer):
        keys[f"diffusion_model.{name}"] = keys[f"lora_unet_{name}".replace(".", "_")] = (name, slice(None), False)
    for name, place in places.items():
        keys[f"transformer.{name}"] = keys[f"base_model.model.{name}"] = place
    shapes, change, seen = original_layers(transformer), {}, set[str]()
    for key, (layer, rows, swapped) in keys.items():
        for down, up in (("lora_down", "lora_up"), ("lora_A", "lora_B")):
            delta = scaled(file, key, seen, down=down, up=up)
            if delta is None:
                continue
            weight = change.setdefault(layer, torch.zeros(shapes[layer], dtype=torch.float64))
            weight[rows] += torch.cat(delta.chunk(2)[::-1]) if swapped else delta
    assert not set(file) - seen, "keys that ComfyUI says were not loaded"
    return in_diffusers_names(transformer, change)


@pytest.mark.parametrize("lora", LORAS)
def test_kohya(build: Build, checkpoint: Path, tmp_path: Path, lora: str) -> None:
    backbone = randomized(build, checkpoint, lora)
    backbone.adapter.save(tmp_path, "kohya")
    same(by_kohya(base(checkpoint), load_file(tmp_path / FILE)), added_weights(backbone))
    with safe_open(tmp_path / FILE, "pt") as file:
        metadata, alphas = file.metadata(), {float(file.get_tensor(k)) for k in file.keys() if "alpha" in k}  # noqa: SIM118
    reported = {float(metadata["ss_network_alpha"])} if metadata["ss_network_alpha"] != "Dynamic" else alphas
    assert (reported, metadata["ss_network_dim"]) == (alphas, metadata["ss_network_alpha"])


@pytest.mark.parametrize("format", DiffusersAdapter.formats)
@pytest.mark.parametrize("lora", LORAS)
def test_comfyui_reads_every_format(build: Build, checkpoint: Path, tmp_path: Path, lora: str, format: str) -> None:
    backbone = randomized(build, checkpoint, lora)
    backbone.adapter.save(tmp_path, format)
    (file,) = tmp_path.glob("*.safetensors")
    same(by_comfyui(base(checkpoint), load_file(file)), added_weights(backbone))


@pytest.mark.parametrize("format", ["kohya", "comfyui"])
def test_files_do_not_depend_on_alphas(build: Build, checkpoint: Path, tmp_path: Path, format: str) -> None:
    backbone = randomized(build, checkpoint, "every-linear")
    backbone.adapter.save(tmp_path, format)
    file = load_file(tmp_path / FILE)
    alphas = [name for name in file if name.endswith(".alpha")]
    assert 3 * len(alphas) == len(file), "an alpha for every pair"
    bare = {name: tensor for name, tensor in file.items() if name not in alphas}
    same(by_comfyui(base(checkpoint), bare), added_weights(backbone))


@pytest.mark.parametrize("format", DiffusersAdapter.formats)
def test_files_are_float32(build: Build, checkpoint: Path, tmp_path: Path, format: str) -> None:
    build(checkpoint, dtype="bfloat16").adapter.save(tmp_path, format)
    (file,) = tmp_path.glob("*.safetensors")
    assert {t.dtype for t in load_file(file).values()} == {torch.float32}


def test_every_linear_layer_can_be_exported(build: Build, checkpoint: Path) -> None:
    """Every accepted LoRA target can be exported."""
    linear = {n for n, m in base(checkpoint).named_modules() if isinstance(m, nn.Linear)}
    bound = {n.split(".lora_")[0] for n in build(checkpoint, lora=LORAS["every-linear"]).trainable()}
    assert bound == linear
