"""`dgpo score`: files, tables, JSON output and missing scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dgpo_core.training.score_samples as batches_module
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Prompt
from tests.scored import Run, Stub, StubOptions, clip, image

# -- the table ----------------------------------------------------------------------------------------------------


def test_the_table_keeps_the_order_of_the_files(dgpo: Run) -> None:
    files = [image("b.png", 0.8), image("a.png", 0.2, (16, 4)), image("long/" + "n" * 40 + ".png", 1.0)]
    done = dgpo("score", "stub", *files, "--prompt", "red")
    assert done.code == 0
    assert done.out == (
        "file                               value  details\n"
        "b.png                             0.8000  ✓ red enough: found 0.80\n"
        "a.png                             0.2000  ✗ red enough: found 0.20\n"
        f"long/{'n' * 40}.png\n"
        "                                  1.0000  ✓ red enough: found 1.00\n"
        "mean of 3                         0.6667\n"
    )
    assert "loading weights\nscoring" in done.err  # the output of a reward goes to stderr
    assert Stub.closed == 1


def test_lines_are_at_most_80_columns(dgpo: Run) -> None:
    image("x.png")
    Path("p.txt").write_text("blind " + "word " * 100)
    done = dgpo("score", "images-only", "x.png", "--prompts", "p.txt")
    assert done.code == 1
    assert max(map(len, done.out.splitlines())) <= 80
    assert done.out.startswith("file   value  details\nx.png      -  ")


def test_other_diagnostics_are_shown_if_there_are_no_clauses(dgpo: Run) -> None:
    done = dgpo("score", "images-only", image("x.png"))
    assert done.out.splitlines()[1] == 'x.png  0.8000  words "a b", count 3, sure yes, share 0.25'


def test_files_of_equal_shape_are_scored_together_and_results_keep_their_order(dgpo: Run) -> None:
    sizes = [(8, 8), (4, 4), (8, 8), (8, 8), (4, 4), (8, 8)]
    files = [image(f"{i}.png", i / 10, size) for i, size in enumerate(sizes)]
    done = dgpo("score", "stub", *files, "--batch", 3, "--json")
    assert [(record["file"], round(record["value"], 1)) for record in json.loads(done.out)] == [
        (f"{i}.png", i / 10) for i in range(6)
    ]
    assert [shape for shape, _ in Stub.asked] == [(3, 3, 8, 8), (2, 3, 4, 4), (1, 3, 8, 8)]


def test_files_of_different_sizes_do_not_fill_the_memory(dgpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "MOST_WAITING", 3 * 8 * 20)
    files = [image(f"{i}.png", i / 10, (8, 10 + i)) for i in range(4)]
    assert dgpo("score", "stub", *files).code == 0
    assert [shape for shape, _ in Stub.asked] == [(1, 3, 10 + i, 8) for i in range(4)]


def test_a_directory_is_replaced_by_its_images(dgpo: Run) -> None:
    for name in ("d/b.png", "d/a.jpg", "d/grid.png", "d/a.annotated.png"):
        image(name)
    for name in ("prompts.json", "a.annotated.html", "annotated.html"):
        Path("d", name).write_text("[]")
    done = dgpo("score", "stub", "d", "--json")
    assert [record["file"] for record in json.loads(done.out)] == ["d/a.jpg", "d/b.png"]
    assert "note" not in done.err


def test_a_directory_is_paired_with_prompts_in_natural_order(dgpo: Run) -> None:
    """A hidden file gets no line, and a note names it."""
    for i in range(1, 12):
        image(f"d/{i}.png", i / 20)
    Path("d/._1.png").write_bytes(b"\0\5\26\7")
    Path("d/notes.txt").touch()
    Path("p.txt").write_text("".join(f"line {i}\n" for i in range(1, 12)))
    done = dgpo("score", "stub", "d", "--prompts", "p.txt", "--json")
    rows = [(row["file"], row["prompt"], round(row["value"], 2)) for row in json.loads(done.out)]
    assert rows == [(f"d/{i}.png", f"line {i}", pytest.approx(i / 20, abs=0.01)) for i in range(1, 12)]
    skipped = "skipped ._1.png (hidden), notes.txt (not images or videos by their extension)"
    assert f"note: d: {skipped}\n" in done.err


@pytest.mark.parametrize(
    ("names", "noted"),
    [
        (["1.png", "10.png", "2.png"], True),  # shell order
        (["10.png", "1.png", "2.png"], False),  # an intended order
        (["1.png", "2.png", "10.png"], False),
        (["a/10.png", "b/2.png"], False),
        (["10.png", "A.png", "b2.png"], False),
        (["a1.png", "a10.png", "B.png", "10.png"], False),
    ],
)
def test_files_in_shell_order(dgpo: Run, names: list[str], noted: bool) -> None:
    """Lines are assigned in the given order, with a note if that is shell order but not numeric order."""
    Path("p.txt").write_text("".join(f"{name}\n" for name in names))
    done = dgpo("score", "stub", *[image(name) for name in names], "--prompts", "p.txt", "--json")
    assert [(row["file"], row["prompt"]) for row in json.loads(done.out)] == [(name, name) for name in names]
    order = "its lines are assigned in the given order of the files, 10.png before 2.png"
    note = f"note: --prompts p.txt: {order}; for numeric order, give the directory\n"
    assert (note in done.err) is noted


def test_directories_in_shell_order(dgpo: Run) -> None:
    Path("p.txt").write_text("a\nb\nc\nd\n")
    names = [image(f"{name}.png") for name in ("10/0", "2/0")]
    done = dgpo("score", "stub", "10", "2", image("a9.png"), image("B1.png"), "--prompts", "p.txt")
    order = "its lines are assigned in the given order of the files, 10/0.png before 2/0.png"
    assert f"note: --prompts p.txt: {order}; give the files in the intended order\n" in done.err
    Path("q.txt").write_text("a\nb\n")
    assert "note" not in dgpo("score", "stub", *reversed(names), "--prompts", "q.txt").err


def test_lines_that_name_files_under_another_key(dgpo: Run) -> None:
    """Lines with `file_name`, as in Hugging Face's image folders, are not silently paired with other files."""
    image("d/1.png"), image("d/2.png")

    def lines(*names: str) -> None:
        Path("p.jsonl").write_text("".join(f'{{"prompt": "x", "file_name": "{name}"}}\n' for name in names))

    lines("train/2.png", "train/1.png")
    done = dgpo("score", "stub", "d", "--prompts", "p.jsonl")
    assert done.code == 2
    assert done.err.startswith(
        "p.jsonl:1: its `file_name` names 2.png, but in the order of the files this line belongs to "
    )
    for names in (("train/1.png", "train/2.png"), ("1.png", "1.png"), ("2.png", "other.png")):
        lines(*names)
        assert dgpo("score", "stub", "d", "--prompts", "p.jsonl").code == 0


