"""Mistakes that people make in parts that do not go together, prompts, models and devices.

Each is answered with exit code 2 and one message on standard error that says where, what and what would be right;
nothing stands on standard output, nothing is written, and nothing that was there is lost.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from tests.mistaken import TEXT, World, refused

# -- parts that do not go together -----------------------------------------------------------------------------------

PLACES = {
    "rewards.0": ("  - use: brightness\n", "  - use: {reward}\n"),
    "rewards.1": ("  - use: brightness\n", "  - use: brightness\n  - use: {reward}\n"),
    "evaluation.rewards.0": ("{prompts: 4", "{rewards: [{use: {reward}}], prompts: 4"),
    "evaluation.monitors.rewards.0": ("{prompts: 4", "{monitors: {rewards: [{use: {reward}}]}, prompts: 4"),
}
"""Where a run file names rewards."""
STARTS = (["train", "run.yaml"], ["train", "run.yaml", "--dry-run"], ["evaluate", "run.yaml"])


@pytest.fixture
def nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def sample(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("something was sampled")

    monkeypatch.setattr("dgpo_core.builtin.samplers.FlowEuler.sample", sample)


@pytest.mark.usefixtures("nothing_is_drawn")
@pytest.mark.parametrize("arguments", STARTS, ids=" ".join)
@pytest.mark.parametrize("place", PLACES)
def test_a_reward_of_videos_where_images_are_made(world: World, place: str, arguments: list[str]) -> None:
    old, new = PLACES[place]
    world.edit(old, new.replace("{reward}", "motion"))
    refused(
        world,
        arguments,
        f"{place}.use: motion scores videos, but the backbone toy generates images; choose a reward that scores images",
    )


@pytest.mark.usefixtures("nothing_is_drawn")
@pytest.mark.parametrize("arguments", STARTS, ids=" ".join)
@pytest.mark.parametrize("place", [place for place in PLACES if place != "rewards.1"])
def test_a_reward_of_images_where_videos_are_made(world: World, film: object, place: str, arguments: list[str]) -> None:
    """The adapter that shows it frames is installed here, so the message names it."""
    world.known().register(film, distribution="film")
    old, new = PLACES[place]
    text = TEXT.replace("use: toy, checkpoint", "use: film, checkpoint").replace("use: brightness", "use: glow")
    world.write("run.yaml", text.replace(old.replace("brightness", "glow"), new.replace("{reward}", "brightness")))
    refused(
        world,
        arguments,
        f"{place}.use: brightness scores images, but the backbone film generates videos; score single frames with "
        "{use: frames, options: {reward: {use: brightness, ...}}}",
    )


def test_what_the_message_says_helps(world: World, film: object) -> None:
    world.known().register(film, distribution="film")
    world.monkeypatch.setattr("dgpo_video.frames.get_registry", world.known)
    text = TEXT.replace("use: toy, checkpoint", "use: film, checkpoint")
    world.write("run.yaml", text.replace("use: brightness", "{use: frames, options: {reward: {use: brightness}}}"))
    assert world.dgpo("train", "run.yaml", "--dry-run").code == 0


@pytest.mark.parametrize("command", ["validate", "train", "sample", "evaluate"])
@pytest.mark.parametrize(("frames", "nearest"), [(6, "5 and 9"), (34, "33 and 37")])
def test_numbers_of_frames_that_wan_cannot_draw(world: World, command: str, frames: int, nearest: str) -> None:
    world.edit("use: toy, checkpoint: toy", f"use: wan, checkpoint: toy, options: {{frames: {frames}}}")
    refused(
        world,
        [command, "run.yaml"],
        f"run.yaml:2: backbone.options.frames: {frames} frames are not possible: the autoencoder requires "
        f"4 k + 1 frames; the nearest are {nearest}",
    )


PATH = "rewards:\n", "objective: {use: flow-grpo, ema_rollouts_after: null, kl: 0.01}\nrewards:\n"


@pytest.mark.usefixtures("nothing_is_drawn")
@pytest.mark.parametrize("arguments", STARTS[:2], ids=" ".join)
def test_an_objective_that_needs_a_random_path(world: World, arguments: list[str]) -> None:
    world.edit(*PATH)
    refused(
        world,
        arguments,
        "objective: flow-grpo learns from the sampler's random path, but rollout.sampler: flow-euler is deterministic; "
        "use a random sampler with a step distribution: flow-cps, flow-sde",
    )


def test_a_random_sampler_that_nobody_needs(world: World) -> None:
    """May be meant, so it is no mistake; it is told."""
    world.edit("sampler: flow-euler", "sampler: flow-sde")
    done = world.dgpo("train", "run.yaml", "--max-iterations", "1")
    assert (done.code, done.out) == (0, "")
    reported = "rollout.sampler: flow-sde is random, but objective: dgpo does not require a random sampler"
    assert reported in " ".join(done.err.split())


# -- prompts ---------------------------------------------------------------------------------------------------------

PROMPTS: dict[str, tuple[str, str | bytes | None, str]] = {
    "missing": ("p.txt", None, "p.txt: no such prompt file"),
    "empty": ("p.txt", "", "p.txt: has no prompts"),
    "only empty lines": ("p.txt", "\n  \n\n", "p.txt: has no prompts"),
    "a malformed line": ("p.jsonl", '{"prompt": "a"}\n\n{"prompt": "b"\n',
        "p.jsonl:3: not JSON: Expecting ',' delimiter (column 15)"),
    "a line that is no object": ("p.jsonl", '{"prompt": "a"}\n"b"\n',
        "p.jsonl:2: must be an object with a `prompt`, not 'b'"),
    "a line without a prompt": ("p.jsonl", '{"prompt": "a"}\n{"text": "b"}\n',
        "p.jsonl:2: `prompt` must be a non-empty string (the keys are text); if text is meant, rename it: "
        """jq -c '.prompt = .["text"] | del(.["text"])' FILE > NEW"""),
    "not UTF-8": ("p.txt", b"a lamp\na l\xe4mp\n",
        "p.txt:2: not UTF-8 (byte 4 of the line): 0xE4; in Windows-1252 it reads 'a lämp'; if so, convert it: "
        "iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW"),
    "another format": ("p.csv", "a,b\n",
        "p.csv: a prompt file must end in .txt (one prompt per line), .jsonl (one object per line) or .json (one "
        "list); convert it with pandas: pandas.read_csv('p.csv').to_json('p.jsonl', orient='records', lines=True)"),
}  # fmt: skip


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("mistake", PROMPTS)
def test_prompt_files(world: World, mistake: str, split: str) -> None:
    name, content, expected = PROMPTS[mistake]
    if content is not None:
        world.write(name, content)
    world.edit(f"{split}: {{use: toy}}", f"{split}: {name}")
    for arguments in (["validate", "run.yaml"], ["train", "run.yaml"], ["train", "run.yaml", "--dry-run"]):
        refused(world, arguments, f"prompts.{split}: {expected}")
    world.write("run.yaml", TEXT)
    for command in ("sample", "evaluate"):
        refused(world, [command, "run.yaml", "--prompts", name], expected)


def test_a_directory_of_prompts(world: World) -> None:
    (world.path / "p.txt").mkdir()
    for command in ("validate", "train"):
        refused(
            world,
            [command, "run.yaml", "--set", "prompts.train=p.txt"],
            "prompts.train: p.txt: is a directory, not a prompt file",
        )


def test_prompts_that_must_not_be_read(world: World) -> None:
    opened = Path.open

    def guarded(self: Path, *arguments: Any, **keywords: Any) -> Any:
        if self.name == "p.txt":  # root may read everything
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return opened(self, *arguments, **keywords)

    world.write("p.txt", "a lamp\n")
    world.monkeypatch.setattr(Path, "open", guarded)
    for command in ("validate", "train"):
        refused(
            world,
            [command, "run.yaml", "--set", "prompts.train=p.txt"],
            "prompts.train: p.txt: cannot be read: Permission denied",
        )


def test_a_prompt_source_without_prompts(world: World) -> None:
    refused(
        world,
        ["train", "run.yaml", "--set", "prompts.heldout.options.count=0"],
        "prompts.heldout: toy yields no prompts",
    )


def test_prompts_that_a_reward_cannot_judge(world: World) -> None:
    """GenEval wants to know what to look for."""
    world.edit("  - use: brightness\n", "  - {use: geneval, options: {detector: shapes}}\n")
    before = world.tree()
    done = world.dgpo("train", "run.yaml")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("prompt 'train picture 0': ")
    assert done.err.count("\n") == 1
    assert world.tree() == before


# -- models and devices ----------------------------------------------------------------------------------------------


def sd3(world: World, checkpoint: str, **changes: str) -> None:
    text = TEXT.replace("{use: toy, checkpoint: toy,", f"{{use: sd3, checkpoint: '{checkpoint}',")
    for old, new in changes.items():
        assert f"{old}: " in text
        text = text.replace(f"{old}: 8", f"{old}: {new}")
    world.write("run.yaml", text)


COMMANDS = (["train", "run.yaml"], ["train", "run.yaml", "--dry-run"], ["sample", "run.yaml"], ["evaluate", "run.yaml"])


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_checkpoint_that_is_not_there(world: World, arguments: list[str]) -> None:
    sd3(world, "./models/sd35-medium")
    refused(
        world,
        arguments,
        "backbone.checkpoint: no such directory: ./models/sd35-medium (the nearest existing directory is "
        f"{world.path}); allowed is a directory, a Hub repository (owner/name), or package:NAME/path for weights "
        "inside an installed package",
    )


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_checkpoint_of_another_architecture(world: World, arguments: list[str]) -> None:
    world.write("models/sdxl/model_index.json", json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    sd3(world, "./models/sdxl")
    refused(
        world,
        arguments,
        f"backbone.checkpoint: {world.path}/models/sdxl contains a StableDiffusionXLPipeline; the backbone sd3 "
        "requires a StableDiffusion3Pipeline (Stable Diffusion 3 and 3.5); for this checkpoint, set use: sdxl",
    )


def test_a_checkpoint_that_is_only_its_index(world: World) -> None:
    world.write("models/half/model_index.json", json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    sd3(world, "./models/half")
    before = world.tree()
    done = world.dgpo("train", "run.yaml")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(
        "backbone.checkpoint: transformer: model_index.json lists it, but there is no directory "
    )
    assert f"{world.path}/models/half/transformer" in done.err
    assert done.err.count("\n") == 1
    assert world.tree() == before


@pytest.mark.parametrize(("side", "nearest"), [("30", "32x32"), ("[64, 2000]", "64x128"), ("8", "16x16")])
def test_a_resolution_that_sd3_cannot_draw(world: World, side: str, nearest: str) -> None:
    sd3(world, "package:dgpo_miniature/checkpoint", resolution=side)
    height, width = (side.strip("[]").split(", ") * 2)[:2]
    refused(
        world,
        ["train", "run.yaml"],
        f"rollout.resolution: {height}x{width} (height x width) is not possible with this checkpoint: both sides must "
        f"be multiples of 16 from 16 to 128; the nearest is {nearest}",
    )


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_resolution_that_the_toy_cannot_draw(world: World, arguments: list[str]) -> None:
    world.edit("resolution: 8", "resolution: 9")
    refused(world, arguments, "rollout.resolution: 9x9 is not possible; the nearest is 8x8")


def test_times_that_the_sampler_does_not_visit(world: World) -> None:
    world.edit("count: 2", "use: sampler-steps, count: 3")
    before = world.tree()
    done = world.dgpo("train", "run.yaml")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("timesteps.count: 3 times cannot be drawn without replacement: only 2 of the sampler's")
    assert "lower timesteps.count to 2 or lower timesteps.t_min to " in done.err
    assert world.tree() == before


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_card_that_is_not_there(world: World, arguments: list[str]) -> None:
    world.monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    world.edit("device: cpu", "device: cuda")
    refused(
        world,
        arguments,
        "run.device: cuda is not available: torch finds no CUDA device (torch "
        f"{torch.__version__}, built for CUDA {torch.version.cuda or 'no version'}); use auto or cpu",
    )


def test_processes_within_another_launcher(world: World) -> None:
    world.monkeypatch.setenv("WORLD_SIZE", "2")
    expected = (
        "--processes: this process was started by torchrun or accelerate launch; leave --processes out, or start "
        "dgpo without them"
    )
    for command in (["evaluate", "run.yaml"], ["sample", "run.yaml", "--prompt", "x"]):
        refused(world, [*command, "--processes", "2"], expected)
