"""Rows of conditioning: gathered, joined, of different lengths."""

from __future__ import annotations

import torch

from dgpo_core.training.policy import ConditioningCache
from dgpo_core.types import Conditioning, Prompt
from dgpo_kit.given import prompts_of

LENGTHS = (3, 1, 2)


def ragged(length: int) -> Conditioning:
    text = torch.arange(1.0, 1 + 2 * length).view(1, length, 2) + 10 * length
    mask = torch.ones(1, length, dtype=torch.bool)
    return Conditioning(
        {"text": text, "mask": mask, "pooled": torch.full((1, 4), float(length))},
        {"text": (length,), "mask": (length,)},
    )


def test_rows_of_different_lengths_are_filled_with_zeros() -> None:
    joined = Conditioning.cat([ragged(length) for length in LENGTHS])
    assert joined.lengths == {"text": LENGTHS, "mask": LENGTHS}
    assert joined.tensors["text"].shape == (3, 3, 2)
    assert joined.tensors["mask"].tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    for i, length in enumerate(LENGTHS):
        assert torch.equal(joined.tensors["text"][i, :length], ragged(length).tensors["text"][0])
        assert not joined.tensors["text"][i, length:].any()


def test_rows_are_as_long_as_the_longest_of_them() -> None:
    joined = Conditioning.cat([ragged(length) for length in LENGTHS])
    some = joined.rows([2, 1, 2])
    assert some.tensors["text"].shape == (3, 2, 2)
    assert some.lengths["text"] == (2, 1, 2)
    assert joined.rows(slice(1, 2)).tensors["text"].shape == (1, 1, 2)
    for name, tensor in joined.rows([0]).tensors.items():
        assert torch.equal(tensor, ragged(3).tensors[name])
    seen = ragged(2).expand(5)
    assert (len(seen), seen.lengths["mask"]) == (5, (2,) * 5)


class Model:
    """Counts what it encodes."""

    device = torch.device("cpu")

    def bucket(self, prompt: Prompt) -> object:
        return prompt.size

    def __init__(self) -> None:
        self.asked: list[tuple[str, Prompt]] = []

    def encode(self, prompts: list[Prompt]) -> Conditioning:
        self.asked += [("prompt", prompt) for prompt in prompts]
        return Conditioning({"c": torch.full((len(prompts), 1), float(len(self.asked)))})

    def unconditional(self, prompts: list[Prompt]) -> Conditioning:
        self.asked += [("negative", prompt) for prompt in prompts]
        return Conditioning({"c": torch.full((len(prompts), 1), float(len(self.asked)))})

    def encoding(self) -> torch.no_grad:
        return torch.no_grad()


def test_each_prompt_is_encoded_once_and_each_negative_once() -> None:
    model = Model()
    cache = ConditioningCache(model)  # type: ignore[arg-type]
    a, b = prompts_of(["a", "b"])
    empty = Prompt("", size=a.size)
    none, said = Prompt("c", size=a.size), Prompt("c", size=a.size, negative="")
    assert cache([a, b, a]).tensors["c"].flatten().tolist() == [1, 2, 1]
    assert cache.unconditional([a, b, none]).tensors["c"].flatten().tolist() == [3, 3, 3]
    assert cache([empty]).tensors["c"].item() == 4, "a prompt without text is no unconditional row"
    assert cache.unconditional([said]).tensors["c"].item() == 5, "an empty negative prompt is not the model's own"
    assert cache([Prompt("a", size=(8, 8))]).tensors["c"].item() == 6, "another size may be another row"
    assert [kind for kind, _ in model.asked] == ["prompt", "prompt", "negative", "prompt", "negative", "prompt"]
