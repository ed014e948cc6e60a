"""Checkpoints found in practice: indices of other programs, variants, quantized components, broken downloads."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dgpo_core.errors import UserError
from dgpo_kit.given import prompts_of
from dgpo_sd3.backbone import SD3Backbone
from dgpo_sd3.testing import make_tiny_checkpoint

Build = Callable[..., SD3Backbone]

PLAIN = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint without T5."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


@pytest.fixture
def copy_t5(checkpoint_t5: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint with T5."""
    return Path(shutil.copytree(checkpoint_t5, tmp_path / "copy"))


def message(build: Build, directory: Path | str, options: dict[str, Any] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        build(directory, options)
    text = str(caught.value)
    assert text.startswith("backbone.")
    assert "\n" not in text
    return text


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def embedded(backbone: SD3Backbone) -> torch.Tensor:
    return backbone.encode(prompts_of(["a longer prompt than the shortest"])).tensors["prompt_embeds"]


# -- the index --------------------------------------------------------------------------------------------------------

ABSENT: list[Any] = [None, [None, None], [None], [], ["transformers", None], ...]


@pytest.mark.parametrize("value", ABSENT)
def test_ways_to_leave_a_component_out(build: Build, copy: Path, value: Any) -> None:
    path = copy / "model_index.json"
    index = json.loads(path.read_text())
    for name in ("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor"):
        del index[name]
        if value is not ...:
            index[name] = value
    path.write_text(json.dumps(index))
    assert build(copy, {"text_length": 4}).pipeline.text_encoder_3 is None


@pytest.mark.parametrize(
    "value", ["T5EncoderModel", 3, {}, {"a": 1}, ["transformers", 3], ["a", "b", "c"], True, ["", ""]]
)
def test_invalid_component_entry(build: Build, copy: Path, value: Any) -> None:
    edit(copy / "model_index.json", text_encoder_3=value)
    text = message(build, copy, {"text_length": 4})
    assert f"{copy}/model_index.json: text_encoder_3 is " in text
    assert "allowed is [library, class], or [null, null] for none" in text


def test_an_index_with_a_byte_order_mark(build: Build, copy: Path) -> None:
    path = copy / "model_index.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    build(copy)


@pytest.mark.parametrize(
    "found, hint",
    [
        ("WanPipeline", "for this checkpoint, set use: wan"),
        ("StableDiffusion3Img2ImgPipeline", "set _class_name to StableDiffusion3Pipeline"),
        ("StableDiffusionPipeline", "for this checkpoint, set use: sd"),
        ("FluxPipeline", "for this checkpoint, set use: flux"),
        ("PixArtSigmaPipeline", "known pipelines: StableDiffusion3Pipeline (sd3), WanPipeline (wan)"),
        ("Evil\x1b[31m", r"contains a Evil\x1b[31m;"),
    ],
)
def test_the_nearest_family(build: Build, copy: Path, found: str, hint: str) -> None:
    edit(copy / "model_index.json", _class_name=found)
    assert hint in message(build, copy)


@pytest.mark.parametrize("found", [None, 3, [], ["StableDiffusion3Pipeline"], ""])
def test_an_index_that_names_no_pipeline(build: Build, copy: Path, found: Any) -> None:
    edit(copy / "model_index.json", _class_name=found)
    assert "is not a pipeline's index: _class_name is " in message(build, copy)


# -- tokenizers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [..., 1e30, 10**40, 0, -1, 2, 10_000, None])
def test_tokenizer_without_length_uses_that_of_its_encoder(build: Build, copy: Path, length: Any) -> None:
    expected = embedded(build(copy))
    for name in ("tokenizer", "tokenizer_2"):
        path = copy / name / "tokenizer_config.json"
        settings = json.loads(path.read_text())
        del settings["model_max_length"]
        path.write_text(json.dumps(settings if length is ... else settings | {"model_max_length": length}))
    assert torch.equal(embedded(build(copy)), expected)


def test_a_shorter_length_stays(build: Build, copy: Path) -> None:
    for name in ("tokenizer", "tokenizer_2"):
        edit(copy / name / "tokenizer_config.json", model_max_length=10)
    assert embedded(build(copy, {"text_length": 0})).shape[1] == 10


@pytest.mark.parametrize("length", ["77", True, [77]])
def test_length_must_be_a_number(build: Build, copy: Path, length: Any) -> None:
    edit(copy / "tokenizer" / "tokenizer_config.json", model_max_length=length)
    assert "tokenizer/tokenizer_config.json: model_max_length is " in message(build, copy)


def test_a_tokenizer_without_settings(build: Build, copy: Path) -> None:
    (copy / "tokenizer" / "tokenizer_config.json").write_text("[]")
    assert "tokenizer_config.json must contain a JSON object" in message(build, copy)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_vocabulary_that_was_not_downloaded(build: Build, copy: Path, content: bytes) -> None:
    (copy / "tokenizer" / "tokenizer.json").write_bytes(content)
    assert f"backbone.checkpoint: tokenizer: {copy}/tokenizer/tokenizer.json is " in message(build, copy)


def test_half_a_vocabulary(build: Build, copy: Path) -> None:
    (copy / "tokenizer" / "tokenizer.json").rename(copy / "tokenizer" / "vocab.json")
    assert "has vocab.json, but not merges.txt" in message(build, copy)


def test_a_tokenizer_of_another_model(build: Build, copy: Path) -> None:
    path = copy / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"more{i}": len(vocabulary) + i for i in range(3)}
    path.write_text(json.dumps(tokenizer))
    assert "they do not belong together" in message(build, copy)


