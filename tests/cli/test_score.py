"""`dgpo score`: files in, values with their reasons out."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

import dgpo_cli.scoring.batches as batches_module
from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.hookspecs import Part, hookimpl
from dgpo_core.media.annotation import GREEN, MARGIN, RED
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Example, Prompt, Scores
from dgpo_kit.toy import WinRate
from dgpo_remote.messages.blobs import Blob
from dgpo_remote.messages.scores import read_score_request, score_request
from dgpo_schemas.base import Int, Options
from dgpo_schemas.text import lone_surrogate

Run = Callable[..., Any]


class StubOptions(Options):
    """What the stub can be told."""

    test: str = Field(default="good", description="What its self-test is like.")
    depth: Int = Field(default=1, ge=0, description="A number.")
    inner: dict[str, Any] = Field(default_factory=dict, description="A section.")


class Stub(RewardModel):
    """The mean of the red channel. Remembers what it was asked; prompts name what goes wrong."""

    media = frozenset({"image", "video"})
    range = (0.0, 1.0)
    asked: list[tuple[tuple[int, ...], list[Prompt]]] = []
    built: list[StubOptions] = []
    closed = 0

    def __init__(self, options: StubOptions, *, device: torch.device) -> None:
        super().__init__(options, device=device)
        Stub.built.append(options)
        sys.stdout.write("loading weights\n")

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            if prompt.text == "unfit":
                raise UserError(f"prompt {prompt.text!r} is unfit")

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        sys.stdout.write(f"scoring {len(media)}\n")
        Stub.asked.append((tuple(media.shape), list(prompts)))
        values = media.select(-3, 0).flatten(1).mean(1)
        missing = torch.zeros(len(media), dtype=torch.bool)
        diagnostics = []
        for i, prompt in enumerate(prompts):
            trouble = prompt.text.partition(" ")[0]
            values[i] = {"nan": float("nan"), "inf": float("inf"), "far": 7.0}.get(trouble, values[i])
            missing[i] = trouble == "blind"
            diagnostics.append({
                "reason": "it is too dark" if missing[i] else None,
                "marks": [{"text": "left half", "box": [0, 0, media.shape[-1] / 2, media.shape[-2]], "ok": True}],
                "clauses": [{"text": f"red enough: found {float(values[i]):.2f}", "ok": bool(values[i] > 0.5)}],
                "odd": [float("nan"), torch.float32, {"deep": (1, 2)}],
            })  # fmt: skip
            if trouble == "raise":
                raise RuntimeError("the lamp is broken")
        return Scores(values[:-1] if prompts[0].text == "short" else values, missing, tuple(diagnostics))

    def examples(self) -> Sequence[Example]:
        def example(name: str, red: float, good: bool, size: int = 8, prompt: str = "red") -> Example:
            return Example(name, Prompt(prompt), torch.full((3, size, size), red), good)

        pairs = {
            "good": [example("fire", 0.9, True), example("rose", 0.7, True, 12), example("sea", 0.1, False)],
            "inverted": [example("fire", 0.2, True), example("rose", 0.9, True), example("sea", 0.7, False)],
            "level": [example("fire", 0.5, True), example("rose", 0.9, True), example("sea", 0.5, False)],
            "constant": [example("fire", 0.25, True), example("sea", 0.25, False)],
            "zero": [example("fire", 0.0, True), example("sea", 0.0, False)],
            "missing": [example("fire", 0.9, True, prompt="blind"), example("sea", 0.1, False)],
            "nan": [example("fire", 0.9, True, prompt="nan"), example("sea", 0.1, False)],
            "far": [example("fire", 0.9, True, prompt="far"), example("sea", 0.1, False)],
            "raise": [example("fire", 0.9, True, prompt="raise"), example("sea", 0.1, False, 9)],
            "one-sided": [example("fire", 0.9, True), example("rose", 0.7, True)],
            "none": [],
        }
        return pairs[self.options.test]

    def close(self) -> None:
        Stub.closed += 1


class PicturesOnly(Stub):
    """Takes no videos, and says only what it likes to."""

    media = frozenset({"image"})

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        scores = super().score(media, prompts)
        said = tuple({"words": "a b", "count": 3, "sure": True, "share": 0.25, "more": [1]} for _ in prompts)
        return Scores(scores.values, scores.missing, said)


class Plugin:
    """The stubs."""

    @hookimpl
    def dgpo_rewards(self) -> Sequence[Part]:
        return [
            Part("stub", "Redness.", "stub_rewards:Stub", StubOptions),
            Part("pictures-only", "Redness.", "stub_rewards:PicturesOnly"),
        ]


@pytest.fixture(autouse=True)
def _stubs(known: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = types.ModuleType("stub_rewards")
    module.Stub, module.PicturesOnly = Stub, PicturesOnly  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    known.register(Plugin(), distribution="stubs")
    Stub.asked, Stub.built, Stub.closed = [], [], 0
    monkeypatch.chdir(tmp_path)


def picture(name: str, red: float = 0.8, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    """A picture of one colour: 255 * red of red, nothing else."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (round(255 * red), 0, 0)).convert(mode).save(name)
    return Path(name)


