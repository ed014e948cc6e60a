"""The reward with a fake engine: scores, missing samples, diagnostics and threads."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgpo_core.data.checks import check_prompts
from dgpo_core.data.prompts import load_file
from dgpo_core.errors import UserError
from dgpo_core.types import Prompt, Scores
from dgpo_ocr.engine import Line
from dgpo_ocr.options import OcrOptions
from dgpo_ocr.reward import OcrReward
from dgpo_schemas.diagnostics import Diagnostics

CPU = torch.device("cpu")
TEXTS = ["", "OPEN", "OPEN DAILY", "OPER", "Music", "O PEN\t"]
"""The text of an image, by its level."""
OPEN = Prompt('A sign that says "OPEN"')


class Script:
    """An engine that reads an image's level; its hook is called with it and may raise."""

    def __init__(self, hook: Callable[[int], object] = lambda level: None) -> None:
        self.hook = hook
        self.thread = threading.get_ident()

    def read(self, image: NDArray[np.uint8]) -> list[Line]:
        assert threading.get_ident() == self.thread, "an engine stays in its thread"
        level = int(image[0, 0, 0])
        self.hook(level)
        if not TEXTS[level]:
            return []
        height, width = image.shape[:2]
        corners = ((0.0, 0.0), (float(width), 0.0), (float(width), float(height)))
        return [Line(TEXTS[level], 0.9, corners), Line("doubtful", 0.1, corners), Line("  ", 1.0, corners)]


def images(*levels: int, side: int = 64) -> Tensor:
    return torch.stack([torch.full((3, side, side), level / 255) for level in levels])


def video(*levels: int) -> Tensor:
    """A video [1, F, 3, 64, 64] with these levels."""
    return images(*levels)[None]


def reward(make: Callable[[], Any] = Script, **options: Any) -> OcrReward:
    return OcrReward(OcrOptions(**options), device=CPU, make=make)


def score(media: Tensor, make: Callable[[], Any] = Script, prompt: Prompt = OPEN, **options: Any) -> Scores:
    made = reward(make, **options)
    try:
        return made.score(media, [prompt] * len(media))
    finally:
        made.close()


def test_images() -> None:
    scores = score(images(0, 1, 2, 3, 4, 5))
    assert scores.values.dtype == torch.float32
    assert scores.values.tolist() == [0, 1, 1, 0.75, 0, 1]
    assert not scores.missing.any()
    assert [d["surplus"] for d in scores.diagnostics] == [0, 0, 5, 0, 1, 0]
    assert [d["distance"] for d in scores.diagnostics] == [4, 0, 0, 1, 4, 0]
    assert score(images(1, 2, 3), strict=True).values.tolist() == [1, 0, 0.75]


def test_diagnostics() -> None:
    blank, surplus, wrong = score(images(0, 2, 3)).diagnostics
    assert blank == {
        "target": "OPEN",
        "text": "",
        "distance": 4,
        "surplus": 0,
        "clauses": [{"text": '"OPEN" asked for, nothing read', "ok": False}],
        "marks": [],
    }
    assert surplus["clauses"] == [{"text": '"OPEN" asked for, "OPEN DAILY" read', "ok": True}]
    assert surplus["marks"] == [{"text": "OPEN DAILY", "polygon": [[0, 0], [64, 0], [64, 64]], "ok": True}]
    assert wrong["marks"][0]["ok"] is False
    assert score(images(2), strict=True).diagnostics[0]["marks"][0]["ok"] is False


def test_marks_are_in_the_pixels_of_the_media() -> None:
    (mark,) = score(images(1, side=20)).diagnostics[0]["marks"]
    assert mark["polygon"] == [[0, 0], [20, 0], [20, 20]]


