"""`dgpo sample`."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from dgpo_core.builtin.samplers import FlowEuler
from dgpo_core.media.files import read_media
from dgpo_core.plugins.registry import Registry
from dgpo_kit.toy import ToyBackbone, sizes_plugin

Run = Callable[..., Any]


def tree(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


def image(path: str | Path) -> np.ndarray:
    return np.asarray(PIL.Image.open(path)).astype(int)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """(noise, x0) of every batch that the sampler draws."""
    seen: list[tuple[Tensor, Tensor]] = []
    sample = FlowEuler.sample

    def watched(self: FlowEuler, velocity: Any, noise: Tensor, **keywords: Any) -> Any:
        result = sample(self, velocity, noise.clone(), **keywords)
        seen.append((noise.clone(), result.x0.clone()))
        return result

    monkeypatch.setattr(FlowEuler, "sample", watched)
    return seen


def test_every_model_is_given_the_same_noise(dgpo: Run, trained: Any, drawn: list[tuple[Tensor, Tensor]]) -> None:
    for model in ("base", "policy", "ema"):
        assert dgpo("sample", trained.path, "--model", model, "--output", model, "--seed", 5).code == 0
    dgpo("sample", trained.path, "--output", "other", "--seed", 6)
    # 24 samples are more than the run's iteration of 16, so each command draws two batches.
    (base, base_x0), (policy, policy_x0), (slow, slow_x0), (other, _) = (
        tuple(map(torch.cat, zip(*drawn[at : at + 2], strict=True))) for at in range(0, 8, 2)
    )
    assert torch.equal(base, policy)
    assert torch.equal(base, slow)
    assert not torch.equal(base, other)
    assert not torch.allclose(base_x0, policy_x0)
    assert not torch.allclose(policy_x0, slow_x0)
    assert (image("base/00.png") != image("policy/00.png")).any()
    # Each sample has noise of its own, of unit variance: 6 prompts x 4 samples x 32 numbers.
    assert base.shape == (24, 2, 4, 4)
    assert len({tuple(row.flatten().tolist()) for row in base}) == 24
    assert float(base.std()) == pytest.approx(1, abs=0.15)


def test_images_are_the_decoded_samples_in_the_order_of_the_prompts(
    dgpo: Run, trained: Any, drawn: list[tuple[Tensor, Tensor]]
) -> None:
    done = dgpo("sample", trained.path, "-p", "one", "-p", "two", "-n", 3, "--output", "out")
    assert (done.code, done.err) == (0, "")
    assert done.out == "6 images of the ema weights of runs/toy after iteration 4: out/grid.png\n"
    assert json.loads(Path("out/prompts.json").read_text()) == ["one"] * 3 + ["two"] * 3
    ((_, x0),) = drawn
    sheet = image("out/grid.png")
    assert sheet.shape == (2 * 8 + 4, 3 * 8 + 2 * 4, 3)  # a row a prompt, a gap of four pixels
    for i in range(6):
        found = image(f"out/{i:02d}.png")
        # The toy's image: red is the first channel, green the second, twice as large.
        shades = 255 * torch.sigmoid(x0[i].double()).repeat_interleave(2, 1).repeat_interleave(2, 2).numpy()
        assert np.abs(found[:, :, 0] - shades[0]).max() <= 0.51
        assert np.abs(found[:, :, 1] - shades[1]).max() <= 0.51
        row, column = divmod(i, 3)
        assert (sheet[12 * row : 12 * row + 8, 12 * column : 12 * column + 8] == found).all()
    assert sorted(tree(Path("out"))) == [*(f"{i:02d}.png" for i in range(6)), "grid.png", "prompts.json"]


def test_more_prompts_do_not_change_the_first_ones(dgpo: Run, trained: Any) -> None:
    dgpo("sample", trained.path, "-p", "one", "-n", 2, "--output", "few")
    dgpo("sample", trained.path, "-p", "one", "-p", "two", "-n", 2, "--output", "more")
    for name in ("00.png", "01.png"):
        assert Path("few", name).read_bytes() == Path("more", name).read_bytes()


def test_held_out_prompts_are_the_default(dgpo: Run, trained: Any) -> None:
    assert dgpo("sample", trained.path, "--limit", 2, "-n", 1).code == 0
    assert json.loads(Path("samples/prompts.json").read_text()) == ["heldout picture 0", "heldout picture 1"]


def test_without_held_out_prompts_it_takes_those_of_the_training(dgpo: Run, write_run: Callable[..., Path]) -> None:
    file = write_run(prompts={"heldout": None}, evaluation={"every": 0})
    assert dgpo("sample", file, "-n", 1, "--limit", 1).code == 0
    assert json.loads(Path("samples/prompts.json").read_text()) == ["train picture 0"]


def test_prompts_from_a_file(dgpo: Run, trained: Any) -> None:
    Path("p.jsonl").write_text('{"prompt": "a lamp", "tag": "even"}\n\n{"prompt": "two lamps"}\n')
    assert dgpo("sample", trained.path, "--prompts", "p.jsonl", "-n", 1).code == 0
    assert json.loads(Path("samples/prompts.json").read_text()) == ["a lamp", "two lamps"]


def test_a_run_file_means_its_base_model(dgpo: Run, trained: Any) -> None:
    done = dgpo("sample", trained.file, "--output", "file")
    assert done.out == "24 images of the base model of run.yaml: file/grid.png\n"
    done = dgpo("sample", trained.path, "--model", "base", "--output", "run")
    assert done.out == "24 images of the base model of runs/toy: run/grid.png\n"
    assert tree(Path("file")) == tree(Path("run"))


def test_checkpoints_settings_and_options_are_followed(dgpo: Run, trained: Any) -> None:
    """Whatever should change the images does, and two ways to say the same give the same."""

    def images(*arguments: object) -> dict[str, bytes]:
        assert dgpo("sample", *arguments, "-p", "x", "--output", "out", "--force").code == 0
        return tree(Path("out"))

    newest = images(trained.path)
    assert images(trained.path, "--checkpoint", 4) == newest
    assert images(trained.path, "--checkpoint", "newest", "--seed", 0, "--steps", 3, "--guidance", 1) == newest
    others = [
        images(trained.path, "--checkpoint", 1),
        images(trained.path, "--model", "ema_fast"),
        images(trained.path, "--steps", 2),
        images(trained.path, "--guidance", 3),
        images(trained.path, "--seed", 1),
    ]
    assert all(other != newest for other in others)
    steps = images(trained.file, "--steps", 7)
    assert images(trained.file, "--set", "rollout.steps=7") == steps
    # Before the first update all views are the base model.
    assert images(trained.path, "--checkpoint", 0) == images(trained.file)


# -- videos ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def filmed(known: Registry, film: object, write_run: Callable[..., Path]) -> Path:
    """A run file whose backbone makes videos of five frames."""
    known.register(film, distribution="film")
    return write_run(
        backbone={"use": "film"}, rewards=[{"use": "glow"}], prompts={"train": {"use": "toy"}, "heldout": None},
        evaluation={"every": 0},
    )  # fmt: skip


def played(path: str) -> Any:
    """The stream of an mp4 file."""
    with av.open(path) as file:
        return file.streams.video[0]


def test_videos_are_the_decoded_samples(dgpo: Run, filmed: Path, drawn: list[tuple[Tensor, Tensor]]) -> None:
    done = dgpo("sample", filmed, "-p", "one", "-p", "two", "-n", 2, "--output", "out")
    assert (done.code, done.err) == (0, "")
    assert done.out == "4 videos of the base model of run.yaml: out/grid.png\n"
    names = [f"{i:02d}.{kind}" for i in range(4) for kind in ("mp4", "png")]
    assert sorted(tree(Path("out"))) == [*names, "grid.png", "prompts.json"]
    assert json.loads(Path("out/prompts.json").read_text()) == ["one", "one", "two", "two"]
    ((_, x0),) = drawn
    for i in range(4):
        shades = torch.sigmoid(x0[i]).repeat_interleave(2, 1).repeat_interleave(2, 2)
        frames = torch.stack([shades.roll(f, -1) for f in range(5)])
        strip = image(f"out/{i:02d}.png")
        assert strip.shape == (8, 5 * 10 - 2, 3)
        found = read_media(Path(f"out/{i:02d}.mp4")).tensor
        assert found.shape == (5, 3, 256, 256)
        for f in range(5):
            # Red is the toy's first channel, green its second.
            assert np.abs(strip[:, 10 * f : 10 * f + 8, :2] - 255 * frames[f].permute(1, 2, 0).numpy()).max() <= 0.51
            assert float((found[f, :2, 16::32, 16::32] - frames[f]).abs().max()) < 0.03
    assert image("out/grid.png").shape == (4 * (128 + 4) - 4, 5 * (128 + 4) - 4, 3)


def test_the_same_videos_are_the_same_bytes(dgpo: Run, filmed: Path) -> None:
    for output in ("one", "two"):
        assert dgpo("sample", filmed, "-p", "x", "--output", output).code == 0
    assert tree(Path("one")) == tree(Path("two"))


@pytest.mark.parametrize(("options", "fps"), [([], 5), (["--fps", "12"], 12), (["--fps", "1"], 1)])
def test_the_frame_rate_of_videos(dgpo: Run, filmed: Path, options: list[str], fps: int) -> None:
    """Five frames last a second, unless another rate is asked for."""
    assert dgpo("sample", filmed, "-p", "x", "-n", 1, *options).code == 0
    assert played("samples/00.mp4").average_rate == fps


def test_images_have_no_frame_rate(dgpo: Run, trained: Any, drawn: list[tuple[Tensor, Tensor]]) -> None:
    done = dgpo("sample", trained.path, "--fps", 8)
    assert (done.code, done.out) == (2, "")
    assert done.err == "--fps: the backbone toy makes images, which have no frame rate\n"
    assert drawn == []


def test_without_pyav_the_film_strips_are_written(dgpo: Run, filmed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sampled is not lost, and what is missing is told."""
    dgpo("sample", filmed, "-p", "x", "-n", 2, "--output", "whole")
    monkeypatch.setitem(sys.modules, "av", None)
    done = dgpo("sample", filmed, "-p", "x", "-n", 2)
    assert (done.code, done.out) == (0, "2 videos of the base model of run.yaml: samples/grid.png\n")
    assert done.err == (
        "note: videos are written as film strips only; mp4 files require PyAV: pip install 'dgpo[video]'\n"
    )
    whole = {name: data for name, data in tree(Path("whole")).items() if not name.endswith(".mp4")}
    assert tree(Path("samples")) == whole


