"""A walk through the mistakes that people make, along the command line.

Each is answered with exit code 2 and one message on standard error that says where, what and what would be right;
nothing stands on standard output, nothing is written, and nothing that was there is lost.
"""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import PIL.Image
import pytest
import safetensors.torch
import torch
import yaml

import dgpo_core.plugins.registry as registry_module
from dgpo_core.hookspecs import Part, hookimpl
from dgpo_core.plugins.registry import Registry
from dgpo_kit.toy import plugin
from dgpo_schemas.changes import summary

Run = Callable[..., Any]

TEXT = """\
run: {name: toy, output: runs, iterations: 2, device: cpu, threads: 1}
backbone: {use: toy, checkpoint: toy, lora: {rank: 4, alpha: 4}}
prompts: {train: {use: toy}, heldout: {use: toy}}
rollout:
  steps: 3
  shift: 1.0
  group_size: 4
  groups: 4
  resolution: 8
  sampler: flow-euler
rewards:
  - use: brightness
timesteps: {count: 2, t_min: 0.3}
evaluation: {prompts: 4, pictures: 2}
checkpoints: {every: 1, keep: 9}
"""
"""A sound run file; the mistakes below are made in it, so its lines are known."""


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Registry]:
    """Everything that is installed when the command runs, and the toy parts."""

    @functools.cache
    def installed() -> Registry:
        made = Registry()
        made.register(plugin, distribution="toy")
        return made

    monkeypatch.setattr(registry_module, "get_registry", installed)
    return installed