def test_names_that_differ_slightly_are_suggested(dgpo: Run) -> None:
    image("d/cafe\u0301.png")
    Path("p.jsonl").write_text('{"prompt": "x", "file": "caf\u00e9.png"}\n', encoding="utf-8")
    assert dgpo("score", "stub", "d", "--prompts", "p.jsonl").code == 0
    for name in ("caf\u00e9.jpg", "samples/CAF\u00c9.PNG", "caf\u00e9", "C:\\\\caf\u00e9.png"):
        Path("p.jsonl").write_text(f'{{"prompt": "x", "file": "{name}"}}\n', encoding="utf-8")
        done = dgpo("score", "stub", "d", "--prompts", "p.jsonl")
        assert (done.code, "no line for d/cafe\u0301.png; there is one for" in done.err) == (2, True), name


def test_every_kind_of_file(dgpo: Run) -> None:
    clip("v.gif", 1.0, 0.0)
    clip("v.webp", 1.0, 0.0)
    names = [image("p.png"), image("j.jpg"), image("w.webp"), image("g.png", mode="L"), image("i.gif")]
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save("clear.png")
    done = dgpo("score", "stub", *names, "v.gif", "v.webp", "clear.png", "--json")
    values = {record["file"]: record["value"] for record in json.loads(done.out)}
    gray = round(0.8 * 255 * 0.299) / 255
    expected = {"p.png": 0.8, "j.jpg": 0.8, "w.webp": 0.8, "g.png": gray, "i.gif": 0.8, "v.gif": 0.5, "v.webp": 0.5}
    assert values == pytest.approx(expected | {"clear.png": 1.0}, abs=0.02)
    assert "note: clear.png: its transparent pixels are shown on white\n" in done.err
    assert {shape for shape, _ in Stub.asked} == {(6, 3, 8, 8), (2, 2, 3, 8, 8)}


# -- JSON ---------------------------------------------------------------------------------------------------------


def test_json_has_one_object_per_file(dgpo: Run) -> None:
    files = [image("a.png", 0.2), image("b.png", 0.8)]
    Path("p.txt").write_text("red\nblind date\n")
    done = dgpo("score", "stub", *files, "--prompts", "p.txt", "--json", "--output", "scores.json")
    assert done.code == 1
    records = json.loads(done.out, parse_constant=pytest.fail)  # no NaN
    assert json.loads(Path("scores.json").read_text()) == records
    assert [set(record) for record in records] == [{"file", "prompt", "value", "missing", "diagnostics"}] * 2
    first, second = records
    assert (first["file"], first["prompt"], first["missing"]) == ("a.png", "red", False)
    assert first["value"] == pytest.approx(0.2, abs=1e-6)
    assert first["diagnostics"]["clauses"] == [{"text": "red enough: found 0.20", "ok": False}]
    assert first["diagnostics"]["odd"] == [None, "torch.float32", {"deep": [1, 2]}]
    assert (second["value"], second["missing"]) == (None, True)
    assert second["diagnostics"]["reason"] == "it is too dark"
    assert "b.png: it is too dark\n1 of 2 files could not be scored\n" in done.err


