"""Errors of checkpoints and LoRA settings that are particular to Wan; dgpo-sd3 tests those of every family."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file

from dgpo_core.errors import UserError
from dgpo_diffusers import checkpoints
from dgpo_wan.backbone import WanBackbone
from tests.edited import edit_json

Build = Callable[..., WanBackbone]

TEXT_ENCODER = "text_encoder/model.safetensors"


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be damaged."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def message(build: Build, directory: Path | str, **section: Any) -> str:
    with pytest.raises(UserError) as caught:
        build(directory, **section)
    text = str(caught.value)
    assert text.startswith("backbone.")
    assert "\n" not in text
    return text


def test_no_index(build: Build, copy: Path) -> None:
    (copy / "model_index.json").rename(copy / "vae" / "model_index.json")
    text = message(build, copy)
    assert f"{copy} has no model_index.json; found one in vae; allowed is a directory in diffusers' format" in text


@pytest.mark.parametrize("found", ["WanImageToVideoPipeline", "StableDiffusion3Pipeline"])
def test_another_architecture(build: Build, copy: Path, found: str) -> None:
    edit_json(copy / "model_index.json", _class_name=found)
    text = message(build, copy)
    assert f"{copy} contains a {found}; the backbone wan requires a WanPipeline (Wan 2.1 and 2.2 text-to-video" in text


def test_a_tokenizer_without_vocabulary(build: Build, copy: Path) -> None:
    (copy / "tokenizer" / "tokenizer.json").unlink()
    assert f"{copy / 'tokenizer'} has no vocabulary: tokenizer.json or spiece.model" in message(build, copy)


def test_a_text_encoder_without_its_embedding(build: Build, copy: Path) -> None:
    """One of the two names may be absent, but not both."""
    tensors = load_file(copy / TEXT_ENCODER)
    del tensors["shared.weight"]
    save_file(tensors, copy / TEXT_ENCODER, metadata={"format": "pt"})
    assert message(build, copy).endswith("among them shared.weight")


def test_image_to_video_weights(build: Build, copy: Path) -> None:
    from diffusers import WanTransformer3DModel

    config = json.loads((copy / "transformer" / "config.json").read_text())
    WanTransformer3DModel.from_config(config | {"in_channels": 9}).save_pretrained(copy / "transformer")
    text = message(build, copy)
    assert text.endswith("transformer takes 9 channels, the autoencoder has 4: not a text-to-video checkpoint")


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"scale_factor_temporal": 8}, "vae encodes 8 frames as one latent frame; the backbone wan supports 4"),
        ({"latents_mean": [0.0]}, "has 1 latents_mean and 4 latents_std for 4 channels"),
    ],
)
def test_an_autoencoder_of_another_kind(build: Build, copy: Path, changes: dict[str, Any], problem: str) -> None:
    edit_json(copy / "vae" / "config.json", **changes)
    assert message(build, copy).endswith(problem)


def test_a_boundary_without_a_second_transformer(build: Build, copy: Path) -> None:
    edit_json(copy / "model_index.json", boundary_ratio=0.875)
    assert message(build, copy).endswith("has a boundary_ratio but no transformer_2")


@pytest.mark.parametrize("value", ["0.875", True, 2, [0.5], -0.1])
def test_boundary_must_be_a_number(build: Build, copy: Path, value: Any) -> None:
    edit_json(copy / "model_index.json", boundary_ratio=value)
    assert "model_index.json: boundary_ratio is " in message(build, copy)


@pytest.mark.parametrize("changes", [{"latents_mean": 3}, {"latents_std": None}])
def test_values_of_another_kind(build: Build, copy: Path, changes: dict[str, Any]) -> None:
    edit_json(copy / "vae" / "config.json", **changes)
    assert message(build, copy).startswith("backbone.checkpoint: ")


@pytest.mark.parametrize("value", ["yes", 1])
def test_expand_timesteps_must_be_a_boolean(build: Build, copy: Path, value: Any) -> None:
    edit_json(copy / "model_index.json", expand_timesteps=value)
    assert "model_index.json: expand_timesteps is " in message(build, copy)


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
def test_a_quantized_component(build: Build, copy: Path, part: str) -> None:
    edit_json(copy / part / "config.json", quantization_config={"quant_method": "gguf"})
    assert f"{copy}/{part}/config.json: quantization_config is set to gguf: the model is quantized" in message(
        build, copy
    )


def test_a_second_transformer_that_was_not_downloaded(build: Build, two_experts: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(two_experts, tmp_path / "two"))
    shutil.rmtree(copy / "transformer_2")
    assert "transformer_2: model_index.json lists it, but there is no directory" in message(build, copy)


def test_older_index_without_newer_components(build: Build, copy: Path) -> None:
    path = copy / "model_index.json"
    index = json.loads(path.read_text())
    for key in ("transformer_2", "boundary_ratio", "expand_timesteps"):
        del index[key]
    path.write_text(json.dumps(index))
    assert build(copy).latent_shape(16, 16) == (4, 3, 2, 2)


def test_a_hub_repository_of_another_architecture_is_not_fetched(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(repository: str, name: str, **_: Any) -> str:
        (tmp_path / name).write_text('{"_class_name": "FluxPipeline"}')
        return str(tmp_path / name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "hf_hub_download", fetch)
    monkeypatch.setattr(WanPipeline, "download", lambda *given, **more: pytest.fail("it is fetched"))
    assert "owner/model contains a FluxPipeline; the backbone wan requires" in message(build, "owner/model")


def test_lora_targets(checkpoint: Path, build: Build) -> None:
    names = build(checkpoint, lora={"rank": 2, "alpha": 2, "targets": ["attn2.to_q", "ffn.net.2"]}).trainable()
    bound = {n.split(".lora_")[0] for n in names}
    assert bound == {f"blocks.{i}.{inner}" for i in (0, 1) for inner in ("attn2.to_q", "ffn.net.2")}


@pytest.mark.parametrize(
    "target, problem, nearest",
    [
        ("to_qq", "matches no module", "to_q"),
        ("query", "matches no module", "to_q"),
        ("attn2", "matches blocks.0.attn2, which is not a linear layer", "attn2.to_"),
    ],
)
def test_lora_targets_without_a_match(checkpoint: Path, build: Build, target: str, problem: str, nearest: str) -> None:
    text = message(build, checkpoint, lora={"rank": 2, "alpha": 2, "targets": ["to_k", target]})
    assert text.startswith(f"backbone.lora.targets: '{target}' {problem} of the network; nearest suffixes")
    assert nearest in text
