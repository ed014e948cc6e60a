"""The experiments: their ablations are valid as they are and reduced, and pages say what records hold."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats

from dgpo_core.plugins.registry import get_registry
from dgpo_lab.ablation.directory import State
from dgpo_lab.ablation.plan import Plan, make_plan
from dgpo_lab.ablation.results import compare
from dgpo_lab.ablation.traces import MonitorValues, Trace
from experiments.catalog import EXPERIMENTS, HERE, SECONDS, SIGNAL, Experiment
from experiments.conduct import QUICK, ablation_of, derived
from experiments.findings import Findings
from experiments.page import write_index, write_page
from experiments.record import Record, load, save

ROOT = HERE.parent
PAGES = ROOT / "docs" / "experiments"
WRITTEN = [one for one in EXPERIMENTS.values() if (PAGES / one.key / "record.json").is_file()]
UNRUN: set[str] = set()
"""Designs that wait for their runs, without a record and a page."""


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(autouse=True)
def _each_record_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its statistics are most of the work."""
    monkeypatch.setattr("experiments.page.load", lambda path: read(path.read_bytes(), path))


READ: dict[bytes, Record] = {}


def read(content: bytes, path: Path) -> Record:
    if content not in READ:
        READ[content] = load(path)
    return READ[content]


def planned(data: dict[str, Any], directory: Path) -> Plan:
    file = directory / "ablation.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return make_plan(file, get_registry())


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
@pytest.mark.parametrize("quick", [False, True])
def test_an_ablation_is_valid_and_reduced_only_when_asked(experiment: Experiment, quick: bool, tmp_path: Path) -> None:
    plan = planned(ablation_of(derived(experiment.file, tmp_path / "runs", quick=quick, base=None), {}), tmp_path)
    assert plan.path.parent == tmp_path / "runs"
    assert len(plan.ablation.seeds) == QUICK["seeds"] if quick else len(plan.ablation.seeds) >= 5
    for variant in plan.variants:
        assert (variant.config.run.iterations == QUICK["iterations"]) is quick


def test_seeds_that_are_added_have_an_ablation_of_their_own(tmp_path: Path) -> None:
    """Beside that of the others, from which they could not be told apart by its seeds; it is the same otherwise."""
    file = EXPERIMENTS["e1"].file
    whole, more = (derived(file, tmp_path, quick=False, base=None, seeds=seeds) for seeds in (None, [12, 14]))
    assert more == {**whole, "name": f"{whole['name']}-seeds-12-14", "seeds": [12, 14]}


def test_the_fixed_values_of_e6_are_those_of_e2(tmp_path: Path) -> None:
    """So that its runs are taken over."""
    e2, e6 = (
        planned(derived(EXPERIMENTS[key].file, tmp_path, quick=False, base=None), tmp_path) for key in ("e2", "e6")
    )
    fixed = [variant.config for variant in e6.variants if variant.name.startswith("fixed")]
    assert all(config in fixed for config in (variant.config for variant in e2.variants))
    assert len(fixed) == len(e2.variants)


@pytest.mark.parametrize("key", [key for key in EXPERIMENTS if key not in ("e8", "confirm-fast")])
def test_another_base_replaces_the_run_file_and_leaves_the_devices_to_the_machine(key: str, tmp_path: Path) -> None:
    data = derived(EXPERIMENTS[key].file, tmp_path, quick=False, base="examples/sd35-geneval.yaml")
    plan = planned(ablation_of(data, {}), tmp_path)
    evaluations = [variant.config.evaluation for variant in plan.variants]
    if key in ("e1", "e4"):
        assert all(found.sampler is not None and found.sampler.use == "flow-euler" for found in evaluations)
    if key == "e2":
        assert all(found.many_step is not None for found in evaluations), "its page is about what they measure"
    assert {variant.config.backbone.checkpoint for variant in plan.variants} != {"package:dgpo_miniature/checkpoint"}
    assert (plan.ablation.parallel, plan.ablation.threads) == (None, None)


# -- findings -------------------------------------------------------------------------------------------------------


def trace(variant: str, seed: int, scores: Sequence[float], *, per: float = 5.0, **changes: Any) -> Trace:
    """An evaluation every 2 iterations of `per` seconds and 16 samples."""
    iterations = [2 * i for i in range(len(scores))]
    facts: dict[str, Any] = {
        "state": State("finished"), "ended_by": "iterations", "iterations": iterations, "scores": list(scores),
        "seconds": [per * i for i in iterations], "samples": [16 * i for i in iterations],
    } | changes  # fmt: skip
    return Trace(variant=variant, seed=seed, **facts)


