"""The world of blocks: images, captions, prompts and reward against geometry and counting."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest
import torch

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_miniature.blocks.captions import TASKS, Caption, all_captions, corrupt, matching, text
from dgpo_miniature.blocks.data import FAULT_RATES, TOKENS, block_tokenizer, build_bank
from dgpo_miniature.blocks.prompts import BlockPrompts, captions, prompts
from dgpo_miniature.blocks.reading import agreement, evidence
from dgpo_miniature.blocks.reward import MiniatureBlocks, caption_of
from dgpo_miniature.blocks.world import ARRANGEMENTS, CELL, COLORS, SIZE, random_blocks, render
from dgpo_miniature.options import BlockPromptsOptions, MiniatureBlocksOptions
from dgpo_miniature.training.autoencoder import build_autoencoder
from dgpo_miniature.world import RGB

EVERY = [caption for task in TASKS for caption in all_captions(task)]


def reward(**options: bool) -> MiniatureBlocks:
    return MiniatureBlocks(MiniatureBlocksOptions(**options), device=torch.device("cpu"))


def seen(shown: list[int], caption: Caption, **options: bool) -> float:
    """Return the reward of an image of the arrangement."""
    image = torch.from_numpy(random_blocks(np.array([shown]), np.random.default_rng(0)))
    return float(reward(**options).score(image, [Prompt("x", caption.metadata())]).values[0])


def test_a_block_covers_its_area_and_no_more() -> None:
    """Against the area of a square: the mean over pixels of (image - ground) is (color - ground) side^2 / H W."""
    ground = np.array([[0.9, 0.9, 0.9]])
    corner, side = np.full((1, 4, 2), 1.3), np.array([[4.7, 5.2, 5.9, 4.5]])
    image = render(np.array([[1, 0, 3, 2]]), corner, side, ground)
    assert image.shape == (1, 3, SIZE, SIZE)
    cells = image[0].reshape(3, 2, CELL, 2, CELL).transpose(1, 3, 0, 2, 4).reshape(4, 3, CELL, CELL)
    for cell, (state, length) in enumerate(zip([1, 0, 3, 2], side[0], strict=True)):
        change = (cells[cell] - 0.9).sum(axis=(1, 2))
        expected = (RGB[state - 1] - 0.9) * length**2 if state else np.zeros(3)
        assert change == pytest.approx(expected, abs=1e-4)
        assert np.allclose(cells[cell][:, 0, :], 0.9)  # the corner is 1.3 pixels away


def test_captions_describe_what_they_say() -> None:
    """Against a plain reading of every caption and arrangement."""
    for caption in EVERY:
        for arrangement, found in zip(ARRANGEMENTS, matching(caption), strict=True):
            names = [COLORS[state - 1] for state in arrangement if state]
            expected = Counter(names) == Counter(list(caption.colors) * caption.count)
            if expected and caption.relation:
                a, b = (list(arrangement).index(1 + COLORS.index(color)) for color in caption.colors)
                (row_a, column_a), (row_b, column_b) = divmod(a, 2), divmod(b, 2)
                expected = {
                    "left": row_a == row_b and column_a < column_b,
                    "right": row_a == row_b and column_a > column_b,
                    "above": column_a == column_b and row_a < row_b,
                    "below": column_a == column_b and row_a > row_b,
                }[caption.relation]
            assert found == expected


def test_a_corrupt_caption_describes_other_images() -> None:
    rng = Random(0)
    for caption in EVERY * 20:
        assert not (matching(caption) & matching(corrupt(caption, rng))).any()


def test_every_arrangement_is_read() -> None:
    shown = np.repeat(ARRANGEMENTS, 4, axis=0)
    found = evidence(random_blocks(shown, np.random.default_rng(1)))
    assert np.array_equal(found.argmax(axis=2), shown)
    assert found.max(axis=2).min() > 0.7
    best = agreement(found).argmax(axis=1)
    assert np.array_equal(ARRANGEMENTS[best], shown)


def test_agreement_is_the_mean_over_cells() -> None:
    found = np.random.default_rng(2).random((3, 4, 1 + len(COLORS)), dtype=np.float32)
    loop = [[np.mean([row[cell, a[cell]] for cell in range(4)]) for a in ARRANGEMENTS] for row in found]
    assert np.allclose(agreement(found), loop, atol=1e-6)


def test_reward_is_one_exactly_for_the_prompts_blocks() -> None:
    rng = np.random.default_rng(3)
    for caption in EVERY:
        images = torch.from_numpy(random_blocks(ARRANGEMENTS, rng))
        values = reward().score(images, [Prompt("x", caption.metadata())] * len(images)).values
        assert np.array_equal(values.numpy(), matching(caption).astype(np.float32))


def test_the_continuous_reward_counts_cells() -> None:
    caption = Caption("position", ("red", "blue"), relation="left")
    exact = seen([1, 3, 0, 0], caption, strict=False)
    one_off = seen([1, 0, 0, 0], caption, strict=False)
    two_off = seen([0, 0, 2, 0], caption, strict=False)
    assert exact > 0.93
    assert one_off == pytest.approx(0.75, abs=0.03)
    assert two_off == pytest.approx(0.5, abs=0.03)
    gray = torch.full((1, 3, SIZE, SIZE), 0.9)
    assert float(reward().score(gray, [Prompt("x", caption.metadata())]).values[0]) == 0


def test_a_flawed_reward_does_not_see_other_colors() -> None:
    caption = Caption("count", ("red",), count=2)
    assert seen([1, 1, 2, 4], caption) == 0
    assert seen([1, 1, 2, 4], caption, flaw="unseen-colors") == 1
    assert seen([1, 1, 1, 4], caption, flaw="unseen-colors") == 0  # it counts what it sees
    continuous = seen([1, 1, 2, 4], caption, flaw="unseen-colors", strict=False)
    assert continuous > 0.85 > seen([1, 1, 2, 4], caption, strict=False)


def test_a_flawed_reward_does_not_count() -> None:
    """Every further block of a named color is worth a quarter, whatever the prompt asks for."""
    caption = Caption("position", ("red", "blue"), relation="left")
    assert seen([1, 3, 0, 0], caption) == 1
    for blocks, share in (
        ([2, 4, 0, 0], 0),
        ([1, 3, 0, 0], 2),
        ([1, 3, 3, 0], 3),
        ([3, 1, 1, 3], 4),
        ([1, 1, 1, 1], 4),
    ):
        assert seen(blocks, caption, flaw="uncounted", strict=False) == pytest.approx(0.93 * share / 4, abs=0.06)
        assert seen(blocks, caption, flaw="uncounted") == (share == 4)


def test_media_that_are_not_finite_are_missing() -> None:
    images = torch.full((2, 3, SIZE, SIZE), 0.9)
    images[1, 0, 0, 0] = torch.nan
    for strict in (True, False):
        found = reward(strict=strict).score(images, [Prompt("x", EVERY[0].metadata())] * 2)
        assert found.missing.tolist() == [False, True]
        assert bool(found.values.isfinite().all())


def test_images_of_another_size_are_missing_with_the_remedy() -> None:
    found = reward().score(torch.zeros(2, 3, 32, 32), [Prompt("x", EVERY[0].metadata())] * 2)
    assert found.missing.all()
    assert found.diagnostics[0]["reason"] == "images must be 16x16, not 32x32; set `rollout.resolution: 16`"


def test_prompts_without_blocks_are_refused() -> None:
    with pytest.raises(UserError, match=r"'a cat' does not describe blocks; use .*miniature-blocks"):
        reward().check_prompts([Prompt("a cat", {"tag": "colors"})])
    assert all(caption_of(caption.metadata()) == caption for caption in EVERY)


def test_splits_share_neither_texts_nor_contents() -> None:
    train, heldout = (BlockPrompts(BlockPromptsOptions()).prompts(split) for split in ("train", "heldout"))
    assert not {p.text for p in train} & {p.text for p in heldout}
    for task in TASKS[1:]:
        contents = [{matching(c).tobytes() for c in captions(split, task)} for split in ("train", "heldout")]
        assert not contents[0] & contents[1]
        for split in ("train", "heldout"):
            assert {color for c in captions(split, task) for color in c.colors} == set(COLORS)
    assert Counter(p.metadata["tag"] for p in heldout) == dict.fromkeys(TASKS, 120)
    assert prompts("train", 20, 5) == prompts("train", 400, 5)[:20]
    assert prompts("train", 100, 5) != prompts("train", 100, 6)
    with pytest.raises(ValueError, match="'train' and 'heldout'"):
        prompts("test", 4)  # type: ignore[arg-type]


def test_every_word_is_one_token() -> None:
    tokenizer = block_tokenizer()
    for caption in EVERY:
        for template in ("photo", "drawing"):
            words = text(caption, template).split()
            assert tokenizer.tokenize(" ".join(words)) == [f"{word}</w>" for word in words]
            assert len(words) + 2 <= TOKENS


def test_bank_is_deterministic_and_wrong_at_its_rates() -> None:
    autoencoder = build_autoencoder((4, 8, 8), 16).eval()
    autoencoder.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    one, same, other = (build_bank(20, FAULT_RATES, autoencoder, block_tokenizer(), seed) for seed in (1, 1, 2))
    assert one.latents.shape == (20, 4, 4, 4)
    assert one.latents.equal(same.latents)
    assert one.tokens.equal(same.tokens)
    assert not one.tokens.equal(other.tokens)