def clip(name: str, *reds: float) -> Path:
    first, *more = [Image.new("RGB", (8, 8), (round(255 * red), 0, 0)) for red in reds]
    first.save(name, save_all=True, append_images=more)
    return Path(name)


# -- the table ----------------------------------------------------------------------------------------------------


def test_a_table_in_the_order_of_the_files(dgpo: Run) -> None:
    files = [picture("b.png", 0.8), picture("a.png", 0.2, (16, 4)), picture("long/" + "n" * 40 + ".png", 1.0)]
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
    assert "loading weights\nscoring" in done.err  # what a reward prints is no result
    assert Stub.closed == 1


def test_lines_are_at_most_80_columns(dgpo: Run) -> None:
    picture("x.png")
    Path("p.txt").write_text("blind " + "word " * 100)
    done = dgpo("score", "pictures-only", "x.png", "--prompts", "p.txt")
    assert done.code == 1
    assert max(map(len, done.out.splitlines())) <= 80
    assert done.out.startswith("file   value  details\nx.png      -  ")


def test_a_rewards_own_diagnostics_stand_in_for_clauses(dgpo: Run) -> None:
    done = dgpo("score", "pictures-only", picture("x.png"))
    assert done.out.splitlines()[1] == 'x.png  0.8000  words "a b", count 3, sure yes, share 0.25'


def test_files_of_one_shape_are_scored_together_and_results_keep_their_order(dgpo: Run) -> None:
    sizes = [(8, 8), (4, 4), (8, 8), (8, 8), (4, 4), (8, 8)]
    files = [picture(f"{i}.png", i / 10, size) for i, size in enumerate(sizes)]
    done = dgpo("score", "stub", *files, "--batch", 3, "--json")
    assert [(record["file"], round(record["value"], 1)) for record in json.loads(done.out)] == [
        (f"{i}.png", i / 10) for i in range(6)
    ]
    assert [shape for shape, _ in Stub.asked] == [(3, 3, 8, 8), (2, 3, 4, 4), (1, 3, 8, 8)]


def test_files_of_all_different_sizes_do_not_fill_the_memory(dgpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "MOST_WAITING", 3 * 8 * 20)
    files = [picture(f"{i}.png", i / 10, (8, 10 + i)) for i in range(4)]
    assert dgpo("score", "stub", *files).code == 0
    assert [shape for shape, _ in Stub.asked] == [(1, 3, 10 + i, 8) for i in range(4)]


def test_a_directory_stands_for_its_pictures(dgpo: Run) -> None:
    for name in ("d/b.png", "d/a.jpg", "d/grid.png", "d/a.annotated.png"):
        picture(name)
    Path("d/prompts.json").write_text("[]")
    done = dgpo("score", "stub", "d", "--json")
    assert [record["file"] for record in json.loads(done.out)] == ["d/a.jpg", "d/b.png"]
    assert "note" not in done.err


def test_a_directory_and_its_prompts_are_paired_as_people_count(dgpo: Run) -> None:
    """A hidden file takes no line, and is named."""
    for i in range(1, 12):
        picture(f"d/{i}.png", i / 20)
    Path("d/._1.png").write_bytes(b"\0\5\26\7")
    Path("d/notes.txt").touch()
    Path("p.txt").write_text("".join(f"line {i}\n" for i in range(1, 12)))
    done = dgpo("score", "stub", "d", "--prompts", "p.txt", "--json")
    rows = [(row["file"], row["prompt"], round(row["value"], 2)) for row in json.loads(done.out)]
    assert rows == [(f"d/{i}.png", f"line {i}", pytest.approx(i / 20, abs=0.01)) for i in range(1, 12)]
    left_out = "left out ._1.png (hidden), notes.txt (neither pictures nor videos by their endings)"
    assert f"note: d: {left_out}\n" in done.err


@pytest.mark.parametrize(
    ("names", "noted"),
    [
        (["1.png", "10.png", "2.png"], True),  # as a shell lists them
        (["10.png", "1.png", "2.png"], False),  # as somebody wants them
        (["1.png", "2.png", "10.png"], False),
        (["a/10.png", "b/2.png"], False),
        (["10.png", "A.png", "b2.png"], False),
        (["a1.png", "a10.png", "B.png", "10.png"], False),
    ],
)
def test_files_that_a_shell_has_listed(dgpo: Run, names: list[str], noted: bool) -> None:
    """They get the lines in their order, and a note if that is not the order of their numbers."""
    Path("p.txt").write_text("".join(f"{name}\n" for name in names))
    done = dgpo("score", "stub", *[picture(name) for name in names], "--prompts", "p.txt", "--json")
    assert [(row["file"], row["prompt"]) for row in json.loads(done.out)] == [(name, name) for name in names]
    given = "the files get its lines in the order in which they were given, 10.png before 2.png"
    note = f"note: --prompts p.txt: {given}; name their directory for the order of their numbers\n"
    assert (note in done.err) is noted