# -- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variants", [{"transformer": "fp16"}, {"transformer": "bf16", "vae": "non_ema", "text_encoder": "fp16"}]
)
def test_the_only_variant_of_a_component(build: Build, copy: Path, variants: dict[str, str]) -> None:
    """The variants of the other components have no effect."""
    before = {name: p.clone() for name, p in build(copy).module.state_dict().items() if "lora" not in name}
    for component, variant in variants.items():
        stem = "model" if "text" in component else PLAIN.partition(".")[0]
        (copy / component / f"{stem}.safetensors").rename(copy / component / f"{stem}.{variant}.safetensors")
    after = build(copy).module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {value.dtype for value in after.values()} == {torch.float32}


def test_a_chosen_variant(build: Build, copy: Path, tmp_path: Path) -> None:
    other = make_tiny_checkpoint(tmp_path / "other", seed=1)
    place = copy / "transformer"
    (place / PLAIN).rename(place / "diffusion_pytorch_model.fp16.safetensors")
    shutil.copy(other / "transformer" / PLAIN, place / "diffusion_pytorch_model.non_ema.safetensors")
    text = message(build, copy)
    assert "several variants, fp16, non_ema; choose one with the option variant" in text
    chosen, its, first = (
        build(place, options).module.state_dict()["proj_out.weight"]
        for place, options in ((copy, {"variant": "non_ema"}), (other, None), (copy, {"variant": "fp16"}))
    )
    assert torch.equal(chosen, its)
    assert not torch.equal(first, its)
    assert "several variants" in message(build, copy, {"variant": "bf16"})


def test_unknown_variant_is_reported(build: Build, copy: Path) -> None:
    assert "backbone.options.variant: no model in " in message(build, copy, {"variant": "fp16"})


@pytest.mark.parametrize("component", ["transformer", "text_encoder", "vae"])
def test_a_quantized_component(build: Build, copy: Path, component: str) -> None:
    edit(copy / component / "config.json", quantization_config={"quant_method": "torchao", "quant_type": "int8wo"})
    text = message(build, copy)
    assert (
        f"{component}: {copy}/{component}/config.json: quantization_config is set to torchao (int8wo): the model is "
        "quantized" in text
    )


def test_a_model_of_another_class(build: Build, copy: Path) -> None:
    edit(copy / "transformer" / "config.json", _class_name="FluxTransformer2DModel")
    assert "config.json is the config of FluxTransformer2DModel, not of SD3Transformer2DModel" in message(build, copy)


@pytest.mark.parametrize("content", ["{", "[]", "null", "[" * 100_000, ""])
def test_invalid_configuration(build: Build, copy: Path, content: str) -> None:
    (copy / "transformer" / "config.json").write_text(content)
    assert f"backbone.checkpoint: transformer: {copy}/transformer/config.json " in message(build, copy)


@pytest.mark.parametrize(
    "component, key, value",
    [
        ("transformer", "pos_embed_max_size", {}),
        ("vae", "scaling_factor", 0),
        ("vae", "scaling_factor", "1.5"),
        ("vae", "shift_factor", float("nan")),
        ("text_encoder_2", "eos_token_id", None),
    ],
)
def test_invalid_configuration_value(build: Build, copy: Path, component: str, key: str, value: Any) -> None:
    edit(copy / component / "config.json", **{key: value})
    assert f"{copy}/{component}/config.json: {key} is " in message(build, copy)


def test_a_model_that_is_a_file(build: Build, copy: Path) -> None:
    shutil.rmtree(copy / "vae")
    (copy / "vae").touch()
    assert f"{copy}/vae is not a directory" in message(build, copy)


