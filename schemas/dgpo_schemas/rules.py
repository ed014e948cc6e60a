"""Rules between the fields of a run file. Each message names the keys and the nearest valid values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic_core import PydanticCustomError

from dgpo_schemas.base import LONGEST_SIDE
from dgpo_schemas.problems import nearest
from dgpo_schemas.sections.backbone import BackboneSection
from dgpo_schemas.sections.evaluation import EvaluationSection
from dgpo_schemas.sections.prompts import PromptsSection
from dgpo_schemas.sections.rewards import RewardBlock
from dgpo_schemas.sections.rollout import RolloutSection
from dgpo_schemas.sections.training import ObjectiveSection, OptimizerSection, TimestepsSection
from dgpo_schemas.sections.whole import StopSection
from dgpo_schemas.sigma import AUTO, resolve_sigma

__all__ = ["Violations", "geometry", "guidance", "raise_all", "rewards", "settings_in_vain", "sources", "stop", "times"]

Violations = Iterator[tuple[str, str]]
"""(key, message) of each rule that is broken."""
MOST_SAMPLES = 10_000_000
"""Of an iteration: all of them are kept until it is optimized."""
STATISTICS = ("diversity", "saturation", "edge_density", "dark_pixels", "step_disagreement", "many_step_sharpness")
"""Statistics of the media, which are evaluated beside the rewards and share their names' space."""
OF_STEPS = STATISTICS[-2:]
"""Those that compare few solver steps with many."""


def raise_all(found: list[tuple[str, str]]) -> None:
    """Raise one error that carries every violation, if there are any."""
    if found:
        # pydantic gives a validator of the whole model one error; the loader takes the list apart again.
        lines = [f"{key}: {message}" for key, message in found]
        raise PydanticCustomError("run_rules", "{text}", {"text": "; ".join(lines), "violations": found})


def geometry(rollout: RolloutSection, optimizer: OptimizerSection) -> Violations:
    """Sizes of groups and of samples, and updates that divide the groups."""
    updates = optimizer.updates
    if rollout.group_size < 2:
        size = rollout.group_size
        yield "rollout.group_size", f"a group of {size} has nothing to compare with; the smallest is 2"
    if rollout.groups % updates:
        divisors = [n for n in range(1, rollout.groups + 1) if rollout.groups % n == 0]
        near = sorted(divisors, key=lambda n: abs(n - updates))[:2]
        yield (
            "optimizer.updates",
            f"{updates} does not divide rollout.groups = {rollout.groups}; the nearest that do are "
            + " and ".join(map(str, sorted(near))),
        )
    if rollout.groups * rollout.group_size > MOST_SAMPLES:
        yield (
            "rollout.groups",
            f"{rollout.groups} groups of {rollout.group_size} are more than {MOST_SAMPLES} samples an iteration; "
            f"at most {MOST_SAMPLES // rollout.group_size} such groups are possible",
        )
    for side in sorted(set(rollout.height_width)):
        if side < 1:
            yield "rollout.resolution", f"{side} is no size in pixels; it must be at least 1"
        if side > LONGEST_SIDE:
            yield "rollout.resolution", f"{side} pixels are too many; a side has at most {LONGEST_SIDE}"


def times(shift: float | Literal["auto"], section: TimestepsSection) -> Violations:
    """Training times in their order."""
    t_min, t_max = section.t_min, 1.0 if section.t_max is None else section.t_max
    if shift == AUTO and isinstance(t_min, str) != isinstance(t_max, str) and not {t_min, t_max} & {0.0, 1.0}:
        return  # which is larger is known with the model
    # A shift keeps the order of times, and both ends.
    low, high = (resolve_sigma(t, 1.0 if shift == AUTO else shift) for t in (t_min, t_max))
    if low < high:
        return
    first, second = ("", "") if shift == AUTO else (f" (sigma {low:.4g})", f" (sigma {high:.4g})")
    yield "timesteps.t_min", f"{t_min}{first} must be below t_max = {t_max}{second}; 1 is noise and 0 is data"


def guidance(scale: float, objective: ObjectiveSection) -> Violations:
    """The three published modes, and the combinations that none of them uses."""
    if scale > 1 and objective.kl_cfg > 1:
        yield (
            "objective.kl_cfg",
            f"{objective.kl_cfg:g} together with rollout.guidance = {scale:g}: guided rollouts go with a plain "
            "reference (mode 1: kl_cfg 1), a guided reference with plain rollouts (mode 2a: rollout.guidance 1)",
        )
    if objective.reference == "ema_fast" and objective.kl_cfg > 1 and objective.kl == 0:
        yield (
            "objective.kl_cfg",
            f"{objective.kl_cfg:g} guides the frozen base, with which nothing is compared here: the reference is "
            "the fast EMA and objective.kl is 0. Set kl above 0, reference: frozen (mode 2a), or leave kl_cfg out",
        )
    if objective.reference == "ema_fast" and scale > 1:
        yield (
            "rollout.guidance",
            f"{scale:g} with objective.reference = ema: a dynamic reference goes with plain rollouts "
            "(mode 2b: rollout.guidance 1), guided rollouts with a frozen reference (mode 1: reference frozen)",
        )