@dataclass(frozen=True)
class World:
    """The working directory, with run.yaml in it."""

    path: Path
    dgpo: Run
    known: Callable[[], Registry]
    monkeypatch: pytest.MonkeyPatch

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def edit(self, old: str, new: str) -> None:
        """Make a mistake in run.yaml."""
        assert old in TEXT
        self.write("run.yaml", TEXT.replace(old, new, 1))

    def install(self, name: str, **modules: str) -> None:
        """A distribution whose entry point is the module of its name."""
        for module, source in modules.items():
            self.write(f"site/{module}.py", source)
            self.monkeypatch.delitem(sys.modules, module, raising=False)
        self.write(f"site/{name}-1.5.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        self.write(f"site/{name}-1.5.dist-info/entry_points.txt", f"[dgpo]\n{name} = {name}\n")
        self.monkeypatch.syspath_prepend(str(self.path / "site"))
        self.monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def train(self, *options: str) -> None:
        done = self.dgpo("train", "run.yaml", "--quiet", *options)
        assert (done.code, done.out, done.err) == (0, "", "")

    def tree(self) -> dict[str, tuple[int, bytes]]:
        """Every file and directory, with its mode."""

        def content(path: Path) -> bytes:
            with open(path, "rb") as file:  # not through Path, which the tests replace
                return file.read()

        return {
            str(p.relative_to(self.path)): (p.stat().st_mode, content(p) if p.is_file() else b"")
            for p in self.path.rglob("*")
        }


@pytest.fixture
def world(tmp_path: Path, dgpo: Run, known: Callable[[], Registry], monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path, dgpo, known, monkeypatch)
    made.write("run.yaml", TEXT)
    monkeypatch.chdir(tmp_path)
    return made


def refused(world: World, arguments: Sequence[str], expected: str) -> None:
    """The promise of this file."""
    before = world.tree()
    done = world.dgpo(*arguments)
    assert (done.code, done.out, done.err) == (2, "", expected + "\n")
    assert world.tree() == before


def test_the_file_is_sound_without_the_mistakes(world: World) -> None:
    assert world.dgpo("validate", "run.yaml").code == 0
    assert world.dgpo("train", "run.yaml", "--dry-run").code == 0
    world.train()


# -- in the run file: found by `validate`, and before anything starts by every other command -------------------------

FILE: dict[str, tuple[str | bytes, str]] = {
    "not UTF-8": (
        TEXT.encode().replace(b"name: toy", b"name: t\xf6y"),
        "run.yaml:1: not UTF-8 (byte 14 of the line): 0xF6; in Windows-1252 it reads 'run: {name: töy, output: runs, "
        "iteration'; if so, convert it: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW",
    ),
    "UTF-16 without its mark": (
        TEXT.encode("utf-16-le"),
        "run.yaml: seems to be UTF-16LE without a byte order mark, not UTF-8; convert it: iconv -f UTF-16LE -t UTF-8 "
        "FILE > NEW",
    ),
    "empty": ("", "run.yaml: the file is empty; see `dgpo validate --help` for what belongs in it"),
    "only a comment": ("# run\n", "run.yaml: the file is empty; see `dgpo validate --help` for what belongs in it"),
    "a list": ("- run\n- backbone\n", "run.yaml:1: must be a mapping of sections (`run: ...`), not a list"),
    "a text": ("run\n", "run.yaml:1: must be a mapping of sections (`run: ...`), not 'run'"),
    "a bracket left open": (
        TEXT.replace("keep: 9}", "keep: 9"),
        "run.yaml:16: not YAML: expected ',' or '}', but got '<stream end>' while parsing a flow mapping (column 1)",
    ),
    "a tab": (
        TEXT.replace("  steps", "\tsteps"),
        "run.yaml:5: not YAML: found character '\\t' that cannot start any token while scanning for the next token "
        "(column 1); indent with spaces, not tabs",
    ),
    "a tag that runs code": (
        TEXT.replace("name: toy", "name: !!python/object/apply:os.getcwd []"),
        "run.yaml:1: run.name: the tag !!python/object/apply:os.getcwd is not allowed; write plain texts, numbers, "
        "lists and mappings",
    ),
}  # fmt: skip

EDITS = {
    "a key twice": ("  steps: 3\n", "  steps: 3\n  steps: 4\n",
        "run.yaml:6: rollout.steps: stands here twice, first in line 5"),
    "a section twice": ("rewards:\n", "run: {name: other, iterations: 3}\nrewards:\n",
        "run.yaml:11: run: stands here twice, first in line 1"),
    "a misspelt key": ("steps: 3", "stpes: 3",
        "run.yaml:5: rollout.stpes: unknown key; did you mean steps?"),
    "a misspelt section": ("rollout:\n", "rolout:\n",
        "run.yaml:4: rolout: unknown key; did you mean rollout?"),
    "a key of another section": ("steps: 3", "learning_rate: 1e-4",
        "run.yaml:5: rollout.learning_rate: unknown key; did you mean optimiser.learning_rate?"),
    "a key like nothing": ("keep: 9", "zzz: 9",
        "run.yaml:15: checkpoints.zzz: unknown key; there are best, every, keep"),
    "a key that is missing": ("name: toy, ", "",
        "run.yaml:1: run.name: is missing (Name of the run and of its directory: letters, digits, dot, dash, "
        "underscore)"),
    "a text for a number": ("steps: 3", "steps: many",
        "run.yaml:5: rollout.steps: must be a whole number, not 'many'"),
    "a fraction for a whole number": ("steps: 3", "steps: 2.5",
        "run.yaml:5: rollout.steps: must be a whole number, not 2.5"),
    "a switch for a number": ("steps: 3", "steps: true",
        "run.yaml:5: rollout.steps: a number is expected, not the switch 'true'"),
    "a number for a text": ("checkpoint: toy", "checkpoint: 3.5",
        "run.yaml:2: backbone.checkpoint: must be a text, not 3.5 (put it in quotes)"),
    "a number for a switch": ("keep: 9", "best: 3",
        "run.yaml:15: checkpoints.best: must be true or false, not 3"),
    "a number for a section": ("{every: 1, keep: 9}", "9",
        "run.yaml:15: checkpoints: must be a section with keys such as best, every, keep, not 9"),
    "a section for a list": ("  - use: brightness\n", "  use: brightness\n",
        "run.yaml:11: rewards: must be a list, not a section"),
    "no rewards": ("  - use: brightness\n", "  []\n",
        "run.yaml:11: rewards: must have at least 1 entry, not 0"),
    "not a number": ("shift: 1.0", "shift: .nan",
        "run.yaml:6: rollout.shift: must be a finite number, not nan"),
    "no steps": ("steps: 3", "steps: 0",
        "run.yaml:5: rollout.steps: must be at least 1, not 0"),
    "too many steps": ("steps: 3", "steps: 2000",
        "run.yaml:5: rollout.steps: must be at most 1000, not 2000"),
    "guidance below 1": ("steps: 3", "guidance: 0.5",
        "run.yaml:5: rollout.guidance: must be at least 1, not 0.5"),
    "a choice that there is not": ("device: cpu", "device: tpu",
        "run.yaml:1: run.device: must be auto, cpu or cuda, not 'tpu'; did you mean cpu?"),
    "a name that is no directory": ("name: toy", "name: ../toy",
        "run.yaml:1: run.name: '../toy' is not allowed here: Name of the run and of its directory: letters, digits, "
        "dot, dash, underscore."),
    "a group of one": ("group_size: 4", "group_size: 1",
        "run.yaml:7: rollout.group_size: a group of 1 has nothing to compare with; the smallest is 2"),
    "groups that do not split": ("checkpoints:", "optimiser: {updates: 3}\ncheckpoints:",
        "run.yaml:15: optimiser.updates: 3 does not divide rollout.groups = 4; the nearest that do are 2 and 4"),
    "t_min above t_max": ("t_min: 0.3", "t_min: 0.9, t_max: 0.5",
        "run.yaml:13: timesteps.t_min: 0.9 (sigma 0.9) must be below t_max = 0.5 (sigma 0.5); 1 is noise and 0 is "
        "data"),
    "t_min equal to t_max": ("t_min: 0.3", "t_min: 1",
        "run.yaml:13: timesteps.t_min: 1.0 (sigma 1) must be below t_max = 1.0 (sigma 1); 1 is noise and 0 is data"),
    "a time that is none": ("t_min: 0.3", "t_min: shift(2)",
        "run.yaml:13: timesteps.t_min: must be a number from 0 (data) to 1 (noise), or shift(s) with s from 0 to 1, "
        "such as shift(0.3); the nearest is 1 (here: 'shift(2)')"),
    "no pixels": ("resolution: 8", "resolution: 0",
        "run.yaml:9: rollout.resolution: 0 is no size in pixels; it must be at least 1"),
    "two rewards of one name": ("  - use: brightness\n", "  - use: brightness\n  - use: brightness\n",
        "run.yaml:13: rewards.1: two rewards are called 'brightness'; give one of them another `name`"),
    "an unknown reward": ("use: brightness", "use: brihgtness",
        "run.yaml:12: rewards.0.use: unknown reward 'brihgtness'; did you mean brightness? (installed: {reward})"),
    "an unknown sampler": ("sampler: flow-euler", "sampler: flow-eular",
        "run.yaml:10: rollout.sampler: unknown sampler 'flow-eular'; did you mean flow-euler? (installed: {sampler})"),
    "an unknown backbone": ("use: toy, checkpoint", "use: unet, checkpoint",
        "run.yaml:2: backbone.use: unknown backbone 'unet' (installed: {backbone})"),
    "a misspelt option": ("  - use: brightness\n", "  - {use: brightness, options: {scael: 2}}\n",
        "run.yaml:12: rewards.0.options.scael: unknown key; did you mean scale?"),
    "an option of the wrong type": ("  - use: brightness\n", "  - {use: brightness, options: {scale: big}}\n",
        "run.yaml:12: rewards.0.options.scale: must be a number, not 'big'"),
    "options where there are none": ("sampler: flow-euler", "sampler: {use: flow-euler, options: {order: 2}}",
        "run.yaml:10: rollout.sampler.options.order: unknown key; there are none here"),
    "prompts of two origins": ("train: {use: toy}", "train: {use: toy, file: p.txt}",
        "run.yaml:3: prompts.train: give exactly one of `file` (a .txt or .jsonl file) and `use` (a prompt source)"),
}  # fmt: skip


@pytest.mark.parametrize("command", ["validate", "train"])
@pytest.mark.parametrize("mistake", FILE)
def test_files_that_are_no_run_files(world: World, command: str, mistake: str) -> None:
    content, expected = FILE[mistake]
    world.write("run.yaml", content)
    refused(world, [command, "run.yaml"], expected)


@pytest.mark.parametrize("command", ["validate", "train"])
@pytest.mark.parametrize("mistake", EDITS)
def test_mistakes_in_the_run_file(world: World, command: str, mistake: str) -> None:
    old, new, expected = EDITS[mistake]
    world.edit(old, new)
    for kind in ("reward", "sampler", "backbone"):
        expected = expected.replace(f"{{{kind}}}", ", ".join(sorted(world.known().parts(kind))))
    refused(world, [command, "run.yaml"], expected)


@pytest.mark.parametrize("command", ["validate", "train", "sample", "evaluate"])
def test_files_that_cannot_be_opened(world: World, command: str) -> None:
    opened = Path.open

    def guarded(self: Path, *arguments: Any, **keywords: Any) -> Any:  # root may read everything
        if self.name == "secret.yaml":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return opened(self, *arguments, **keywords)

    world.write("secret.yaml", TEXT)
    world.monkeypatch.setattr(Path, "open", guarded)
    refused(world, [command, "secret.yaml"], "secret.yaml: cannot be read: Permission denied")
    (world.path / "directory").mkdir()
    looked_into = command in ("sample", "evaluate")  # a directory may be a run for them
    expected = "not a run directory (it has no config.yaml)" if looked_into else "is a directory, not a file"
    refused(world, [command, "directory"], f"directory: {expected}")
    expected = "there is no such run directory or run file" if looked_into else "there is no such file"
    refused(world, [command, "nope.yaml"], f"nope.yaml: {expected}")


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(world: World) -> None:
    text = TEXT
    for old, new in (("name: toy", "name: a/b"), ("steps: 3", "steps: 0"), ("shift: 1.0", "shfit: 1.0"),
                     ("use: brightness", "use: brihgtness"), ("count: 2", "count: two")):  # fmt: skip
        text = text.replace(old, new)
    world.write("run.yaml", text)
    before = world.tree()
    done = world.dgpo("train", "run.yaml", "--set", "evaluation.every=-1")
    assert (done.code, done.out) == (2, "")
    places = [line.partition(" ")[0] for line in done.err.splitlines()[:-1]]
    assert places == [f"run.yaml:{line}:" for line in (1, 5, 6, 12, 13)]
    assert done.err.splitlines()[-1] == "--set evaluation.every=-1: must be at least 0, not -1"
    assert world.tree() == before


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("rollout.steps", "must be KEY=VALUE, such as optimiser.learning_rate=1e-4"),
        ("rollout.stpes=4", "unknown key; did you mean steps?"),
        ("rollout.steps=0", "must be at least 1, not 0"),
        ("rewards.3.weight=1", "rewards is a list: '3' is none of its entries (0 to 0; 1 appends)"),
        ("run.name.first=x", "run.name is 'toy', it has no 'first' inside"),
        ("rewards.0.use=nope", "unknown reward 'nope' (installed: {reward})"),
    ],
)
def test_settings(world: World, setting: str, expected: str) -> None:
    expected = expected.replace("{reward}", ", ".join(sorted(world.known().parts("reward"))))
    for command in ("validate", "train"):
        refused(world, [command, "run.yaml", "--set", setting], f"--set {setting}: {expected}")


