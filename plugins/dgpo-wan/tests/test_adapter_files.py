"""What other programs make of a written adapter: every layer's weight changes by what the policy adds to it.

The judges are peft and diffusers, whose Wan pipeline also reads the files of musubi-tuner and ComfyUI; what these two
do is written anew, with diffusers' converter of original checkpoints for the way back to its names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

from dgpo_diffusers.adapter_files import DiffusersAdapter
from dgpo_kit.drawing import randomize
from dgpo_wan.backbone import WanBackbone
from tests.trained import added_weights, changed_weights

Build = Callable[..., WanBackbone]
Reference = Callable[[Path], Any]
Weights = dict[str, Tensor]
FILE = "pytorch_lora_weights.safetensors"

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LORAS: dict[str, dict[str, Any]] = {
    "three-times": {"rank": 4, "alpha": 12},
    "fraction": {"rank": 3, "alpha": 0.7, "targets": ["attn1.to_k", "attn2.to_out.0"]},
    "blocks": {"rank": 2, "alpha": 5, "targets": [*ATTENTION, "ffn.net.0.proj", "ffn.net.2"]},
    "every-linear": {"rank": 2, "alpha": 5, "targets": [
        *ATTENTION, "net.0.proj", "net.2", "linear_1", "linear_2", "time_proj", "proj_out",
    ]},
}  # fmt: skip


def randomized(build: Build, checkpoint: Path, lora: str, **options: Any) -> WanBackbone:
    backbone = build(checkpoint, options, lora=LORAS[lora])
    randomize(backbone)
    return backbone


def base(checkpoint: Path) -> Any:
    return WanTransformer3DModel.from_pretrained(checkpoint, subfolder="transformer")


def same(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    assert max(float(change.abs().max()) for change in expected.values()) > 0.1
    for name, change in expected.items():
        assert_close(found[name].double(), change, atol=1e-6, rtol=0, msg=name)


def fused(pipeline: Any, source: Any, *, second: bool = False) -> Weights:
    """Return what diffusers' pipeline adds to the weights of its transformer."""
    transformer = pipeline.transformer_2 if second else pipeline.transformer
    before = copy.deepcopy(transformer.state_dict())
    pipeline.load_lora_weights(source, **({"load_into_transformer_2": True} if second else {}))
    transformer.fuse_lora()
    transformer.unload_lora()
    return changed_weights(before, transformer.state_dict())


@pytest.mark.parametrize("metadata", [True, False], ids=["with-metadata", "without"])
@pytest.mark.parametrize("lora", LORAS)
def test_diffusers(
    build: Build, reference: Reference, checkpoint: Path, tmp_path: Path, lora: str, metadata: bool
) -> None:
    """Without metadata: as read by a version that does not support it, from the tensors alone."""
    backbone = randomized(build, checkpoint, lora)
    backbone.adapter.save(tmp_path / "ad", "diffusers")
    source = tmp_path / "ad" if metadata else load_file(tmp_path / "ad" / FILE)
    same(fused(reference(checkpoint), source), added_weights(backbone))


@pytest.mark.parametrize("format", ["kohya", "comfyui"])
def test_diffusers_reads_the_others(
    build: Build, reference: Reference, checkpoint: Path, tmp_path: Path, format: str
) -> None:
    """Of musubi-tuner's files, diffusers loads only those that adapt every layer of a block."""
    backbone = randomized(build, checkpoint, "blocks")
    backbone.adapter.save(tmp_path, format)
    same(fused(reference(checkpoint), tmp_path), added_weights(backbone))


@pytest.mark.parametrize("format", ["diffusers", "comfyui"])
def test_the_low_noise_expert(
    build: Build, reference: Reference, two_experts: Path, tmp_path: Path, format: str
) -> None:
    backbone = randomized(build, two_experts, "three-times", expert="low")
    backbone.adapter.save(tmp_path, format)
    same(fused(reference(two_experts), tmp_path, second=True), added_weights(backbone))


@pytest.mark.parametrize("lora", LORAS)
def test_peft(build: Build, checkpoint: Path, tmp_path: Path, lora: str) -> None:
    backbone, transformer = randomized(build, checkpoint, lora), base(checkpoint)
    backbone.adapter.save(tmp_path, "peft")
    before = copy.deepcopy(transformer.state_dict())
    merged: Any = PeftModel.from_pretrained(transformer, tmp_path)
    same(changed_weights(before, merged.merge_and_unload().state_dict()), added_weights(backbone))


def original_layers(layers: int) -> list[str]:
    """Return the linear layers of Wan's original code."""
    outside = ["text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2", "time_projection.1"]
    inside = [f"{attention}_attn.{letter}" for attention in ("self", "cross") for letter in "qkvo"]
    blocks = [f"blocks.{i}.{name}" for i in range(layers) for name in (*inside, "ffn.0", "ffn.2")]
    return [*outside, *blocks, "head.head"]


def read(file: Weights, keys: dict[str, str]) -> Weights:
    """Return alpha / rank * up @ down of each original layer; checks that no tensor is left over."""
    change, seen = {}, set()
    for key, layer in keys.items():
        names = [f"{key}.lora_down.weight", f"{key}.lora_up.weight", f"{key}.alpha"]
        if names[0] in file:
            down, up, alpha = (file[name].double() for name in names)
            change[f"{layer}.weight"] = float(alpha) / len(down) * up @ down
            seen |= set(names)
    assert not set(file) - seen, "keys that the program does not know"
    converted: Weights = convert_wan_transformer_to_diffusers(change)
    return converted


@pytest.mark.parametrize("format", ["kohya", "comfyui"])
@pytest.mark.parametrize("lora", LORAS)
def test_musubi_tuner_and_comfyui(build: Build, checkpoint: Path, tmp_path: Path, lora: str, format: str) -> None:
    """musubi-tuner's `networks/lora_wan.py` names layers with underscores; ComfyUI's `model_lora_keys_unet` accepts
    these names, and names with dots below `diffusion_model`."""
    backbone = randomized(build, checkpoint, lora)
    backbone.adapter.save(tmp_path, format)
    layers = original_layers(2)
    underscored = {f"lora_unet_{name}".replace(".", "_"): name for name in layers}
    keys = underscored if format == "kohya" else underscored | {f"diffusion_model.{name}": name for name in layers}
    file = load_file(tmp_path / FILE)
    same(read(file, keys), added_weights(backbone))
    for name in [name for name in file if name.endswith(".alpha")]:  # as in a program that omits alphas
        file[name] = torch.tensor(float(len(file[name.replace("alpha", "lora_down.weight")])))
    same(read(file, keys), added_weights(backbone))


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
