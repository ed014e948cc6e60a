"""Mistakes that people make in run files, and in plugins that they name.

Each is answered with exit code 2 and one message on standard error that says where, what and what would be right;
nothing stands on standard output, nothing is written, and nothing that was there is lost.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dgpo_core.hookspecs import Component, hookimpl
from tests.mistaken import TEXT, World, refused


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
        "run.yaml: appears to be UTF-16LE without a byte order mark, not UTF-8; convert it: iconv -f UTF-16LE -t UTF-8 "
        "FILE > NEW",
    ),
    "empty": ("", "run.yaml: the file is empty; see `dgpo validate --help` for its content"),
    "only a comment": ("# run\n", "run.yaml: the file is empty; see `dgpo validate --help` for its content"),
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
        "run.yaml:1: run.name: the tag !!python/object/apply:os.getcwd is not allowed; use plain strings, "
        "numbers, lists and mappings",
    ),
}  # fmt: skip

EDITS = {
    "a key twice": ("  steps: 3\n", "  steps: 3\n  steps: 4\n",
        "run.yaml:6: rollout.steps: duplicate key, first used in line 5"),
    "a section twice": ("rewards:\n", "run: {name: other, iterations: 3}\nrewards:\n",
        "run.yaml:11: run: duplicate key, first used in line 1"),
    "a misspelled key": ("steps: 3", "stpes: 3",
        "run.yaml:5: rollout.stpes: unknown key; did you mean steps?"),
    "a misspelled section": ("rollout:\n", "rolout:\n",
        "run.yaml:4: rolout: unknown key; did you mean rollout?"),
    "too few candidates": ("group_size: 4", "group_size: 4\n  explore: {candidates: 3, steps: 2}",
        "run.yaml:8: rollout.explore.candidates: 3 candidates are too few for groups of rollout.group_size = 4, which "
        "are chosen from them; use at least 4, or more to have a choice"),
    "candidates of no steps": ("group_size: 4", "group_size: 4\n  explore: {candidates: 8, steps: 0}",
        "run.yaml:8: rollout.explore.steps: must be at least 1, not 0"),
    "a group of the best alone": ("group_size: 4", "group_size: 4\n  explore: {candidates: 8, steps: 2, best: 4}",
        "run.yaml:8: rollout.explore.best: must be from 1 to 3, one less than rollout.group_size, got 4: a group has "
        "better and worse members; the nearest is 3"),
    "a key of another section": ("steps: 3", "learning_rate: 1e-4",
        "run.yaml:5: rollout.learning_rate: unknown key; did you mean optimizer.learning_rate?"),
    "a key like nothing": ("keep: 9", "zzz: 9",
        "run.yaml:15: checkpoints.zzz: unknown key; allowed: best, every, keep"),
    "a key that is missing": ("name: toy, ", "",
        "run.yaml:1: run.name: is missing (Name of the run and of its directory: letters, digits, dots, dashes, "
        "underscores)"),
    "a text for a number": ("steps: 3", "steps: many",
        "run.yaml:5: rollout.steps: must be an integer, not 'many'"),
    "a fraction for a whole number": ("steps: 3", "steps: 2.5",
        "run.yaml:5: rollout.steps: must be an integer, not 2.5"),
    "a switch for a number": ("steps: 3", "steps: true",
        "run.yaml:5: rollout.steps: must be a number, not the boolean 'true'"),
    "a number for a text": ("checkpoint: toy", "checkpoint: 3.5",
        "run.yaml:2: backbone.checkpoint: must be a string, not 3.5 (put it in quotes)"),
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
        "run.yaml:1: run.device: must be auto, cpu, cuda or mps, not 'tpu'; did you mean cpu?"),
    "a name that is no directory": ("name: toy", "name: ../toy",
        "run.yaml:1: run.name: '../toy' is not allowed here: Name of the run and of its directory: letters, digits, "
        "dots, dashes, underscores."),
    "a group of one": ("group_size: 4", "group_size: 1",
        "run.yaml:7: rollout.group_size: must be at least 2, got 1: the samples of a group are compared with each "
        "other"),
    "groups that do not split": ("checkpoints:", "optimizer: {updates: 3}\ncheckpoints:",
        "run.yaml:15: optimizer.updates: 3 does not divide rollout.groups = 4; the nearest divisors are 2 and 4"),
    "t_min above t_max": ("t_min: 0.3", "t_min: 0.9, t_max: 0.5",
        "run.yaml:13: timesteps.t_min: 0.9 (sigma 0.9) must be below t_max = 0.5 (sigma 0.5); 1 is noise and 0 is "
        "data"),
    "t_min equal to t_max": ("t_min: 0.3", "t_min: 1",
        "run.yaml:13: timesteps.t_min: 1.0 (sigma 1) must be below t_max = 1.0 (sigma 1); 1 is noise and 0 is data"),
    "a time that is none": ("t_min: 0.3", "t_min: shift(2)",
        "run.yaml:13: timesteps.t_min: must be a number from 0 (data) to 1 (noise), or shift(s) with s from 0 to 1, "
        "such as shift(0.3); the nearest is 1 (got 'shift(2)')"),
    "no pixels": ("resolution: 8", "resolution: 0",
        "run.yaml:9: rollout.resolution: must be at least 1 pixel, got 0"),
    "two rewards of one name": ("  - use: brightness\n", "  - use: brightness\n  - use: brightness\n",
        "run.yaml:13: rewards.1: the name 'brightness' is already used by another reward; give one of them another "
        "`name`"),
    "an unknown reward": ("use: brightness", "use: brihgtness",
        "run.yaml:12: rewards.0.use: unknown reward 'brihgtness'; did you mean brightness? (installed: {reward})"),
    "an unknown sampler": ("sampler: flow-euler", "sampler: flow-eular",
        "run.yaml:10: rollout.sampler: unknown sampler 'flow-eular'; did you mean flow-euler? (installed: {sampler})"),
    "an unknown backbone": ("use: toy, checkpoint", "use: unet, checkpoint",
        "run.yaml:2: backbone.use: unknown backbone 'unet' (installed: {backbone})"),
    "a misspelled option": ("  - use: brightness\n", "  - {use: brightness, options: {scael: 2}}\n",
        "run.yaml:12: rewards.0.options.scael: unknown key; did you mean scale?"),
    "an option of the wrong type": ("  - use: brightness\n", "  - {use: brightness, options: {scale: big}}\n",
        "run.yaml:12: rewards.0.options.scale: must be a number, not 'big'"),
    "options where there are none": ("sampler: flow-euler", "sampler: {use: flow-euler, options: {order: 2}}",
        "run.yaml:10: rollout.sampler.options.order: unknown key; allowed: none"),
    "prompts of two origins": ("train: {use: toy}", "train: {use: toy, file: p.txt}",
        "run.yaml:3: prompts.train: set exactly one of `file` (a .txt or .jsonl file) and `use` (a prompt generator)"),
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
        expected = expected.replace(f"{{{kind}}}", ", ".join(sorted(world.known().components(kind))))
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
    expected = "no such run directory or run file" if looked_into else "no such file"
    refused(world, [command, "nope.yaml"], f"nope.yaml: {expected}")


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file(world: World) -> None:
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
        ("rollout.steps", "must be KEY=VALUE, such as optimizer.learning_rate=1e-4"),
        ("rollout.stpes=4", "unknown key; did you mean steps?"),
        ("rollout.steps=0", "must be at least 1, not 0"),
        ("rewards.3.weight=1", "rewards is a list; '3' is not one of its indices (0 to 0; 1 appends)"),
        ("run.name.first=x", "run.name is 'toy'; it has no key 'first'"),
        ("rewards.0.use=nope", "unknown reward 'nope' (installed: {reward})"),
    ],
)
def test_settings(world: World, setting: str, expected: str) -> None:
    expected = expected.replace("{reward}", ", ".join(sorted(world.known().components("reward"))))
    for command in ("validate", "train"):
        refused(world, [command, "run.yaml", "--set", setting], f"--set {setting}: {expected}")


# -- plugins ---------------------------------------------------------------------------------------------------------

LAMP = """
from dgpo_core.hookspecs import Component, hookimpl

