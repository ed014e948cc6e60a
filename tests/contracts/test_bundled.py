"""Every part that comes with the project keeps its contract. A new part is found here by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dgpo_core.discovery import entry_points
from dgpo_core.registry import BUNDLED, Registry, get_registry
from dgpo_core.testing.contracts import (
    check_backbone,
    check_declaration,
    check_detector,
    check_light,
    check_objective,
    check_prompts,
    check_reward,
    check_sampler,
    check_timesteps,
    check_weighting,
)
from dgpo_core.types import Prompt
from dgpo_miniature.captions import TASKS, all_captions, metadata, scene_content, text
from dgpo_miniature.world import random_scenes, render
from dgpo_schemas.base import UseBlock
from dgpo_schemas.run import BackboneSection, ObjectiveSection
from dgpo_sd3.testing import make_tiny_checkpoint

CPU = torch.device("cpu")
OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("backbone", "sd3"): {"text_length": 16, "decode_chunk": 2},
    ("reward", "geneval"): {"detector": "shapes"},
    ("reward", "geneval-official"): {"detector": "shapes"},
    ("reward", "geneval-flowgrpo"): {"detector": "shapes"},
    ("prompts", "miniature"): {"train_count": 60, "heldout_count": 60},
}
"""Of parts that need some, or are quicker with them."""

each = pytest.mark.parametrize


def names(kind: str) -> list[str]:
    return list(get_registry().parts(kind))


@pytest.fixture(scope="module")
def installed() -> Registry:
    return get_registry()


def build(kind: str, name: str, **keywords: Any) -> Any:
    block = UseBlock(use=name, options=OPTIONS.get((kind, name), {}))
    return get_registry().create(kind, block, **keywords)


# -- declarations ---------------------------------------------------------------------------------------------------


def test_nothing_is_broken(installed: Registry) -> None:
    assert installed.broken == []
    assert installed.conflicts() == {}


def test_what_the_project_brings_is_known_to_come_with_it(installed: Registry) -> None:
    """So that a run file which names a part that is not installed says what to install."""
    declared = {
        (registered.kind, registered.part.name): registered.distribution
        for kind in ("backbone", "sampler", "reward", "weighting", "timesteps", "objective", "prompts", "detector")
        for registered in installed.parts(kind).values()
    }
    separate = {part: owner for part, owner in declared.items() if owner.startswith("dgpo-")}
    assert separate == BUNDLED


@each("module", sorted(entry_point.value for _, _, entry_point in entry_points()))
def test_entry_points_are_light(module: str) -> None:
    check_light(module)


@each(
    ("kind", "name"),
    [(kind, name) for kind in ("backbone", "sampler", "reward", "weighting") for name in names(kind)]
    + [(kind, name) for kind in ("timesteps", "objective", "prompts", "detector") for name in names(kind)],
)
def test_declarations(installed: Registry, kind: str, name: str) -> None:
    check_declaration(installed, kind, name)


# -- parts ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint that a backbone can load; only the architectures that the project brings are known here."""
    made: dict[str, Path] = {}

    def find(name: str) -> Path:
        assert name == "sd3", f"how is a tiny checkpoint for the backbone {name} made? Say so here"
        if name not in made:
            made[name] = make_tiny_checkpoint(tmp_path_factory.mktemp("backbones") / name)
        return made[name]

    return find


@each("train", ["lora", "full"])
@each("name", names("backbone"))
def test_backbones(name: str, train: str, checkpoint: Callable[[str], Path], installed: Registry) -> None:
    section = BackboneSection.model_validate(
        {"use": name, "options": OPTIONS.get(("backbone", name), {}), "checkpoint": str(checkpoint(name)),
         "train": train, "lora": {"rank": 2, "alpha": 4}}
    )  # fmt: skip
    check_backbone(lambda: installed.create("backbone", section, device=CPU), (32, 48), impossible=(32, 45))


@each("name", names("sampler"))
def test_samplers(name: str) -> None:
    check_sampler(build("sampler", name))


@each("name", names("weighting"))
def test_weightings(name: str) -> None:
    check_weighting(build("weighting", name))


@each("name", names("timesteps"))
def test_timestep_policies(name: str) -> None:
    check_timesteps(lambda: build("timesteps", name))


@each(
    "section",
    [{}, {"kl": 0.0}, {"clip": None}, {"clip": None, "kl": 0.0}, {"clip_kl": True, "kl": 1.0}, {"reference": "ema"}],
    ids=str,
)
@each("name", names("objective"))
def test_objectives(name: str, section: dict[str, Any], installed: Registry) -> None:
    block = ObjectiveSection.model_validate({"use": name, "options": OPTIONS.get(("objective", name), {})} | section)
    check_objective(installed.create("objective", block))


@each("name", names("prompts"))
def test_prompt_sources(name: str) -> None:
    check_prompts(lambda: build("prompts", name))


def drawn(per_task: int = 2) -> tuple[Tensor, list[Prompt]]:
    """Pictures of the miniature's world with their prompts: half as the prompt demands, the others of anything; then
    noise, black and white."""
    rng, generator = Random(0), np.random.default_rng(0)
    kinds, colors, prompts = [], [], []
    for task in TASKS:
        for i, caption in enumerate(rng.sample(all_captions(task), per_task)):
            kind, color = scene_content(caption, rng)
            kinds.append(kind if i % 2 == 0 else generator.integers(-1, 4, 4))
            colors.append(color)
            words = text(caption, "a photo of")
            prompts.append(Prompt(words, metadata(caption, words)))
    pictures = torch.from_numpy(render(random_scenes(np.array(kinds), np.array(colors), generator)))
    others = torch.stack([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 64, 64),
                          torch.ones(3, 64, 64)])  # fmt: skip
    return torch.cat([pictures, others]), prompts + prompts[:3]


@each("name", names("detector"))
def test_detectors(name: str) -> None:
    check_detector(build("detector", name, device=CPU), drawn()[0])


@each("name", names("reward"))
def test_rewards(name: str) -> None:
    media, prompts = drawn()
    reward = build("reward", name, device=CPU)
    check_reward(reward, media, prompts)
    scores = reward.score(media, prompts)
    assert not scores.missing.any()
    assert (scores.values[0 : 2 * len(TASKS) : 2] == 1).all(), "what the prompt demands is rewarded in full"
    assert (scores.values[-3:] < 1).all()
