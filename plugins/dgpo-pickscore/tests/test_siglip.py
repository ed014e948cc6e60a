"""SigLIP scores against the published formula in float64: padding, case, no mask; and what does not fit."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_pickscore.options import SiglipOptions
from dgpo_pickscore.siglip import SiglipReward
from dgpo_pickscore.testing import CHARACTERS, make_tiny_clip, make_tiny_siglip

from .by_hand import attention, block, cosine, gelu_tanh, linear, norm, patches, separate

Contract = Callable[[SiglipReward, Tensor, list[Prompt]], None]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_siglip(tmp_path_factory.mktemp("siglip") / "tiny")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def build(directory: Path, **options: Any) -> SiglipReward:
    return SiglipReward(SiglipOptions(model=str(directory), **options), device=torch.device("cpu"))


def tower(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Two layers with norms before attention and MLP; every position sees every other."""
    for layer in range(2):
        b = f"{name}.encoder.layers.{layer}"
        attend = separate(w, [f"{b}.self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")], 2)
        norms, layers = (f"{b}.layer_norm1", f"{b}.layer_norm2"), (f"{b}.mlp.fc1", f"{b}.mlp.fc2")
        x = block(w, norms, attend, layers, x, 1e-6, gelu_tanh)
    return x


def seen(w: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Patches, layers, and a query that is learned attends to all of them ("MAP head")."""
    v = "vision_model"
    x = patches(w, f"{v}.embeddings.patch_embedding", pixels) + w[f"{v}.embeddings.position_embedding.weight"].double()
    x = norm(w, f"{v}.post_layernorm", tower(w, v, x), 1e-6)
    weight, bias = (w[f"{v}.head.attention.in_proj_{part}"].double().chunk(3) for part in ("weight", "bias"))
    probe = w[f"{v}.head.probe"].double().expand(len(x), -1, -1)
    q, k, e = (part @ weight[i].T + bias[i] for i, part in enumerate((probe, x, x)))
    x = linear(w, f"{v}.head.attention.out_proj", attention(q, k, e, 2))
    inner = gelu_tanh(linear(w, f"{v}.head.mlp.fc1", norm(w, f"{v}.head.layernorm", x, 1e-6)))
    return (x + linear(w, f"{v}.head.mlp.fc2", inner))[:, 0]


def read(w: dict[str, Tensor], texts: list[str]) -> Tensor:
    """64 positions: lower-case letters, <eos>, then padding; the state of the last position."""
    vocabulary = ["<pad>", "<eos>", "<unk>", " ", *CHARACTERS]
    ids = torch.zeros(len(texts), 64, dtype=torch.long)
    for row, text in enumerate(texts):
        letters = [vocabulary.index(c) if c in vocabulary else 2 for c in text.lower()][:63]
        ids[row, : len(letters) + 1] = torch.tensor([*letters, 1])
    t = "text_model"
    positions = w[f"{t}.embeddings.position_embedding.weight"].double()
    x = w[f"{t}.embeddings.token_embedding.weight"].double()[ids] + positions
    x = norm(w, f"{t}.final_layer_norm", tower(w, t, x), 1e-6)
    return linear(w, f"{t}.head", x[:, -1])


def pixels_of(images: Tensor, side: int = 32) -> Tensor:
    """Squashed by PIL, bilinear; 0 to 1 becomes -1 to 1."""
    rows = []
    for image in (images * 255).round().byte().permute(0, 2, 3, 1).numpy():
        squashed = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
        rows.append(torch.from_numpy(np.array(squashed)).double().permute(2, 0, 1))
    return torch.stack(rows) / 127.5 - 1


def published(directory: Path, images: Tensor, prompts: list[Prompt]) -> Tensor:
    w = load_file(directory / WEIGHTS)
    return cosine(seen(w, pixels_of(images)), read(w, [prompt.text for prompt in prompts]))


@pytest.mark.parametrize("size", [(40, 48), (32, 32), (9, 5), (1, 1)])
def test_values(tiny: Path, images: Tensor, prompts: list[Prompt], size: tuple[int, int]) -> None:
    images = images[..., : size[0], : size[1]]
    prompts[1] = Prompt("Two BLUE Houses")
    scores = build(tiny).score(images, prompts)
    expected = published(tiny, images, prompts)
    torch.testing.assert_close(scores.values.double(), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.02
    assert [d["tokens"] for d in scores.diagnostics] == [len(prompt.text) + 1 for prompt in prompts]
    assert [d["truncated"] for d in scores.diagnostics] == [False] * 5 + [True]
    w = load_file(tiny / WEIGHTS)
    logits = expected * w["logit_scale"].double().exp() + w["logit_bias"].double()
    for d, value, logit in zip(scores.diagnostics, expected.tolist(), logits.tolist(), strict=True):
        assert d["cosine"] == pytest.approx(value, abs=1e-5)
        assert d["percent"] == pytest.approx(100 * value, abs=1e-3)
        assert d["probability"] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-4)


def test_scales(tiny: Path, images: Tensor, prompts: list[Prompt]) -> None:
    cosines, percents = build(tiny), build(tiny, scale="percent")
    torch.testing.assert_close(percents.score(images, prompts).values, 100 * cosines.score(images, prompts).values)
    assert (cosines.range, percents.range) == ((-1, 1), (-100, 100))


def test_case_does_not_matter(tiny: Path, images: Tensor) -> None:
    """The tokenizer alone would tell them apart."""
    reward = build(tiny)
    ids = [reward.encoder._tokenizer(text)["input_ids"] for text in ("A RED fox", "a red fox")]
    assert ids[0] != ids[1]
    values = reward.score(images[:1].expand(2, -1, -1, -1), [Prompt("A RED fox"), Prompt("a red fox")]).values
    assert values[0] == values[1]


def test_padding_is_read(tiny: Path) -> None:
    """The tower has no mask: a text alone and one in a batch with longer ones have the same 64 positions."""
    encoder = build(tiny).encoder
    alone, together = encoder.texts(["a"])[0], encoder.texts(["a", "a long text", "x" * 100])[0]
    torch.testing.assert_close(alone.embedding, together.embedding, atol=1e-6, rtol=0)
    tokens, _, limit = encoder._tokens(["a"])
    assert (limit, list(tokens)) == (64, ["input_ids"])
    assert tokens["input_ids"][0].tolist() == [4, 1] + [0] * 62


@pytest.mark.parametrize("options", [{}, {"batch": 2, "scale": "percent"}, {"text_cache": 1}], ids=str)
def test_contract(
    tiny: Path, contract: Contract, images: Tensor, prompts: list[Prompt], options: dict[str, Any]
) -> None:
    images[4, 0, 0, 0] = torch.nan
    contract(build(tiny, **options), images, prompts)
    contract(build(tiny, every=2, **options), torch.stack([images, images, images.flip(0)], 1), prompts)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_precisions(tiny: Path, images: Tensor, prompts: list[Prompt], dtype: str) -> None:
    found, expected = build(tiny, dtype=dtype), build(tiny)
    assert found.encoder.logit_scale == expected.encoder.logit_scale
    values = found.score(images, prompts).values
    torch.testing.assert_close(values, expected.score(images, prompts).values, atol=0.03, rtol=0)
    assert not values.equal(expected.score(images, prompts).values)


def test_examples_and_provenance(tiny: Path) -> None:
    reward = build(tiny)
    for example in reward.examples():
        assert not reward.score(example.media[None], [example.prompt]).missing.any()
    assert reward.provenance() == {"model": str(tiny)}


# -- files ------------------------------------------------------------------------------------------------------------


def message(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        build(directory)
    text = str(caught.value)
    assert text.startswith("reward siglipscore: option model: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda t: t.pop("vision_model.head.probe"), "missing: vision_model.head.probe"),
        (lambda t: t.update({"text_model.haed.weight": t.pop("text_model.head.weight")}),
         "missing: text_model.head.weight; unexpected: text_model.haed.weight"),
        (lambda t: t.update({"visual_projection.weight": torch.zeros(2)}), "unexpected: visual_projection.weight"),
        (lambda t: t.update({"text_model.embeddings.position_embedding.weight": torch.zeros(77, 16)}),
         "wrong shape: text_model.embeddings.position_embedding.weight"),
    ],
)  # fmt: skip
def test_weights_that_do_not_match(copy: Path, edit: Callable[[dict[str, Tensor]], object], problem: str) -> None:
    tensors = load_file(copy / WEIGHTS)
    edit(tensors)
    save_file(tensors, copy / WEIGHTS, metadata={"format": "pt"})
    assert message(copy).endswith(f"do not match the model; {problem}")


def test_other_architectures(copy: Path, tmp_path: Path) -> None:
    """SigLIP 2 of any resolution (NaFlex) reads lists of patches."""
    assert "contains a model of type clip; expected siglip" in message(make_tiny_clip(tmp_path / "clip"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "siglip2"}))
    assert "contains a model of type siglip2; expected siglip" in message(copy)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"do_resize": False}, "do_resize is false"),
        ({"do_center_crop": True}, "do_center_crop is true; this step is not supported here"),
        ({"size": 32}, "size is 32; it must have height and width"),
        ({"size": {"shortest_edge": 32}}, "it must have height and width"),
        ({"size": {"height": 48, "width": 48}}, r"resizes to (48, 48), but requires (32, 32)"),
        ({"image_std": None}, "image_std is missing"),
    ],
)
def test_preprocessing_that_does_not_fit(copy: Path, change: dict[str, Any], problem: str) -> None:
    path = copy / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert problem in message(copy)


def test_no_vocabulary(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    assert "has no vocabulary: tokenizer.json or spiece.model" in message(copy)


def test_a_tokenizer_that_does_not_mark_the_end(copy: Path) -> None:
    path = copy / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    assert message(copy).endswith(f"the tokenizer of {copy} does not end texts with its end token")


@pytest.mark.parametrize("name", ["GemmaTokenizer", "Siglip2Tokenizer"])
def test_the_vocabulary_is_read_as_it_is(copy: Path, images: Tensor, prompts: list[Prompt], name: str) -> None:
    """Published configurations name a class that transformers 5 would build anew, with normalization of its own."""
    expected = build(copy).score(images, prompts).values
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": name}))
    assert build(copy).score(images, prompts).values.equal(expected)


def test_the_tokenizer_of_siglip_1(copy: Path, images: Tensor) -> None:
    """Sentencepiece, which removes punctuation as well; learned here from a few words."""
    sentencepiece = pytest.importorskip("sentencepiece")
    from transformers import SiglipTokenizer

    words = ["a red fox runs", "two blue houses stand", "a photo of a cat", "the sea at night", "an open book"] * 20
    with (copy / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(words), model_writer=file, vocab_size=32, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
            minloglevel=2,
        )  # fmt: skip
    SiglipTokenizer(str(copy / "spiece.model"), pad_token="<pad>").save_pretrained(copy)
    encoder = build(copy).encoder
    assert type(encoder._tokenizer).__name__ == "SiglipTokenizer"
    ids = [encoder._tokens([text])[0]["input_ids"][0].tolist() for text in ("a red fox", "A red, FOX!", "a cat")]
    assert ids[0] == ids[1] != ids[2]
    assert len(ids[0]) == 64
    assert not build(copy).score(images[:1], [Prompt("a red fox")]).missing.any()
