"""Errors of checkpoints and LoRA settings, and the Hub without a network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file

from dgpo_core.errors import UserError
from dgpo_diffusers import checkpoints
from dgpo_kit.given import prompts_of
from dgpo_sd3.backbone import SD3Backbone
from dgpo_sd3.testing import make_tiny_checkpoint
from tests.edited import edit_json

Build = Callable[..., SD3Backbone]

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


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


def test_a_missing_directory(build: Build, tmp_path: Path) -> None:
    text = message(build, tmp_path / "no" / "where")
    assert f"no such directory: {tmp_path}/no/where (the nearest existing directory is {tmp_path})" in text


def test_no_index(build: Build, copy: Path) -> None:
    (copy / "model_index.json").unlink()
    text = message(build, copy)
    assert f"{copy} has no model_index.json; allowed is a directory in diffusers' format" in text


def test_no_index_but_one_further_down(build: Build, copy: Path) -> None:
    assert "has no model_index.json; found one in copy; allowed" in message(build, copy.parent)


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


@pytest.mark.parametrize("found", ["StableDiffusionXLPipeline", "StableDiffusion3Img2ImgPipeline"])
def test_another_architecture(build: Build, copy: Path, found: str) -> None:
    edit_json(copy / "model_index.json", _class_name=found)
    text = message(build, copy)
    assert f"{copy} contains a {found}; the backbone sd3 requires a StableDiffusion3Pipeline" in text


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder_2"])
def test_a_missing_model(build: Build, copy: Path, part: str) -> None:
    shutil.rmtree(copy / part)
    text = message(build, copy)
    assert f"backbone.checkpoint: {part}: model_index.json lists it, but there is no directory {copy / part}; " in text
    assert text.endswith(f"hf download REPOSITORY --include '{part}/*' --local-dir {copy}")


def test_a_tokenizer_without_vocabulary(build: Build, copy: Path) -> None:
    (copy / "tokenizer_2" / "tokenizer.json").unlink()
    assert f"{copy / 'tokenizer_2'} has no vocabulary: tokenizer.json or vocab.json" in message(build, copy)


@pytest.mark.parametrize("part", ["tokenizer/tokenizer.json", "scheduler/scheduler_config.json"])
def test_damaged_light_components(build: Build, copy: Path, part: str) -> None:
    (copy / part).write_text("{")
    assert f"{(copy / part).parent} cannot be loaded: " in message(build, copy)


@pytest.mark.parametrize("weights", [WEIGHTS, "text_encoder/model.safetensors"])
@pytest.mark.parametrize(
    "damage, problem",
    [
        ("missing", "has no weights: no such file: "),
        ("truncated", "is not a complete safetensors file: it has "),
        ("noise", "is not a complete safetensors file: its 1000 bytes do not start with a header"),
        ("pickle", "only as a pickle, "),
    ],
)
def test_damaged_weights(build: Build, copy: Path, weights: str, damage: str, problem: str) -> None:
    path = copy / weights
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "noise":
        path.write_bytes(b"\xff" * 1000)
    elif damage == "pickle":  # it would load, but pickles are never read
        name = "pytorch_model.bin" if "text" in weights else "diffusion_pytorch_model.bin"
        torch.save({}, path.parent / name)
    text = message(build, copy)
    assert str(path.parent) in text
    assert problem in text


@pytest.mark.parametrize("weights", [WEIGHTS, "text_encoder/model.safetensors"])
def test_weights_that_lack_a_tensor_are_not_filled_with_random_numbers(build: Build, copy: Path, weights: str) -> None:
    tensors = load_file(copy / weights)
    name = next(n for n in sorted(tensors) if n.endswith("bias"))
    del tensors[name]
    save_file(tensors, copy / weights, metadata={"format": "pt"})
    text = message(build, copy)
    assert "lacks 1 of the weights of " in text
    assert text.endswith(f"among them {name}")


def test_weights_of_another_shape(build: Build, copy: Path) -> None:
    edit_json(copy / "transformer" / "config.json", joint_attention_dim=48)
    assert "transformer cannot be loaded as SD3Transformer2DModel" in message(build, copy)


def test_an_autoencoder_without_shift(build: Build, copy: Path) -> None:
    edit_json(copy / "vae" / "config.json", shift_factor=None)
    assert f"{copy}/vae/config.json has no shift_factor" in message(build, copy)


def test_a_revision_of_a_directory(build: Build, checkpoint: Path) -> None:
    text = message(build, checkpoint, revision="main")
    assert text.startswith(f"backbone.revision: main is set, but {checkpoint} is a directory")


def test_a_hub_repository_that_cannot_be_fetched(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    text = message(build, "dgpo-tests/nothing", revision="v1")
    assert "dgpo-tests/nothing is not a local directory" in text
    assert "as a Hub repository at revision v1 it cannot be downloaded: " in text
    assert "HF_HUB_OFFLINE is set" in text
    assert "hf download dgpo-tests/nothing --revision v1 --local-dir DIRECTORY" in text


def test_a_hub_repository(build: Build, checkpoint_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub is played by a directory: what is asked of it, and what is made of the answer."""
    asked: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)

    def fetch(repository: str, name: str, **arguments: Any) -> str:
        asked["index"] = (repository, arguments)
        return str(checkpoint_t5 / name)

    def download(repository: str, **arguments: Any) -> Path:
        asked["pipeline"] = (repository, arguments)
        return checkpoint_t5

    monkeypatch.setattr(checkpoints, "hf_hub_download", fetch)
    monkeypatch.setattr(StableDiffusion3Pipeline, "download", download)
    backbone = build("owner/model", {"drop_t5": True}, revision="v1")
    assert backbone.encode(prompts_of(["a"])).tensors["prompt_embeds"].shape == (1, 32 + 16, 32)
    assert asked["index"] == ("owner/model", {"revision": "v1"})
    assert asked["pipeline"] == (
        "owner/model",
        {"revision": "v1", "use_safetensors": True, "text_encoder_3": None, "tokenizer_3": None},
    )

    def fail(*_: Any, **__: Any) -> Path:
        raise OSError("the line is dead")

    monkeypatch.setattr(StableDiffusion3Pipeline, "download", fail)
    assert "as a Hub repository it cannot be downloaded: the line is dead" in message(build, "owner/model")