def test_the_json_is_written_to_a_file_in_addition_to_the_table(dgpo: Run) -> None:
    done = dgpo("score", "stub", image("a.png"), "--output", "scores.json")
    assert done.out.startswith("file")
    assert [record["file"] for record in json.loads(Path("scores.json").read_text())] == ["a.png"]


def test_an_undecodable_file_name(dgpo: Run) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    image("x.png").rename(name)
    assert dgpo("score", "stub", ".").out.splitlines()[1].startswith("caf?.png  0.8000")
    assert json.loads(dgpo("score", "stub", ".", "--json", "--annotate", "seen").out)[0]["file"] == "caf?.png"


# -- missing scores -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello", "not a readable image or video"),
        (b"half", "cannot be read: image file is truncated"),
    ],
)
def test_an_unreadable_file_is_missing_and_the_others_are_scored(dgpo: Run, content: bytes, reason: str) -> None:
    image("a.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save("b.png")
    Path("b.png").write_bytes(Path("b.png").read_bytes()[:2000] if content == b"half" else content)
    done = dgpo("score", "stub", "b.png", "a.png", "--annotate", "seen")
    assert done.code == 1
    _, first, second = done.out.splitlines()
    assert first == f"b.png       -  {reason}"
    assert second.startswith("a.png  0.8000")
    assert done.err.endswith("1 of 2 files could not be scored\n")
    assert sorted(path.name for path in Path("seen").iterdir()) == ["a.annotated.html", "annotated.html"]


def test_media_that_the_reward_does_not_accept(dgpo: Run) -> None:
    done = dgpo("score", "images-only", image("a.png"), clip("v.gif", 0.0, 1.0))
    assert done.code == 1
    assert done.out.splitlines()[-1] == "v.gif       -  is a video; the reward accepts images"
    assert Stub.asked == [((1, 3, 8, 8), [Prompt("")])]


class Frames:
    """Registers a reward `frames`, as dgpo-video does."""

    @hookimpl
    def dgpo_rewards(self) -> Sequence[Component]:
        return [Component("frames", "Redness of frames.", "stub_rewards:Stub", StubOptions, adapts=("video", "image"))]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("frames", [False, True])
def test_no_file_that_the_reward_accepts(dgpo: Run, known: Registry, count: int, frames: bool) -> None:
    """The error is reported before anything is scored, with a remedy if there is one."""
    if frames:
        known.register(Frames(), distribution="dgpo-video")
    files = [clip(f"{i}.gif", 0.0, 1.0) for i in range(count)]
    done = dgpo("score", "images-only", *files, "--annotate", "seen")
    others = ", as are the other 2 files" if count == 3 else ""
    advice = "; to score single frames: dgpo score frames --option reward=images-only" if frames else ""
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[1:] == [f"0.gif: is a video{others}; images-only scores images{advice}"]
    assert Stub.asked == []
    assert Stub.closed == 1
    assert not Path("seen").exists()


def test_images_for_a_video_reward_are_refused(dgpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stub, "media", frozenset({"video"}))
    done = dgpo("score", "stub", image("a.png"), image("b.png"))
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[1:] == ["a.png: is an image, as is the other file; stub scores videos"]


def test_an_unreadable_file_does_not_count_as_another_kind(dgpo: Run) -> None:
    Path("b.mp4").write_bytes(b"hello")
    done = dgpo("score", "images-only", "b.mp4", clip("v.gif", 0.0, 1.0))
    assert done.code == 1
    assert "b.mp4      -  not a readable image or video" in done.out


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("raise", "RuntimeError: the lamp is broken"),
        ("short", "ValueError: returned values (0,) and missing (1,) for 1 samples"),
        ("nan", "the value nan is not in the declared range [0.0, 1.0]"),
        ("inf", "the value inf is not in the declared range [0.0, 1.0]"),
        ("far", "the value 7.0 is not in the declared range [0.0, 1.0]"),
        ("blind", "it is too dark"),
    ],
)
def test_a_reward_that_fails(dgpo: Run, prompt: str, reason: str) -> None:
    done = dgpo("score", "stub", image("a.png"), "--prompt", prompt, "--json")
    (record,) = json.loads(done.out)
    assert (done.code, record["value"], record["missing"]) == (1, None, True)
    assert record["diagnostics"]["reason"] == reason
    assert Stub.closed == 1