# -- files -----------------------------------------------------------------------------------------------------------


def test_nothing_but_the_images_is_written(dgpo: Run, trained: Any) -> None:
    before = tree(Path())
    dgpo("sample", trained.path, "-p", "x")
    assert {name: data for name, data in tree(Path()).items() if not name.startswith("samples/")} == before


def test_nothing_is_overwritten_without_force(dgpo: Run, trained: Any) -> None:
    Path("photos").mkdir()
    Path("photos/wedding.jpg").write_bytes(b"precious")
    done = dgpo("sample", trained.path, "--output", "photos")
    assert (done.code, done.out) == (2, "")
    assert done.err == "--output photos: exists and is not empty; name another directory, or replace it with --force\n"
    assert tree(Path("photos")) == {"wedding.jpg": b"precious"}
    assert dgpo("sample", trained.path, "-p", "x", "-n", 1, "--output", "photos", "--force").code == 0
    assert sorted(tree(Path("photos"))) == ["00.png", "grid.png", "prompts.json"]


def test_a_link_is_followed(dgpo: Run, trained: Any) -> None:
    Path("scratch/images").mkdir(parents=True)
    Path("samples").symlink_to("scratch/images")
    for options in ([], ["--force"]):
        assert dgpo("sample", trained.path, "-p", "x", "-n", 1, *options).code == 0
        assert Path("samples").is_symlink()
        assert sorted(tree(Path("scratch"))) == [f"images/{name}" for name in ("00.png", "grid.png", "prompts.json")]
    assert sorted(p.name for p in Path().iterdir()) == ["run.yaml", "runs", "samples", "scratch"]


