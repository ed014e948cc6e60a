"""Factors of E4: times to targets by hand, the verdict's rule at its edges, and the parts of a factor."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.plugins.registry import get_registry
from dgpo_lab.ablation.directory import State
from dgpo_lab.ablation.plan import make_plan
from dgpo_lab.ablation.results import Results, compare
from dgpo_lab.ablation.traces import Trace
from experiments.catalog import EXPERIMENTS, HERE
from experiments.conduct import ablation_of, derived
from experiments.factors import IN_A_ROW, Factors, verdict
from experiments.figures import draw
from experiments.page import write_page
from experiments.record import passes, save
from experiments.statistics.targets import TimeRatio

SEEDS = 10
TARGETS = (0.5, 0.55, 0.6)


def rises(at: Mapping[float, int], end: int, every: int) -> tuple[list[int], list[float]]:
    """A curve that reaches each target at an iteration, and stays there until `end`."""
    iterations = list(range(0, end + 1, every))
    return iterations, [max([0.4, *(target for target, i in at.items() if i <= now)]) for now in iterations]


def results(arms: Mapping[str, Mapping[str, Any]]) -> Results:
    """Each arm: the iterations at which it reaches the targets, its last one, and the seconds of an iteration. Seed s
    takes s iterations more to each target."""
    traces = []
    for name, arm in arms.items():
        for seed in range(SEEDS):
            at = {target: i + (seed if name == "dgpo" else 0) for target, i in arm["at"].items()}
            iterations, scores = rises(at, arm["end"], arm.get("every", 1))
            traces.append(
                Trace(name, seed, State("finished"), iterations=iterations, scores=scores,
                      seconds=[arm["price"] * i for i in iterations], samples=[96 * i for i in iterations])
            )  # fmt: skip
    return compare({name: {"method": name} for name in arms}, traces, reward="r", baseline="dgpo", target=0.55)


ARMS: dict[str, dict[str, Any]] = {
    "dgpo": {"at": {0.5: 5, 0.55: 10, 0.6: 15}, "end": 30, "price": 1.0},
    "elbo-pg": {"at": {0.5: 8, 0.55: 20, 0.6: 30}, "end": 40, "price": 1.0},
    "flow-grpo full": {"at": {0.5: 100, 0.55: 200}, "end": 400, "price": 1.5, "every": 10},
}


def test_times_and_factors_are_those_of_the_curves() -> None:
    found = Factors(results(ARMS), TARGETS, {})
    assert found.middle == 0.55
    assert found.median("dgpo", 0.55, "samples") == f"{96 * 14:,}"  # the fifth of ten seeds: 10 to 19 iterations
    assert found.median("flow-grpo full", 0.55, "seconds") == "5m00s"
    assert found.reached("flow-grpo full", 0.55) == "10 of 10"
    ratios = sorted(200 / (10 + seed) for seed in range(SEEDS))
    factor = found.factor("flow-grpo full", 0.55, "samples")
    assert factor is not None
    assert factor.median[0] == pytest.approx(math.sqrt(ratios[4] * ratios[5]))
    assert factor.interval == pytest.approx((ratios[1], ratios[8])), "the sign test's, of ten seeds"
    spent = found.factor("flow-grpo full", 0.55, "seconds")
    assert spent is not None
    assert spent.median[0] == pytest.approx(1.5 * factor.median[0])
    assert found.text("flow-grpo full", 0.55, "samples") == f"{factor.median[0]:.1f} times [11.1, 18.2]"
    assert found.verdict("flow-grpo full", 0.55, "samples") == "supported"
    assert found.verdict("elbo-pg", 0.55, "samples") == "refuted"
    assert found.room("flow-grpo full") == f"{400 / 14:.0f}"
    assert found.price("flow-grpo full") == "1.50"


def test_a_target_that_is_never_reached_gives_a_bound() -> None:
    found = Factors(results(ARMS), TARGETS, {})
    assert found.reached("flow-grpo full", 0.6) == "0 of 10"
    assert found.median("flow-grpo full", 0.6, "samples") == f"more than {96 * 400:,}"
    assert found.text("flow-grpo full", 0.6, "samples").startswith("more than ")
    assert found.verdict("flow-grpo full", 0.6, "samples") == "supported", "400 of at most 24 iterations"
    short = Factors(results({**ARMS, "flow-grpo full": {**ARMS["flow-grpo full"], "end": 190}}), TARGETS, {})
    # All are censored at 190: more than 10 to 19 times. The median bound is above 10, the interval's above 5.
    assert short.verdict("flow-grpo full", 0.55, "samples") == "supported"
    shorter = Factors(results({**ARMS, "flow-grpo full": {**ARMS["flow-grpo full"], "end": 100}}), TARGETS, {})
    assert shorter.verdict("flow-grpo full", 0.55, "samples") == "open", "a bound of 7 says neither"


def test_a_lucky_evaluation_is_no_crossing() -> None:
    assert IN_A_ROW == 3
    found = results(ARMS)
    traces = [*found.traces]
    for i, trace in enumerate(traces):
        if trace.variant == "elbo-pg":
            scores = [
                0.9 if now in (2, 3) else score for now, score in zip(trace.iterations, trace.scores, strict=True)
            ]
            traces[i] = Trace(trace.variant, trace.seed, trace.state, iterations=trace.iterations, scores=scores,
                              seconds=trace.seconds, samples=trace.samples)  # fmt: skip
    lucky = compare({v.name: v.axes for v in found.variants}, traces, reward="r", baseline="dgpo", target=0.55)
    for target in TARGETS:
        assert Factors(lucky, TARGETS, {}).median("elbo-pg", target, "samples") == Factors(found, TARGETS, {}).median(
            "elbo-pg", target, "samples"
        )


@pytest.mark.parametrize(
    ("median", "interval", "expected"),
    [
        ((10.0, 10.0), (5.1, 30.0), "supported"),
        ((10.0, 10.0), (5.0, 30.0), "open"),
        ((9.9, 9.9), (5.1, 30.0), "open"),
        ((9.0, 9.0), (3.0, 9.9), "refuted"),
        ((9.0, 9.0), (3.0, 10.0), "open"),
        ((12.0, math.inf), (6.0, math.inf), "supported"),
        ((7.0, math.inf), (6.0, math.inf), "open"),
        ((0.0, math.inf), (0.0, math.inf), "open"),
    ],
)
def test_the_rule_of_the_verdict(median: tuple[float, float], interval: tuple[float, float], expected: str) -> None:
    assert verdict(TimeRatio(median, interval, 10, 0)) == expected
    assert verdict(None) == "open"


def test_parts_multiply_to_the_whole_where_seeds_agree() -> None:
    found = Factors(results(ARMS), TARGETS, {})
    chain: Sequence[tuple[str, str]] = [
        ("dgpo", ""), ("elbo-pg", "loss"), ("not there", "nothing"), ("flow-grpo full", "all else"),
    ]  # fmt: skip
    first, second = found.links(chain)
    assert (first.name, first.against, second.name, second.against) == (
        "elbo-pg", "dgpo", "flow-grpo full", "elbo-pg",
    )  # fmt: skip
    assert second.samples is not None
    assert second.samples.median[0] == pytest.approx(10)
    assert (first.price, second.price) == pytest.approx((1.0, 1.5))
    shares = [float(found.share(link, "flow-grpo full").rstrip("%")) for link in (first, second)]
    assert sum(shares) == pytest.approx(100, abs=1)
    hidden = Factors(results({**ARMS, "flow-grpo full": {**ARMS["flow-grpo full"], "at": {}}}), TARGETS, {})
    assert hidden.share(hidden.links(chain)[1], "flow-grpo full") == "–"


def test_passes_are_those_of_the_models_that_the_loss_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, with 8 steps and 4 or 7 times: 3 of the policy, 1 of each other model."""
    monkeypatch.chdir(HERE.parent)
    file = tmp_path / "e4.yaml"
    data = ablation_of(derived(EXPERIMENTS["e4"].file, tmp_path, quick=False, base=None), {})
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    found = {v.name: passes(v.config, get_registry()) for v in make_plan(file, get_registry()).variants}
    assert found == {
        "dgpo": 8 + 4 * 4, "dgpo 7 times": 8 + 7 * 4, "dgpo SDE": 8 + 4 * 4, "elbo-pg": 8 + 4 * 4,
        "elbo-pg SDE": 8 + 4 * 4, "awm": 8 + 4 * 5, "flow-grpo 4": 8 + 4 * 4, "flow-grpo full": 8 + 7 * 4,
        "flow-grpo fast": 8 + 3 * 4, "flow-grpo GRPO-Guard": 8 + 7 * 4, "flow-grpo TempFlow": 8 + 7 * 4,
    }  # fmt: skip


