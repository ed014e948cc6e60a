"""Validation rules that involve several fields of a run file. Each message names the keys and the nearest valid
values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic_core import PydanticCustomError

from dgpo_schemas.base import LONGEST_SIDE
from dgpo_schemas.problems import nearest
from dgpo_schemas.sections.backbone import BackboneSection, PrecisionSection
from dgpo_schemas.sections.evaluation import WORDING, EvaluationSection
from dgpo_schemas.sections.prompts import PromptsSection, SourceBlock
from dgpo_schemas.sections.rewards import RewardBlock
from dgpo_schemas.sections.rollout import RolloutSection
from dgpo_schemas.sections.training import ObjectiveSection, OptimizerSection, ResetSection, TimestepsSection
from dgpo_schemas.sections.whole import RunSection, StopSection
from dgpo_schemas.sigma import AUTO, resolve_sigma

__all__ = [
    "Violations",
    "explore",
    "geometry",
    "guidance",
    "guidance_interval",
    "on_mps",
    "precision",
    "raise_all",
    "rewards",
    "sources",
    "stop",
    "times",
    "without_effect",
]

Violations = Iterator[tuple[str, str]]
"""(key, message) of each broken rule."""
MOST_SAMPLES = 10_000_000
"""Maximum number of samples per iteration; all of them are kept until the optimizer updates."""
STATISTICS = ("diversity", "saturation", "edge_density", "dark_pixels", "step_disagreement", "many_step_sharpness")
"""Statistics of images and videos. They are evaluated with the rewards and share a namespace with them."""
OF_STEPS = STATISTICS[-2:]
"""Statistics that compare few-step samples with many-step solutions."""


def raise_all(found: list[tuple[str, str]]) -> None:
    """Raise one error with all violations, if there are any."""
    if found:
        # A pydantic model validator can raise only one error; the loader splits the list again.
        lines = [f"{key}: {message}" for key, message in found]
        raise PydanticCustomError("run_rules", "{text}", {"text": "; ".join(lines), "violations": found})


def geometry(rollout: RolloutSection, optimizer: OptimizerSection) -> Violations:
    """Check the group size, the number of samples, the resolution, and that updates divides the number of groups."""
    updates = optimizer.updates
    if rollout.group_size < 2:
        yield (
            "rollout.group_size",
            f"must be at least 2, got {rollout.group_size}: the samples of a group are compared with each other",
        )
    if rollout.groups % updates:
        divisors = [n for n in range(1, rollout.groups + 1) if rollout.groups % n == 0]
        near = sorted(divisors, key=lambda n: abs(n - updates))[:2]
        yield (
            "optimizer.updates",
            f"{updates} does not divide rollout.groups = {rollout.groups}; the nearest divisors are "
            + " and ".join(map(str, sorted(near))),
        )
    if rollout.groups * rollout.group_size > MOST_SAMPLES:
        yield (
            "rollout.groups",
            f"{rollout.groups} groups of {rollout.group_size} are more than {MOST_SAMPLES} samples per iteration; "
            f"use at most {MOST_SAMPLES // rollout.group_size} groups of this size",
        )
    for side in sorted(set(rollout.height_width)):
        if side < 1:
            yield "rollout.resolution", f"must be at least 1 pixel, got {side}"
        if side > LONGEST_SIDE:
            yield "rollout.resolution", f"must be at most {LONGEST_SIDE} pixels per side, got {side}"


def explore(rollout: RolloutSection) -> Violations:
    """Check that a group's best and worst members fit into it and are among its candidates, which cost less than they
    do."""
    section, size = rollout.explore, rollout.group_size
    if section is None or size < 2:
        return
    if section.candidates < size:
        yield (
            "rollout.explore.candidates",
            f"{section.candidates} candidates are too few for groups of rollout.group_size = {size}, which are chosen "
            f"from them; use at least {size}, or more to have a choice",
        )
    if rollout.groups * section.candidates > MOST_SAMPLES:
        yield (
            "rollout.explore.candidates",
            f"{section.candidates} for each of {rollout.groups} groups are more than {MOST_SAMPLES} samples per "
            f"iteration; use at most {MOST_SAMPLES // rollout.groups}",
        )
    if rollout.best >= size:
        yield (
            "rollout.explore.best",
            f"must be from 1 to {size - 1}, one less than rollout.group_size, got {rollout.best}: a group has better "
            f"and worse members; the nearest is {size - 1}",
        )
    if section.steps > rollout.steps:
        yield (
            "rollout.explore.steps",
            f"{section.steps} steps per candidate are more than rollout.steps = {rollout.steps}, in which the best and "
            f"the worst are drawn again; use at most {rollout.steps}",
        )


def times(shift: float | Literal["auto"], section: TimestepsSection) -> Violations:
    """Check that t_min is below t_max."""
    t_min, t_max = section.t_min, 1.0 if section.t_max is None else section.t_max
    if shift == AUTO and isinstance(t_min, str) != isinstance(t_max, str) and not {t_min, t_max} & {0.0, 1.0}:
        return  # the order depends on the model's shift, which is not known yet
    # The shift is increasing and maps 0 to 0 and 1 to 1.
    low, high = (resolve_sigma(t, 1.0 if shift == AUTO else shift) for t in (t_min, t_max))
    if low < high:
        return
    first, second = ("", "") if shift == AUTO else (f" (sigma {low:.4g})", f" (sigma {high:.4g})")
    yield "timesteps.t_min", f"{t_min}{first} must be below t_max = {t_max}{second}; 1 is noise and 0 is data"


def guidance(scale: float, objective: ObjectiveSection) -> Violations:
    """Reject combinations of guidance settings that none of the three published modes uses."""
    if scale > 1 and objective.kl_cfg > 1:
        yield (
            "objective.kl_cfg",
            f"cannot combine {objective.kl_cfg:g} with rollout.guidance = {scale:g}: use guided rollouts with an "
            "unguided reference (mode 1: kl_cfg 1), or a guided reference with unguided rollouts (mode 2a: "
            "rollout.guidance 1)",
        )
    if objective.reference == "ema_fast" and objective.kl_cfg > 1 and objective.kl == 0:
        yield (
            "objective.kl_cfg",
            f"{objective.kl_cfg:g} has no effect: it applies to the frozen base model, which is not used because "
            "objective.reference is ema_fast and objective.kl is 0; set kl above 0, set reference: frozen (mode 2a), "
            "or remove kl_cfg",
        )
    if objective.reference == "reset" and objective.kl_cfg > 1:
        yield (
            "objective.kl_cfg",
            f"cannot combine {objective.kl_cfg:g} with objective.reference = reset: the reference was the policy, "
            "which is trained without guidance; set kl_cfg to 1, or reference: frozen (mode 2a)",
        )
    if objective.reference in ("ema_fast", "reset") and scale > 1:
        yield (
            "rollout.guidance",
            f"cannot combine {scale:g} with objective.reference = {objective.reference}: use the dynamic reference "
            "with unguided rollouts (mode 2b: rollout.guidance 1), or guided rollouts with reference: frozen (mode 1)",
        )


def guidance_interval(rollout: RolloutSection, evaluation: EvaluationSection) -> Violations:
    """Check that the ends of guidance intervals are in order, and that there is guidance that they apply to."""
    scale = rollout.guidance if evaluation.guidance is None else evaluation.guidance
    source = "rollout" if evaluation.guidance is None else "evaluation"
    for key, interval, of, guided in (
        ("rollout.guidance_interval", rollout.guidance_interval, "rollout", rollout.guidance != 1),
        ("evaluation.guidance_interval", evaluation.guidance_interval, source, scale != 1),
    ):
        if interval is None:
            continue
        low, high = interval
        if low >= high:
            yield key, f"[{low:g}, {high:g}]: the first must be below the second, [low, high]; 1 is noise and 0 is data"
        if not guided:
            yield key, f"has no effect because {of}.guidance is 1; set it above 1, or remove this key"


def rewards(blocks: list[RewardBlock], evaluation: EvaluationSection, prompts: PromptsSection) -> Violations:
    """Check the names of rewards and monitors, and settings that require held-out prompts."""
    monitors = [block.label for block in evaluation.monitors.rewards]
    trained, shown = ([block.label for block in some] for some in (blocks, evaluation.rewards or []))
    for key, labels, taken in (
        ("rewards", trained, STATISTICS),
        ("evaluation.rewards", shown, STATISTICS),
        ("evaluation.monitors.rewards", monitors, (*STATISTICS, *trained, *shown)),
    ):
        for i, label in enumerate(labels):
            if label in labels[:i] or label in taken:
                used, rename = "another reward", "one of them"
                if label in STATISTICS:
                    used, rename = "an image statistic", "the reward"
                yield f"{key}.{i}", f"the name {label!r} is already used by {used}; give {rename} another `name`"
    wording = [f"{name}.{label}" for name in WORDING for label in shown or trained]
    wording = wording if evaluation.monitors.wording is not None else []
    for label in evaluation.monitors.tolerances:
        if label not in (*monitors, *wording, *STATISTICS):
            known = ", ".join([*monitors, *wording, *STATISTICS])
            yield f"evaluation.monitors.tolerances.{label}", f"unknown monitor {label!r}; the monitors are {known}"
        elif label in OF_STEPS and evaluation.many_step is None:
            yield f"evaluation.monitors.tolerances.{label}", "is measured only if evaluation.many_step is set"
    for key, others in (("evaluation.rewards", evaluation.rewards or []),
                        ("evaluation.monitors.rewards", evaluation.monitors.rewards)):  # fmt: skip
        for i, block in enumerate(others):
            if block.transform is not None:
                message = "has no effect here: an evaluation reports each reward by itself; remove this key"
                yield f"{key}.{i}.transform", message
    if all(block.weight == 0 for block in blocks):
        yield "rewards", "all weights are 0, so there is nothing to learn; set at least one weight, such as 1"
    if prompts.heldout is None:
        # `at_start` and the evaluation at the end are defaults: without held-out prompts they are skipped silently.
        if evaluation.every:
            yield "evaluation.every", "evaluation requires held-out prompts; set prompts.heldout, or set every to 0"
        if monitors:
            yield "evaluation.monitors.rewards", "evaluation requires held-out prompts; set prompts.heldout"
        if evaluation.monitors.wording is not None:
            yield "evaluation.monitors.wording", "evaluation requires held-out prompts; set prompts.heldout"
        if evaluation.many_step is not None:
            yield "evaluation.many_step", "evaluation requires held-out prompts; set prompts.heldout"
        if evaluation.rewards:
            yield "evaluation.rewards", "evaluation requires held-out prompts; set prompts.heldout or remove this key"


def sources(prompts: PromptsSection, rewards: list[RewardBlock], evaluation: EvaluationSection) -> Violations:
    """Check the names of prompt sources and of their rewards."""
    splits: tuple[tuple[Literal["train", "heldout"], list[RewardBlock], str], ...] = (
        ("train", rewards, "rewards"),
        ("heldout", evaluation.rewards or rewards, "evaluation.rewards" if evaluation.rewards else "rewards"),
    )
    for split, blocks, key in splits:
        sources = prompts.sources(split)
        names, labels = [block.source for block in sources], [block.label for block in blocks]
        known = ", ".join(labels)
        for i, source in enumerate(sources):
            place = f"prompts.{split}.{i}"
            if source.source in names[:i]:
                yield f"{place}.source", f"the name {source.source!r} is already used by another source"
            requested = labels if source.rewards is None else list(source.rewards)
            for j, label in enumerate(requested):
                if label not in labels:
                    near = nearest(label, labels)
                    which = j if isinstance(source.rewards, list) else label
                    yield f"{place}.rewards.{which}", f"unknown reward {label!r} in {key}{near or f'; known: {known}'}"
                elif label in requested[:j]:
                    yield f"{place}.rewards.{j}", f"{label!r} is listed twice"
            weights = [source.weight_of(block.label, block.weight) for block in blocks if block.label in requested]
            if split == "train" and weights and not any(weights):
                yield f"{place}.rewards", "all of these have weight 0, so there is nothing to learn from this source"
            if split == "heldout":
                yield from _trains(source, place)
        for i, label in enumerate(labels):
            if sources and not any(source.rewards is None or label in source.rewards for source in sources):
                message = f"no source of prompts.{split} uses {label!r}; add it to the `rewards` of a source"
                yield f"{key}.{i}", message


def _trains(source: SourceBlock, place: str) -> Violations:
    """Refuse what only training uses in a held-out source: an evaluation reports each reward by itself."""
    message = "has no effect on held-out prompts, whose rewards are not combined; remove this key"
    if isinstance(source.rewards, dict):
        yield f"{place}.rewards", "weights have no effect on held-out prompts; list the names of the rewards"
    for key in ("aggregation", "max_missing"):
        if getattr(source, key) is not None:
            yield f"{place}.{key}", message


def stop(
    section: StopSection, prompts: PromptsSection, rewards: list[RewardBlock], evaluation: EvaluationSection
) -> Violations:
    """Check that stop.target can be evaluated."""
    if section.target is None:
        if section.reward is not None:
            yield "stop.reward", "has no effect without stop.target; set stop.target, or remove this key"
        if section.in_a_row != 1:
            yield "stop.in_a_row", "has no effect without stop.target; set stop.target, or remove this key"
        return
    if prompts.heldout is None:
        yield "stop.target", "a held-out score requires held-out prompts; set prompts.heldout, or remove this key"
        return
    if not evaluation.every:
        yield "stop.target", "is checked only at evaluations, but evaluation.every is 0; set evaluation.every"
    labels = [block.label for block in evaluation.rewards or rewards]
    if section.reward is not None and section.reward not in labels:
        yield "stop.reward", f"no evaluated reward is named {section.reward!r}; known: {', '.join(labels)}"


def without_effect(objective: ObjectiveSection, backbone: BackboneSection, rollout: RolloutSection) -> Violations:
    """Reject settings that have no effect, since their author expects one."""
    if objective.clip_kl and objective.kl == 0:
        yield "objective.clip_kl", "has no effect because objective.kl is 0; set it to false"
    if objective.clip_kl and objective.clip is None:
        yield "objective.clip_kl", "has no effect because objective.clip is null; set it to false"
    if objective.reference != "reset" and objective.reset != ResetSection():
        yield (
            "objective.reset",
            f"has no effect because objective.reference is {objective.reference}; set reference: reset, or remove it",
        )
    if objective.reset.kl is not None and objective.kl == 0:
        yield "objective.reset.kl", "has no effect because objective.kl is 0: the KL term is not computed; remove it"
    if backbone.train == "full" and "lora" in backbone.model_fields_set:
        yield "backbone.lora", "has no effect because backbone.train is full; remove one of the two"
    if backbone.train == "full" and rollout.merge_adapter:
        yield "rollout.merge_adapter", "has no effect because backbone.train is full; remove it"


def precision(section: PrecisionSection, backbone: BackboneSection) -> Violations:
    """Check that what is to be fast has the data type for it."""
    low = backbone.train == "lora" and backbone.dtype == "bfloat16"
    if section.adapter == "fast":
        if backbone.train == "full":
            yield "precision.adapter", "has no effect because backbone.train is full; remove it"
        elif backbone.lora.dora:
            yield "precision.adapter", "fast is not possible with backbone.lora.dora; use auto or exact"
        elif not low:
            yield (
                "precision.adapter",
                "fast computes in the data type of the frozen weights; set backbone.dtype: bfloat16, or use auto or "
                "exact",
            )
    if section.norms == "fast" and section.autocast == "bf16" and not low:
        weights = "the weights are trained" if backbone.train == "full" else "backbone.dtype is float32"
        yield (
            "precision.norms",
            f"fast has no effect: under precision.autocast: bf16 the activations are bfloat16, but the weights of the "
            f"normalization layers are float32, because {weights}; use auto or exact",
        )


def on_mps(
    run: RunSection, backbone: BackboneSection, precision: PrecisionSection, optimizer: OptimizerSection
) -> Violations:
    """Check that a run on MPS, the GPU of Apple silicon, uses nothing that torch or a library has for CUDA only."""
    instead = "or set run.device: cpu"
    if run.deterministic:
        yield "run.deterministic", f"torch's deterministic algorithms do not cover MPS; set it to false, {instead}"
    if backbone.compile:
        yield "backbone.compile", f"compiled models are not supported on MPS; set it to false, {instead}"
    if precision.attention not in ("auto", "math"):
        yield "precision.attention", f"{precision.attention} is not possible on MPS; use auto or math, {instead}"
    if optimizer.bits != 32:
        yield "optimizer.bits", f"bitsandbytes' moments are not supported on MPS; use 32, {instead}"


def start(
    run: RunSection, backbone: BackboneSection, objective: ObjectiveSection, *, starts_elsewhere: bool
) -> Violations:
    """Check that the initial weights come from one place, and that the reference `start` differs from the base."""
    if objective.reference == "start" and not starts_elsewhere:
        yield (
            "objective.reference",
            "the weights that the run starts from are the base model's; use `frozen`, or set backbone.lora.init or "
            "run.init_from",
        )
    if run.init_from is not None and backbone.train == "lora" and backbone.lora.init is not None:
        yield "backbone.lora.init", "has no effect because run.init_from is set; remove one of the two"
