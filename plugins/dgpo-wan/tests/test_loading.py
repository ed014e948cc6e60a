"""Errors of checkpoints and LoRA settings, and the Hub without a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file

from dgpo_core.errors import UserError
from dgpo_diffusers import checkpoints
from dgpo_wan.backbone import WanBackbone

Build = Callable[..., WanBackbone]

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
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


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_no_index(build: Build, copy: Path) -> None:
    (copy / "model_index.json").rename(copy / "vae" / "model_index.json")
    text = message(build, copy)
    assert f"{copy} has no model_index.json; found one in vae; allowed is a directory in diffusers' format" in text


@pytest.mark.parametrize(
    "content, problem",
    [
        ("{", "is not valid JSON"),
        ("[]", "must contain a JSON object"),
        ("{}", "is not a pipeline's index: _class_name is null"),
    ],
)
def test_invalid_index(build: Build, copy: Path, content: str, problem: str) -> None:
    (copy / "model_index.json").write_text(content)
    assert f"{copy}/model_index.json {problem}" in message(build, copy)


@pytest.mark.parametrize("found", ["WanImageToVideoPipeline", "StableDiffusion3Pipeline"])
def test_another_architecture(build: Build, copy: Path, found: str) -> None:
    edit_json(copy / "model_index.json", _class_name=found)
    text = message(build, copy)
    assert f"{copy} contains a {found}; the backbone wan requires a WanPipeline (Wan 2.1 and 2.2 text-to-video" in text


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_missing_model(build: Build, copy: Path, part: str) -> None:
    shutil.rmtree(copy / part)
    text = message(build, copy)
    assert f"backbone.checkpoint: {part}: model_index.json lists it, but there is no directory {copy / part}; " in text
    assert text.endswith(f"hf download REPOSITORY --include '{part}/*' --local-dir {copy}")


def test_a_tokenizer_without_vocabulary(build: Build, copy: Path) -> None:
    (copy / "tokenizer" / "tokenizer.json").unlink()
    assert f"{copy / 'tokenizer'} has no vocabulary: tokenizer.json or spiece.model" in message(build, copy)


@pytest.mark.parametrize("part", ["tokenizer/tokenizer.json", "scheduler/scheduler_config.json"])
def test_damaged_light_components(build: Build, copy: Path, part: str) -> None:
    (copy / part).write_text("{")
    assert f"{(copy / part).parent} cannot be loaded: " in message(build, copy)


@pytest.mark.parametrize("weights", [TRANSFORMER, TEXT_ENCODER])
@pytest.mark.parametrize(
    "damage, problem",
    [
        ("missing", "has no weights: no such file: "),
        ("truncated", "is not a complete safetensors file: it has "),
        ("pickle", "only as a pickle, "),
    ],
)
def test_damaged_weights(build: Build, copy: Path, weights: str, damage: str, problem: str) -> None:
    path = copy / weights
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "pickle":  # it would load, but pickles are never read
        name = "pytorch_model.bin" if "text" in weights else "diffusion_pytorch_model.bin"
        torch.save({}, path.parent / name)
    text = message(build, copy)
    assert str(path.parent) in text
    assert problem in text


@pytest.mark.parametrize("weights", [TRANSFORMER, TEXT_ENCODER])
def test_weights_that_lack_a_tensor_are_not_filled_with_random_numbers(build: Build, copy: Path, weights: str) -> None:
    tensors = load_file(copy / weights)
    name = next(n for n in sorted(tensors) if "weight" in n)
    del tensors[name]
    save_file(tensors, copy / weights, metadata={"format": "pt"})
    text = message(build, copy)
    assert "lacks 1 of the weights of " in text
    assert text.endswith(f"among them {name}")


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


def test_a_revision_of_a_directory(build: Build, checkpoint: Path) -> None:
    text = message(build, checkpoint, revision="main")
    assert text.startswith(f"backbone.revision: main is set, but {checkpoint} is a directory")


def test_a_hub_repository_that_cannot_be_fetched(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    text = message(build, "dgpo-tests/nothing", revision="v1")
    assert "dgpo-tests/nothing is not a local directory" in text
    assert "as a Hub repository at revision v1 it cannot be downloaded: " in text


def test_a_hub_repository(build: Build, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory stands in for the Hub: checks the requests and the use of the response."""
    asked: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)

    def fetch(repository: str, name: str, **arguments: Any) -> str:
        asked["index"] = (repository, arguments)
        return str(checkpoint / name)

    def download(repository: str, **arguments: Any) -> Path:
        asked["pipeline"] = (repository, arguments)
        return checkpoint

    monkeypatch.setattr(checkpoints, "hf_hub_download", fetch)
    monkeypatch.setattr(WanPipeline, "download", download)
    build("owner/model", revision="v1")
    assert asked["index"] == ("owner/model", {"revision": "v1"})
    assert asked["pipeline"] == ("owner/model", {"revision": "v1", "use_safetensors": True})

    def other(repository: str, name: str, **_: Any) -> str:
        (tmp_path / name).write_text('{"_class_name": "FluxPipeline"}')
        return str(tmp_path / name)

    asked.clear()
    monkeypatch.setattr(checkpoints, "hf_hub_download", other)
    assert "owner/model contains a FluxPipeline; the backbone wan requires" in message(build, "owner/model")
    assert not asked, "what is of another architecture is not fetched"


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