# -- plugins ---------------------------------------------------------------------------------------------------------

LAMP = """
from dgpo_core.hookspecs import Part, hookimpl

@hookimpl
def dgpo_rewards():
    return [Part("lamp", "A lamp.", {implementation!r}, {options})]
"""


def test_a_plugin_that_does_not_import(world: World) -> None:
    world.install("dgpo_lamp", dgpo_lamp="import lightbulbs\n")
    world.edit("use: brightness", "use: lamp")
    rewards = ", ".join(sorted(world.known().parts("reward")))
    for command in ("validate", "train"):
        refused(
            world,
            [command, "run.yaml"],
            f"run.yaml:12: rewards.0.use: unknown reward 'lamp' (installed: {rewards})\n"
            "  a plugin could not be loaded and may own it: dgpo_lamp (entry point dgpo_lamp): importing dgpo_lamp "
            f"failed with ModuleNotFoundError: No module named 'lightbulbs' (at {world.path / 'site/dgpo_lamp.py'}:1)",
        )


def test_a_broken_plugin_disturbs_no_run_that_does_not_use_it(world: World) -> None:
    world.install("dgpo_lamp", dgpo_lamp="raise SystemExit('no licence')\n")
    world.train()


def test_a_reward_whose_class_does_not_import(world: World) -> None:
    world.install(
        "dgpo_lamp",
        dgpo_lamp=LAMP.format(implementation="dgpo_lamp_reward:Lamp", options=None),
        dgpo_lamp_reward="import lightbulbs\n",
    )
    world.edit("use: brightness", "use: lamp")
    for options in ([], ["--dry-run"]):
        refused(
            world,
            ["train", "run.yaml", *options],
            "reward lamp of dgpo_lamp 1.5: cannot import dgpo_lamp_reward:Lamp: ModuleNotFoundError: No module named "
            f"'lightbulbs' (at {world.path / 'site/dgpo_lamp_reward.py'}:1)",
        )