def test_directories_that_a_shell_has_listed(dgpo: Run) -> None:
    Path("p.txt").write_text("a\nb\nc\nd\n")
    names = [picture(f"{name}.png") for name in ("10/0", "2/0")]
    done = dgpo("score", "stub", "10", "2", picture("a9.png"), picture("B1.png"), "--prompts", "p.txt")
    order = "the files get its lines in the order in which they were given, 10/0.png before 2/0.png"
    assert f"note: --prompts p.txt: {order}; give them in the order you mean\n" in done.err
    Path("q.txt").write_text("a\nb\n")
    assert "note" not in dgpo("score", "stub", *reversed(names), "--prompts", "q.txt").err


def test_lines_that_name_files_under_another_key(dgpo: Run) -> None:
    """As in Hugging Face's image folders. They are not silently paired with other files."""
    picture("d/1.png"), picture("d/2.png")

    def lines(*names: str) -> None:
        Path("p.jsonl").write_text("".join(f'{{"prompt": "x", "file_name": "{name}"}}\n' for name in names))

    lines("train/2.png", "train/1.png")
    done = dgpo("score", "stub", "d", "--prompts", "p.jsonl")
    assert done.code == 2
    assert done.err.startswith(
        "p.jsonl:1: its `file_name` names 2.png, but by the order of the files it is the line of "
    )
    for names in (("train/1.png", "train/2.png"), ("1.png", "1.png"), ("2.png", "other.png")):
        lines(*names)
        assert dgpo("score", "stub", "d", "--prompts", "p.jsonl").code == 0


def test_names_in_prompt_files_that_differ_by_little(dgpo: Run) -> None:
    picture("d/cafe\u0301.png")
    Path("p.jsonl").write_text('{"prompt": "x", "file": "caf\u00e9.png"}\n', encoding="utf-8")
    assert dgpo("score", "stub", "d", "--prompts", "p.jsonl").code == 0
    for name in ("caf\u00e9.jpg", "samples/CAF\u00c9.PNG", "caf\u00e9", "C:\\\\caf\u00e9.png"):
        Path("p.jsonl").write_text(f'{{"prompt": "x", "file": "{name}"}}\n', encoding="utf-8")
        done = dgpo("score", "stub", "d", "--prompts", "p.jsonl")
        assert (done.code, "no line is about d/cafe\u0301.png; one is about" in done.err) == (2, True), name


def test_every_kind_of_file(dgpo: Run) -> None:
    clip("v.gif", 1.0, 0.0)
    clip("v.webp", 1.0, 0.0)
    names = [picture("p.png"), picture("j.jpg"), picture("w.webp"), picture("g.png", mode="L"), picture("i.gif")]
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save("clear.png")
    done = dgpo("score", "stub", *names, "v.gif", "v.webp", "clear.png", "--json")
    values = {record["file"]: record["value"] for record in json.loads(done.out)}
    grey = round(0.8 * 255 * 0.299) / 255
    expected = {"p.png": 0.8, "j.jpg": 0.8, "w.webp": 0.8, "g.png": grey, "i.gif": 0.8, "v.gif": 0.5, "v.webp": 0.5}
    assert values == pytest.approx(expected | {"clear.png": 1.0}, abs=0.02)
    assert "note: clear.png: what is transparent in it is shown on white\n" in done.err
    assert {shape for shape, _ in Stub.asked} == {(6, 3, 8, 8), (2, 2, 3, 8, 8)}


# -- JSON ---------------------------------------------------------------------------------------------------------


def test_json_has_one_object_per_file(dgpo: Run) -> None:
    files = [picture("a.png", 0.2), picture("b.png", 0.8)]
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


def test_the_json_is_also_written_beside_a_table(dgpo: Run) -> None:
    done = dgpo("score", "stub", picture("a.png"), "--output", "scores.json")
    assert done.out.startswith("file")
    assert [record["file"] for record in json.loads(Path("scores.json").read_text())] == ["a.png"]


def test_a_name_that_is_no_text(dgpo: Run) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    picture("x.png").rename(name)
    assert dgpo("score", "stub", ".").out.splitlines()[1].startswith("caf?.png  0.8000")
    assert json.loads(dgpo("score", "stub", ".", "--json", "--annotate", "seen").out)[0]["file"] == "caf?.png"


