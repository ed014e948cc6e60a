"""Shapes and signs in one run: the advantages of each are those of a run of its own."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dgpo_core.distributed.comparing import Layout
from dgpo_core.draws import Draws
from dgpo_core.flow.groups import compute_advantages
from dgpo_core.plugins.registry import get_registry
from dgpo_core.training.reward_calls import Reward
from dgpo_core.training.scoring import Scorer
from dgpo_core.types import Prompt, ScoredGroups, TrainingBatch
from dgpo_miniature.captions import TASKS, all_captions, metadata, scene_content, text
from dgpo_miniature.signs.captions import misspell
from dgpo_miniature.signs.score import READING
from dgpo_miniature.signs.world import random_signs
from dgpo_miniature.signs.world import render as render_signs
from dgpo_miniature.world import random_scenes
from dgpo_miniature.world import render as render_scenes
from dgpo_schemas.base import UseBlock
from dgpo_schemas.sections.prompts import SourceBlock
from dgpo_schemas.sections.rewards import AdvantagesSection, ScoringSection

pytest.importorskip("dgpo_ocr")
pytest.importorskip("rapidocr")

MEMBERS = 4
ORDER = ("shapes", "shapes", "signs", "shapes", "shapes", "signs")
SOURCES = [
    SourceBlock(source="shapes", use="miniature", rewards={"geneval": 1.0, "geneval-official": 0.5}),
    SourceBlock(source="signs", use="miniature-signs", rewards=["ocr"], aggregation="group-normalized"),
]
Group = tuple[Prompt, Tensor]


def shapes(count: int) -> list[Group]:
    """Prompts with scenes: the first as the prompt demands, the others of anything."""
    rng, generator = Random(1), np.random.default_rng(1)
    found = []
    for caption in [rng.choice(all_captions(TASKS[i])) for i in range(count)]:
        drawn = []
        for member in range(MEMBERS):
            kinds, colors = scene_content(caption, rng)
            kinds = kinds if member % 2 == 0 else generator.integers(-1, 4, 4)
            drawn.append(render_scenes(random_scenes(np.array([kinds]), np.array([colors]), generator))[0])
        words = text(caption, "a photo of")
        found.append((Prompt(words, metadata(caption, words), source="shapes"), torch.from_numpy(np.stack(drawn))))
    return found


def signs(words: Sequence[str]) -> list[Group]:
    """Prompts with signs: the first spelled right, the others not."""
    rng, generator = Random(2), np.random.default_rng(2)
    found = []
    for word in words:
        written = [word, *(misspell(word, rng, replaced=1.0, swapped=0.0) for _ in range(MEMBERS - 1))]
        prompt = Prompt(f'a sign that says "{word}"', {"target": word}, source="signs")
        found.append((prompt, torch.from_numpy(render_signs(random_signs(written, generator)))))
    return found


@pytest.fixture(scope="module")
def models() -> Any:
    registry, cpu = get_registry(), torch.device("cpu")
    shapes_detector = {"detector": "shapes"}
    options = {"geneval": shapes_detector, "geneval-official": shapes_detector, "ocr": READING}
    made = {
        use: registry.create("reward", UseBlock(use=use, options=given), device=cpu) for use, given in options.items()
    }
    yield made
    for model in made.values():
        model.close()


def scored(models: Any, groups: Sequence[Group], names: Sequence[str]) -> ScoredGroups:
    rewards = [
        Reward("geneval", 1.0, models["geneval"], sources=frozenset({"shapes"})),
        Reward("geneval-official", 1.0, models["geneval-official"], sources=frozenset({"shapes"}),
               weights={"shapes": 0.5}),
        Reward("ocr", 1.0, models["ocr"], sources=frozenset({"signs"})),
    ]  # fmt: skip
    scorer = Scorer([reward for reward in rewards if reward.label in names])
    scorer.expect(Layout(MEMBERS, Draws(0), [range(MEMBERS * len(groups))]))
    for number, (prompt, media) in enumerate(groups):  # groups of different sizes never share a batch
        scorer.submit(media, [prompt] * MEMBERS, samples=range(number * MEMBERS, (number + 1) * MEMBERS))
    prompts = [prompt for prompt, _ in groups]
    found = scorer.groups(scorer.collect(), [], prompts, ScoringSection(), 1e-4, SOURCES)
    scorer.close()
    return found


def batch(groups: ScoredGroups, std: str) -> TrainingBatch:
    weighting = get_registry().create("weighting", UseBlock(use="abs-advantage"))
    return compute_advantages(groups, AdvantagesSection.model_validate({"std": std}), weighting)


@pytest.mark.parametrize("std", ["group", "batch"])
def test_each_task_has_the_advantages_of_a_run_of_its_own(models: Any, std: str) -> None:
    of = {"shapes": iter(shapes(4)), "signs": iter(signs(["CAB", "FED"]))}
    groups = [next(of[name]) for name in ORDER]
    together = scored(models, groups, ["geneval", "geneval-official", "ocr"])
    whole = batch(together, std)
    assert together.scored.all(), "what is not asked for is not missing"
    for name, labels in (("shapes", ["geneval", "geneval-official"]), ("signs", ["ocr"])):
        rows = [row for row, source in enumerate(ORDER) if source == name]
        alone = batch(scored(models, [groups[row] for row in rows], labels), std)
        assert (alone.advantages != 0).any(), name
        torch.testing.assert_close(whole.advantages[rows], alone.advantages, rtol=0, atol=1e-10)
        torch.testing.assert_close(whole.signed_weights[rows], alone.signed_weights, rtol=0, atol=1e-10)
