"""The world of signs: images, captions and prompts against geometry and counting."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest

from dgpo_core.types import Prompt
from dgpo_miniature.options import SignPromptsOptions
from dgpo_miniature.signs.captions import HELDOUT_TEMPLATES, LETTERS, TRAIN_TEMPLATES, all_words, misspell, text
from dgpo_miniature.signs.data import TOKENS, Faults, build_bank, random_words, sign_tokenizer
from dgpo_miniature.signs.prompts import SignPrompts, prompts, words
from dgpo_miniature.signs.world import HEIGHT, WIDTH, Signs, random_signs, render
from dgpo_miniature.training.autoencoder import build_autoencoder


def plain(word: str, offset: tuple[float, float] = (0.0, 0.0), size: float = 22.0) -> Signs:
    """Return a black word on white."""
    return Signs((word,), np.array([size]), np.array([offset]), np.zeros(1), np.ones(1))


def ink_box(image: np.ndarray) -> tuple[float, float, float, float]:
    """Return the box (x0, y0, x1, y1) of the pixels darker than mid-gray."""
    rows, columns = np.nonzero(image.mean(axis=0) < 0.5)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_images_are_dark_ink_on_light_ground() -> None:
    rng = np.random.default_rng(0)
    signs = random_signs(random_words(50, rng), rng)
    images = render(signs)
    assert images.shape == (50, 3, HEIGHT, WIDTH)
    assert images.dtype == np.float32
    assert images.min() >= 0.0 and images.max() <= 1.0  # noqa: PT018
    assert np.allclose(images[:, :, 0, 0], signs.ground[:, None])
    assert np.allclose(images.min(axis=(2, 3)), signs.ink[:, None], atol=0.02)


def test_position_of_a_word() -> None:
    (middle,), (moved,) = render(plain("HEN")), render(plain("HEN", (2.0, -2.0)))
    x0, y0, x1, y1 = ink_box(middle)
    assert (x0 + x1) / 2 == pytest.approx(WIDTH / 2, abs=1.0)
    assert (y0 + y1) / 2 == pytest.approx(HEIGHT / 2, abs=1.0)
    # A capital letter of Aileron is 0.7 em high; the stroke adds height above and below.
    assert y1 - y0 == pytest.approx(0.7 * 22 + 2 * 0.6, abs=1.5)
    assert ink_box(moved) == pytest.approx((x0 + 2, y0 - 2, x1 + 2, y1 - 2), abs=1.0)


def test_every_word_stays_inside() -> None:
    for word in ("NNN", "HUN", "CUR"):
        for offset in ((9.0, 9.0), (-9.0, -9.0)):
            image = render(plain(word, offset, size=24.0))[0]
            border = np.concatenate([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], axis=1)
            assert border.min() > 0.5


def test_letters_look_different() -> None:
    images = np.concatenate([render(plain(letter * 3)) for letter in LETTERS])
    apart = np.abs(images[:, None] - images[None]).mean(axis=(2, 3, 4))
    assert apart[~np.eye(len(LETTERS), dtype=bool)].min() > 0.015


def test_images_do_not_depend_on_their_batch() -> None:
    signs = random_signs(["CAB", "PEN", "SUN"], np.random.default_rng(1))
    last = Signs(signs.words[2:], signs.size[2:], signs.offset[2:], signs.ink[2:], signs.ground[2:])
    assert np.array_equal(render(signs)[2:], render(last))


def test_every_letter_is_one_token() -> None:
    """So the model can write held-out words, and no token of a template occurs inside the quotes."""
    tokenizer = sign_tokenizer()
    for template in (*TRAIN_TEMPLATES, *HELDOUT_TEMPLATES):
        before = template.split('"')[0].split()
        for word in all_words()[::7]:
            pieces = tokenizer.tokenize(text(word, template))
            first, second, third = word.lower()
            assert pieces == [f"{part}</w>" for part in before] + ['"</w>', first, second, f"{third}</w>", '"</w>']
            assert len(pieces) + 2 <= TOKENS


def test_rates_of_misspelling() -> None:
    rng = Random(0)
    pairs = [(word, misspell(word, rng, replaced=0.3, swapped=0.0)) for word in all_words() for _ in range(3)]
    wrong = [a != b for said, written in pairs for a, b in zip(said, written, strict=True)]
    assert np.mean(wrong) == pytest.approx(0.3, abs=0.015)
    assert all(set(written) <= set(LETTERS) for _, written in pairs)
    swapped = [misspell("CAB", rng, replaced=0.0, swapped=0.5) for _ in range(2000)]
    share = {word: count / 2000 for word, count in Counter(swapped).items()}
    assert share == pytest.approx({"CAB": 0.5, "ACB": 0.25, "CBA": 0.25}, abs=0.04)
    assert misspell("CAB", rng, replaced=0.0, swapped=0.0) == "CAB"


def test_splits_share_neither_words_nor_texts() -> None:
    train, heldout = words("train"), words("heldout")
    assert sorted(train + heldout) == all_words()
    assert len(heldout) == len(all_words()) // 6
    assert not {e["prompt"] for e in prompts("train", 3000)} & {e["prompt"] for e in prompts("heldout", 3000)}
    for split in (train, heldout):
        for place in range(3):
            assert len(set(Counter(word[place] for word in split).values())) == 1
    assert {word[:2] for word in train} == {a + b for a in LETTERS for b in LETTERS}
    assert not {"".join(sorted(word)) for word in train} & {"".join(sorted(word)) for word in heldout}


def test_prompts_quote_their_target_and_do_not_repeat_early() -> None:
    found = SignPrompts(SignPromptsOptions()).prompts("train")
    assert [prompt.text.split('"')[1] for prompt in found] == [prompt.metadata["target"] for prompt in found]
    assert len({prompt.metadata["target"] for prompt in found}) == len(found) == 1440
    assert all(isinstance(prompt, Prompt) for prompt in found)
    assert prompts("train", 100, 5) == prompts("train", 2000, 5)[:100]
    assert prompts("train", 100, 5) != prompts("train", 100, 6)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="'train' and 'heldout'"):
        prompts("test", 6)  # type: ignore[arg-type]


def test_bank_is_deterministic() -> None:
    autoencoder = build_autoencoder().eval()
    autoencoder.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    one, same, other = (build_bank(20, Faults(0.3, 0.1), autoencoder, sign_tokenizer(), seed) for seed in (1, 1, 2))
    assert one.latents.shape == (20, 4, HEIGHT // 8, WIDTH // 8)
    assert one.latents.equal(same.latents)
    assert one.tokens.equal(same.tokens)
    assert not one.tokens.equal(other.tokens)