def test_a_full_disk_keeps_what_was_there(dgpo: Run, trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dgpo("sample", trained.path, "-p", "x")
    before = tree(Path())
    save = PIL.Image.Image.save

    def full(self: PIL.Image.Image, path: Path, *arguments: Any) -> None:
        if Path(path).name == "grid.png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(self, path, *arguments)

    monkeypatch.setattr(PIL.Image.Image, "save", full)
    done = dgpo("sample", trained.path, "-p", "y", "--force")
    assert (done.code, done.out, done.err) == (2, "", "cannot write samples: No space left on device\n")
    assert tree(Path()) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["runs/toy", "-p", "x", "--prompts", "p.txt"], "give --prompt or --prompts, not both"),
        (["runs/toy", "--prompts", "p.txt"], "p.txt: no such prompt file"),
        (["runs/toy", "--model", "fast"], "--model fast: choose one of base, policy, ema_fast, ema; did you mean "
         "ema_fast?"),
        (["runs/toy", "--set", "rollout.steps=4"], "--set belongs to a run file; a run directory keeps the "
         "configuration it was trained with"),
        (["runs/tyo"], "runs/tyo: no such run directory or run file"),
        (["runs/tyo", "--model", "ema"], "runs/tyo: no such run directory or run file"),
        (["runs"], "runs: not a run directory (it has no config.yaml)"),
        (["run.yaml", "--model", "ema"], "--model ema: run.yaml is a run file, which has only its base model; name a "
         "run directory"),
        (["run.yaml", "--set", "rollout.steps=0"], "--set rollout.steps=0: must be at least 1, not 0"),
        (["runs/toy", "--checkpoint", "last"], "runs/toy/checkpoints: no checkpoint 'last'; there are newest, best and "
         "iterations 0, 1, 2, 3, 4"),
        (["run.yaml", "--output", "run.yaml"], "--output run.yaml: is a file; name a directory"),
        (["runs/toy", "--output", "runs", "--force"], "--output runs: would replace runs/toy; name a directory of its "
         "own"),
    ],
)  # fmt: skip
def test_mistakes(dgpo: Run, trained: Any, arguments: list[str], expected: str) -> None:
    before = tree(Path())
    done = dgpo("sample", *arguments)
    assert (done.code, done.out, done.err) == (2, "", expected + "\n")
    assert tree(Path()) == before