def findings(traces: Sequence[Trace], target: float | None = None) -> Findings:
    named = {name: {"w": name} for name in dict.fromkeys(one.variant for one in traces)}
    results = compare(named, traces, reward="score", baseline="base", target=target)
    return Findings(Record(False, {}, {name: [] for name in named}, results, [], [], []))


def test_more_and_less_are_said_only_where_the_interval_excludes_zero() -> None:
    last = {"base": (0.4, 0.5, 0.45), "up": (0.51, 0.6, 0.56), "down": (0.3, 0.39, 0.35), "same": (0.5, 0.4, 0.47)}
    say = findings([trace(v, s, [0.3, score]) for v, scores in last.items() for s, score in enumerate(scores)])
    assert say.verdict("up").startswith("`up` scores more than `base`: +0.107 [+")
    assert say.verdict("down").startswith("`down` scores less than `base`: −0.103 [−")
    assert say.verdict("same").startswith("`same` and `base` cannot be told apart: ")
    assert say.verdict("up", "down").startswith("`up` scores more than `down`: +0.210 [+")
    assert say.best(["base", "down", "same"]) == "same"
    low, high = stats.t.interval(0.95, 2, loc=0.15, scale=stats.sem([0.1, 0.2, 0.15]))
    assert say.gain("base") == f"+0.150 [{low:+.3f}, {high:+.3f}]".replace("-", "−")


def test_one_seed_reports_nothing() -> None:
    say = findings([trace("base", 0, [0.3, 0.4]), trace("up", 0, [0.3, 0.9])])
    assert "cannot be told apart: +0.500 (p = 1.000" in say.verdict("up")


def test_a_ratio_is_a_geometric_mean_over_seeds_that_reached_the_target() -> None:
    traces = [trace("base", s, [0.3, 0.5, 0.7]) for s in range(3)]
    traces += [trace("slow", 0, [0.3, 0.3, 0.3, 0.3, 0.7]), trace("slow", 1, [0.3, *[0.4] * 7, 0.6], per=10.0)]
    traces += [trace("slow", 2, [0.3, *[0.4] * 9])]
    say = findings(traces, target=0.6)
    # The baseline reaches it after 4 iterations, 64 samples and 20 seconds.
    logs = [math.log(128 / 64), math.log(256 / 64)]
    low, high = stats.t.interval(0.95, 1, loc=sum(logs) / 2, scale=stats.sem(logs))
    found = say.ratio("slow", "samples")
    assert found.interval is not None
    assert (found.interval.value, found.interval.low, found.interval.high) == pytest.approx(
        (math.sqrt(8), math.exp(low), math.exp(high))
    )
    assert found.lower_bounds == [(9 * 2 * 16) / 64]
    assert say.ratio("slow", "seconds").interval.value == pytest.approx(math.sqrt(2 * 8))  # type: ignore[union-attr]
    assert found.text().endswith("; more than 4.5 times as much (1 of 3 seeds did not reach it)")
    never = findings([trace("base", 0, [0.1, 0.2]), trace("slow", 0, [0.1, 0.2])], target=0.6)
    assert never.ratio("slow", "samples").text() == "cannot be said: the baseline did not reach the target"


def test_changes_of_monitors_are_paired() -> None:
    traces = [
        trace(v, s, [0.1, 0.2], monitors={"many_step_sharpness": MonitorValues(0.1, 0.1 + change, False)})
        for v, changes in {"base": (0.01, 0.02), "0": (0.03, 0.05)}.items()
        for s, change in enumerate(changes)
    ]
    say = findings(traces)
    assert say.change("0", "many_step_sharpness").value == pytest.approx(0.04)
    assert say.monitor_verdict("0", "many_step_sharpness").startswith("+0.025")


@pytest.mark.parametrize("margin", [0.01, 0.02, 0.03, 0.05])
def test_equivalence_is_that_of_two_one_sided_tests(margin: float) -> None:
    """Against scipy: both one-sided t tests reject at 5 %."""
    base, other = [0.60, 0.62, 0.66, 0.59, 0.64], [0.61, 0.64, 0.66, 0.58, 0.66]
    traces = [
        trace(v, s, [0.1, score]) for v, scores in (("base", base), ("x", other)) for s, score in enumerate(scores)
    ]
    differences = [one - two for one, two in zip(other, base, strict=True)]
    above = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    said = findings(traces).equivalence("x", margin)
    assert ("are equivalent" in said) == (max(above, below) < 0.05)
    assert "the difference is +0.008 [" in said


