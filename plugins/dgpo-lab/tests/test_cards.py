"""Annotated pages of `dgpo score`: the positions of marks in image pixels, and the escaping of texts."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dgpo_core.types import Prompt
from dgpo_lab.scoring.cards import card
from dgpo_schemas.diagnostics import Diagnostics, understood

VOID = ("meta", "img")


class Page(HTMLParser):
    """A parsed page: frames with their image, shapes and texts, and the text of every element by class."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str]]] = []
        self.frames: list[dict[str, Any]] = []
        self.texts: dict[str, list[str]] = {}
        self.tags: set[str] = set()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.tags.add(tag)
        if tag == "figure":
            self.frames.append({"style": given["style"], "shapes": [], "tags": []})
        elif tag == "img":
            content = base64.b64decode(given["src"].removeprefix("data:image/png;base64,"))
            self.frames[-1] |= {"image": Image.open(io.BytesIO(content)), "class": given.get("class", "")}
        elif tag == "svg":
            self.frames[-1]["viewbox"] = given["viewbox"]
        elif tag == "polygon" and given["class"] != "edge":
            points = [tuple(map(float, point.split(","))) for point in given["points"].split()]
            self.frames[-1]["shapes"].append((given["class"], points))
        elif tag == "span":
            style = dict(part.split(": ") for part in given["style"].split("; "))
            self.frames[-1]["tags"].append((given["class"], style))
        if tag not in (*VOID, "polygon"):
            self.open.append((tag, given))

    def handle_endtag(self, tag: str) -> None:
        if tag != "polygon":
            assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for tag, given in self.open:
            for name in [tag, *given.get("class", "").split()]:
                self.texts.setdefault(name, []).append(data)

    def text(self, name: str) -> str:
        """Return the text of all elements of a tag or class."""
        return " ".join("".join(self.texts.get(name, [])).split())


def shown(media: Tensor, diagnostics: Diagnostics | None = None, **arguments: Any) -> Page:
    defaults: dict[str, Any] = {"name": "x.png", "prompt": Prompt("a cat"), "label": "ocr", "value": 0.5}
    return Page(card(media, diagnostics or understood({}), **(defaults | arguments)))


def gray(*shape: int) -> Tensor:
    return torch.full(shape, 0.5)


def marks(*given: dict[str, Any]) -> Diagnostics:
    return understood({"marks": given})


# -- the image --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ok", "verdict"), [(True, "good"), (False, "bad"), (None, "open")])
def test_a_box_is_drawn_at_its_position_in_the_color_of_its_verdict(ok: bool | None, verdict: str) -> None:
    (frame,) = shown(gray(3, 48, 64), marks({"text": "", "box": [10, 20, 30, 40], "ok": ok})).frames
    assert frame["viewbox"] == "0 0 64 48"
    assert frame["shapes"] == [(verdict, [(10, 20), (30, 20), (30, 40), (10, 40)])]
    assert frame["tags"] == []


def test_small_images_are_embedded_losslessly() -> None:
    media = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(0))
    (frame,) = shown(media).frames
    assert (np.asarray(frame["image"]) == (media.permute(1, 2, 0).numpy() * 255).round()).all()
    assert (frame["class"], frame["style"]) == (
        "tiny",
        f"width: {24 * 22}px",
    )  # 22 * 24 is the first multiple above 512


def test_large_images_are_downscaled_and_marks_keep_their_coordinates() -> None:
    (frame,) = shown(gray(3, 2560, 1280), marks({"text": "", "box": [256, 512, 1024, 2048], "ok": True})).frames
    assert (frame["image"].size, frame["viewbox"], frame["style"]) == ((640, 1280), "0 0 1280 2560", "width: 640px")
    assert frame["shapes"][0][1][2] == (1024, 2048)


def test_a_polygon_is_drawn_with_its_corners() -> None:
    corners = [(10.0, 40.0), (40.0, 10.0), (50.0, 20.5), (20.0, 50.0)]
    (frame,) = shown(gray(3, 64, 64), marks({"text": "", "polygon": corners, "ok": False})).frames
    assert frame["shapes"] == [("bad", corners)]


