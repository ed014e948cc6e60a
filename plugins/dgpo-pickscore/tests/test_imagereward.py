"""ImageReward against its published formula in float64, and the names of its file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision import transforms
from transformers import BertTokenizer

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_pickscore.blip import published_name
from dgpo_pickscore.imagereward import ImageRewardReward
from dgpo_pickscore.options import ImageRewardOptions
from dgpo_pickscore.testing import CHARACTERS, make_tiny_imagereward

from .by_hand import attention, block, fused, gelu, linear, norm, patches, separate

Contract = Callable[[ImageRewardReward, Tensor, list[Prompt]], None]
WEIGHTS = "ImageReward.pt"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_imagereward(tmp_path_factory.mktemp("imagereward") / "tiny")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def build(directory: Path, **options: Any) -> ImageRewardReward:
    options = {"model": str(directory), "tokenizer": str(directory)} | options
    return ImageRewardReward(ImageRewardOptions(**options), device=torch.device("cpu"))


def tensors_of(directory: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = torch.load(directory / WEIGHTS, weights_only=True)
    return tensors


def pixels_of(images: Tensor, side: int) -> Tensor:
    """The published transform, of torchvision: shorter side, center crop."""
    transform = transforms.Compose([
        transforms.Resize(side, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(side),
        transforms.ToTensor(), transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    levels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return torch.stack([transform(Image.fromarray(image)) for image in levels]).double()


def vision(w: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """timm's vision transformer, with a class token and norms before layers."""
    v = "blip.visual_encoder"
    first = w[f"{v}.cls_token"].double().expand(len(pixels), -1, -1)
    x = torch.cat([first, patches(w, f"{v}.patch_embed.proj", pixels)], 1) + w[f"{v}.pos_embed"].double()
    for layer in range(2):
        b = f"{v}.blocks.{layer}"
        attend = fused(w, f"{b}.attn.qkv.", f"{b}.attn.proj", heads=2)
        x = block(w, (f"{b}.norm1", f"{b}.norm2"), attend, (f"{b}.mlp.fc1", f"{b}.mlp.fc2"), x, 1e-6)
    return norm(w, f"{v}.norm", x, 1e-6)


