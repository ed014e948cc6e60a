"""Adapters in the files of other programs; the judge is what diffusers' own pipeline does with the same file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from dgpo_core.errors import UserError
from dgpo_kit.drawing import randomize
from tests.families.proof import Proof, among, build, load, proofs

each = pytest.mark.parametrize("name", among(["flux", "sd3", "sdxl", "wan"], quick=["flux"]))
FILE = "pytorch_lora_weights.safetensors"
Make = Callable[[str], Path]


def denoiser(proof: Proof, pipeline: Any) -> Any:
    return getattr(pipeline, proof.kind.layout.denoiser)


def saved_by_diffusers(proof: Proof, pipeline: Any, directory: Path, **config: Any) -> None:
    """A random adapter that diffusers makes and saves, with its alpha in the metadata."""
    network, name = denoiser(proof, pipeline), proof.kind.layout.denoiser
    settings: dict[str, Any] = {"r": 3, "lora_alpha": 7, "target_modules": list(proof.kind.layout.lora_targets)}
    network.add_adapter(LoraConfig(**settings | config))
    with torch.no_grad():
        for i, (key, parameter) in enumerate(network.named_parameters()):
            if "lora_" in key:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    given = {"lora_layers": get_peft_model_state_dict(network), "lora_adapter_metadata": settings | config}
    pipeline.save_lora_weights(directory, **{f"{name}_{key}": value for key, value in given.items()})


def changed(proof: Proof, pipeline: Any, source: Any) -> dict[str, Tensor]:
    """What the pipeline adds to each weight of its denoiser when it loads a file."""
    network = denoiser(proof, pipeline)
    before = copy.deepcopy(network.state_dict())
    pipeline.load_lora_weights(source)
    network.fuse_lora()
    pipeline.unload_lora_weights()
    after = network.state_dict()
    found = {name.removesuffix(".weight"): after[name] - tensor for name, tensor in before.items()}
    return {name: change for name, change in found.items() if bool(change.any())}


def started(proof: Proof, directory: Path, init: Path, **lora: Any) -> Any:
    return build(proof, directory, lora={"rank": 6, "alpha": 4.5, "init": str(init)} | lora).adapter


def same(adapter: Any, expected: dict[str, Tensor]) -> None:
    found = {name: up @ down for name, (down, up) in adapter.folded().items()}
    assert found.keys() == expected.keys()
    assert min(float(change.abs().max()) for change in expected.values()) > 0.01
    for name, change in expected.items():
        assert_close(found[name], change, atol=2e-6, rtol=0, msg=name)
    assert adapter.notes == []


@pytest.mark.parametrize("metadata", [True, False], ids=["metadata", "no metadata"])
@each
def test_diffusers(checkpoint: Make, name: str, metadata: bool, tmp_path: Path) -> None:
    proof, directory = proofs()[name], checkpoint(name)
    pipeline = load(proof, directory)
    saved_by_diffusers(proof, pipeline, tmp_path)
    if not metadata:
        save_file(load_file(tmp_path / FILE), tmp_path / FILE)
    same(started(proof, directory, tmp_path), changed(proof, load(proof, directory), tmp_path))


@pytest.mark.slow
def test_ranks_of_their_own(checkpoint: Make, tmp_path: Path) -> None:
    proof, directory = proofs()["sdxl"], checkpoint("sdxl")
    pipeline = load(proof, directory)
    saved_by_diffusers(proof, pipeline, tmp_path, rank_pattern={"to_q": 5}, alpha_pattern={"to_q": 2, "attn2.to_k": 11})
    same(started(proof, directory, tmp_path), changed(proof, load(proof, directory), tmp_path))


LAYERS = {"wan": ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]}


@pytest.mark.parametrize(
    ("name", "format"),
    among([("sdxl", "kohya"), ("wan", "kohya"), ("wan", "comfyui"), ("flux", "comfyui")], quick=[("sdxl", "kohya")]),
)
def test_other_programs(checkpoint: Make, name: str, format: str, tmp_path: Path) -> None:
    """With alphas that are not the ranks, as other programs write them."""
    proof, directory = proofs()[name], checkpoint(name)
    lora = {"targets": LAYERS.get(name)}
    backbone = build(proof, directory, lora={"rank": 4, "alpha": 12, **lora})
    randomize(backbone)
    backbone.adapter.save(tmp_path, format)
    tensors = load_file(tmp_path / FILE)
    for i, key in enumerate(key for key in tensors if key.endswith(".alpha") and name != "flux"):
        # diffusers loses alphas of attention processors that differ between layers
        tensors[key] = torch.tensor(3.0 if name == "sdxl" else 1.0 + i % 5)
    save_file(tensors, tmp_path / FILE)
    same(started(proof, directory, tmp_path / FILE, **lora), changed(proof, load(proof, directory), tmp_path))


@pytest.mark.parametrize("format", ["diffusers", "peft", "kohya", "comfyui"])
@each
def test_every_format_that_is_exported_is_read(checkpoint: Make, name: str, format: str, tmp_path: Path) -> None:
    proof, directory = proofs()[name], checkpoint(name)
    backbone = build(proof, directory, lora={"rank": 4, "alpha": 12})
    randomize(backbone)
    backbone.adapter.save(tmp_path, format)
    same(started(proof, directory, tmp_path), {n: up @ down for n, (down, up) in backbone.adapter.folded().items()})


@pytest.mark.parametrize("name", among([n for n in proofs() if "," not in n], quick=["flux"]))
def test_every_linear_layer_has_a_place_in_each_format(checkpoint: Make, name: str, tmp_path: Path) -> None:
    """So that no target that is accepted fails when the run is exported; and each file is read again."""
    proof, directory = proofs()[name], checkpoint(name)
    network = denoiser(proof, load(proof, directory))
    linear = [path for path, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    backbone = build(proof, directory, lora={"rank": 2, "alpha": 2, "targets": linear})
    assert set(backbone.adapter.layers) == set(linear)
    randomize(backbone)
    expected = {path: up @ down for path, (down, up) in backbone.adapter.folded().items()}
    for format in backbone.adapter.formats:
        backbone.adapter.save(tmp_path / format, format)
        same(started(proof, directory, tmp_path / format, rank=2, targets=linear), expected)


@pytest.mark.slow
def test_what_diffusers_alone_converts(checkpoint: Make, tmp_path: Path) -> None:
    """The attention processors of older versions of diffusers."""
    proof, directory = proofs()["sdxl"], checkpoint("sdxl")
    saved_by_diffusers(proof, load(proof, directory), tmp_path, lora_alpha=3)
    new = load_file(tmp_path / FILE)
    old = {
        key.replace(".to_out.0.", ".to_out.").replace(".to_", ".processor.to_")
        .replace(".lora_A", "_lora.down").replace(".lora_B", "_lora.up"): tensor
        for key, tensor in new.items()
    }  # fmt: skip
    assert not old.keys() & new.keys()
    expected = changed(proof, load(proof, directory), dict(old))
    save_file(old, tmp_path / FILE)
    same(started(proof, directory, tmp_path), expected)


def test_a_converter_that_lists_all_names_is_quoted_in_part(checkpoint: Make, sdxl_file: Path, tmp_path: Path) -> None:
    """Of SDXL's layers in kohya's names, diffusers' converter for FLUX.1 says that they are unknown."""
    old = {f"lora_unet_input_blocks_{i}_{'x' * 90}.lora_{way}.weight": torch.ones(1, 1) for i in range(50)
           for way in ("down", "up")}  # fmt: skip
    save_file(old, tmp_path / FILE)
    with pytest.raises(UserError) as caught:
        started(proofs()["flux"], checkpoint("flux"), tmp_path)
    text = str(caught.value)
    assert f"{tmp_path / FILE} cannot be converted by diffusers for FluxPipeline: " in text
    assert text.endswith("; allowed is an adapter of this model in the format of diffusers, peft, kohya or ComfyUI")
    assert "\\n" not in text
    assert len(text) < 500


