"""Record of an experiment: a JSON file with the curve of every cell, from which the page is written.

Seeds can be added to a record without the runs that it was made from: digests of the variants' settings tell whether
they would be the same runs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import get_registry
from dgpo_lab.ablation import words
from dgpo_lab.ablation.directory import State
from dgpo_lab.ablation.plan import label_of
from dgpo_lab.ablation.results import Results, compare, results_of
from dgpo_lab.ablation.traces import MonitorValues, Trace
from dgpo_schemas.ablation import AblationConfig
from dgpo_schemas.loading import load_yaml
from dgpo_schemas.metrics import PromptScores, RewardScores
from experiments.tuning import Search, read

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry
    from dgpo_lab.ablation.plan import Plan
    from dgpo_schemas.run import RunConfig
    from experiments.conduct import Conducted

__all__ = ["Record", "collect", "digests", "load", "save", "together"]


@dataclass(frozen=True)
class Record:
    """Results of an ablation, independent of its run directories.

    facts: numbers of the configuration; settings: settings of each variant; rows: prompts of the contact sheet;
    targets: scores to be reached; passes: of a sample, by variant (`passes`); search: trials of the settings; digests:
    of each variant's settings (`digests`).
    """

    quick: bool
    facts: dict[str, Any]
    settings: dict[str, list[str]]
    results: Results
    reading: Sequence[str]
    warnings: Sequence[str]
    rows: Sequence[str]
    targets: Sequence[float] = ()
    passes: Mapping[str, float] = field(default_factory=dict)
    search: Search | None = None
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def texts(self) -> int | None:
        """The number of different texts among the held-out prompts, if there are scores of prompts."""
        known = next((trace.prompts for trace in self.results.traces if trace.prompts is not None), None)
        return None if known is None else len(set(known.prompts))

    @property
    def seeds(self) -> Sequence[int]:
        """Seeds with a finished cell of every variant, in ascending order."""
        found = [{trace.seed for trace in variant.finished} for variant in self.results.variants]
        return sorted(set.intersection(*found)) if found else []


def collect(
    done: Conducted, *, quick: bool, rows: Sequence[str], targets: Sequence[float] = (), known: Record | None = None
) -> dict[str, Any]:
    """Convert a finished experiment to JSON data. rows: prompts of the contact sheet; targets: scores to be reached;
    known: a record whose seeds are kept beside (`together`).

    Raises UserError if those are of other runs.
    """
    plan = done.plan
    results = results_of(plan)
    if known is not None:
        results = together(known, results, digests(plan))
    registry = get_registry()
    more: dict[str, Any] = {} if done.search is None else {"search": done.search.data()}
    if targets:
        more["targets"] = list(targets)
        more["passes"] = {variant.name: passes(variant.config, registry) for variant in plan.variants}
    base = next(variant.config for variant in plan.variants if variant.name == plan.baseline)
    rollout = base.rollout
    shown = next((trace.prompts for trace in results.traces if trace.prompts is not None), None)
    return {
        "quick": quick,
        "rows": list(rows),
        "facts": {
            "base": Path(plan.ablation.base).name,
            "backbone": base.backbone.use,
            "checkpoint": base.backbone.checkpoint,
            "iterations": base.run.iterations,
            "samples_per_iteration": rollout.groups * rollout.group_size,
            "group_size": rollout.group_size,
            "groups": rollout.groups,
            "steps": rollout.steps,
            "evaluated_prompts": base.evaluation.prompts,
            "many_steps": base.evaluation.many_step.steps if base.evaluation.many_step else None,
            "many_step_prompts": base.evaluation.many_step.prompts if base.evaluation.many_step else None,
            "threads": base.run.threads,
            "parallel": plan.ablation.parallel,
            "cores": os.cpu_count(),
            "torch": version("torch"),
        },
        "settings": {variant.name: _settings(plan.ablation, variant.axes) for variant in plan.variants},
        "digests": digests(plan),
        "reward": plan.reward,
        "baseline": plan.baseline,
        "target": plan.target,
        "reading": words.how_to_read(plan, results),
        "warnings": words.warnings(plan, results),
        "variants": {variant.name: dict(variant.axes) for variant in plan.variants},
        "prompts": shown.prompts if shown else [],
        "tasks": shown.rewards[plan.reward].tasks if shown else [],
        **more,
        "traces": [_trace(trace, plan.reward) for trace in results.traces],
    }


def digests(plan: Plan) -> dict[str, str]:
    """Return a digest of what each variant's results depend on: the settings of the base run file and of the ablation,
    as they are written. Those that are left out are defaults, which a later version can add to."""
    ablation = plan.ablation
    common = [load_yaml(Path(ablation.base)).data, ablation.set, ablation.stop.model_dump(exclude_none=True)]
    found = {}
    for variant in plan.variants:
        data = json.dumps([*common, _settings(ablation, variant.axes)], sort_keys=True)
        found[variant.name] = hashlib.sha256(data.encode()).hexdigest()[:16]
    return found


def together(known: Record, results: Results, digests: Mapping[str, str]) -> Results:
    """Return the results of the finished cells of a record and of new ones with these digests, in the order of seeds.

    Raises UserError if the variants of the record are not those of the new cells, by their digests, or if both have a
    seed.
    """
    names = list(dict.fromkeys([*(variant.name for variant in known.results.variants), *digests]))
    other = [name for name in names if known.digests.get(name) != digests.get(name)]
    if other:
        raise UserError(
            f"the record's runs have other settings: {', '.join(other)}; run all seeds again (leave out --add)"
        )
    both = sorted(set(known.seeds) & {trace.seed for trace in results.traces})
    if both:
        raise UserError(f"the record has the seeds {', '.join(map(str, both))} already")
    kept = [trace for trace in known.results.traces if trace.seed in known.seeds]
    traces = [trace for trace in (*kept, *results.traces) if trace.finished]
    order = list(digests)
    traces.sort(key=lambda trace: (trace.seed, order.index(trace.variant)))
    axes = {variant.name: variant.axes for variant in results.variants}
    return compare(axes, traces, reward=results.reward, baseline=results.baseline, target=results.target)


def passes(config: RunConfig, registry: Registry) -> float:
    """Return the network's passes for a sample of a group, a backward pass counted as two: those of the rollout's
    steps with its share of the candidates', and at each training time of the policy and of the other models that the
    loss compares with.

    Members with weight 0, whose passes the engine can skip, are counted; the old policy is another model, although its
    passes can be saved while it equals the policy.
    """
    guided = 2 if config.rollout.guidance > 1 else 1
    objective = registry.create("objective", config.objective)
    models = {config.objective.reference} if objective.needs_reference else set()
    if objective.needs_base:  # a reference that does not follow the policy is also the KL term's model
        models |= {"frozen"} if config.objective.reference == "ema_fast" else {config.objective.reference}
    models |= {"ema_fast"} if objective.needs_old else set()
    on_path = guided if objective.needs_path else 1
    drawn = sum(members * steps for members, steps in config.rollout.rounds) / config.rollout.group_size
    return drawn * guided + config.optimizer.passes * config.timesteps.count * on_path * (3 + len(models))


def _settings(ablation: AblationConfig, axes: Mapping[str, str]) -> list[str]:
    """Return the settings of a variant as `key: value`."""
    found = []
    for axis in ablation.axes:
        chosen = axes[axis.title]
        if axis.variants is not None:
            found += [f"{key}: {label_of(value)}" for key, value in axis.variants[chosen].items()]
        else:
            found.append(f"{axis.key}: {chosen}")
    return found


def _trace(trace: Trace, reward: str) -> dict[str, Any]:
    values = trace.prompts.rewards[reward].values if trace.prompts is not None else None
    return {
        "variant": trace.variant,
        "seed": trace.seed,
        "status": trace.state.status,
        "ended_by": trace.ended_by,
        "iterations": list(trace.iterations),
        "scores": [round(score, 6) for score in trace.scores],
        "seconds": [round(spent, 2) for spent in trace.seconds],
        "samples": list(trace.samples),
        "others": {name: _rounded(values) for name, values in trace.others.items()},
        "monitors": {name: {**asdict(m), "values": _rounded(m.values)} for name, m in trace.monitors.items()},
        "values": None if values is None else [None if v is None else round(v, 6) for v in values],
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]


def save(path: Path, data: dict[str, Any]) -> None:
    """Write the data with one line per cell, for readable diffs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    traces = ",\n  ".join(json.dumps(trace) for trace in data["traces"])
    rest = json.dumps({key: value for key, value in data.items() if key != "traces"}, indent=1)
    path.write_text(f'{rest[:-2]},\n "traces": [\n  {traces}\n ]\n}}\n', encoding="utf-8")