@hookimpl
def dgpo_rewards():
    return [Component("lamp", "A lamp.", {implementation!r}, {options})]
"""


def test_a_plugin_that_does_not_import(world: World) -> None:
    world.install("dgpo_lamp", dgpo_lamp="import lightbulbs\n")
    world.edit("use: brightness", "use: lamp")
    rewards = ", ".join(sorted(world.known().components("reward")))
    for command in ("validate", "train"):
        refused(
            world,
            [command, "run.yaml"],
            f"run.yaml:12: rewards.0.use: unknown reward 'lamp' (installed: {rewards})\n"
            "  a plugin that failed to load may provide it: dgpo_lamp (entry point dgpo_lamp): importing dgpo_lamp "
            f"failed with ModuleNotFoundError: No module named 'lightbulbs' (at {world.path / 'site/dgpo_lamp.py'}:1)",
        )


def test_a_broken_plugin_disturbs_no_run_that_does_not_use_it(world: World) -> None:
    world.install("dgpo_lamp", dgpo_lamp="raise SystemExit('no license')\n")
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
        "reward lamp of dgpo_lamp 1.5: dgpo_kit.toy:ToyPrompts is not a subclass of RewardModel or GroupReward",
    )


class Impostor:
    """Claims a name that is taken."""

    @hookimpl
    def dgpo_rewards(self) -> Sequence[Component]:
        return [Component("brightness", "Another one.", "dgpo_kit.toy:BrightnessReward")]


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
        'logging.trackers: wandb is not installed: pip install "dgpo[wandb]"',
    )