@pytest.mark.parametrize(
    ("levels", "options", "value"),
    [
        ([1, 0, 0, 0, 4, 0, 0, 0, 1], {}, 2 / 3),
        ([1, 0, 0, 0, 4, 0, 0, 0, 1], {"video": "flowgrpo"}, 1),
        ([1, 0, 0, 0, 4, 0, 0, 0, 1], {"every": 1}, 2 / 9),
        ([2, 0, 0, 0, 3], {}, 0.875),
        ([2, 0, 0, 0, 3], {"strict": True}, 0.375),
        ([2, 0, 0, 0, 3], {"video": "flowgrpo"}, 0.75),
        ([0, 1, 1, 1, 4], {"video": "flowgrpo"}, 0),
        ([1], {}, 1),
    ],
)
def test_videos(levels: list[int], options: dict[str, Any], value: float) -> None:
    scores = score(video(*levels), **options)
    assert scores.values.tolist() == pytest.approx([value])
    assert not scores.missing.any()


def test_frames_are_numbered_as_in_the_media() -> None:
    (reported,) = score(video(1, 0, 0, 0, 3)).diagnostics
    assert reported["frames"] == [
        {"frame": 0, "value": 1.0, "text": "OPEN", "distance": 0, "surplus": 0},
        {"frame": 4, "value": 0.75, "text": "OPER", "distance": 1, "surplus": 0},
    ]
    assert [(m["frame"], m["ok"]) for m in reported["marks"]] == [(0, True), (4, False)]
    assert reported["clauses"] == [{"text": '"OPEN" asked for, read in 1 of 2 frames', "ok": False}]


def fails_on(level: int) -> Callable[[], Script]:
    def hook(seen: int) -> None:
        if seen == level:
            raise RuntimeError("cannot bear it")

    return lambda: Script(hook)


def test_only_the_image_on_which_the_engine_fails_is_missing() -> None:
    scores = score(images(1, 4, 0), fails_on(4))
    assert scores.missing.tolist() == [False, True, False]
    assert scores.values[1].isnan()
    assert scores.diagnostics[1] == {"target": "OPEN", "reason": "RuntimeError: cannot bear it"}


@pytest.mark.parametrize("options", [{}, {"video": "flowgrpo"}])
def test_a_frame_on_which_the_engine_fails_makes_the_video_missing(options: dict[str, Any]) -> None:
    media = torch.cat([video(1, 0, 0, 0, 4), video(1, 4, 4, 4, 1)])
    assert score(media, fails_on(4), **options).missing.tolist() == [True, False]


def test_only_samples_out_of_range_are_missing() -> None:
    media = images(1, 1, 1)
    media[1, 0, 0, 0] = torch.nan
    media[2, 0, 0, 0] = 1.5
    scores = score(media)
    assert scores.missing.tolist() == [False, True, True]
    assert "not in [0, 1]" in scores.diagnostics[1]["reason"]


@pytest.mark.parametrize(
    "media",
    [torch.zeros(2, 0, 3, 8, 8), torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 0, 8), torch.zeros(2, 3, 8, 8).byte()],
    ids=lambda m: f"{m.dtype} {list(m.shape)}",
)
def test_media_of_another_shape_or_dtype_are_missing(media: Tensor) -> None:
    scores = score(media)
    assert scores.missing.tolist() == [True, True]
    assert scores.diagnostics[0]["reason"].startswith("ValueError: media ")


def test_a_prompt_without_target_is_missing() -> None:
    scores = score(images(1), prompt=Prompt("a sign"))
    assert scores.missing.tolist() == [True]
    assert scores.diagnostics[0]["target"] is None
    assert "has no text in double quotes" in scores.diagnostics[0]["reason"]


def test_check_prompts() -> None:
    made = reward()
    made.check_prompts([OPEN, Prompt("a sign", {"target": "x"})])
    with pytest.raises(UserError, match=r"^reward 'ocr': prompt 'a sign' has no text in double quotes"):
        made.check_prompts([OPEN, Prompt("a sign"), Prompt("another")])
    made.close()