@pytest.mark.parametrize(
    "option", ["--count=0", "--steps=0", "--guidance=0.5", "--guidance=nan", "--limit=0", "--fps=0"]
)
def test_numbers_out_of_range(dgpo: Run, trained: Any, option: str) -> None:
    done = dgpo("sample", trained.path, option)
    assert (done.code, done.out) == (2, "")
    assert f"Invalid value for '{option.partition('=')[0]}'" in done.err
    assert not Path("samples").exists()


# -- sizes ------------------------------------------------------------------------------------------------------------


def test_the_size_on_the_command_line_is_of_prompts_without_one(dgpo: Run, known: Registry, write_run: Any) -> None:
    known.register(sizes_plugin, distribution="toy-sizes")
    file = write_run(prompts={"heldout": {"use": "toy-sizes", "options": {"count": 2, "sizes": [[16, 8], [8, 24]]}}})
    assert dgpo("sample", file, "-n", 1, "--size", 16, "--output", "own").code == 0
    assert [image(f"own/0{i}.png").shape for i in range(2)] == [(16, 8, 3), (8, 24, 3)]
    assert dgpo("sample", file, "-p", "a", "-n", 1, "--size", "16X24", "--output", "given").code == 0
    assert image("given/00.png").shape == (16, 24, 3)
    assert dgpo("evaluate", file, "--samples", 2).code == 0


@pytest.mark.parametrize(
    ("size", "complaint"),
    [
        ("9x16", "--size: 9x16 is not possible; the nearest is 8x16"),
        ("big", "--size: 'big' is not a size in pixels; give a side, such as 768, or HEIGHTxWIDTH, 768x1024"),
        ("8x8x8", "--size: '8x8x8' is not a size in pixels"),
        ("8x", "--size: '8x' is not a size in pixels"),
        ("0", "--size: 0: a side must be from 1 to 16384 pixels"),
        ("8x99999", "--size: 8x99999: a side must be from 1 to 16384 pixels"),
    ],
)
def test_sizes_that_cannot_be(size: str, complaint: str, dgpo: Run, write_run: Any) -> None:
    done = dgpo("sample", write_run(), "-p", "a", "--size", size, "--output", "out")
    assert done.code == 2
    assert done.err.startswith(complaint)
    assert not Path("out").exists()


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_guidance_of_a_model_that_has_none(
    dgpo: Run, trained: Any, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(ToyBackbone, "supports_guidance", property(lambda self: False))
    where = ("--output", "new") if command == "sample" else ()
    done = dgpo(command, trained.path, "--guidance", 3, *where)
    assert (done.code, done.out) == (2, "")
    assert "--guidance: 3 is not possible: backbone: toy has no unconditional prediction" in done.err
    assert not Path("new").exists()