def test_the_text_of_a_mark_is_at_its_box() -> None:
    reported = marks(
        {"text": "red circle", "box": [16, 32, 48, 60], "ok": True}, {"text": "at the top", "box": [60, 0, 64, 9]}
    )
    page = shown(gray(3, 64, 64), reported)
    (classes, style), (other, inside) = page.frames[0]["tags"]
    assert (classes, style["left"], style["top"]) == ("tag good", "25.000%", "50.000%")
    assert (other, inside["left"], inside["max-width"]) == ("tag open inside", "80.000%", "20.000%")
    assert page.text("tag") == "red circleat the top"


def test_texts_at_the_same_corner_are_stacked() -> None:
    same = [{"text": f"word {i}", "box": [10, 20 + i, 50, 60]} for i in range(3)] + [
        {"text": "", "box": [9, 20, 50, 60]}
    ]
    tags = shown(gray(3, 64, 64), marks(*same, {"text": "away", "box": [40, 40, 50, 50]})).frames[0]["tags"]
    assert [style["--row"] for _, style in tags] == ["0", "1", "2", "0"]


@pytest.mark.parametrize(
    ("box", "drawn"),
    [
        ([-50, -50, 200, 200], [0, 0, 64, 64]),
        ([100, 100, 200, 200], [64, 64, 64, 64]),
        ([40, 40, 10, 10], [40, 40, 10, 10]),
        ([-1e30, 0, 1e30, 1], [0, 0, 64, 1]),
    ],
)
def test_boxes_beyond_the_image_are_drawn_at_its_edge(box: list[float], drawn: list[float]) -> None:
    (frame,) = shown(gray(3, 64, 64), marks({"text": "x", "box": box, "ok": True})).frames
    (x0, y0), _, (x1, y1), _ = frame["shapes"][0][1]
    assert [x0, y0, x1, y1] == drawn


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 1, 3000), (3, 3000, 1), (1, 3, 2, 2)])
def test_images_of_any_shape(shape: tuple[int, ...]) -> None:
    (frame,) = shown(gray(*shape), marks({"text": "dot", "box": [0, 0, 1, 1], "ok": True})).frames
    assert max(frame["image"].size) <= 1280


def test_non_finite_pixels_are_shown() -> None:
    media = gray(3, 8, 8)
    media[0, 0, 0] = torch.nan
    media[1, 0, 0] = torch.inf
    assert shown(media).frames[0]["image"].getpixel((0, 0)) == (0, 255, 128)


# -- below the image --------------------------------------------------------------------------------------------


def test_each_clause_has_a_tick_or_a_cross() -> None:
    clauses = [{"text": "one cat: found 1", "ok": True}, {"text": "one dog: found 0", "ok": False}]
    page = shown(gray(3, 8, 8), understood({"clauses": clauses}))
    assert page.text("li") == "✓one cat: found 1✗one dog: found 0"
    assert (page.text("good"), page.text("bad")) == ("✓", "✗")


def test_a_missing_score_shows_its_reason() -> None:
    reported = understood({"reason": "the lamp is broken"})
    assert "li" not in shown(gray(3, 8, 8), reported, value=0.25).texts
    missing = shown(gray(3, 8, 8), reported, value=None)
    assert missing.text("li") == "!the lamp is broken"
    assert missing.text("bad") == "not scored"


def test_name_prompt_label_and_value_are_shown() -> None:
    page = shown(gray(3, 8, 8), name="a/b.png", prompt=Prompt("a dog", negative="fur"), label="clip", value=0.123456)
    assert page.text("h1") == "a/b.png"
    assert page.text("prompt") == "a dog (negative prompt: fur)"
    assert page.text("value") == "0.1235clip"


NASTY = [
    "日本語 😀 Привет Ä", "\ud800 lone", "a\0b\nc\td\x1b[31m", "x" * 5000, "", " ", "\u202eright to left",
    "\u0301" * 50, "</bdi></style><script>alert(1)</script>", "{{ 7 * 7 }}", '" onload="alert(1)',
]  # fmt: skip