def test_a_reward_whose_options_do_not_import(world: World) -> None:
    world.install("dgpo_lamp", dgpo_lamp=LAMP.format(implementation="x:Y", options="'dgpo_core.types:LampOptions'"))
    world.edit("use: brightness", "use: lamp")
    for command in ("validate", "train"):
        refused(
            world,
            [command, "run.yaml"],
            "run.yaml:12: rewards.0.use: reward lamp of dgpo_lamp 1.5: cannot import dgpo_core.types:LampOptions: "
            "AttributeError: module 'dgpo_core.types' has no attribute 'LampOptions'",
        )


def test_a_class_that_is_no_reward(world: World) -> None:
    world.install("dgpo_lamp", dgpo_lamp=LAMP.format(implementation="dgpo_kit.toy:ToyPrompts", options=None))
    world.edit("use: brightness", "use: lamp")
    refused(
        world,
        ["train", "run.yaml"],
        "reward lamp of dgpo_lamp 1.5: dgpo_kit.toy:ToyPrompts is no RewardModel or GroupReward",
    )


class Impostor:
    """Claims a name that is taken."""

    @hookimpl
    def dgpo_rewards(self) -> Sequence[Part]:
        return [Part("brightness", "Another one.", "dgpo_kit.toy:BrightnessReward")]