def text(w: dict[str, Tensor], ids: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
    """BERT without token types, with cross-attention behind each self-attention and norms behind each of them."""
    t = "blip.text_encoder"
    positions = w[f"{t}.embeddings.position_embeddings.weight"].double()[: ids.shape[1]]
    x = w[f"{t}.embeddings.word_embeddings.weight"].double()[ids] + positions
    x = norm(w, f"{t}.embeddings.LayerNorm", x, 1e-12)
    visible = mask[:, None, :].bool()
    for layer in range(2):
        e = f"{t}.encoder.layer.{layer}"
        for name, other, seeing in (("attention", None, visible), ("crossattention", seen, None)):
            parts = [f"{e}.{name}.self.{part}" for part in ("query", "key", "value")] + [f"{e}.{name}.output.dense"]
            x = norm(w, f"{e}.{name}.output.LayerNorm", x + separate(w, parts, 2, seeing)(x, other), 1e-12)
        inner = linear(w, f"{e}.output.dense", gelu(linear(w, f"{e}.intermediate.dense", x)))
        x = norm(w, f"{e}.output.LayerNorm", x + inner, 1e-12)
    return x


def published(directory: Path, images: Tensor, prompts: list[Prompt]) -> Tensor:
    """float64 [B]: each pair alone; the head's five layers one by one, then mean and std."""
    w, tokenizer = tensors_of(directory), BertTokenizer.from_pretrained(directory)
    found = []
    for pixels, prompt in zip(pixels_of(images, 32), prompts, strict=True):
        tokens = tokenizer(prompt.text, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
        x = text(w, tokens["input_ids"], tokens["attention_mask"], vision(w, pixels[None]))[:, 0]
        for layer in (0, 2, 4, 6, 7):
            x = linear(w, f"mlp.layers.{layer}", x)
        found.append((float(x) - 0.16717362830052426) / 1.0333394966054072)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("size", [(40, 48), (32, 32), (33, 47), (9, 5), (1, 1)])
def test_values(tiny: Path, images: Tensor, prompts: list[Prompt], size: tuple[int, int]) -> None:
    images = images[..., : size[0], : size[1]]
    scores = build(tiny).score(images, prompts)
    expected = published(tiny, images, prompts)
    assert expected.std() > 1
    torch.testing.assert_close(scores.values.double(), expected, atol=2e-4, rtol=1e-5)
    assert [d["value"] for d in scores.diagnostics] == pytest.approx(scores.values.tolist())
    assert [d["tokens"] for d in scores.diagnostics] == [9, 15, 2, 9, 16, 3], "BERT takes no words of 300 letters"


def test_prompt_and_image_both_matter(tiny: Path, images: Tensor) -> None:
    reward, texts = build(tiny), [Prompt("a red fox"), Prompt("a house")]
    same_image = reward.score(images[:1].expand(2, -1, -1, -1), texts).values
    same_text = reward.score(images[:2], [texts[0]] * 2).values
    assert (same_image[0] - same_image[1]).abs() > 0.1
    assert (same_text[0] - same_text[1]).abs() > 0.1


def test_tokens_by_hand(tiny: Path) -> None:
    """[CLS], lower-case letters, those within words behind ##, [SEP]; nothing of BLIP's two tokens."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, *(f"##{c}" for c in CHARACTERS)]
    expected = [vocabulary.index(name) for name in ("[CLS]", "a", "f", "##o", "##x", "[SEP]")]
    assert build(tiny)._tokenizer("A Fox")["input_ids"] == expected


def test_only_35_tokens_are_read(tiny: Path, images: Tensor) -> None:
    pairs = [("x" * 33, "x" * 33 + "y", True), ("x" * 32 + "y", "x" * 32 + "z", False)]
    for first, second, same in pairs:
        scores = build(tiny).score(images[:1].expand(2, -1, -1, -1), [Prompt(first), Prompt(second)])
        assert (float((scores.values[0] - scores.values[1]).abs()) < 1e-5) is same
        assert [d["truncated"] for d in scores.diagnostics] == [False, same]


def test_contract(tiny: Path, contract: Contract, images: Tensor, prompts: list[Prompt]) -> None:
    images[3, 0, 0, 0] = torch.nan
    contract(build(tiny, batch=2), images, prompts)
    contract(build(tiny, every=2), torch.stack([images, images.flip(0), images.roll(2, 0)], 1)[:3], prompts[:3])


def test_videos_are_scored_frame_by_frame(tiny: Path, images: Tensor, prompts: list[Prompt]) -> None:
    reward = build(tiny, every=1, batch=5)
    found = reward.score(torch.stack([images, images.flip(0)], 1), prompts)
    first, second = reward.score(images, prompts).values, reward.score(images.flip(0), prompts).values
    torch.testing.assert_close(found.values, (first + second) / 2, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(
        torch.tensor([d["frames"] for d in found.diagnostics])[:, 1], second, atol=1e-4, rtol=1e-5
    )


def test_the_range_is_that_of_the_weights(tiny: Path) -> None:
    """The last layer norm at the vector that is best for the head, and at random ones."""
    reward, w = build(tiny), tensors_of(tiny)
    low, high = reward.range
    name = "blip.text_encoder.encoder.layer.1.output.LayerNorm"

    def value(z: Tensor) -> Tensor:
        x = norm(w, name, z, 1e-12)
        for layer in (0, 2, 4, 6, 7):
            x = linear(w, f"mlp.layers.{layer}", x)
        return (x.squeeze(-1) - 0.16717362830052426) / 1.0333394966054072

    random = value(torch.randn(2_000, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    assert low <= random.min() < random.max() <= high
    z = torch.zeros(1, 16, dtype=torch.float64, requires_grad=True)
    gain = w[f"{name}.weight"].double()
    head = z * gain
    for layer in (0, 2, 4, 6, 7):
        head = linear(w, f"mlp.layers.{layer}", head)
    (best,) = torch.autograd.grad(head.sum(), z)
    assert float(value(best)) == pytest.approx(high, rel=3e-3, abs=3e-3 * (high - low))
    assert float(value(-best)) == pytest.approx(low, rel=3e-3, abs=3e-3 * (high - low))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_precisions(tiny: Path, images: Tensor, prompts: list[Prompt], dtype: str) -> None:
    found, expected = build(tiny, dtype=dtype).score(images, prompts), build(tiny).score(images, prompts)
    assert found.values.dtype == torch.float32
    spread = float(expected.values.std())
    torch.testing.assert_close(found.values, expected.values, atol=0.15 * spread, rtol=0)
    assert not found.values.equal(expected.values)


def test_autocast_outside_changes_nothing(tiny: Path, images: Tensor, prompts: list[Prompt]) -> None:
    reward = build(tiny)
    expected = reward.score(images, prompts).values
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert reward.score(images, prompts).values.equal(expected)


def test_examples_and_provenance(tiny: Path) -> None:
    reward = build(tiny)
    for example in reward.examples():
        assert not reward.score(example.media[None], [example.prompt]).missing.any()
    assert reward.provenance() == {"model": str(tiny), "file": WEIGHTS, "tokenizer": str(tiny)}


def test_a_prompt_that_is_no_text_is_missing(tiny: Path, images: Tensor) -> None:
    scores = build(tiny).score(images[:2], [Prompt("a"), Prompt("a \ud83d")])
    assert scores.missing.tolist() == [False, True]
    with pytest.raises(UserError, match="half of a character"):
        build(tiny).check_prompts([Prompt("a \ud83d")])


# -- the file ---------------------------------------------------------------------------------------------------------


def message(directory: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        build(directory, **options)
    found = str(caught.value)
    assert found.startswith("reward imagereward: option ")
    assert "\n" not in found
    return found


def test_every_published_name_has_one_place() -> None:
    """Names of the vision tower, from the published code (models/BLIP/vit.py), for those of transformers."""
    table = {
        "embeddings.class_embedding": "cls_token",
        "embeddings.position_embedding": "pos_embed",
        "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
        "encoder.layers.7.layer_norm1.bias": "blocks.7.norm1.bias",
        "encoder.layers.7.self_attn.qkv.weight": "blocks.7.attn.qkv.weight",
        "encoder.layers.7.self_attn.projection.bias": "blocks.7.attn.proj.bias",
        "encoder.layers.23.layer_norm2.weight": "blocks.23.norm2.weight",
        "encoder.layers.23.mlp.fc1.weight": "blocks.23.mlp.fc1.weight",
        "encoder.layers.23.mlp.fc2.bias": "blocks.23.mlp.fc2.bias",
        "post_layernorm.weight": "norm.weight",
    }
    assert {name: published_name(name).removeprefix("blip.visual_encoder.") for name in table} == table


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda t: t.pop("blip.visual_encoder.norm.bias"), "missing: blip.visual_encoder.norm.bias"),
        (lambda t: t.pop("blip.visual_encoder.pos_embed"), "missing: blip.visual_encoder.pos_embed"),
        (lambda t: t.pop("mlp.layers.4.bias"), "missing: mlp.layers.4.bias"),
        (
            lambda t: t.update({"blip.text_encoder.encoder.layer.1.output.dense.wieght": t.pop(
                "blip.text_encoder.encoder.layer.1.output.dense.weight")}),
            "missing: blip.text_encoder.encoder.layer.1.output.dense.weight; unexpected: "
            "blip.text_encoder.encoder.layer.1.output.dense.wieght",
        ),
        (lambda t: t.update({"blip.visual_encoder_m.cls_token": torch.zeros(1)}), "unexpected: blip.visual_encoder_m."),
        (lambda t: t.update({"blip.visual_encoder.cls_token": torch.zeros(1, 1, 4)}), "wrong shape: blip.visual"),
        (lambda t: t.update({"blip.visual_encoder.pos_embed": torch.zeros(4)}), "wrong shape: blip.visual_encoder"),
        (lambda t: t.update({"mlp.layers.0.weight": torch.zeros(1024, 8)}), "wrong shape: mlp.layers.0.weight"),
        (lambda t: t.update({"mlp.layers.5.weight": torch.zeros(3)}), "unexpected: mlp.layers.5.weight"),
    ],
)  # fmt: skip
def test_weights_that_do_not_match(copy: Path, edit: Callable[[dict[str, Tensor]], object], problem: str) -> None:
    tensors = tensors_of(copy)
    edit(tensors)
    torch.save(tensors, copy / WEIGHTS)
    found = message(copy)
    assert f"option model: the weights in {copy / WEIGHTS} do not match the model; {problem}" in found


def test_a_foreign_file(copy: Path, tmp_path: Path) -> None:
    torch.save({"transformer.weight": torch.zeros(3)}, copy / WEIGHTS)
    assert "missing: blip.visual_encoder.patch_embed.proj.weight" in message(copy)
    torch.save([1, 2], copy / WEIGHTS)
    assert message(copy).endswith("is not a mapping of names to tensors")
    (copy / WEIGHTS).write_bytes(b"noise")
    assert "cannot be read: " in message(copy)
    (copy / WEIGHTS).unlink()
    assert f"{copy / WEIGHTS} does not exist" in message(copy)


@pytest.mark.parametrize("name", ["blip.vision_proj.weight", "blip.text_encoder.embeddings.position_ids"])
def test_what_no_score_depends_on_may_be_absent(copy: Path, images: Tensor, prompts: list[Prompt], name: str) -> None:
    expected = build(copy).score(images, prompts).values
    tensors = tensors_of(copy)
    del tensors[name]
    torch.save(tensors, copy / WEIGHTS)
    assert build(copy).score(images, prompts).values.equal(expected)


def test_safetensors(copy: Path, images: Tensor, prompts: list[Prompt]) -> None:
    save_file(tensors_of(copy), copy / "converted.safetensors")
    found = build(copy, model_file="converted.safetensors").score(images, prompts).values
    assert found.equal(build(copy).score(images, prompts).values)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"num_attention_heads": None}, "num_attention_heads is missing"),
        ({"num_attention_heads": 3}, "med_config.json: "),
        ({"num_hidden_layers": 3}, "missing: blip.text_encoder.encoder.layer.2."),
        ({"hidden_size": "wide"}, "med_config.json: "),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is relative_key; expected absolute"),
    ],
)
def test_a_configuration_that_does_not_fit(copy: Path, change: dict[str, Any], problem: str) -> None:
    path = copy / "med_config.json"
    config = json.loads(path.read_text()) | change
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    assert problem in message(copy)


def test_no_configuration_or_vocabulary(copy: Path, tmp_path: Path) -> None:
    assert "has no vocabulary: tokenizer.json or vocab.txt" in message(copy, tokenizer=str(tmp_path))
    (copy / "med_config.json").unlink()
    assert "med_config.json does not exist" in message(copy)


def test_what_is_asked_of_the_hub(tiny: Path, hub: Callable[[Path], list[Any]]) -> None:
    asked = hub(tiny)
    reward = ImageRewardReward(ImageRewardOptions(revision="v1"), device=torch.device("cpu"))
    assert [one[:2] for one in asked] == [("THUDM/ImageReward", "v1"), ("google-bert/bert-base-uncased", None)]
    assert asked[0][2] == [WEIGHTS, "med_config.json"]
    assert reward.provenance()["revision"] == "0123abc"


def test_attention_by_hand() -> None:
    """Against torch's own, so that the comparison itself is checked."""
    q, k, v = torch.randn(3, 2, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    heads = [part.unflatten(-1, (2, 4)).transpose(1, 2) for part in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(q, k, v, 2), expected)
