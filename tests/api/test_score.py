"""`score`: rewards on tensors, PIL images and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dgpo_core import Run, UserError, score
from dgpo_core.plugins.registry import Registry

GRAY = torch.stack([torch.full((3, 8, 8), shade / 255) for shade in (0, 51, 204, 255)])
SHADES = [0, 0.2, 0.8, 1]


@pytest.fixture(autouse=True)
def _here(known: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def images() -> list[Image.Image]:
    return [Image.new("RGB", (8, 8), (round(shade * 255),) * 3) for shade in SHADES]


def test_tensors_images_and_files_are_the_same() -> None:
    for i, image in enumerate(images()):
        image.save(f"{i}.png")
    for media in (GRAY, list(GRAY), images(), [f"{i}.png" for i in range(4)], [Path(f"{i}.png") for i in range(4)]):
        found = score("brightness", media, "x", device="cpu", batch=3)
        assert found.values.tolist() == pytest.approx(SHADES, abs=1e-6)
        assert found.values.dtype == torch.float32
        assert not bool(found.missing.any())
        assert len(found.diagnostics) == 4
    assert score("brightness", GRAY[1], ["x"]).values.tolist() == pytest.approx([0.2])
    assert score("brightness", images()[2], ["x"]).values.tolist() == pytest.approx([0.8])
    assert score("brightness", "3.png", ["x"]).values.tolist() == pytest.approx([1])


def test_samples_have_their_prompts(trained: Run) -> None:
    samples = trained.sample(["a", "b"], count=2)
    found = score("brightness", samples)
    assert found.values.tolist() == score("brightness", samples.tensors, list(samples.prompts)).values.tolist()
    assert len(found.values) == 4


def test_media_of_several_sizes_and_what_cannot_be_read() -> None:
    Path("broken.png").write_text("no image")
    found = score("brightness", [GRAY[1], torch.full((3, 16, 8), 0.6), "broken.png"], "x")
    assert found.missing.tolist() == [False, False, True]
    assert found.values.tolist()[:2] == pytest.approx([0.2, 0.6])
    assert bool(found.values[2].isnan())
    assert "reason" in found.diagnostics[2]


def test_a_reward_that_compares_sees_the_samples_of_a_prompt() -> None:
    found = score("win-rate", GRAY, ["a", "a", "b", "b"])
    assert found.values[0] < found.values[1]
    assert found.values[2] < found.values[3]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: score("brigtness", GRAY, "x"), "unknown reward 'brigtness'; did you mean brightness?"),
        (lambda: score("brightness", GRAY, "x", {"limit": 1}), "options.limit: unknown key"),
        (lambda: score("brightness", GRAY, "x", [1]), "options: must be a dict of the reward's options, got list"),
        (lambda: score("brightness", GRAY, [1]), "prompts[0]: must be a text, a Prompt, or a dict"),
        (lambda: score("brightness", GRAY), "prompts: required; give one for each of the media, or one for all"),
        (lambda: score("brightness", GRAY, ["x", "y"]), "prompts: 2 for 4 media"),
        (lambda: score("brightness", "nope.png", "x"), "media[0]: nope.png: no such file"),
        (lambda: score("brightness", [3], "x"), "media[0]: must be a tensor, a PIL image or a path, not int"),
        (lambda: score("brightness", [], "x"), "media: is empty; there is nothing to score"),
        (lambda: score("brightness", GRAY[0, 0], "x"), "media: must be [N, 3, H, W]"),
        (lambda: score("brightness", GRAY.byte(), "x"), "media[0]: must be float in [0, 1], not uint8"),
        (lambda: score("brightness", GRAY[:, :1], "x"), "media[0]: must be [3, H, W]"),
        (lambda: score("brightness", GRAY, "x", device="gpu"), "device gpu: choose one of auto, cpu, cuda"),
        (lambda: score("brightness", GRAY, "x", batch=0), "batch=0: must be an integer of at least 1"),
        (lambda: score("win-rate", GRAY, ["a", "a", "b", "c"]), "give at least two files per prompt"),
    ],
)
def test_mistakes(call: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert said in str(caught.value)