@pytest.mark.parametrize("damage", ["no directory", "configuration alone", "no weights", "pointer", "cut"])
def test_t5_that_was_not_downloaded(build: Build, copy_t5: Path, damage: str) -> None:
    place = copy_t5 / "text_encoder_3"
    weights = place / "model.safetensors"
    if damage == "no directory":
        shutil.rmtree(place)
    elif damage == "configuration alone":
        weights.unlink()
    elif damage == "no weights":
        (place / "config.json").unlink()
    elif damage == "pointer":
        weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    else:
        weights.write_bytes(weights.read_bytes()[:-100])
    text = message(build, copy_t5, {"text_length": 4})
    assert "backbone.options.text_length: 0, or backbone.options.drop_t5: true" in text
    if damage == "no directory":
        assert f"hf download REPOSITORY --include 'text_encoder_3/*' --local-dir {copy_t5}" in text
    build(copy_t5, {"text_length": 0})
    build(copy_t5, {"drop_t5": True, "text_length": 4})


def test_all_components_are_checked_before_loading(build: Build, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the last component is reported before the first one is loaded."""
    from diffusers import SD3Transformer2DModel

    monkeypatch.setattr(SD3Transformer2DModel, "from_pretrained", lambda *_, **__: pytest.fail("read"))
    (copy / "tokenizer_2" / "tokenizer.json").unlink()
    assert "has no vocabulary" in message(build, copy)


# -- places -----------------------------------------------------------------------------------------------------------


def test_a_directory_like_a_repository(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "a local directory takes precedence over the Hub repository of the same name" in message(build, "owner/name")


def test_a_component_of_the_pipeline(build: Build, copy: Path) -> None:
    assert f"it is part of the model in {copy}; use that directory" in message(build, copy / "transformer")


# -- sizes ------------------------------------------------------------------------------------------------------------

SIZES: list[tuple[str, dict[str, Any], str]] = [
    ("transformer", {"num_layers": 10**6}, r"num_layers is 1000000, larger than every dimension"),
    ("transformer", {"num_layers": 1000}, r"num_layers is 1000; allowed is at most \d+, the number of its tensors"),
    ("transformer", {"num_layers": -1}, r"num_layers is -1; allowed is a number of at least 0"),
    ("transformer", {"num_layers": 0}, r"holds \d+ weights of layers that its config.json does not have"),
    ("vae", {"norm_num_groups": -1}, r"norm_num_groups is -1; allowed is a number of at least 0"),
    ("vae", {"up_block_types": {}}, r"holds \d+ weights of layers that its config.json does not have"),
    ("text_encoder", {"num_hidden_layers": 1}, r"holds 16 weights of layers that its config.json does not have"),
    ("transformer", {"pos_embed_max_size": 4000}, r"pos_embed_max_size times pos_embed_max_size is 16000000, larger"),
    ("transformer", {"attention_head_dim": 4096}, r"num_attention_heads times attention_head_dim is \d+, larger"),
    ("vae", {"latent_channels": 10**25}, r"latent_channels is 10{25}, larger than every dimension"),
    ("vae", {"scaling_factor": 1e30}, r"scaling_factor is 1e\+30, larger than every dimension"),
    ("vae", {"scaling_factor": float("nan")}, r"scaling_factor is nan, larger than every dimension"),
    ("vae", {"block_out_channels": [10**7]}, r"block_out_channels\[0\] is 10000000, larger than every dimension"),
    ("vae", {"up_block_types": ["UpDecoderBlock2D"] * 1000}, r"up_block_types has 1000 entries, but the weights are"),
    ("text_encoder", {"num_hidden_layers": 4000}, r"num_hidden_layers is 4000; allowed is at most \d+"),
]


@pytest.mark.parametrize(("component", "changes", "expected"), SIZES)
def test_sizes_that_the_weights_do_not_have(
    build: Build, copy: Path, component: str, changes: dict[str, Any], expected: str
) -> None:
    edit(copy / component / "config.json", **changes)
    text = message(build, copy)
    assert f"{copy}/{component}" in text
    assert re.search(expected, text)


@pytest.mark.parametrize(
    ("name", "value"),
    [("latents_std", "q"), ("latents_std", [0.0] * 4), ("latents_mean", [None]), ("latents_mean", [])],
)
def test_invalid_scales_of_the_autoencoder(build: Build, copy: Path, name: str, value: Any) -> None:
    edit(copy / "vae" / "config.json", **{name: value})
    assert f"{copy}/vae/config.json: {name} is " in message(build, copy)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            {"use_dynamic_shifting": True, "base_image_seq_len": 4096},
            "base_image_seq_len and max_image_seq_len are both",
        ),
        ({"use_karras_sigmas": True}, "use_karras_sigmas is true"),
        ({"shift": 0}, "shift is 0; allowed is a number above 0"),
    ],
)
def test_unknown_scheduler_setting(build: Build, copy: Path, setting: dict[str, Any], said: str) -> None:
    edit(copy / "scheduler" / "scheduler_config.json", **setting)
    assert f"{copy}/scheduler: {said}" in message(build, copy)
