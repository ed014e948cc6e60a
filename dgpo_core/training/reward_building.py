"""Build the reward models of a run file and the scorers that call them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from dgpo_core.contracts import AnyReward
from dgpo_core.data.checks import check_prompts
from dgpo_core.errors import PluginError, UserError
from dgpo_core.media.kinds import check_reward
from dgpo_core.rewards import place
from dgpo_core.training.reward_calls import Reward
from dgpo_core.training.scoring import Scorer
from dgpo_core.types import Prompt

if TYPE_CHECKING:
    from dgpo_core.training.engine import Engine
    from dgpo_schemas.sections.rewards import RewardBlock

__all__ = ["evaluation_scorer", "suite_scorer", "training_scorer"]


def training_scorer(engine: Engine, prompts: Sequence[Prompt]) -> Scorer:
    """Build the scorer of the training rewards; it is closed with the engine."""
    return _scorer(engine, _rewards(engine, "rewards", engine.config.rewards, prompts, "train"))


def evaluation_scorer(engine: Engine, prompts: Sequence[Prompt], members: int | None = None) -> Scorer:
    """Build the scorer of the evaluation rewards (by default the training rewards) and the monitors; it is closed with
    the engine.

    members: samples per prompt, by default as configured. Raises UserError if a reward compares samples but there is
    only one per prompt.
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
        remedy = (
            "remove it from evaluation.monitors.rewards" if comparing.monitor else "set others in evaluation.rewards"
        )
        raise UserError(
            f"evaluation.samples_per_prompt: must be at least 2 for the reward {comparing.label}, which compares the "
            f"samples of a prompt, got 1; set it to 2 or more, or {remedy}"
        )
    return _scorer(engine, rewards)


def suite_scorer(
    engine: Engine, blocks: Sequence[RewardBlock], prompts: Sequence[Prompt], where: str, members: int
) -> Scorer:
    """Build the scorer of a suite's rewards; it is closed with the engine. where: location for messages; members:
    samples per prompt. Raises UserError for a reward that compares samples if there is only one."""
    rewards = _rewards(engine, where, blocks, prompts)
    for reward in rewards:
        if reward.compares and members < 2:
            raise UserError(f"{where}: {reward.label} compares the samples of a prompt; draw at least 2 of each, got 1")
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
    """Create rewards and check that they support the backbone's media and the prompts that they will score.

    key: location of the blocks in the run file; split: the prompts whose sources select rewards, None for all rewards.
    """
    rewards = []
    prompts = engine.sized(prompts)
    sources = [] if split is None else engine.config.prompts.sources(split)
    for i, block in enumerate(blocks):
        model = _model(engine, block, f"{key}.{i}")
        check_reward(model, block, f"{key}.{i}", engine.config.backbone, engine.registry)
        with engine.process_state.around(f"reward {block.label}, when it checked the prompts,"):
            weights = {source.source: source.weight_of(block.label, block.weight) for source in sources}
            asked = {name: weight for name, weight in weights.items() if weight is not None}
            reward = Reward(
                block.label, block.weight, model, monitor, frozenset(asked) if sources else None,
                {name: weight for name, weight in asked.items() if weight != block.weight}, block.transform,
            )  # fmt: skip
            check_prompts(model, [prompt for prompt in prompts if reward.asks(prompt)])
        rewards.append(reward)
    return rewards


def _placed(engine: Engine, block: RewardBlock, key: str) -> AnyReward:
    """Create a reward where its block says, or on the ranks that `run.reward_ranks` says."""
    device, processes, run = engine.runtime.device, engine.runtime.processes, engine.config.run

    def make() -> AnyReward:
        return place(block, engine.registry, device=device, where=key)

    elsewhere = block.worker is not None or block.service is not None
    if elsewhere or run.reward_ranks is None or run.reward_ranks >= processes.count:
        return make()
    try:
        connect = engine.registry.transport("ranks")
    except PluginError as error:
        raise UserError(f"run.reward_ranks: {error}") from error
    reward: AnyReward = connect(
        block, make, engine.process_state, processes, run.reward_ranks,
        device=device, where=key, timeout=run.process_timeout,
    )  # fmt: skip
    return reward


def _model(engine: Engine, block: RewardBlock, key: str) -> AnyReward:
    """Create a reward model, or reuse one with the same reward, options and transport."""
    identity = block.model_copy(update={"name": None, "weight": 1.0, "transform": None})  # not part of the model
    for known, model in engine.reward_models:
        if known == identity:
            return model
    with engine.process_state.around(f"reward {block.label}, when it was made,"):
        created = _placed(engine, block, key)
    engine.reward_models.append((identity, created))
    engine.closing.callback(created.close)
    return created
