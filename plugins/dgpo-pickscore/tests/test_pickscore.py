"""PickScore against the library's own forward pass in float64, and everything that may come to a reward."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Prompt
from dgpo_kit.contracts import check_reward
from dgpo_pickscore import plugin
from dgpo_pickscore.rewards import PickScoreReward
from dgpo_pickscore.testing import make_tiny_clip
from dgpo_schemas.base import UseBlock
from dgpo_schemas.diagnostics import Diagnostics

Build = Callable[..., PickScoreReward]
Contract = Callable[[PickScoreReward, Tensor, list[Prompt]], None]


def logits(directory: Path, images: Tensor, prompts: list[Prompt], length: int = 77) -> Tensor:
    """logits_per_image of each pair, float64 [B]: PIL images through transformers alone, one pair at a time."""
    model = CLIPModel.from_pretrained(directory, torch_dtype=torch.float32).double().eval()
    processor, tokenizer = CLIPImageProcessorPil.from_pretrained(directory), CLIPTokenizer.from_pretrained(directory)
    found = []
    for image, prompt in zip(images, prompts, strict=True):
        pil = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
        pixels = processor(pil, return_tensors="pt")["pixel_values"]
        tokens = tokenizer(prompt.text, truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            found.append(model(pixel_values=pixels.double(), **tokens).logits_per_image[0, 0])
    return torch.stack(found)


def test_values_on_both_scales(pickscore: Build, clip: Path, images: Tensor, prompts: list[Prompt]) -> None:
    expected = logits(clip, images, prompts)
    divided, paper = pickscore(), pickscore(scale="paper")
    scores, printed = divided.score(images, prompts), paper.score(images, prompts)
    assert not scores.missing.any()
    assert scores.values.dtype == torch.float32
    torch.testing.assert_close(scores.values.double(), expected / 26, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(printed.values.double(), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(printed.values, scores.values * 26, atol=1e-5, rtol=1e-5)
    for d, value in zip(scores.diagnostics, scores.values.tolist(), strict=True):
        assert d["flowgrpo"] == pytest.approx(value)
        assert d["paper"] == pytest.approx(26 * value)
        assert d["cosine"] == pytest.approx(26 * value / 100)
    assert scores.values.unique().numel() == 6
    assert divided.range == pytest.approx((-100 / 26, 100 / 26))
    assert paper.range == pytest.approx((-100, 100))


def test_the_range_follows_from_the_weights(tmp_path: Path) -> None:
    tiny = str(make_tiny_clip(tmp_path, scale=50, seed=3))
    registry = Registry(discover=False)
    registry.register(plugin, distribution="dgpo-pickscore")
    options = {"model": tiny, "processor": tiny, "scale": "paper"}
    reward = registry.create("reward", UseBlock(use="pickscore", options=options), device=torch.device("cpu"))
    assert reward.range == pytest.approx((-50, 50))
    low, high = PickScoreReward.range
    assert -low == high == 100 / 26


@pytest.mark.parametrize("options", [{}, {"scale": "paper"}, {"batch": 2}, {"text_cache": 1}], ids=str)
def test_contract(
    pickscore: Build, contract: Contract, images: Tensor, prompts: list[Prompt], options: dict[str, object]
) -> None:
    images[3, 0, 0, 0] = torch.nan
    images[4] += 2
    contract(pickscore(**options), images, prompts)


def test_contract_for_video(pickscore: Build, contract: Contract, images: Tensor, prompts: list[Prompt]) -> None:
    videos = torch.stack([images, images.flip(0), images.roll(2, 0)], 1)
    videos[5, 2, 0, 0, 0] = torch.inf
    reward = pickscore(every=2, batch=5)
    contract(reward, videos, prompts)
    scores = reward.score(videos, prompts)
    assert scores.missing.tolist() == [False] * 5 + [True]
    first, last = (reward.score(videos[:, i], prompts).values for i in (0, 2))
    torch.testing.assert_close(scores.values[:5], (first + last)[:5] / 2)
    torch.testing.assert_close(torch.tensor([d["frames"] for d in scores.diagnostics[:5]])[:, 1], last[:5])
    assert scores.diagnostics[0]["flowgrpo"] == pytest.approx(float(scores.values[0]))


def test_what_is_missing_says_why(pickscore: Build, images: Tensor, prompts: list[Prompt]) -> None:
    expected = pickscore().score(images, prompts).values
    images[1, 2, 5, 5] = torch.nan
    images[2] *= 255
    scores = pickscore().score(images, prompts)
    assert scores.missing.tolist() == [False, True, True, False, False, False]
    assert scores.values[scores.missing].isnan().all()
    assert scores.diagnostics[1] == {"reason": "the image has values that are not finite"}
    assert scores.diagnostics[2]["reason"].endswith("outside [0, 1]")
    torch.testing.assert_close(scores.values[~scores.missing], expected[~scores.missing])
    for d in scores.diagnostics:
        Diagnostics.model_validate(d)


@pytest.mark.parametrize("size", [(0, 0), (0, 3), (3, 0)])
def test_images_without_anything_to_see(pickscore: Build, size: tuple[int, int]) -> None:
    scores = pickscore().score(torch.zeros(2, 3, *size), [Prompt("a"), Prompt("b")])
    assert scores.missing.all()
    assert all("reason" in d for d in scores.diagnostics)


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (2, 1), (31, 500)])
def test_small_and_long_images_are_scored(pickscore: Build, size: tuple[int, int]) -> None:
    assert not pickscore().score(torch.rand(2, 3, *size), [Prompt("a"), Prompt("b")]).missing.any()


def test_a_network_that_makes_no_numbers(pickscore: Build, images: Tensor, prompts: list[Prompt]) -> None:
    reward = pickscore()
    with torch.no_grad():
        reward.encoder._model.visual_projection.weight[0, 0] = torch.nan
    scores = reward.score(images, prompts)
    assert scores.missing.all()
    assert scores.diagnostics[0] == {"reason": "the network (float32) returned a value that is not finite"}


def test_other_media_are_refused(pickscore: Build, images: Tensor, prompts: list[Prompt]) -> None:
    with pytest.raises(ValueError, match="media must be float"):
        pickscore().score((images * 255).byte(), prompts)
    with pytest.raises(ValueError, match="6 media but 2 prompts"):
        pickscore().score(images, prompts[:2])


def test_truncation_is_reported(pickscore: Build, images: Tensor, tmp_path: Path) -> None:
    """The tiny tokenizer reads letter by letter; two tokens mark start and end."""
    texts = ["x" * 75, "x" * 76, "x" * 76 + " and more", "y"]
    scores = pickscore().score(images[:1].expand(4, -1, -1, -1), [Prompt(text) for text in texts])
    assert [d["truncated"] for d in scores.diagnostics] == [False, True, True, False]
    assert [d["tokens"] for d in scores.diagnostics] == [77, 78, 85, 3]
    tiny = str(make_tiny_clip(tmp_path, text_tokens=5))
    (one, other) = pickscore(model=tiny, processor=tiny).score(images[:2], [Prompt("abc"), Prompt("abcd")]).diagnostics
    assert (one["truncated"], other["truncated"]) == (False, True)


def test_prompts_are_encoded_once(pickscore: Build, images: Tensor, prompts: list[Prompt]) -> None:
    reward = pickscore(batch=2)
    asked: list[int] = []
    encode = reward.encoder._texts
    reward.encoder._texts = lambda tokens: asked.append(len(tokens["input_ids"])) or encode(tokens)  # type: ignore[method-assign]
    first = reward.score(images, prompts)
    assert asked == [2, 2, 1]  # five different ones, in batches
    assert reward.score(images, prompts).values.equal(first.values)
    reward.score(images[:1], prompts[:1])
    assert asked == [2, 2, 1]
    assert len(reward.texts) == 5
    assert reward.texts(["a red fox"])[0].embedding.untyped_storage().nbytes() == 16 * 4, "no batch is kept alive"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_precisions(pickscore: Build, images: Tensor, prompts: list[Prompt], dtype: str) -> None:
    """Rounding of the network alone: the logit scale, the norms and the cosine stay in float32."""
    reward = pickscore(dtype=dtype)
    assert {str(p.dtype) for p in reward.encoder._model.parameters()} == {f"torch.{dtype}"}
    assert reward.range == pickscore().range
    found, expected = reward.score(images, prompts), pickscore().score(images, prompts)
    assert found.values.dtype == torch.float32
    torch.testing.assert_close(found.values, expected.values, atol=0.2 if dtype == "bfloat16" else 0.03, rtol=0)
    embedding = reward.texts(["a"])[0].embedding
    assert embedding.dtype == torch.float32
    assert float(embedding.double().norm()) == pytest.approx(1, abs=1e-6)


def test_autocast_outside_changes_nothing(pickscore: Build, images: Tensor, prompts: list[Prompt]) -> None:
    expected = pickscore().score(images, prompts).values
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert pickscore().score(images, prompts).values.equal(expected)


def test_nothing_asks_for_gradients(pickscore: Build, images: Tensor, prompts: list[Prompt]) -> None:
    images.requires_grad_()
    reward = pickscore()
    assert not reward.score(images, prompts).values.requires_grad
    assert not any(p.requires_grad for p in reward.encoder._model.parameters())


def test_examples(pickscore: Build) -> None:
    reward = pickscore()
    examples = reward.examples()
    assert {e.good for e in examples} == {True, False}
    assert len({e.name for e in examples}) == len(examples)
    for example in examples:
        scores = reward.score(example.media[None], [example.prompt])
        assert not scores.missing.any()
        json.dumps(scores.diagnostics, allow_nan=False)


def test_the_examples_find_out_weights_that_know_nothing(
    pickscore: Build, images: Tensor, prompts: list[Prompt]
) -> None:
    with pytest.raises(AssertionError, match="good examples must score above bad ones"):
        check_reward(pickscore(), images, prompts)


def test_a_prompt_that_is_no_text_is_missing(pickscore: Build, images: Tensor) -> None:
    """No tokenizer takes half of a character; the other samples have their values."""
    reward = pickscore()
    prompts = [Prompt("a circle"), Prompt("a circle \ud83d"), Prompt("a circle \udcff")]
    scores = reward.score(images[:3], prompts)
    assert scores.missing.tolist() == [False, True, True]
    assert scores.values[0] == reward.score(images[:1], prompts[:1]).values[0]
    assert "the prompt contains half of a character" in scores.diagnostics[1]["reason"]
    assert "the prompt contains the byte 0xFF" in scores.diagnostics[2]["reason"]
    reward.check_prompts(prompts[:1])
    with pytest.raises(UserError, match="the prompt contains half of a character"):
        reward.check_prompts(prompts)
