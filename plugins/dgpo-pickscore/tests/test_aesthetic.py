"""The aesthetic predictor against its published formula in float64, and its head's file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_pickscore.rewards import AestheticReward
from dgpo_pickscore.testing import make_tiny_clip, make_tiny_head

Build = Callable[..., AestheticReward]
Contract = Callable[[AestheticReward, Tensor, list[Prompt]], None]


def published(directory: Path, head: Path, images: Tensor) -> Tensor:
    """float64 [B]: image, CLIP, unit length, five linear layers."""
    model = CLIPModel.from_pretrained(directory, torch_dtype=torch.float32).double().eval()
    processor, tensors = CLIPImageProcessorPil.from_pretrained(directory), load_file(head)
    pictures = [Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in images]
    pixels = processor(pictures, return_tensors="pt")["pixel_values"].double()
    with torch.no_grad():
        x = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    x = x / x.norm(dim=-1, keepdim=True)
    for layer in (0, 2, 4, 6, 7):
        x = x @ tensors[f"layers.{layer}.weight"].double().T + tensors[f"layers.{layer}.bias"].double()
    return x.squeeze(-1)


def test_values(aesthetic: Build, clip: Path, head: Path, images: Tensor, prompts: list[Prompt]) -> None:
    scores = aesthetic().score(images[..., :32, :32], prompts)
    expected = published(clip, head, images[..., :32, :32])
    torch.testing.assert_close(scores.values.double(), expected, atol=1e-5, rtol=1e-5)
    resized = aesthetic().score(images, prompts)
    torch.testing.assert_close(resized.values.double(), published(clip, head, images), atol=1e-5, rtol=1e-5)
    assert [d["value"] for d in resized.diagnostics] == resized.values.tolist()
    assert resized.values.unique().numel() == 6


def test_the_prompt_does_not_matter(aesthetic: Build, images: Tensor, prompts: list[Prompt]) -> None:
    reward = aesthetic()
    assert reward.score(images, prompts).values.equal(reward.score(images, prompts[::-1]).values)


def test_contract(aesthetic: Build, contract: Contract, images: Tensor, prompts: list[Prompt]) -> None:
    images[2, 0, 0, 0] = torch.nan
    contract(aesthetic(batch=4), images, prompts)
    contract(aesthetic(every=1), torch.stack([images, images.flip(0)], 1), prompts)


def test_the_range_is_reached_and_not_left(aesthetic: Build) -> None:
    """The head alone, on a million directions, and on the two that are best and worst for it."""
    reward = aesthetic()
    low, high = reward.range
    head = reward.head.double()
    directions = torch.nn.functional.normalize(
        torch.randn(100_000, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1
    )
    values = head(directions)
    assert low <= values.min() < values.max() <= high
    zero = torch.zeros(1, 16, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(head(zero).sum(), zero)
    best = torch.nn.functional.normalize(gradient, dim=-1)
    assert float(head(best)) == pytest.approx(high, abs=1e-4)
    assert float(head(-best)) == pytest.approx(low, abs=1e-4)


def test_the_text_tower_is_let_go(aesthetic: Build) -> None:
    names = dict(aesthetic().encoder._model.named_parameters())
    assert not any(name.startswith("text") for name in names)


def test_half_precision_stops_at_the_head(aesthetic: Build, images: Tensor, prompts: list[Prompt]) -> None:
    reward = aesthetic(dtype="bfloat16")
    assert {p.dtype for p in reward.head.parameters()} == {torch.float32}
    torch.testing.assert_close(
        reward.score(images, prompts).values, aesthetic().score(images, prompts).values, atol=0.05, rtol=0
    )


def test_a_head_for_another_clip(aesthetic: Build, tmp_path: Path) -> None:
    wide = str(make_tiny_head(tmp_path / "wide.safetensors", width=24))
    with pytest.raises(UserError, match=r"option head: .* embeddings of width 24, but .* returns 16; use the CLIP"):
        aesthetic(head=wide)


def test_the_processor_may_be_elsewhere(aesthetic: Build, clip: Path, tmp_path: Path) -> None:
    other = make_tiny_clip(tmp_path / "other", side=40)
    with pytest.raises(UserError, match=r"option processor: .* crops to \(40, 40\), but .* requires \(32, 32\)"):
        aesthetic(processor=str(other))
    assert aesthetic(processor=str(clip)).encoder.preprocessing == aesthetic().encoder.preprocessing


def test_examples(aesthetic: Build) -> None:
    reward = aesthetic()
    examples = reward.examples()
    assert [e.good for e in examples] == [True, False, False]
    for example in examples:
        assert example.media.shape == (3, 600, 512)
        assert 0 <= example.media.min() <= example.media.max() <= 1
        assert not reward.score(example.media[None], [example.prompt]).missing.any()