# -- records and pages ----------------------------------------------------------------------------------------------

STATISTICS = ("step_disagreement", "many_step_sharpness")


def recorded(experiment: Experiment, directory: Path) -> None:
    """A made-up record with an experiment's own variants."""
    plan = planned(ablation_of(derived(experiment.file, directory, quick=False, base=None), {}), directory)
    names = [variant.name for variant in plan.variants]
    traces = [
        {
            "variant": name, "seed": seed, "status": "finished", "ended_by": "iterations", "iterations": [0, 10],
            "scores": [0.4, 0.5 + 0.01 * i + 0.02 * seed], "seconds": [0.0, 60.0], "samples": [0, 960],
            "monitors": {g: {"first": 0.1, "last": 0.1 + 0.01 * i + seed / 999, "out_of_tolerance": False}
                         for g in STATISTICS},
            "values": [0.5, 0.5 + 0.02 * i],
        }
        for i, name in enumerate(names)
        for seed in (0, 1)
    ]  # fmt: skip
    facts = dict.fromkeys(
        ("base", "backbone", "checkpoint", "iterations", "samples_per_iteration", "group_size", "groups", "steps",
         "evaluated_prompts", "many_steps", "many_step_prompts", "threads", "parallel", "cores", "torch"), 7,
    )  # fmt: skip
    record = {
        "quick": False, "rows": ["a red circle"], "facts": facts, "settings": {name: [f"x: {name}"] for name in names},
        "reward": plan.reward, "baseline": plan.baseline, "target": plan.target, "reading": ["read"], "warnings": [],
        "variants": {v.name: dict(v.axes) for v in plan.variants}, "prompts": ["p", "q"], "tasks": ["all", "all"],
        **({"targets": list(experiment.targets), "passes": dict.fromkeys(names, 24)} if experiment.targets else {}),
        "traces": traces,
    }  # fmt: skip
    save(directory / experiment.key / "record.json", record)
    assert json.loads((directory / experiment.key / "record.json").read_text()) == record


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_a_page_holds_question_command_table_and_findings(experiment: Experiment, tmp_path: Path) -> None:
    recorded(experiment, tmp_path)
    if experiment.beside is not None:
        recorded(EXPERIMENTS[experiment.beside], tmp_path)
    text = write_page(experiment, tmp_path).read_text()
    for section in ("Question", "Setting", "Command", "Result", "What follows", "What does not follow"):
        assert f"\n## {section}\n" in text
    assert f"python -m experiments {experiment.key}\n" in text
    table = load(tmp_path / experiment.key / "record.json").results
    for variant in table.variants:
        assert f"\n| {variant.name} | 2 | " in text
    assert "{{" not in text
    assert "{%" not in text
    assert "\n\n\n" not in text
    index = write_index(tmp_path).read_text()
    assert f"| [{experiment.key.upper()}]({experiment.key}.md) | {experiment.title} | " in index


@pytest.mark.parametrize("experiment", WRITTEN, ids=[one.key for one in WRITTEN])
def test_pages_are_what_their_records_say(experiment: Experiment, tmp_path: Path) -> None:
    """Nothing on a page is typed in by hand."""
    for key in filter(None, (experiment.key, experiment.beside)):
        shutil.copytree(PAGES / key, tmp_path / key)
    page = write_page(experiment, tmp_path)
    assert page.read_text() == (PAGES / page.name).read_text()
    file = PAGES / experiment.key / "record.json"
    assert len(read(file.read_bytes(), file).results.traces) >= 5


def test_the_index_is_what_the_records_say(tmp_path: Path) -> None:
    for key in [*(experiment.key for experiment in WRITTEN), SECONDS, SIGNAL]:
        (tmp_path / key).mkdir()
        record = (PAGES / key / "record.json").read_bytes()
        (tmp_path / key / "record.json").write_bytes(record)
    assert EXPERIMENTS.keys() - {one.key for one in WRITTEN} == UNRUN
    assert write_index(tmp_path).read_text() == (PAGES / "README.md").read_text()
    assert (tmp_path / "summary.md").read_text() == (PAGES / "summary.md").read_text()
