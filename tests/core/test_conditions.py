"""Condition media: what is read for them, what is refused with file and line, and what tells them apart."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dgpo_core.contracts import PromptSource
from dgpo_core.data.checks import check_prompts, made
from dgpo_core.data.notes import notes, overlap, unheard
from dgpo_core.data.prompts import counts, digest, load_file
from dgpo_core.errors import UserError
from dgpo_core.media import conditions, pixels
from dgpo_core.media.conditions import condition_medium, content_of
from dgpo_core.types import ConditionMedium, Prompt
from dgpo_kit import toy
from dgpo_schemas.sections.backbone import BackboneSection


def image(path: Path, value: int = 7, frames: int = 1) -> Path:
    images = [Image.fromarray(np.full((4, 6, 3), value + i, np.uint8)) for i in range(frames)]
    images[0].save(path, save_all=frames > 1, append_images=images[1:])
    return path


def prompt_file(directory: Path, *records: dict[str, Any]) -> Path:
    file = directory / "p.jsonl"
    file.write_text("".join(json.dumps({"prompt": "p", **record}) + "\n" for record in records))
    return file


def test_files_are_found_beside_the_prompt_file_and_known_by_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    one, two = image(tmp_path / "in" / "a.png"), image(tmp_path / "b.gif", frames=3)
    (tmp_path / "link.png").symlink_to(one)
    file = prompt_file(
        tmp_path, {"media": "in/a.png"}, {"media": [str(two), "link.png"], "size": 64, "negative_prompt": ""}, {}
    )
    first, second, third = load_file(file)
    assert first.media == (ConditionMedium("image", hashlib.sha256(one.read_bytes()).hexdigest()),)
    assert [medium.kind for medium in second.media] == ["video", "image"]
    assert second.media[1] == first.media[0]
    assert second.media[0].read().shape == (3, 3, 4, 6)
    assert (second.size, second.negative, third.media) == ((64, 64), "", ())
    assert torch.equal(first.media[0].read(), torch.full((3, 4, 6), 7 / 255))
    assert first.origin == f"{file}:1"


def test_each_distinct_file_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image(tmp_path / "a.png")
    os.link(tmp_path / "a.png", tmp_path / "b.png")
    decoded = []
    read = pixels.read_pixels
    monkeypatch.setattr(pixels, "read_pixels", lambda source: decoded.append(1) or read(source))
    load_file(prompt_file(tmp_path, *[{"media": ["a.png", "b.png"]}] * 3))
    assert decoded == [1]
    image(tmp_path / "a.png", 9)
    load_file(prompt_file(tmp_path, {"media": "a.png"}, {"media": "missing.png"}), limit=1)
    assert decoded == [1, 1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.pmg", "no such file; did you mean a.png?"),
        ("A.PNG", "no such file; did you mean a.png?"),
        ("nowhere/a.png", "no such file; no such directory"),
        ("a.png/b.png", "cannot be read: Not a directory"),
        (".", "is a directory, not a file"),
        ("dangling.png", "is a broken symbolic link"),
        ("loop.png", "cannot be read: Too many levels of symbolic links"),
        ("fifo.png", "is a FIFO, not a file"),
        ("empty.png", "the file is empty"),
        ("text.png", "not a readable image or video"),
        ("cut.png", "cannot be read"),
        ("large.png", "it would decode to more than"),
        ("heavy.png", "is larger than 0 MiB"),
        ("~nobody/a.png", "no such file"),
        ("x" * 300, "cannot be read: File name too long"),
        ('["\\ud83d"]', "`media[0]` contains half of a character"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    whole = image(tmp_path / "a.png")
    (tmp_path / "dangling.png").symlink_to("gone.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:-30])
    (tmp_path / "heavy.png").write_bytes(b"x" * 2000)
    if name == "large.png":
        monkeypatch.setattr(pixels, "MAX_PIXELS", 20)
        image(tmp_path / name)
    monkeypatch.setattr(conditions, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match=r"p\.jsonl:2: ") as caught:
        load_file(prompt_file(tmp_path, {"media": "a.png"} if name != "large.png" else {}, {"media": name}))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_has_changed_is_refused_where_it_is_read(tmp_path: Path) -> None:
    path = image(tmp_path / "a.png")
    medium, inside = condition_medium(path), condition_medium(path.read_bytes())
    assert medium == inside
    image(path, 8)
    with pytest.raises(UserError, match=r"a\.png: has changed since the prompts were read"):
        medium.read()
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        content_of(medium)
    assert torch.equal(inside.read(), torch.full((3, 4, 6), 7 / 255))
    with pytest.raises(UserError, match="the image sha256:000"):
        replace(inside, digest="0" * 64).read()


def test_digests_of_prompts(tmp_path: Path) -> None:
    """Those of text and metadata are what they always were; whatever else is set makes another one."""
    plain = Prompt("p", {"a": 1})
    assert digest([plain]) == hashlib.sha256(b'["p", {"a": 1}]').hexdigest()
    one, two = (condition_medium(image(tmp_path / f"{i}.png", i)) for i in (1, 2))
    others = [
        plain,
        replace(plain, negative=""),
        replace(plain, negative="x"),
        replace(plain, size=(4, 8)),
        replace(plain, size=(8, 4)),
        replace(plain, media=(one,)),
        replace(plain, media=(two,)),
        replace(plain, media=(one, two)),
        replace(plain, source="s"),
    ]
    assert len({digest([prompt]) for prompt in others}) == len(others)
    assert digest([others[5]]) == digest([replace(plain, media=(replace(one, path="/elsewhere"),))])
    assert counts([plain]) == {}
    assert counts(others) == {"media": 3, "negative_texts": 2, "sizes": 2, "sources": {"s": 1}}
    assert overlap([others[5]], [others[6]], 1) is None  # another image is another task
    assert overlap([others[5]], [others[5]], 1) is not None


def test_names_of_media_are_shown_without_what_terminals_obey(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m\n.png"
    Image.new("LA", (4, 4)).save(path)
    (prompt,) = load_file(prompt_file(tmp_path, {"media": path.name}))
    (note,) = notes([prompt])
    assert r"a\x1b[31m\n.png: its transparent pixels" in note
    section = BackboneSection.model_validate({"use": "toy", "checkpoint": "toy"})
    with pytest.raises(UserError) as caught:
        toy.ToyBackbone(section, toy.ToyOptions(), device=torch.device("cpu")).check_prompts([prompt])
    assert r"a\x1b[31m\n.png), but the backbone toy accepts only text" in str(caught.value)


def test_notes() -> None:
    prompts = [Prompt("p", {"image": "x"}, "f:1"), Prompt("q", {"image": "x"}), Prompt("r", negative="n")]
    (note,) = notes(prompts)
    assert note.startswith("2 of 3 prompts have the key `image` (the first is f:1), which is metadata")
    assert unheard(prompts, True) is unheard(prompts[:2], False) is None
    assert unheard(prompts, False) == "1 of 3 prompts have a negative prompt, which has no effect if guidance is 1"


def test_transparency_is_reported(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 9)).save(tmp_path / "a.png")
    (note,) = notes(load_file(prompt_file(tmp_path, {"media": "a.png"}, {"media": "a.png"})))
    assert note.endswith("a.png: its transparent pixels are shown on white")


DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"negative": 3}, "`negative` must be a text or None"),
        ({"negative": "\ud83d"}, "`negative` must be a text"),
        ({"size": [4, 4]}, "`size` must be (height, width) in pixels or None"),
        ({"size": (4, 0)}, "`size` must be"),
        ({"size": (True, 4)}, "`size` must be"),
        ({"fps": "24"}, "`fps` must be a number"),
        ({"fps": float("nan")}, "`fps` must be a number"),
        ({"fps": 0}, "`fps` must be a number"),
        ({"media": ["a.png"]}, "`media` must be a tuple of ConditionMedium"),
        ({"media": ("a.png",)}, "`media` must be a tuple of ConditionMedium"),
        ({"media": None}, "`media` must be a tuple"),
        ({"media": (ConditionMedium("image", "abc", "a.png"),)}, "64 hexadecimal digits"),
        ({"media": (ConditionMedium("image", DIGEST),)}, "neither a path nor its content"),
        ({"media": (ConditionMedium("image", DIGEST, "missing.png"),)}, "media: missing.png: no such file"),
        ({"media": (ConditionMedium("image", DIGEST, content=b"x"),)}, "media: not a readable image or video"),
    ],
)
def test_what_a_source_yields_is_checked(fields: dict[str, Any], expected: str) -> None:
    class Source(PromptSource):
        def prompts(self, split: Any) -> list[Prompt]:
            return [Prompt("good"), replace(Prompt("p"), **fields)]

    with pytest.raises(UserError, match="here: prompt 1") as caught:
        made(Source(None), "train", "here")
    assert expected in str(caught.value)


def test_a_source_may_draw_media(tmp_path: Path) -> None:
    path = image(tmp_path / "a.png")
    media = [condition_medium(path), condition_medium(path.read_bytes())]

    class Source(PromptSource):
        def prompts(self, split: Any) -> list[Prompt]:
            return [Prompt("p", media=(medium,), size=(4, 4), negative="n") for medium in media]

    assert len(made(Source(None), "train", "here")) == 2
    media[0] = replace(media[0], kind="video")
    with pytest.raises(UserError, match=r"a\.png: contains an image, not a video"):
        made(Source(None), "train", "here")


def test_a_model_of_text_refuses_media_with_their_place(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    backbone = toy.ToyBackbone(
        BackboneSection(use="toy", checkpoint="none"), toy.ToyOptions(), device=torch.device("cpu")
    )
    prompts = load_file(prompt_file(tmp_path, {}, {}, {"media": "a.png"}))
    check_prompts(backbone, prompts[:2])
    with pytest.raises(UserError) as caught:
        check_prompts(backbone, prompts)
    assert str(caught.value).startswith(
        f"{prompts[2].origin}: the prompt has media ({tmp_path}/a.png), but the backbone toy accepts only text"
    )