def test_lora_targets(checkpoint: Path, build: Build) -> None:
    names = build(checkpoint, lora={"rank": 2, "alpha": 2, "targets": ["attn2.to_q", "ff.net.2"]}).trainable()
    bound = {n.split(".lora_")[0] for n in names}
    assert bound == {
        "transformer_blocks.0.attn2.to_q",
        "transformer_blocks.0.ff.net.2",
        "transformer_blocks.1.ff.net.2",
    }


def test_endings_are_of_whole_components(checkpoint: Path, build: Build) -> None:
    names = build(checkpoint, lora={"rank": 2, "alpha": 2, "targets": ["attn.to_q"]}).trainable()
    bound = {n.split(".lora_")[0] for n in names}
    assert bound == {"transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_q"}, "and not attn2.to_q"


def test_default_targets_of_a_single_block(build: Build, tmp_path: Path) -> None:
    """It has no `to_add_out` because its text stream ends there."""
    names = build(make_tiny_checkpoint(tmp_path, layers=1)).trainable()
    assert any("add_k_proj" in name for name in names)
    assert not any("to_add_out" in name for name in names)


@pytest.mark.parametrize(
    "target, problem, nearest",
    [
        ("to_qq", "matches no module", "to_q, "),
        ("q_proj", "matches no module", "add_q_proj"),
        ("attn2", "matches transformer_blocks.0.attn2, which is not a linear layer", "attn2.to_"),
        ("ttn.to_q", "matches no module", "attn.to_q"),
        ("", "matches no module", "to_"),
    ],
)
def test_lora_targets_without_a_match(checkpoint: Path, build: Build, target: str, problem: str, nearest: str) -> None:
    text = message(build, checkpoint, lora={"rank": 2, "alpha": 2, "targets": ["to_k", target]})
    assert text.startswith(f"backbone.lora.targets: '{target}' {problem} of the network; nearest suffixes")
    assert nearest in text
