"""The search for settings: which combinations are tried, on which seeds, what is chosen, and what a record keeps."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import get_registry
from dgpo_lab.ablation.directory import State
from dgpo_lab.ablation.plan import make_plan
from dgpo_lab.ablation.results import Results, compare
from dgpo_lab.ablation.traces import Trace
from experiments.catalog import EXPERIMENTS, HERE
from experiments.conduct import IN_A_ROW, ablation_of, derived
from experiments.tuning import Search, Trial, best, read, search, trials

E4 = EXPERIMENTS["e4"]
ROUNDS = [{"seeds": [100], "keep": 4}, {"seeds": [101, 102], "keep": 2}]


def e4(tmp_path: Path, *, quick: bool = False) -> dict[str, Any]:
    return derived(E4.file, tmp_path, quick=quick, base=None)


def toy(**changes: Any) -> dict[str, Any]:
    """Two arms with four trials; `a` has its own number of iterations, which a trial has not."""
    return {
        "name": "toy", "base": "base.yaml", "targets": [1, 2, 3], "set": {"evaluation.every": 2},
        "axes": [{"name": "method", "variants": {"a": {"run.iterations": 99, "x": 0}, "b": {}, "c": {"z": 1}}}],
        "seeds": 3,
        "tuning": {
            "trials": 4, "rounds": ROUNDS, "set": {"run.iterations": 10, "evaluation.every": 5}, "untuned": ["a", "b"],
            "settings": {"a": {"x": [1, 2], "y": [3, 4]}, "b": {"x": [1, 2, 3, 4]}},
        },
    } | changes  # fmt: skip


class Runs:
    """Ablations that are none: the score of a trial rises to a height that `heights` states by arm, x and y."""

    def __init__(self, heights: dict[tuple[str, int, int], float], failed: tuple[str, ...] = ()) -> None:
        self.heights, self.failed, self.asked = heights, failed, list[dict[str, Any]]()

    def __call__(self, data: dict[str, Any]) -> Results:
        self.asked.append(data)
        (axis,) = data["axes"]
        traces = [
            Trace(name, seed, State("failed"))
            if name in self.failed
            else Trace(name, seed, State("finished"), iterations=[0, 5, 10], seconds=[0, 1, 2], samples=[0, 480, 960],
                       scores=[0.4, 0.4, self.height(name, own) + 0.001 * seed])
            for name, own in axis["variants"].items()
            for seed in data["seeds"]
        ]  # fmt: skip
        named = {name: {"trial": name} for name in axis["variants"]}
        return compare(named, traces, reward="score", baseline=next(iter(named)), target=None)

    def height(self, name: str, own: dict[str, Any]) -> float:
        return self.heights.get((name[0], own["x"], own.get("y", 0)), 0.4)


HEIGHTS = {("a", 1, 3): 0.5, ("a", 2, 3): 0.7, ("a", 2, 4): 0.6, ("b", 1, 0): 0.9, ("b", 4, 0): 0.6}


@pytest.mark.parametrize("name", list(yaml.safe_load(E4.file.read_text())["tuning"]["settings"]))
def test_every_arm_has_as_many_trials_balanced_and_the_untuned_one_first(name: str, tmp_path: Path) -> None:
    tuning = e4(tmp_path)["tuning"]
    values = tuning["settings"][name]
    found = trials(values, tuning["trials"])
    assert len(found) == 16
    assert len({json.dumps(one) for one in found}) == 16
    assert found[0] == {key: options[0] for key, options in values.items()}
    for pair in combinations(values, 2):
        counts = Counter(tuple(one[key] for key in pair) for one in found)
        assert len(counts) == len(values[pair[0]]) * len(values[pair[1]])
        assert len(set(counts.values())) == 1, "values are crossed with each other equally often"


def test_combinations_that_do_not_give_the_number_of_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="6 combinations of x, y give 6 trials, not 4"):
        trials({"x": [1, 2, 3], "y": [1, 2]}, 4)


def test_arms_and_seeds_of_the_search_are_those_of_the_comparison_and_of_nothing_else(tmp_path: Path) -> None:
    data = e4(tmp_path)
    assert list(data["tuning"]["settings"]) == list(data["axes"][0]["variants"]), "each arm is tuned"
    seeds = [seed for one in data["tuning"]["rounds"] for seed in one["seeds"]]
    assert len(seeds) >= 3
    for experiment in EXPERIMENTS.values():
        others = yaml.safe_load(experiment.file.read_text())["seeds"]
        assert not set(seeds) & set(range(others) if isinstance(others, int) else others)


@pytest.mark.parametrize("quick", [False, True])
def test_every_trial_of_e4_is_a_valid_run(quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One trial of each arm is planned, with the search's own length."""
    monkeypatch.chdir(HERE.parent)
    data, asked = e4(tmp_path, quick=quick), list[dict[str, Any]]()

    def stop(one: dict[str, Any]) -> Results:
        asked.append(one)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        search(data, stop, quick=quick)
    (axis,) = asked[0]["axes"]
    assert len(axis["variants"]) == (4 if quick else 16 * len(data["axes"][0]["variants"]))
    last = {name.rpartition(" ")[0]: name for name in axis["variants"]}
    axis["variants"] = {name: axis["variants"][name] for name in last.values()}
    file = tmp_path / "round.yaml"
    file.write_text(yaml.safe_dump(asked[0], sort_keys=False))
    for variant in make_plan(file, get_registry()).variants:
        assert variant.config.run.iterations == (4 if quick else data["tuning"]["set"]["run.iterations"])
        assert variant.config.stop.target is None
        assert variant.config.optimizer.learning_rate == pytest.approx(0.003 if quick else 0.012)