def test_two_plugins_that_claim_one_name(world: World) -> None:
    world.known().register(Impostor(), distribution="impostor")
    for command in ("validate", "train"):
        refused(
            world,
            [command, "run.yaml"],
            "run.yaml:12: rewards.0.use: reward 'brightness' is claimed by impostor and toy: uninstall one of them",
        )


def test_a_tracker_that_is_not_installed(world: World) -> None:
    import importlib.util

    find = importlib.util.find_spec
    world.monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else find(name, *a))
    refused(
        world,
        ["train", "run.yaml", "--set", "logging.trackers=[wandb]"],
        "logging.trackers: wandb is not installed: pip install wandb",
    )


# -- parts that do not go together -----------------------------------------------------------------------------------

PLACES = {
    "rewards.0": ("  - use: brightness\n", "  - use: {reward}\n"),
    "rewards.1": ("  - use: brightness\n", "  - use: brightness\n  - use: {reward}\n"),
    "evaluation.rewards.0": ("{prompts: 4", "{rewards: [{use: {reward}}], prompts: 4"),
    "evaluation.guards.rewards.0": ("{prompts: 4", "{guards: {rewards: [{use: {reward}}]}, prompts: 4"),
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
        f"{place}.use: motion scores videos, but the backbone toy makes images; choose a reward that scores images",
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
        f"{place}.use: brightness scores images, but the backbone film makes videos; show it single frames: "
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
        f"run.yaml:2: backbone.options.frames: {frames} frames are not possible: Wan takes 1 frame and then 4 at a "
        f"time, so the number is 4 k + 1; the nearest are {nearest}",
    )


PATH = "rewards:\n", "objective: {use: flow-grpo, switch: null, kl: 0.01}\nrewards:\n"


@pytest.mark.usefixtures("nothing_is_drawn")
@pytest.mark.parametrize("arguments", STARTS[:2], ids=" ".join)
def test_an_objective_that_needs_a_random_path(world: World, arguments: list[str]) -> None:
    world.edit(*PATH)
    refused(
        world,
        arguments,
        "objective: flow-grpo learns from the sampler's random path, but rollout.sampler: flow-euler is deterministic; "
        "choose a random one that does: flow-cps, flow-sde",
    )


def test_a_random_sampler_that_nobody_needs(world: World) -> None:
    """May be meant, so it is no mistake; it is told."""
    world.edit("sampler: flow-euler", "sampler: flow-sde")
    done = world.dgpo("train", "run.yaml", "--max-iterations", "1")
    assert (done.code, done.out) == (0, "")
    told = "rollout.sampler: flow-sde is random, but objective: dgpo does not need it to be; the paper reports faster"
    assert told in " ".join(done.err.split())


# -- prompts ---------------------------------------------------------------------------------------------------------