def test_passes_of_candidates_are_shared_by_the_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 candidates of 4 steps for 8 members of 8 steps, and 4 times of the policy and the reference, by hand."""
    monkeypatch.chdir(HERE.parent)
    registry = get_registry()
    explore, guided = "rollout.explore={candidates: 16, steps: 4}", "rollout.guidance=2"
    for settings, expected in (((), 8 + 16), ((explore,), 8 + 8 + 16), ((explore, guided), 2 * (8 + 8) + 16)):
        assert passes(load_run_config(HERE / "fast.yaml", settings, registry), registry) == expected


def test_a_reference_that_is_also_the_kl_terms_model_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward pass and a backward one of two at 4 times for the policy, one for the reference; by hand."""
    monkeypatch.chdir(HERE.parent)
    registry = get_registry()
    for reference, models in (("frozen", 1), ("reset", 1), ("ema_fast", 2)):
        config = load_run_config(HERE / "fast.yaml", [f"objective.reference={reference}"], registry)
        assert passes(config, registry) == 8 + 4 * (3 + models), reference


def test_the_page_states_verdicts_parts_and_trials(tmp_path: Path) -> None:
    """A record of three arms: what it says is what `Factors` says, and the chosen trial is bold."""
    found = results(ARMS)
    facts = dict.fromkeys(
        ("base", "backbone", "checkpoint", "iterations", "samples_per_iteration", "group_size", "groups", "steps",
         "evaluated_prompts", "many_steps", "many_step_prompts", "threads", "parallel", "cores", "torch"), 7,
    )  # fmt: skip
    trials = [
        {"settings": {"objective.kl": kl, "optimizer.learning_rate": 1e-3}, "areas": {"100": area, "101": area}}
        for kl, area in ((0.02, 0.45), (0.0, 0.48))
    ]
    failed = {"settings": {"objective.kl": 1.0, "optimizer.learning_rate": 1.0}, "areas": {}}
    record = {
        "quick": False, "rows": [], "facts": facts, "settings": {name: ["x: 1"] for name in ARMS}, "reward": "r",
        "baseline": "dgpo", "target": 0.55, "reading": ["read"], "warnings": [], "prompts": [], "tasks": [],
        "variants": {n: {"method": n} for n in ARMS}, "targets": list(TARGETS), "passes": dict.fromkeys(ARMS, 24),
        "search": {"rounds": [{"seeds": [100], "keep": 3}, {"seeds": [101], "keep": 2}], "samples": 5760,
                   "untuned": [], "arms": {"elbo-pg": [*trials, failed]}},
        "traces": [
            {"variant": t.variant, "seed": t.seed, "status": "finished", "ended_by": "target", "monitors": {},
             "iterations": list(t.iterations), "scores": list(t.scores), "seconds": list(t.seconds),
             "samples": list(t.samples), "values": None}
            for t in found.traces
        ],
    }  # fmt: skip
    save(tmp_path / "e4" / "record.json", json.loads(json.dumps(record)))
    text = write_page(EXPERIMENTS["e4"], tmp_path).read_text()
    factors = Factors(found, TARGETS, {})
    factor = factors.text("flow-grpo full", 0.55, "samples")
    assert (
        f"- `flow-grpo full` takes {factor} DGPO's samples to 0.55. This supports the published factor of about 20.\n"
    ) in text
    assert f"| {factors.text('flow-grpo full', 0.6, 'seconds')} | supported, supported |" in text
    part = factors.text("flow-grpo full", 0.55, "samples", "elbo-pg")
    assert f"| elbo-pg | flow-grpo full | all steps, two updates | {part} |" in text
    assert "| elbo-pg | 3 | kl 0, learning_rate 0.001 | **0.480** | 2 |\n" in text
    assert "|  |  | kl 0.02, learning_rate 0.001 | 0.450 | 2 |\n" in text
    assert "| kl 1, learning_rate 1 | failed | 0 |\n" in text
    assert "seeds 100, then 101)" in text
    assert "3 trials for each arm, on seeds that nothing else uses. All run on seed 100; the best 2 of each arm" in text
    assert "All are evaluated every 1 iterations: times are known to that." in text
    assert "{{" not in text
    assert "\n\n\n" not in text


def test_curves_of_very_different_lengths_are_drawn_against_the_logarithm(tmp_path: Path) -> None:
    draw(results(ARMS), ("samples", "seconds"), tmp_path / "scores.png", log=True)
    with Image.open(tmp_path / "scores.png") as image:
        assert image.width > 1000