def test_rounds_keep_the_best_by_the_area_and_the_mean_over_all_seeds_decides() -> None:
    runs = Runs(HEIGHTS)
    found = search(toy(), runs, quick=False)
    first, second = runs.asked
    assert (first["name"], first["seeds"], second["name"], second["seeds"]) == (
        "toy-search-1", [100], "toy-search-2", [101, 102],
    )  # fmt: skip
    assert first["set"] == {"evaluation.every": 5, "run.iterations": 10}
    assert first["axes"][0]["variants"]["a 2"] == {"x": 1, "y": 4}, "the arm's own length is not a trial's"
    assert not {"targets", "tuning", "stop"} & first.keys()
    assert list(second["axes"][0]["variants"]) == ["a 3", "a 4", "b 1", "b 4"]
    assert found.samples == 960
    trial = found.arms["a"][2]
    assert trial.settings == {"x": 2, "y": 3}
    assert trial.areas == pytest.approx({seed: 0.4 + (0.3 + 0.001 * seed) / 4 for seed in (100, 101, 102)})
    # The best of b is its untuned setting: it does not run twice.
    assert best(found) == {"a": {"x": 2, "y": 3}, "b": {"x": 1}, "a untuned": {"x": 1, "y": 3}}
    assert read(json.loads(json.dumps(found.data()))).data() == found.data()
    assert best(read(found.data())) == best(found)


def test_a_trial_that_fails_is_no_choice_and_stops_nothing() -> None:
    runs = Runs(HEIGHTS, failed=("a 3",))
    found = search(toy(), runs, quick=False)
    assert list(runs.asked[1]["axes"][0]["variants"])[:2] == ["a 1", "a 4"]
    assert best(found)["a"] == {"x": 2, "y": 4}
    with pytest.raises(UserError, match="no trial of b ended with every seed"):
        search(toy(), Runs(HEIGHTS, failed=("b 1", "b 2", "b 3", "b 4")), quick=False)


def test_the_comparison_has_the_settings_that_were_found() -> None:
    found = Search(ROUNDS, 960, {
        "a": [Trial({"x": 1, "y": 3}, dict.fromkeys((100, 101, 102), 0.1)), Trial({"x": 2, "y": 3}, {100: 0.9})],
        "b": [Trial({"x": 1}, {100: 0.1}), Trial({"x": 2}, dict.fromkeys((100, 101, 102), 0.1))],
    }, ["a", "b"])  # fmt: skip
    data = ablation_of(toy(stop={"samples": 9}), best(found))
    assert data["axes"][0]["variants"] == {
        "a": {"run.iterations": 99, "x": 1, "y": 3}, "b": {"x": 2}, "b untuned": {"x": 1}, "c": {"z": 1},
    }  # fmt: skip
    assert (data["target"], data["stop"]) == (2, {"samples": 9, "target": 3, "in_a_row": IN_A_ROW})
    assert not {"targets", "tuning"} & data.keys()