def test_errors_name_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "signs.txt"
    file.write_text('a sign "OPEN"\n\na sign "" \na sign\n')
    made = reward()
    with pytest.raises(UserError) as caught:
        check_prompts(made, load_file(file))
    made.close()
    assert str(caught.value) == f"{file}:3: reward 'ocr': prompt 'a sign \"\"' has no text in its quotes"


def test_another_number_of_prompts_is_an_error() -> None:
    made = reward()
    with pytest.raises(ValueError, match="2 samples and 1 prompts"):
        made.score(images(1, 1), [OPEN])
    made.close()


def test_diagnostics_match_the_schema() -> None:
    for media in (images(0, 2, 3), video(1, 2, 3, 4, 0), torch.full((1, 3, 2, 2), torch.nan)):
        for reported in score(media).diagnostics:
            Diagnostics.model_validate(json.loads(json.dumps(reported, allow_nan=False)))


def test_readers_run_in_parallel_with_separate_engines() -> None:
    together = threading.Barrier(3, timeout=30)
    made: list[Script] = []

    def make() -> Script:
        made.append(Script(lambda level: together.wait()))
        return made[-1]

    scores = score(images(1, 3, 0), make, readers=3)
    assert scores.values.tolist() == [1, 0.75, 0], "three images wait for each other"
    assert len(made) == len({engine.thread for engine in made}) == 3


def test_the_order_of_samples_is_kept() -> None:
    scores = score(images(1, 3, 0, 4), lambda: Script(lambda level: time.sleep(0.02 * (4 - level))), readers=4)
    assert scores.values.tolist() == [1, 0.75, 0, 0]