def load(path: Path) -> Record:
    """Read a record written by `save`, whose statistics are computed once. Raises UserError if it does not exist."""
    try:
        return _load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not there; run the experiment first") from None


@cache
def _load(text: str) -> Record:
    data = json.loads(text)
    traces = [_read(one, data) for one in data["traces"]]
    results = compare(data["variants"], traces, reward=data["reward"], baseline=data["baseline"], target=data["target"])
    return Record(
        data["quick"], data["facts"], data["settings"], results, data["reading"], data["warnings"], data["rows"],
        data.get("targets", ()), data.get("passes", {}), read(data["search"]) if "search" in data else None,
        data.get("digests", {}),
    )  # fmt: skip


def _read(one: dict[str, Any], data: dict[str, Any]) -> Trace:
    prompts = None
    if one["values"] is not None:
        scores = RewardScores(tasks=data["tasks"], values=one["values"])
        prompts = PromptScores(
            iteration=one["iterations"][-1], model="ema", prompts=data["prompts"], rewards={data["reward"]: scores}
        )
    return Trace(
        variant=one["variant"],
        seed=one["seed"],
        state=State(one["status"]),
        ended_by=one["ended_by"],
        iterations=one["iterations"],
        scores=one["scores"],
        seconds=one["seconds"],
        samples=one["samples"],
        others=one.get("others", {}),
        monitors={name: MonitorValues(**monitor) for name, monitor in one["monitors"].items()},
        prompts=prompts,
    )