PROMPTS: dict[str, tuple[str, str | bytes | None, str]] = {
    "missing": ("p.txt", None, "p.txt: there is no such prompt file"),
    "empty": ("p.txt", "", "p.txt: has no prompts"),
    "only empty lines": ("p.txt", "\n  \n\n", "p.txt: has no prompts"),
    "a malformed line": ("p.jsonl", '{"prompt": "a"}\n\n{"prompt": "b"\n',
        "p.jsonl:3: not JSON: Expecting ',' delimiter (column 15)"),
    "a line that is no object": ("p.jsonl", '{"prompt": "a"}\n"b"\n',
        "p.jsonl:2: must be an object with a `prompt`, not 'b'"),
    "a line without a prompt": ("p.jsonl", '{"prompt": "a"}\n{"text": "b"}\n',
        "p.jsonl:2: `prompt` must be a text that is not empty (the keys are text); if text is meant, rename it: "
        """jq -c '.prompt = .["text"] | del(.["text"])' FILE > NEW"""),
    "not UTF-8": ("p.txt", b"a lamp\na l\xe4mp\n",
        "p.txt:2: not UTF-8 (byte 4 of the line): 0xE4; in Windows-1252 it reads 'a lämp'; if so, convert it: "
        "iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW"),
    "another format": ("p.csv", "a,b\n",
        "p.csv: a prompt file ends in .txt (one prompt a line) or .jsonl (one object a line), or in .json (one list); "
        "pandas writes one: pandas.read_csv('p.csv').to_json('p.jsonl', orient='records', lines=True)"),
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
        "backbone.checkpoint: there is no directory ./models/sd35-medium (the nearest that exists is "
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
        f"backbone.checkpoint: {world.path}/models/sdxl holds a StableDiffusionXLPipeline; the backbone sd3 allows "
        "StableDiffusion3Pipeline alone (Stable Diffusion 3 and 3.5); for this one write use: sdxl",
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
        "run.device: cuda was asked for, but torch sees no CUDA device (torch "
        f"{torch.__version__}, built for CUDA {torch.version.cuda or 'no version'}); use auto or cpu",
    )


def test_processes_within_another_launcher(world: World) -> None:
    world.monkeypatch.setenv("WORLD_SIZE", "2")
    expected = (
        "--processes: torchrun or accelerate launch has started this process already; leave --processes out, or start "
        "dgpo by itself"
    )
    for command in (["evaluate", "run.yaml"], ["sample", "run.yaml", "--prompt", "x"]):
        refused(world, [*command, "--processes", "2"], expected)


# -- the run's directory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["runs", "runs/toy"])
def test_a_file_in_the_place_of_the_directory(world: World, place: str) -> None:
    world.write(place, "notes")
    refused(world, ["train", "run.yaml"], f"run.output: cannot write to runs/toy: {world.path / place} is a file")


def test_a_directory_that_must_not_be_written(world: World) -> None:
    (world.path / "runs").mkdir()
    allowed = os.access
    world.monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "runs" and allowed(path, mode))
    refused(
        world,
        ["train", "run.yaml"],
        f"run.output: cannot write to runs/toy: no permission to write in {world.path}/runs",
    )