def rewards(blocks: list[RewardBlock], evaluation: EvaluationSection, prompts: PromptsSection) -> Violations:
    """Names of rewards and monitors, and what nothing would be evaluated with."""
    monitors = [block.label for block in evaluation.monitors.rewards]
    trained, shown = ([block.label for block in some] for some in (blocks, evaluation.rewards or []))
    for key, labels, taken in (
        ("rewards", trained, STATISTICS),
        ("evaluation.rewards", shown, STATISTICS),
        ("evaluation.monitors.rewards", monitors, (*STATISTICS, *trained, *shown)),
    ):
        for i, label in enumerate(labels):
            if label in labels[:i] or label in taken:
                what, which = ("two rewards", "one of them")
                if label in STATISTICS:
                    what, which = ("a statistic of the media and a reward", "the reward")
                yield f"{key}.{i}", f"{what} are called {label!r}; give {which} another `name`"
    for label in evaluation.monitors.tolerances:
        if label not in (*monitors, *STATISTICS):
            known = ", ".join([*monitors, *STATISTICS])
            yield f"evaluation.monitors.tolerances.{label}", f"there is no monitor {label!r}; the monitors are {known}"
        elif label in OF_STEPS and evaluation.many_step is None:
            yield f"evaluation.monitors.tolerances.{label}", "is only measured where evaluation.many_step is set"
    if all(block.weight == 0 for block in blocks):
        yield "rewards", "every weight is 0, so there is nothing to learn; give one a weight, such as 1"
    if prompts.heldout is None:
        # `at_start` and the evaluation at the end are defaults: without held-out prompts they fall away silently.
        if evaluation.every:
            yield "evaluation.every", "evaluation needs held-out prompts: set prompts.heldout, or every to 0"
        if monitors:
            yield "evaluation.monitors.rewards", "nothing is evaluated without prompts.heldout; set it"
        if evaluation.many_step is not None:
            yield "evaluation.many_step", "nothing is evaluated without prompts.heldout; set it"
        if evaluation.rewards:
            yield "evaluation.rewards", "nothing is evaluated without prompts.heldout; set it or remove these"


def sources(prompts: PromptsSection, rewards: list[RewardBlock], evaluation: EvaluationSection) -> Violations:
    """Names of sources and of their rewards."""
    splits: tuple[tuple[Literal["train", "heldout"], list[RewardBlock], str], ...] = (
        ("train", rewards, "rewards"),
        ("heldout", evaluation.rewards or rewards, "evaluation.rewards" if evaluation.rewards else "rewards"),
    )
    for split, blocks, key in splits:
        sources = prompts.sources(split)
        names, labels = [one.source for one in sources], [block.label for block in blocks]
        known = ", ".join(labels)
        for i, one in enumerate(sources):
            here = f"prompts.{split}.{i}"
            if one.source in names[:i]:
                yield f"{here}.source", f"two sources are called {one.source!r}; give one another name"
            asked = labels if one.rewards is None else one.rewards
            for j, label in enumerate(asked):
                if label not in labels:
                    near = nearest(label, labels)
                    message = f"there is no reward {label!r} in {key}{near or f'; there is {known}'}"
                    yield f"{here}.rewards.{j}", message
                elif label in asked[:j]:
                    yield f"{here}.rewards.{j}", f"{label!r} is there twice"
            weights = [block.weight for block in blocks if block.label in asked]
            if split == "train" and weights and not any(weights):
                yield f"{here}.rewards", "each has the weight 0: there is nothing to learn from this source"
        for i, label in enumerate(labels):
            if sources and not any(one.rewards is None or label in one.rewards for one in sources):
                message = f"no source of prompts.{split} asks for {label!r}; add it to the `rewards` of one"
                yield f"{key}.{i}", message


def stop(
    section: StopSection, prompts: PromptsSection, rewards: list[RewardBlock], evaluation: EvaluationSection
) -> Violations:
    """A target that is looked at."""
    if section.target is None:
        if section.reward is not None:
            yield "stop.reward", "there is no stop.target that it could be about; set one, or leave it out"
        return
    if prompts.heldout is None:
        yield "stop.target", "a held-out score needs held-out prompts: set prompts.heldout, or leave it out"
        return
    if not evaluation.every:
        yield "stop.target", "it is looked at when evaluating: set evaluation.every, which is 0"
    labels = [block.label for block in evaluation.rewards or rewards]
    if section.reward is not None and section.reward not in labels:
        yield "stop.reward", f"nothing evaluated is called {section.reward!r}; there is {', '.join(labels)}"


def settings_in_vain(objective: ObjectiveSection, backbone: BackboneSection, rollout: RolloutSection) -> Violations:
    """Settings that would change nothing: whoever wrote them expects something else."""
    if objective.clip_kl and objective.kl == 0:
        yield "objective.clip_kl", "there is no KL term to clip while objective.kl is 0; set false"
    if objective.clip_kl and objective.clip is None:
        yield "objective.clip_kl", "nothing is clipped while objective.clip is null; set false"
    if backbone.train == "full" and "lora" in backbone.model_fields_set:
        yield "backbone.lora", "there is no LoRA while backbone.train is full; remove one of the two"
    if backbone.train == "full" and rollout.merge_adapter:
        yield "rollout.merge_adapter", "there is no adapter while backbone.train is full; leave it out"