def _bad(name: str, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    first = next(iter(tensors)).rpartition(".lora_")[0]
    one, two = torch.ones(1, 1), torch.ones(1, 1)
    return {
        "text encoder": (
            tensors | {"text_encoder.q.lora_A.weight": one, "text_encoder.q.lora_B.weight": two},
            "has text_encoder.q.lora_A.weight, which is not of the denoiser that is trained, but of a text encoder; "
            "remove such tensors",
        ),
        "kohya's text encoder": (
            {"lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": one,
             "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight": two},
            "which is not of the denoiser that is trained",
        ),
        "another network": (
            tensors | {"movq.q.lora_A.weight": one, "movq.q.lora_B.weight": two},
            "which is not of the denoiser that is trained; allowed are names that begin with unet., and those of "
            "kohya, ComfyUI and other programs that diffusers converts for StableDiffusionXLPipeline",
        ),
        "by two names": (
            tensors | {f"lora_unet_{name.removeprefix('unet.').rpartition('.lora_')[0].replace('.', '_')}.lora_"
                       + ("down.weight" if "lora_A" in name else "up.weight"): tensor + 1
                       for name, tensor in tensors.items()},
            "a layer that it has by another name too; allowed is one adapter per file",
        ),
        "unknown": (
            {"lora_unet_nothing.hada_w1_a": one},
            "has lora_unet_nothing.hada_w1_a, which is not read; allowed are low-rank matrices of linear layers",
        ),
        "weights": ({"conv_in.weight": one}, "has conv_in.weight, and no matrices of a LoRA; allowed is an adapter"),
        "for FLUX.1": (
            {f"lora_unet_double_blocks_0_img_attn_proj.lora_{way}.weight": torch.ones(1, 1) for way in ("down", "up")},
            "layer double.blocks.0.img.attn.proj (an update of shape [1, 1]) is not in this model",
        ),
        "another model": (
            {"unet.blocks.0.attn1.to_q.lora_A.weight": torch.ones(3, 8),
             "unet.blocks.0.attn1.to_q.lora_B.weight": torch.ones(8, 3)},
            "layer blocks.0.attn1.to_q (an update of shape [8, 8]) is not in this model; ",
        ),
        "another size": (
            tensors | {f"{first}.lora_B.weight": torch.ones(99, 3)}, "has an update of shape [99, ",
        ),
        "dora": (
            {"lora_unet_down_blocks_9_attn.lora_down.weight": one, "lora_unet_down_blocks_9_attn.dora_scale": two},
            "lora_unet_down_blocks_9_attn.dora_scale, a DoRA of layers that this model does not have by this name",
        ),
    }[name]  # fmt: skip


@pytest.fixture(scope="module")
def sdxl_file(checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    directory = tmp_path_factory.mktemp("sdxl")
    saved_by_diffusers(proofs()["sdxl"], load(proofs()["sdxl"], checkpoint("sdxl")), directory)
    return directory / FILE


@pytest.mark.parametrize(
    "case",
    [
        "text encoder",
        "kohya's text encoder",
        "another network",
        "by two names",
        "unknown",
        "weights",
        "for FLUX.1",
        "another model",
        "another size",
        "dora",
    ],
)
def test_what_does_not_fit_is_told(checkpoint: Make, sdxl_file: Path, case: str, tmp_path: Path) -> None:
    proof, directory = proofs()["sdxl"], checkpoint("sdxl")
    tensors, message = _bad(case, load_file(sdxl_file))
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(UserError) as caught:
        started(proof, directory, tmp_path)
    assert str(caught.value).startswith(f"backbone.lora.init: {tmp_path / FILE}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