def test_a_file_system_that_cannot_be_written(world: World) -> None:
    def read_only(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    world.monkeypatch.setattr(Path, "mkdir", read_only)
    refused(world, ["train", "run.yaml"], "run.output: cannot write to runs/toy: Read-only file system")


def test_a_run_that_is_there_already(world: World) -> None:
    world.train("--max-iterations", "1")
    refused(
        world,
        ["train", "run.yaml"],
        "runs/toy already holds a run (saved after iteration 1): continue it with --resume, or choose another run.name",
    )


@pytest.fixture
def occupied(world: World) -> Iterator[int]:
    """A run whose directory another process uses; the number of that process."""
    world.train("--max-iterations", "1")
    program = (
        "import fcntl, os, sys\n"
        "lock = open('runs/toy/.lock', 'a+')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "lock.truncate(0)\n"
        "print(os.getpid(), file=lock, flush=True)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.communicate("")


def test_a_directory_that_another_process_uses(world: World, occupied: int) -> None:
    for options in ([], ["--resume"]):
        refused(
            world,
            ["train", "run.yaml", *options],
            f"runs/toy is in use by another process (number {occupied})",
        )
    # Looking is allowed.
    assert world.dgpo("evaluate", "runs/toy").code == 0
    assert world.dgpo("train", "run.yaml", "--set", "run.name=other", "--quiet").code == 0


# -- resuming --------------------------------------------------------------------------------------------------------


def test_resume_where_nothing_is(world: World) -> None:
    refused(
        world, ["train", "run.yaml", "--resume"],
        f"runs/toy: nothing to resume here (run.output is relative to the working directory, {Path.cwd()}; to resume a "
        "run that lies elsewhere, give its own config.yaml); start the run without --resume",
    )  # fmt: skip


def test_resume_without_a_checkpoint(world: World) -> None:
    world.train("--max-iterations", "1")
    shutil.rmtree(world.path / "runs/toy/checkpoints")
    refused(
        world,
        ["train", "run.yaml", "--resume"],
        "runs/toy: no checkpoint to resume from; start over with --resume auto, which sets the logs aside",
    )


def test_resume_with_another_configuration(world: World) -> None:
    world.train("--max-iterations", "1")
    changes = ["run.seed=7", "rollout.groups=2", "objective.clip=null", "rewards.0.options.scale=2",
               "checkpoints.every=2", "run.iterations=3"]  # fmt: skip
    refused(
        world,
        ["train", "run.yaml", "--resume", *(part for change in changes for part in ("--set", change))],
        # How long it lasts and when it saves may change.
        "runs/toy: cannot resume with another configuration; these differ:\n"
        "  run.seed: 0 when it started, 7 now\n"
        "  rollout.groups: 4 when it started, 2 now\n"
        "  rewards.0.options.scale: 1.0 when it started, 2.0 now\n"
        "  objective.clip: 0.01 when it started, null now\n"
        "put back what the run began with (it is in runs/toy/config.yaml), or give another run.name for a new run. "
        f"What a resume may change: {summary()} (docs/resume.md)",
    )


@pytest.mark.parametrize("version", ["99", "0", '"1"', "null"])
def test_resume_with_an_unknown_format(world: World, version: str) -> None:
    """Not even with an older checkpoint that could be read: that would lose what a newer program did."""
    world.train("--max-iterations", "2")
    manifest = world.path / "runs/toy/checkpoints/000002/manifest.json"
    text = manifest.read_text()
    assert '"format_version": 2,' in text
    manifest.write_text(text.replace('"format_version": 2,', f'"format_version": {version},'))
    expected = (
        f"runs/toy/checkpoints/000002/manifest.json: checkpoint format version {json.loads(version)!r} is unknown; "
        "this dgpo reads versions 1 and 2"
    )
    for arguments in (["train", "run.yaml", "--resume"], ["sample", "runs/toy"], ["evaluate", "runs/toy"],
                      ["export", "runs/toy"]):  # fmt: skip
        refused(world, arguments, expected)


def test_resume_where_every_checkpoint_is_damaged(world: World) -> None:
    world.train("--max-iterations", "1")
    paths = sorted((world.path / "runs/toy/checkpoints").iterdir())
    assert [path.name for path in paths] == ["000000", "000001"]
    for path in paths:
        (path / "weights.safetensors").write_bytes(b"")
    what = "weights.safetensors: its content differs from what was saved (SHA-256)"
    refused(
        world,
        ["train", "run.yaml", "--resume"],
        f"no checkpoint is whole: runs/toy/checkpoints/000001/{what}; runs/toy/checkpoints/000000/{what}",
    )


def test_resume_where_the_saved_configuration_is_damaged(world: World) -> None:
    world.train("--max-iterations", "1")
    config = world.path / "runs/toy/config.yaml"
    data = yaml.safe_load(config.read_text())
    data["rollout"]["steps"] = 0
    text = yaml.safe_dump(data, sort_keys=False)
    config.write_text(text)
    line = 1 + next(i for i, found in enumerate(text.splitlines()) if found == "  steps: 0")
    refused(
        world,
        ["train", "run.yaml", "--resume"],
        f"runs/toy/config.yaml:{line}: rollout.steps: must be at least 1, not 0",
    )


# -- while it runs: what was saved stays, and the run can go on ------------------------------------------------------


def computed(run: Path) -> dict[str, bytes]:
    """Logs without clocks, and the last state."""
    names = ("metrics.jsonl", "evaluations.jsonl")
    last = max((run / "checkpoints").iterdir())
    return {n: (run / n).read_bytes() for n in names} | {p.name: p.read_bytes() for p in last.glob("*.safetensors")}


def test_all_rewards_missing(world: World) -> None:
    world.edit("evaluation: {prompts: 4", "evaluation: {at_start: false, prompts: 4")
    world.train("--max-iterations", "1")
    before = world.tree()
    world.monkeypatch.setattr("dgpo_kit.toy.BrightnessReward.score", lambda *_: 1 / 0)
    done = world.dgpo("train", "run.yaml", "--resume", "--quiet")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "100% of the scores of iteration 2 are missing (limit scoring.max_missing = 0.2); the state is saved. "
        "brightness: ZeroDivisionError: division by zero\n"
    )
    told = ("runs/toy/run.json", "runs/toy/outcome.json")  # of the last start and its end
    assert {n: f for n, f in world.tree().items() if n not in told} == {
        n: f for n, f in before.items() if n not in told
    }


@pytest.mark.slow
def test_all_rewards_missing_in_a_process_of_its_own(world: World) -> None:
    """What a person sees: the reason with its place, no traceback."""
    world.edit("  - use: brightness\n", "  - {use: brightness, options: {fail: raise}}\n")
    program = (
        "from dgpo_core.plugins.registry import get_registry\n"
        "from dgpo_kit.toy import plugin\n"
        "get_registry().register(plugin, distribution='toy')\n"
        "from dgpo_cli.main import main\n"
        "main(['train', 'run.yaml', '--quiet', '--set', 'evaluation.at_start=false'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    warning, message = done.stderr.splitlines()
    reason = "brightness: RuntimeError: the lamp is broken"
    assert warning.startswith(f"warning: reward failed, 16 samples are missing: {reason} (at ")
    assert message == (
        "100% of the scores of iteration 1 are missing (limit scoring.max_missing = 0.2); the state is saved. "
        "brightness: RuntimeError: the lamp is broken"
    )


def full(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Full(io.FileIO):
    """A file that can be made, but not filled."""

    def write(self, _: Any) -> NoReturn:
        full()


def full_for(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """There is no room for what files of this name should hold."""

    def patch(patched: pytest.MonkeyPatch) -> None:
        opened, opened_by_number, with_buffer, write = Path.open, os.open, os.fdopen, os.pwrite
        numbers: set[int] = set()

        def open_(self: Path, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
            if self.name != name or mode[0] == "r":
                return opened(self, mode, *arguments, **keywords)
            raw = Full(self, mode.replace("b", ""))
            return raw if "b" in mode else io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8")

        def number_of(path: Any, flags: int, *arguments: Any, **keywords: Any) -> int:
            number = opened_by_number(path, flags, *arguments, **keywords)
            numbers.discard(number)
            if os.path.basename(os.fspath(path)) == name and flags & (os.O_WRONLY | os.O_RDWR):
                numbers.add(number)
            return number

        def buffered(number: int, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
            if number in numbers and mode[0] != "r":
                return Full(number, mode.replace("b", ""))
            return with_buffer(number, mode, *arguments, **keywords)

        def pwrite(number: int, *arguments: Any) -> int:
            return full() if number in numbers else write(number, *arguments)

        patched.setattr(Path, "open", open_)
        for old, new in (("open", number_of), ("fdopen", buffered), ("pwrite", pwrite)):
            patched.setattr(os, old, new)

    return patch


FULL: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "tensors": (lambda p: p.setattr(safetensors.torch, "save_file", full), "runs/toy/checkpoints/000002"),
    "a manifest": (full_for("manifest.json"), "runs/toy/checkpoints/000002"),
    "a flush": (lambda p: p.setattr(os, "fsync", full), "runs/toy/timings.jsonl"),
    "a picture": (lambda p: p.setattr(PIL.Image.Image, "save", full), "runs/toy/pictures/000002"),
    "metrics": (full_for("metrics.jsonl"), "runs/toy/metrics.jsonl"),
    "timings": (full_for("timings.jsonl"), "runs/toy/timings.jsonl"),
    "evaluations": (full_for("evaluations.jsonl"), "runs/toy/evaluations.jsonl"),
    "the configuration": (full_for(".config.yaml.writing"), "runs/toy/config.yaml"),
    "the description": (full_for(".run.json.writing"), "runs/toy/run.json"),
    "the lock": (full_for(".lock"), "runs/toy"),
}


@pytest.mark.parametrize("what", FULL)
def test_a_full_disk(world: World, what: str) -> None:
    world.train("--set", "run.name=reference")
    world.train("--max-iterations", "1")
    saved = {n: f for n, f in world.tree().items() if n.startswith("runs/toy/checkpoints/")}
    patch, place = FULL[what]
    with pytest.MonkeyPatch.context() as patched:
        patch(patched)
        done = world.dgpo("train", "run.yaml", "--resume", "--quiet")
    subject = "run.output: cannot write to" if what == "the lock" else "cannot write"
    assert (done.code, done.out, done.err) == (2, "", f"{subject} {place}: No space left on device\n")
    assert not [name for name in world.tree() if name.endswith(".writing")]
    assert saved.items() <= world.tree().items()
    # With room again it goes on, to the same end.
    world.train("--resume")
    assert computed(Path("runs/toy")) == computed(Path("runs/reference"))
