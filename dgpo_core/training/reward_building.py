"""Rewards of a run file: their models, and the scorers that ask them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from dgpo_core.contracts import AnyReward
from dgpo_core.data.checks import check_prompts
from dgpo_core.errors import UserError
from dgpo_core.media.kinds import check_reward
from dgpo_core.rewards import place
from dgpo_core.training.reward_calls import Reward
from dgpo_core.training.scoring import Scorer
from dgpo_core.types import Prompt

if TYPE_CHECKING:
    from dgpo_core.training.engine import Engine
    from dgpo_schemas.sections.rewards import RewardBlock

__all__ = ["evaluation_scorer", "training_scorer"]


def training_scorer(engine: Engine, prompts: Sequence[Prompt]) -> Scorer:
    """The rewards trained on; closed with the engine."""
    return _scorer(engine, _rewards(engine, "rewards", engine.config.rewards, prompts, "train"))


def evaluation_scorer(engine: Engine, prompts: Sequence[Prompt], members: int | None = None) -> Scorer:
    """The rewards evaluated with, those trained on unless others are named, and the monitors, for any prompts; closed
    with the engine.

    members: samples of each prompt, by default as configured. Raises UserError for a reward that compares samples
    where there is one of each prompt.
    """
    section = engine.config.evaluation
    if section.rewards is None:
        targets = _rewards(engine, "rewards", engine.config.rewards, prompts, "heldout")
    else:
        targets = _rewards(engine, "evaluation.rewards", section.rewards, prompts, "heldout")
    rewards = [
        *targets,
        *_rewards(engine, "evaluation.monitors.rewards", section.monitors.rewards, prompts, monitor=True),
    ]
    comparing = next((reward for reward in rewards if reward.compares), None)
    if comparing is not None and (members or section.samples_per_prompt) < 2:
        way = "take it out of evaluation.monitors.rewards" if comparing.monitor else "name others in evaluation.rewards"
        raise UserError(
            f"evaluation.samples_per_prompt: the reward {comparing.label} compares the samples of a prompt with each "
            f"other, and there is 1; set it to 2 or more, or {way}"
        )
    return _scorer(engine, rewards)


def _scorer(engine: Engine, rewards: Sequence[Reward]) -> Scorer:
    scorer = Scorer(rewards, engine.process_state, engine.config.scoring.in_flight)
    engine.closing.callback(scorer.close)
    return scorer


def _rewards(
    engine: Engine,
    key: str,
    blocks: Sequence[RewardBlock],
    prompts: Sequence[Prompt],
    split: Literal["train", "heldout"] | None = None,
    *,
    monitor: bool = False,
) -> list[Reward]:
    """Reward models for what the backbone makes and for prompts, of which each of them checks those that it is asked
    for first; `key` is the blocks' place in the run file, split: whose sources say what they ask for."""
    rewards = []
    prompts = engine.sized(prompts)
    sources = [] if split is None else engine.config.prompts.sources(split)
    for i, block in enumerate(blocks):
        model = _model(engine, block, f"{key}.{i}")
        check_reward(model, block, f"{key}.{i}", engine.config.backbone, engine.registry)
        with engine.process_state.around(f"reward {block.label}, when it checked the prompts,"):
            asked = [one.source for one in sources if one.rewards is None or block.label in one.rewards]
            reward = Reward(block.label, block.weight, model, monitor, None if not sources else frozenset(asked))
            check_prompts(model, [prompt for prompt in prompts if reward.asks(prompt)])
        rewards.append(reward)
    return rewards


def _model(engine: Engine, block: RewardBlock, place_in_file: str) -> AnyReward:
    """Same reward, options and place: one model."""
    where = block.model_copy(update={"name": None, "weight": 1.0})  # a name and a weight make no other model
    for known, model in engine.reward_models:
        if known == where:
            return model
    with engine.process_state.around(f"reward {block.label}, when it was made,"):
        made = place(block, engine.registry, device=engine.runtime.device, where=place_in_file)
    engine.reward_models.append((where, made))
    engine.closing.callback(made.close)
    return made