@pytest.mark.parametrize("text", NASTY)
def test_any_text_is_shown_and_escaped(text: str) -> None:
    reported = understood({
        "marks": [{"text": text, "box": [1, 1, 5, 5]}],
        "clauses": [{"text": text, "ok": True}],
        "reason": text,
    })  # fmt: skip
    given: dict[str, Any] = {"name": text, "prompt": Prompt(text, negative=text), "label": text, "value": None}
    page = shown(gray(3, 8, 8), reported, **given)
    assert page.tags <= shown(gray(3, 8, 8), reported, value=None).tags | {"ul", "li"}
    assert "script" not in page.tags
    html = card(gray(3, 8, 8), reported, **given)
    html.encode()
    assert len(html) < 20_000
    assert all(c.isprintable() or c == "\n" for c in html)
    assert (" ".join(text.split())[:20] in page.text("prompt")) == all(c.isprintable() or c in "\n\t" for c in text)


# -- videos -------------------------------------------------------------------------------------------------------


def brightness(page: Page) -> list[int]:
    """Return the brightness of each shown frame."""
    return [int(np.asarray(frame["image"])[0, 0, 0]) for frame in page.frames]


def test_the_marked_frames_of_a_video_are_shown_side_by_side() -> None:
    """The frames differ in brightness, so that they can be identified."""
    video = torch.linspace(0, 1, 11)[:, None, None, None].expand(11, 3, 64, 64)
    reported = marks(
        {"text": "", "box": [0, 0, 16, 16], "ok": True, "frame": 2},
        {"text": "", "box": [32, 32, 64, 64], "ok": False, "frame": 7},
        {"text": "", "box": [0, 0, 1, 1], "ok": False, "frame": 99},
    )
    page = shown(video, reported)
    assert brightness(page) == [round(255 * frame / 10) for frame in (2, 7)]
    assert [frame["style"] for frame in page.frames] == ["width: 320px"] * 2
    assert [[verdict for verdict, _ in frame["shapes"]] for frame in page.frames] == [["good"], ["bad"]]
    assert page.text("figcaption") == "frame 2frame 7"


def test_a_video_without_marks_shows_a_few_frames() -> None:
    page = shown(torch.linspace(0, 1, 11)[:, None, None, None].expand(11, 3, 32, 32))
    assert brightness(page) == [round(255 * i / 10) for i in (0, 3, 7, 10)]


def test_a_mark_without_a_frame_is_on_every_frame() -> None:
    page = shown(gray(2, 3, 64, 64), marks({"text": "", "box": [0, 0, 16, 16], "ok": True}))
    assert [len(frame["shapes"]) for frame in page.frames] == [1, 1]


def test_the_number_of_frames_is_limited() -> None:
    reported = marks(*({"text": "", "box": [0, 0, 9, 9], "frame": i} for i in range(300)))
    assert len(shown(gray(300, 3, 16, 16), reported).frames) == 12


# -- invalid diagnostics --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"marks": None, "clauses": "all fine", "reason": 3},
        {"marks": [{"text": "no place"}, {"text": "two", "box": [0, 0, 1, 1], "polygon": [[0, 0], [1, 1], [2, 0]]}, 7]},
        {"marks": [{"text": "nan", "box": [float("nan"), 0, 1, 1]}], "clauses": [{"text": "no verdict"}, {"ok": True}]},
        {"marks": {"a": 1}, "clauses": {}, "reason": "  "},
    ],
)
def test_invalid_diagnostics_are_dropped(data: dict[str, Any]) -> None:
    reported = understood(data)
    assert (reported.marks, reported.clauses, reported.reason) == ([], [], None)


def test_valid_diagnostics_are_kept_among_invalid_ones() -> None:
    reported = understood({
        "marks": ({"text": "a", "box": (0, 0, 1, 1)}, {"text": "b"}),
        "clauses": [{"text": "c", "ok": False}, {"class": "cat", "found": 1}],
        "reason": "because",
        "distance": 3,
    })  # fmt: skip
    assert [mark.text for mark in reported.marks] == ["a"]
    assert [clause.text for clause in reported.clauses] == ["c"]
    assert reported.reason == "because"