def test_concurrent_calls() -> None:
    made = reward(readers=2)
    assert made.concurrency == 2
    found: dict[int, list[float]] = {}

    def call(turn: int) -> None:
        levels = [turn % 4, (turn + 1) % 4]
        found[turn] = made.score(images(*levels), [OPEN] * 2).values.tolist()

    threads = [threading.Thread(target=call, args=(turn,)) for turn in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made.close()
    worth = [0, 1, 1, 0.75]
    assert found == {turn: [worth[turn % 4], worth[(turn + 1) % 4]] for turn in range(8)}


def test_close_stops_the_threads() -> None:
    before = set(threading.enumerate())
    made = reward(readers=3)
    made.score(images(1, 1, 1, 1), [OPEN] * 4)
    assert set(threading.enumerate()) - before
    made.close()
    assert not set(threading.enumerate()) - before
    made.close()


def test_an_engine_that_cannot_be_built_leaves_no_thread() -> None:
    before = set(threading.enumerate())

    def make() -> Script:
        raise UserError("not installed")

    with pytest.raises(UserError, match="not installed"):
        reward(make)
    assert not set(threading.enumerate()) - before


def placed(**texts: tuple[float, float, float]) -> Callable[[], Any]:
    """An engine that reads these words at (left, top, confidence)."""

    class Placed:
        def read(self, image: NDArray[np.uint8]) -> list[Line]:
            return [
                Line(text, score, ((x, y), (x + 90, y), (x + 90, y + 30), (x, y + 30)))
                for text, (x, y, score) in texts.items()
            ]

    return Placed


def value(make: Callable[[], Any], target: str, **options: Any) -> float:
    scores = score(images(0), make, Prompt(f'a sign "{target}"'), **options)
    return float(scores.values[0])


def test_lines_are_read_in_reading_order() -> None:
    higher = placed(WORLD=(500, 90, 0.9), HELLO=(0, 100, 0.9))
    assert value(higher, "Hello World") == 1
    assert value(higher, "Hello World", rule="flowgrpo") == pytest.approx(1 - 8 / 10), "in the engine's order"


def test_rows_and_columns_are_both_tried() -> None:
    grid = placed(A1=(0, 0, 0.9), B1=(300, 0, 0.9), A2=(0, 50, 0.9), B2=(300, 50, 0.9))
    assert value(grid, "A1 B1 A2 B2", strict=True) == value(grid, "A1 A2 B1 B2", strict=True) == 1
    assert value(grid, "B1 A1 B2 A2", strict=True) < 1
    reported = score(images(0), grid, Prompt('"a1 a2 b1 b2"')).diagnostics[0]
    assert reported["text"] == "A1 A2 B1 B2"
    assert [mark["text"] for mark in reported["marks"]] == ["A1", "A2", "B1", "B2"]


@pytest.mark.parametrize(
    ("confidence", "options", "worth"),
    [
        (0.5, {}, 1),
        (0.49, {}, 0.5),
        (0.49, {"min_score": 0.3}, 1),
        (0.49, {"rule": "flowgrpo"}, 1),
        (1e-6, {"rule": "flowgrpo"}, 1),
        (0.0, {"rule": "flowgrpo"}, 0.5),
        (0.49, {"rule": "flowgrpo", "min_score": 0.5}, 0.5),
    ],
)
def test_lines_with_low_confidence(confidence: float, options: dict[str, Any], worth: float) -> None:
    assert value(placed(OP=(0, 0, 0.9), EN=(0, 50, confidence)), "OPEN", **options) == worth


def test_the_published_rule_does_not_normalize() -> None:
    make = placed(**{"It's 1-2\u00a0cafe\u0301\t!": (0.0, 0.0, 0.9)})
    assert value(make, "It’s 1–2 CAFÉ!") == 1
    assert value(make, "It’s 1–2 CAFÉ!", rule="flowgrpo") == pytest.approx(1 - 6 / 12)


def test_a_target_of_only_punctuation() -> None:
    assert value(placed(**{"?!": (0.0, 0.0, 0.9)}), "?!") == 1
    assert value(placed(), "?!") == 0


def test_very_long_texts() -> None:
    text = "ab" * 20_000
    assert value(placed(**{text: (0.0, 0.0, 0.9)}), text) == 1
    assert value(placed(ab=(0.0, 0.0, 0.9)), text) == pytest.approx(2 / 40_000)
    (clause,) = score(images(0), placed(ab=(0.0, 0.0, 0.9)), Prompt("", {"target": f"a\n{text}"})).diagnostics[0][
        "clauses"
    ]
    assert clause["text"] == f'"{("a " + text)[:200]}..." (40002 characters) asked for, "ab" read'


def test_a_failing_engine_scores_0_with_the_published_rule() -> None:
    scores = score(images(1, 4, 0), fails_on(4), rule="flowgrpo", min_side=64)
    assert scores.values.tolist() == [1, 0, 0]
    assert not scores.missing.any()
    assert scores.diagnostics[1]["reason"] == "RuntimeError: cannot bear it"
    assert "reason" not in scores.diagnostics[2]
    scores = score(video(1, 0, 0, 0, 4), fails_on(4), rule="flowgrpo", min_score=0.5)
    (reported,) = scores.diagnostics
    assert [frame.get("reason") for frame in reported["frames"]] == [None, "RuntimeError: cannot bear it"]
    assert scores.values.tolist() == [1]


def test_pixels_and_colors_of_the_published_rule() -> None:
    seen: list[list[int]] = []

    class Looks:
        def read(self, image: NDArray[np.uint8]) -> list[Line]:
            seen.append(image[0, 0].tolist())
            return []

    red = torch.tensor([1.5, 0.0, -0.5]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    assert score(red, Looks, rule="flowgrpo").missing.tolist() == [False]
    assert score(red, Looks).missing.tolist() == [True]
    assert score(red.clamp(0, 1), Looks).missing.tolist() == [False]
    assert score(red * torch.nan, Looks, rule="flowgrpo").missing.tolist() == [True]
    assert seen == [[255, 0, 0], [0, 0, 255]]