# -- what is missing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello", "not a picture or a video that can be read"),
        (b"half", "cannot be read: image file is truncated"),
    ],
)
def test_a_file_that_cannot_be_read_is_missing_and_the_others_are_scored(
    dgpo: Run, content: bytes, reason: str
) -> None:
    picture("a.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save("b.png")
    Path("b.png").write_bytes(Path("b.png").read_bytes()[:2000] if content == b"half" else content)
    done = dgpo("score", "stub", "b.png", "a.png", "--annotate", "seen")
    assert done.code == 1
    _, first, second = done.out.splitlines()
    assert first == f"b.png       -  {reason}"
    assert second.startswith("a.png  0.8000")
    assert done.err.endswith("1 of 2 files could not be scored\n")
    assert [path.name for path in Path("seen").iterdir()] == ["a.annotated.png"]


def test_media_that_the_reward_does_not_take(dgpo: Run) -> None:
    done = dgpo("score", "pictures-only", picture("a.png"), clip("v.gif", 0.0, 1.0))
    assert done.code == 1
    assert done.out.splitlines()[-1] == "v.gif       -  is a video; the reward takes images"
    assert Stub.asked == [((1, 3, 8, 8), [Prompt("")])]


class Frames:
    """A reward of that name, as dgpo-video has one."""

    @hookimpl
    def dgpo_rewards(self) -> Sequence[Part]:
        return [Part("frames", "Redness of frames.", "stub_rewards:Stub", StubOptions)]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("frames", [False, True])
def test_only_media_that_the_reward_does_not_take(dgpo: Run, known: Registry, count: int, frames: bool) -> None:
    """A mistake in what was given, told before anything is scored, with the way out where there is one."""
    if frames:
        known.register(Frames(), distribution="dgpo-video")
    files = [clip(f"{i}.gif", 0.0, 1.0) for i in range(count)]
    done = dgpo("score", "pictures-only", *files, "--annotate", "seen")
    others = ", as are the other 2 files" if count == 3 else ""
    advice = "; show it single frames: dgpo score frames --option reward=pictures-only" if frames else ""
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[1:] == [f"0.gif: is a video{others}; pictures-only scores images{advice}"]
    assert Stub.asked == []
    assert Stub.closed == 1
    assert not Path("seen").exists()


def test_a_reward_of_videos_is_not_given_pictures(dgpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stub, "media", frozenset({"video"}))
    done = dgpo("score", "stub", picture("a.png"), picture("b.png"))
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[1:] == ["a.png: is an image, as is the other file; stub scores videos"]


def test_what_cannot_be_read_is_no_other_kind(dgpo: Run) -> None:
    Path("b.mp4").write_bytes(b"hello")
    done = dgpo("score", "pictures-only", "b.mp4", clip("v.gif", 0.0, 1.0))
    assert done.code == 1
    assert "b.mp4      -  not a picture or a video that can be read" in done.out


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
    done = dgpo("score", "stub", picture("a.png"), "--prompt", prompt, "--json")
    (record,) = json.loads(done.out)
    assert (done.code, record["value"], record["missing"]) == (1, None, True)
    assert record["diagnostics"]["reason"] == reason
    assert Stub.closed == 1


# -- prompts ------------------------------------------------------------------------------------------------------


def asked() -> list[tuple[str, dict[str, Any]]]:
    return [(prompt.text, dict(prompt.metadata)) for _, prompts in Stub.asked for prompt in prompts]


def test_one_prompt_for_all(dgpo: Run) -> None:
    files = [picture("a.png"), picture("b.png")]
    dgpo("score", "stub", *files, "-p", "red", "--metadata", '{"tag": "x"}')
    assert asked() == [("red", {"tag": "x"})] * 2


def test_metadata_from_a_file_may_bring_its_prompt(dgpo: Run) -> None:
    Path("m.json").write_text('{"tag": "x", "prompt": "of the file"}')
    dgpo("score", "stub", picture("a.png"), "--metadata", "@m.json")
    dgpo("score", "stub", "a.png", "--metadata", "@m.json", "--prompt", "mine")
    dgpo("score", "stub", "a.png")
    told = {"tag": "x", "prompt": "of the file"}
    assert asked() == [("of the file", told), ("mine", told), ("", {})]


def test_a_line_for_each_file_in_order(dgpo: Run) -> None:
    files = [picture("b.png"), picture("a.png")]
    Path("p.txt").write_text("one\n\ntwo\n")
    Path("p.jsonl").write_text('{"prompt": "one", "n": 1}\n{"prompt": "two", "n": 2}\n')
    dgpo("score", "stub", *files, "--prompts", "p.txt")
    dgpo("score", "stub", *files, "--prompts", "p.jsonl")
    assert asked() == [("one", {}), ("two", {}), ("one", {"n": 1}), ("two", {"n": 2})]


def test_lines_that_name_their_files(dgpo: Run) -> None:
    """From here, from the prompt file's directory, or by the bare name; lines about other files do no harm."""
    for name in ("x/a.png", "x/y/b.png", "c.png"):
        picture(name)
    lines = [("c.png", "cc"), ("y/b.png", "bb"), ("x/a.png", "aa"), ("else.png", "no")]
    Path("x/p.jsonl").write_text("".join(json.dumps({"prompt": p, "file": f, "k": 1}) + "\n" for f, p in lines))
    dgpo("score", "stub", "x/a.png", "x/y/b.png", Path("c.png").absolute(), "--prompts", "x/p.jsonl")
    assert asked() == [("aa", {"k": 1}), ("bb", {"k": 1}), ("cc", {"k": 1})]


# -- the reward ---------------------------------------------------------------------------------------------------


def test_options_are_yaml_with_dotted_keys(dgpo: Run) -> None:
    picture("a.png")
    dgpo("score", "stub", "a.png", "--option", "depth=3", "--option", "inner.on=[true, no]", "--option", "test=x")
    assert Stub.built == [StubOptions(test="x", depth=3, inner={"on": [True, "no"]})]


def test_a_file_with_one_reward(dgpo: Run) -> None:
    Path("reward.yaml").write_text("use: stub\nname: red\noptions:\n  depth: 3\n  test: x\n")
    assert dgpo("score", "reward.yaml", picture("a.png"), "--option", "depth=4").code == 0
    assert Stub.built == [StubOptions(test="x", depth=4)]


def test_a_file_for_a_server(dgpo: Run) -> None:
    Path("reward.yaml").write_text("device: cpu\nreward:\n  use: stub\n  options: {depth: 3}\n")
    Path("short.yaml").write_text("reward: stub\n")
    Path("bad.yaml").write_text("device: cpu\nreward: [stub]\n")
    picture("a.png")
    assert dgpo("score", "reward.yaml", "a.png").code == 0
    assert dgpo("score", "short.yaml", "a.png", "--option", "depth=4").code == 0
    assert [options.depth for options in Stub.built] == [3, 4]
    assert dgpo("score", "reward.yaml", "a.png", "--option", "depth=x").err.startswith("--option depth=x: must be")
    assert dgpo("score", "bad.yaml", "a.png").err.startswith("bad.yaml:2: reward: must be a reward, such as {use: N")


def test_a_reward_of_a_run(dgpo: Run, write_run: Callable[..., Path]) -> None:
    blocks = [{"use": "brightness"}, {"use": "stub", "name": "red", "options": {"depth": 2}}]
    guard = [{"use": "stub", "name": "guard", "options": {"depth": 9}}]
    file = write_run(rewards=blocks, evaluation={"guards": {"rewards": guard}})
    Path("runs/toy").mkdir(parents=True)
    shutil.copy(file, "runs/toy/config.yaml")
    picture("a.png")
    assert dgpo("score", file, "a.png", "--reward", "red").code == 0
    assert dgpo("score", "runs/toy", "a.png", "--reward", "guard", "--option", "depth=5").code == 0
    assert [options.depth for options in Stub.built] == [2, 5]
    one = write_run("one.yaml", rewards=blocks[1:])
    assert dgpo("score", one, "a.png").code == 0


@pytest.mark.parametrize("flags", [["--worker-python", "python9"], ["--url", "http://a", "--url", "http://b",
                                   "--token-variable", "TOKEN"]])  # fmt: skip
def test_the_reward_is_placed_where_the_command_line_says(
    dgpo: Run, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    seen: list[Any] = []

    def place(block: Any, registry: Registry, *, device: torch.device) -> RewardModel:
        seen.append((block.worker, block.service, block.use, device.type))
        return Stub(StubOptions(), device=device)

    monkeypatch.setattr("dgpo_core.rewards.place", place)
    Path("reward.yaml").write_text(
        "use: elsewhere\n" + ("service: {urls: [x]}\n" if "python9" in flags else "worker: {count: 3}\n")
    )
    assert dgpo("score", "reward.yaml", picture("a.png"), "--device", "cpu", *flags).code == 0
    ((worker, service, use, device),) = seen
    assert (use, device) == ("elsewhere", "cpu")  # it need not be installed here
    if "python9" in flags:
        assert (worker.python, service) == ("python9", None)
    else:
        assert (worker, service.urls, service.token_variable) == (None, ["http://a", "http://b"], "TOKEN")


# -- annotated pictures -------------------------------------------------------------------------------------------


def test_annotated_pictures_show_the_marks(dgpo: Run) -> None:
    files = [picture("a/x.png", 0.8, (64, 64)), picture("b/x.jpg", 0.2), clip("v.gif", 0.2, 0.8)]
    done = dgpo("score", "stub", *files, "--prompt", "red", "--annotate", "seen/here")
    assert done.code == 0
    names = ["v.annotated.png", "x-2.annotated.png", "x.annotated.png"]
    assert sorted(path.name for path in Path("seen/here").iterdir()) == names
    shown = np.asarray(Image.open("seen/here/x.annotated.png"))
    green = (shown == GREEN).all(-1)[: MARGIN + 513]
    columns, rows = np.nonzero(green.any(0))[0], np.nonzero(green.any(1))[0]
    corner = MARGIN + 1
    assert (columns[0], columns[-1], rows[0], rows[-1]) == (corner, corner + 255, corner, corner + 511)
    assert tuple(shown[corner + 256, corner + 400]) == (204, 0, 0)
    dgpo("score", "stub", *files, "--annotate", "seen/here")  # again, over those of before
    assert sorted(path.name for path in Path("seen/here").iterdir()) == names


def test_pictures_beside_the_originals_leave_these_alone(dgpo: Run) -> None:
    before = picture("x.png").read_bytes()
    for _ in range(2):
        assert len(json.loads(dgpo("score", "stub", ".", "--annotate", ".", "--json").out)) == 1
    assert Path("x.png").read_bytes() == before
    assert sorted(path.name for path in Path().iterdir()) == ["x.annotated.png", "x.png"]


# -- rewards that compare -----------------------------------------------------------------------------------------


def test_files_of_one_prompt_are_compared(dgpo: Run) -> None:
    """Whatever comes between them, and whatever size those of another prompt have."""
    files = [picture("a.png", 0.2), picture("b.png", 0.9, (9, 9)), picture("c.png", 0.8), picture("d.png", 0.1, (9, 9)),
             picture("e.png", 0.5)]  # fmt: skip
    Path("prompts.txt").write_text("one\ntwo\none\ntwo\none\n")
    done = dgpo("score", "win-rate", *map(str, files), "--prompts", "prompts.txt", "--json", "--batch", "1")
    assert done.code == 0, done.err
    assert [one["value"] for one in json.loads(done.out)] == [0.0, 1.0, 1.0, 0.0, 0.5]


def test_files_that_cannot_be_compared(dgpo: Run) -> None:
    files = [str(picture("a.png", 0.2)), str(picture("b.png", 0.4)), str(picture("c.png", 0.8))]
    Path("prompts.txt").write_text("one\ntwo\none\n")
    done = dgpo("score", "win-rate", *files, "--prompts", "prompts.txt")
    assert done.code == 2
    assert "b.png: win-rate compares the files of one prompt with each other, and no other file has the" in done.err
    picture("b.png", 0.4, (9, 9))
    Path("a.png").write_bytes(b"nonsense")
    done = dgpo("score", "win-rate", *files, "--prompt", "one", "--json")
    assert done.code == 1
    reasons = [one["diagnostics"]["reason"] for one in json.loads(done.out)]
    assert "several sizes" in reasons[1]
    assert reasons[1] == reasons[2] != reasons[0]
    picture("b.png", 0.4)
    done = dgpo("score", "win-rate", *files[:2], "--prompt", "one", "--json")
    assert "nothing to compare it with" in json.loads(done.out)[1]["diagnostics"]["reason"]


def test_names_of_files_are_keys_that_can_travel(dgpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long ones, and those that are no UTF-8, as digests."""
    asked: list[Any] = []
    score_group = WinRate.score_group

    def scored(self: WinRate, media: Any, prompt: Any, keys: Any) -> Any:
        asked.append((media, prompt, keys))
        return score_group(self, media, prompt, keys)

    monkeypatch.setattr(WinRate, "score_group", scored)
    deep = Path("d" * 100, "e" * 100)
    deep.mkdir(parents=True)
    files = [str(picture(str(deep / name), 0.2)) for name in ("a.png", "b.png")] + [str(picture("c.png", 0.4))] * 2
    assert dgpo("score", "win-rate", *files, "--json").code == 0
    ((media, prompt, keys),) = asked
    request = read_score_request(Blob(score_request(media, [prompt] * 4, keys=keys)))
    assert request.keys == keys
    assert keys[2:] == [("c.png", 0), ("c.png", 1)]
    assert lone_surrogate(batches_module._named("\udcff.png")) is None


def test_a_reward_that_compares_tests_itself(dgpo: Run) -> None:
    done = dgpo("score", "--self-test", "win-rate")
    assert done.code == 0, done.out + done.err
    assert "passed: every good example has at least 1, every bad one at most 0" in done.out


# -- self-test ----------------------------------------------------------------------------------------------------


def test_a_reward_that_tells_good_from_bad(dgpo: Run) -> None:
    done = dgpo("score", "--self-test", "stub")
    assert done.code == 0
    assert done.out == (
        "example         value  details\n"
        "fire     good  0.9000  ✓ red enough: found 0.90\n"
        "rose     good  0.7000  ✓ red enough: found 0.70\n"
        "sea       bad  0.1000  ✗ red enough: found 0.10\n"
        "passed: every good example has at least 0.7, every bad one at most 0.1\n"
    )
    assert Stub.closed == 1


@pytest.mark.parametrize(
    ("test", "failure"),
    [
        ("inverted", "the bad example 'sea' has 0.7 and the good example 'fire' has 0.2: every bad one must score "
         "below every good one"),
        ("level", "the bad example 'sea' has 0.5 and the good example 'fire' has 0.5: every bad one must score "
         "below every good one"),
        ("constant", "every example has the value 0.25: good and bad look alike to it"),
        ("zero", "every example has the value 0: good and bad look alike to it"),
        ("missing", "fire: could not be scored: it is too dark"),
        ("nan", "fire: could not be scored: the value nan is not in the declared range [0.0, 1.0]"),
        ("far", "fire: could not be scored: the value 7.0 is not in the declared range [0.0, 1.0]"),
        ("raise", "fire: could not be scored: RuntimeError: the lamp is broken"),
        ("one-sided", "there is no bad example, so there is nothing to tell apart"),
    ],
)  # fmt: skip
def test_a_reward_that_does_not(dgpo: Run, test: str, failure: str) -> None:
    done = dgpo("score", "stub", "--self-test", "--option", f"test={test}", "--json")
    data = json.loads(done.out)
    assert done.code == 1
    assert done.err.endswith(f"self-test of stub failed: {failure}\n")
    assert (data["reward"], data["passed"], data["failures"]) == ("stub", False, [failure])
    assert {"example", "good", "prompt", "value", "missing", "diagnostics"} == set(data["examples"][0])


def test_a_reward_without_examples(dgpo: Run) -> None:
    done = dgpo("score", "stub", "--self-test", "--option", "test=none")
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith("reward stub has no examples, so it cannot test itself; score pictures that you know\n")
    assert Stub.closed == 1


def test_examples_that_fail(dgpo: Run) -> None:
    done = dgpo("score", "stub", "--self-test", "--option", "test=unheard-of")
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith("reward stub: its examples failed with KeyError: 'unheard-of'\n")


def test_the_examples_can_be_looked_at(dgpo: Run) -> None:
    dgpo("score", "stub", "--self-test", "--annotate", "seen", "--output", "test.json")
    assert sorted(path.name for path in Path("seen").iterdir()) == [
        f"{n}.annotated.png" for n in ("fire", "rose", "sea")
    ]
    assert json.loads(Path("test.json").read_text())["passed"] is True


# -- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["stub"], "name the files to score, or give --self-test"),
        (["stub", "a.png", "--self-test", "-p", "x"], "--self-test: scores the reward's own examples; leave out a file "
         "and --prompt"),
        (["stub", "no.png", "empty"], "no.png: there is no such file\nempty: the directory holds no pictures or "
         "videos"),
        (["a.png"], "a.png: is a file; the reward comes first: dgpo score REWARD a.png"),
        (["./a.png", "a.png"], "./a.png: is a file; the reward comes first: dgpo score REWARD ./a.png"),
        (["stubb", "a.png"],
         "reward stubb: use: unknown reward 'stubb'; did you mean stub? (installed: brightness, pictures-only, stub, "
         "win-rate)"),
        (["empty", "a.png"], "empty: neither a reward nor a run directory (it has no config.yaml)"),
        (["no.yaml", "a.png"], "no.yaml: there is no such file"),
        (["stub", "a.png", "--reward", "x"], "--reward x: chooses a reward of a run; stub is the name of a reward"),
        (["one.yaml", "a.png", "--reward", "x"], "--reward x: one.yaml is no run file (it has no `rewards`), it holds "
         "one reward"),
        (["one.yaml", "a.png"], "one.yaml:3: options.depth: must be at least 0, not -1"),
        (["odd.yaml", "a.png"], "odd.yaml:2: option: unknown key; did you mean options?"),
        (["two.yaml", "a.png"], "two.yaml: which reward is meant? --reward red or blue"),
        (["two.yaml", "a.png", "--reward", "bleu"], "--reward bleu: two.yaml has no such reward; did you mean blue? "
         "(there are red, blue)"),
        (["two.yaml", "a.png", "--reward", "blue"], "two.yaml:3: options.dept: unknown key; did you mean depth?"),
        (["stub", "a.png", "--option", "depth=-1"], "--option depth=-1: must be at least 0, not -1"),
        (["stub", "a.png", "--option", "dept=1"], "--option dept=1: unknown key; did you mean depth?"),
        (["stub", "a.png", "--option", "depth"], "--option depth: must be KEY=VALUE, such as detector=shapes"),
        (["stub", "a.png", "--option", "=3"], "--option =3: must be KEY=VALUE, such as detector=shapes"),
        (["stub", "a.png", "--option", "depth=[1"], "--option depth=[1: not YAML: expected ',' or ']', but got "
         "'<stream end>' while parsing a flow sequence (column 3)"),
        (["stub", "a.png", "--url", "http://x", "--worker-python", "y"],
         "give --worker-python or --url, not both: a reward runs in one place"),
        (["stub", "a.png", "--token-variable", "X"], "--token-variable: names the token of a service; give its --url"),
        (["stub", "a.png", "--token-variable", "", "--url", "http://x"],
         "--token-variable: service.token_variable: must not be empty"),
        (["stub", "a.png", "--device", "gpu"], "--device gpu: choose one of auto, cpu, cuda"),
        (["stub", "a.png", "--output", "empty"], "--output empty: is a directory; name a file"),
        (["stub", "a.png", "--output", "no/x.json"], "--output no/x.json: there is no directory no"),
        (["stub", "a.png", "--annotate", "a.png"], "--annotate a.png: cannot be written: {cwd}/a.png is a file"),
        (["stub", "a.png", "--metadata", "{]"], "--metadata: not JSON: Expecting property name enclosed in double "
         "quotes (column 2)"),
        (["stub", "a.png", "--metadata", "[1]"], "--metadata: must be a JSON object, such as {{\"tag\": \"colors\"}}, "
         "not a list"),
        (["stub", "a.png", "--metadata", "@no.json"], "--metadata @no.json: cannot be read: No such file or directory"),
        (["stub", "a.png", "--prompts", "p.txt", "-p", "x"], "give --prompts or --prompt, not both: a prompt file has "
         "the prompt of each file"),
        (["stub", "a.png", "--prompts", "p.txt"], "--prompts p.txt: has 2 prompts for 1 file; give one line a file, in "
         "their order, or a .jsonl file whose lines name theirs: {{\"file\": ..., \"prompt\": ...}}"),
        (["stub", "a.png", "--prompts", "p.png"], "p.png: a prompt file ends in .txt (one prompt a line) or .jsonl "
         "(one object a line), or in .json (one list)"),
        (["stub", "a.png", "--prompts", "named.jsonl"], "named.jsonl:2: `file` must name a file, as in other lines"),
        (["stub", "a.png", "--prompts", "twice.jsonl"], "twice.jsonl:2: a.png has another prompt in twice.jsonl:1"),
        (["stub", "a.png", "--prompts", "other.jsonl"], "--prompts other.jsonl: no line is about a.png"),
        (["stub", "a.png", "-p", "unfit"], "--prompt: prompt 'unfit' is unfit"),
    ],
)  # fmt: skip
def test_mistakes(dgpo: Run, arguments: list[str], expected: str) -> None:
    picture("a.png")
    Path("empty").mkdir()
    Path("one.yaml").write_text("use: stub\noptions:\n  depth: -1\n")
    Path("odd.yaml").write_text("use: stub\noption: {}\n")
    Path("two.yaml").write_text("rewards:\n- {use: stub, name: red}\n- {use: stub, name: blue, options: {dept: 1}}\n")
    Path("p.txt").write_text("one\ntwo\n")
    Path("named.jsonl").write_text('{"prompt": "x", "file": "a.png"}\n{"prompt": "y"}\n')
    Path("twice.jsonl").write_text('{"prompt": "x", "file": "a.png"}\n{"prompt": "y", "file": "a.png"}\n')
    Path("other.jsonl").write_text('{"prompt": "x", "file": "b.png"}\n')
    done = dgpo("score", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.removeprefix("loading weights\n") == expected.format(cwd=Path.cwd()) + "\n"
    assert Stub.asked == []
    assert not Path("seen").exists()


def test_a_disk_that_cannot_be_written(dgpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    picture("a.png")
    monkeypatch.setattr(Image.Image, "save", full)
    done = dgpo("score", "stub", "a.png", "--annotate", "seen")
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith("cannot write seen/a.annotated.png: No space left on device\n")
    assert Stub.closed == 1


def test_cuda_that_is_absent(dgpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = dgpo("score", "stub", picture("a.png"), "--device", "cuda")
    assert (done.code, done.out) == (2, "")
    assert done.err == f"--device cuda: torch {torch.__version__} sees no CUDA device; use auto or cpu\n"


# -- with real rewards --------------------------------------------------------------------------------------------


def test_geneval_on_miniature_pictures(dgpo: Run, known: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    world = pytest.importorskip("dgpo_miniature.world")
    pytest.importorskip("dgpo_geneval")
    from dgpo_geneval import plugin as geneval
    from dgpo_miniature import plugin as miniature

    known.register(geneval, distribution="dgpo-geneval")
    known.register(miniature, distribution="dgpo-miniature")
    # A red circle top left and a blue square top right; then the other way round.
    kind, color = np.array([[0, 1, -1, -1], [1, 0, -1, -1]]), np.array([[0, 2, 0, 0], [2, 0, 0, 0]])
    for i, pixels in enumerate(world.render(world.random_scenes(kind, color, np.random.default_rng(0)))):
        Image.fromarray((pixels.transpose(1, 2, 0) * 255).round().astype(np.uint8)).save(f"{i}.png")
    asks = {
        "tag": "position",
        "include": [{"class": "square", "count": 1}, {"class": "circle", "count": 1, "position": ["left of", 0]}],
        "prompt": "a photo of a circle left of a square",
    }
    common = ["--metadata", json.dumps(asks), "--option", "detector=shapes", "--json", "--annotate", "seen"]
    done = dgpo("score", "geneval", "0.png", "1.png", *common)
    assert done.code == 0, done.err
    good, bad = json.loads(done.out)
    assert (good["value"], good["prompt"]) == (1.0, asks["prompt"])
    assert bad["value"] < 1
    assert [clause["ok"] for clause in good["diagnostics"]["clauses"]] == [True, True]
    assert [clause["ok"] for clause in bad["diagnostics"]["clauses"]] == [True, False]
    assert len(good["diagnostics"]["marks"]) == 2
    shown = np.asarray(Image.open("seen/0.annotated.png"))
    assert (shown == GREEN).all(-1)[: MARGIN + 513].sum() > 1000


@pytest.mark.parametrize(("name", "options"), [("geneval", ["--option", "detector=shapes"]), ("ocr", [])])
def test_real_rewards_pass_their_own_test(dgpo: Run, known: Registry, name: str, options: list[str]) -> None:
    modules = {"geneval": ["dgpo_geneval", "dgpo_miniature"], "ocr": ["dgpo_ocr", "rapidocr"]}[name]
    for module in modules:
        pytest.importorskip(module)
    for module in (module for module in modules if module.startswith("dgpo_")):
        known.register(importlib.import_module(f"{module}.plugin"), distribution=module)
    done = dgpo("score", "--self-test", name, *options, "--annotate", "seen")
    assert done.code == 0, done.err
    assert "passed: every good example has at least 1, " in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    colours = {tuple(c) for path in Path("seen").iterdir() for c in np.asarray(Image.open(path)).reshape(-1, 3)[::7]}
    assert {GREEN, RED} <= colours
