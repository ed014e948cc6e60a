"""`dgpo validate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgpo_core.plugins.registry import Registry
from dgpo_kit.toy import run_data, sizes_plugin

Run = Callable[..., Any]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A toy run file."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run_data(tmp_path)))
    return path


def test_a_sound_file_is_summarized(dgpo: Run, file: Path) -> None:
    done = dgpo("validate", file)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == f"{file}: valid"
    # 4 groups of 4 samples, 4 iterations.
    assert lines[1].endswith("4 groups x 4 samples")
    assert lines[2] == "    = 16 samples per iteration, 64 in total"
    assert "LoRA of rank 4" in done.out
    assert "3 steps, shift 1, no guidance, 8x8" in done.out
    assert "2 timesteps per sample, sigma in [0.3, 1], 1 update per iteration" in done.out
    assert "every 2 iterations; held-out prompts: from the source toy" in done.out


def test_ranks_are_summarized(dgpo: Run, file: Path) -> None:
    assert "  rewards: 1 x brightness\n" in dgpo("validate", file).out
    done = dgpo("validate", file, "--set", "rewards.0.transform=rank")
    assert "  rewards: 1 x rank of brightness\n" in done.out


def test_sizes_of_prompts_are_summarized(dgpo: Run, known: Registry, file: Path) -> None:
    known.register(sizes_plugin, distribution="toy-sizes")
    done = dgpo("validate", file, "--set", "prompts.train.use=toy-sizes")
    assert "no guidance, 8x8, 16x8" in done.out


def test_overrides_are_summarized(dgpo: Run, file: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a\nb\nc\n")
    settings = [
        "rollout.guidance=4.5", "optimizer.updates=2", "backbone.train=full", "evaluation.every=0",
        f"prompts.heldout={tmp_path}/p.txt", "prompts.train.limit=2", "timesteps.t_min=shift(0.3)", "rollout.shift=3",
    ]  # fmt: skip
    arguments = [part for setting in settings for part in ("--set", setting)]
    data = yaml.safe_load(file.read_text())
    del data["backbone"]["lora"]
    file.write_text(yaml.safe_dump(data))
    done = dgpo("validate", file, *arguments)
    assert done.err == ""
    assert "guidance 4.5" in done.out
    assert "all weights" in done.out
    assert "sigma in [0.5625, 1], 2 updates per iteration" in done.out
    assert "from the source toy, the first 2" in done.out
    assert f"when the run ends; held-out prompts: 3 from {tmp_path}/p.txt" in done.out


def test_no_heldout_prompts(dgpo: Run, file: Path) -> None:
    done = dgpo("validate", file, "--set", "prompts.heldout=null", "--set", "evaluation.every=0")
    assert "evaluation: none, there are no held-out prompts" in done.out


def test_sources_are_summarized(dgpo: Run, file: Path, tmp_path: Path) -> None:
    """Each with its share, its prompts and its rewards; a mistake in one has its line."""
    data = yaml.safe_load(file.read_text())
    (tmp_path / "p.txt").write_text("a\nb\nc\n")
    data["rewards"] = [{"use": "brightness"}, {"use": "win-rate", "name": "wins"}]
    data["prompts"] = {"train": [
        {"source": "signs", "file": str(tmp_path / "p.txt"), "weight": 3},
        {"source": "scenes", "use": "toy", "rewards": ["brightness"]},
    ]}  # fmt: skip
    data["evaluation"] = {"every": 0}
    file.write_text(yaml.safe_dump(data))
    done = dgpo("validate", file)
    assert done.err == ""
    assert (
        f"training prompts: signs (75%; 3 from {tmp_path}/p.txt; all rewards), "
        "scenes (25%; from the source toy; brightness)"
    ) in done.out
    data["prompts"]["train"][1] = {"source": "scenes", "file": str(tmp_path / "q.txt")}
    file.write_text(yaml.safe_dump(data))
    assert dgpo("validate", file).err.startswith("prompts.train.1: ")


def test_mistakes_are_printed_one_a_line(dgpo: Run, file: Path) -> None:
    done = dgpo("validate", file, "--set", "rollout.steps=0", "--set", "rewards.0.use=brihgtness")
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines() == [
        "--set rollout.steps=0: must be at least 1, not 0",
        "--set rewards.0.use=brihgtness: unknown reward 'brihgtness'; did you mean brightness? (installed: brightness, "
        "win-rate)",
    ]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("base: run.yaml\naxes: [{key: a, values: [1]}]\nreward: ocr\n", "an ablation file, which `dgpo ablate` reads"),
        ("reward: {use: brightness}\n", "the file of a reward service, which `dgpo serve` reads"),
        ("reward: brightness\nport: 80\n", "the file of a reward service, which `dgpo serve` reads"),
    ],
)
@pytest.mark.parametrize("command", ["validate", "train"])
def test_files_of_other_commands(command: str, text: str, what: str, dgpo: Run, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(text)
    done = dgpo(command, tmp_path / "other.yaml")
    assert (done.code, done.err) == (2, f"{tmp_path}/other.yaml: this is {what}; expected a run file\n")


def test_a_missing_file(dgpo: Run, tmp_path: Path) -> None:
    done = dgpo("validate", tmp_path / "nope.yaml")
    assert (done.code, done.err) == (2, f"{tmp_path}/nope.yaml: no such file\n")


def test_prompt_files_are_read(dgpo: Run, file: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": 3}\n')
    done = dgpo("validate", file, "--set", f"prompts.train={tmp_path}/p.jsonl")
    assert (done.code, done.out) == (2, "")
    assert done.err == f"prompts.train: {tmp_path}/p.jsonl:2: `prompt` must be a non-empty string, not 3\n"


SHARED = "warning: prompts.heldout: 2 of 3 held-out prompts (67 %) are also training prompts, the first is 'b'"


def test_heldout_prompts_that_are_trained_on_are_reported_of_everywhere(dgpo: Run, file: Path, tmp_path: Path) -> None:
    """By validate, by a dry run and by training, quiet or not, with the same numbers."""
    (tmp_path / "p.txt").write_text("a\nb\nc\n")
    (tmp_path / "q.txt").write_text("b \n\nc\nd\n")
    settings = ["--set", f"prompts.train={tmp_path}/p.txt", "--set", f"prompts.heldout={tmp_path}/q.txt"]
    said = dgpo("validate", file, *settings)
    assert (said.code, said.err) == (0, "")
    assert f"  {SHARED} ({tmp_path}/q.txt:1)" in said.out
    for more in (["--dry-run"], ["--quiet"]):
        done = dgpo("train", file, *settings, *more)
        assert done.code == 0
        assert done.err.count(SHARED) == 1


def test_heldout_prompts_of_a_source_are_compared_too(dgpo: Run, file: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("A heldout picture 1\nheldout picture  2\n")
    done = dgpo("validate", file, "--set", f"prompts.train={tmp_path}/p.txt", "--set", "evaluation.prompts=6")
    assert "1 of 6 held-out prompts (17 %) are also training prompts, 1 of them except for case or spaces" in done.out
    assert "warning" not in dgpo("validate", file).out


@pytest.mark.parametrize("checkpoint", ["package:dgpo_miniature/checkpiont", "package:nosuch/a", "package:os/path"])
def test_weights_that_no_plugin_brings(dgpo: Run, file: Path, checkpoint: str) -> None:
    done = dgpo("validate", file, "--set", f"backbone.checkpoint={checkpoint}")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"backbone.checkpoint: {checkpoint}")
