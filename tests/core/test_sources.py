"""Sources of prompts: whose turn it is, by brute force; each with its own rewards; nothing compared between them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from torch import Tensor

from dgpo_cli.console import print_evaluation
from dgpo_core.builtin.weightings import AbsAdvantage
from dgpo_core.contracts import RewardModel
from dgpo_core.data.prompts import digest, some_of_each
from dgpo_core.data.sources import Source, cut_to_shares, integer_weights, of_sources
from dgpo_core.data.sources import turns as turns_of
from dgpo_core.distributed.comparing import NOT_FINITE, Layout
from dgpo_core.distributed.processes import Processes
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.flow.groups import advantages, compute_advantages
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.dry_run import dry_run
from dgpo_core.training.engine import build_engine
from dgpo_core.training.evaluation_records import evaluation_record
from dgpo_core.training.reward_building import evaluation_scorer
from dgpo_core.training.reward_calls import Reward
from dgpo_core.training.scored import missing_beyond, not_finite
from dgpo_core.training.scoring import Scorer
from dgpo_core.training.trainer import Trainer
from dgpo_core.types import Prompt, ScoredGroups, Scores
from dgpo_kit.toy import WinRate, WinRateOptions, run_data
from dgpo_schemas.problems import explain
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.prompts import SourceBlock
from dgpo_schemas.sections.rewards import AdvantagesSection, ScoringSection

CPU = torch.device("cpu")
WEIGHTS = [(1,), (1, 1), (2, 1), (1, 2), (5, 3, 2), (1, 10, 1), (90, *[1] * 10), (1, 1, 1, 1), (333, 667), (7, 7, 1)]
DRAWS = Draws(3).at("prompt order")


def of_iteration(prompts: Sequence[Prompt], iteration: int, groups: int, draws: Draws) -> list[Prompt]:
    """By its definition: the prompts of an iteration, every prompt once per pass, in an order keyed by the pass."""
    orders: dict[int, list[int]] = {}
    chosen = []
    for position in range(iteration * groups, (iteration + 1) * groups):
        epoch, place = divmod(position, len(prompts))
        if epoch not in orders:
            orders[epoch] = draws.at(epoch).permutation(len(prompts)).tolist()
        chosen.append(prompts[orders[epoch][place]])
    return chosen


def turns(weights: Sequence[int], count: int) -> list[int]:
    """Group by group in fractions: the source furthest behind its share of the groups up to and with this one."""
    total, taken, found = sum(weights), [0] * len(weights), []
    for group in range(1, count + 1):
        behind = [Fraction(weight, total) * group - had for weight, had in zip(weights, taken, strict=True)]
        chosen = behind.index(max(behind))
        taken[chosen] += 1
        found.append(chosen)
    return found


def sources_of(weights: Sequence[int], sizes: Sequence[int] = (3, 5, 7, 2)) -> list[Source]:
    names = [f"s{i}" for i in range(len(weights))]
    return [
        Source(name, weight, [Prompt(f"{name} {k}", source=name) for k in range(sizes[i % len(sizes)])])
        for i, (name, weight) in enumerate(zip(names, weights, strict=True))
    ]


# -- whose turn it is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", WEIGHTS)
def test_turns_are_those_of_the_source_furthest_behind(weights: tuple[int, ...]) -> None:
    _, repeating = turns_of(weights, 0, sum(weights))
    assert Counter(repeating) == dict(enumerate(weights)), "each has its share exactly"
    count = 2 * len(repeating) + 1
    assert [repeating[i % len(repeating)] for i in range(count)] == turns(weights, count)
    taken = [0] * len(weights)
    for group in range(1, count + 1):
        taken[repeating[(group - 1) % len(repeating)]] += 1
        for had, weight in zip(taken, weights, strict=True):
            assert abs(had - group * weight / sum(weights)) < max(1.0, (len(weights) - 1) / 2)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("groups", [1, 4, 7])
def test_iterations_cut_the_turns_and_sources_pass_through_their_prompts(weights: tuple[int, ...], groups: int) -> None:
    sources = sources_of(weights)
    flat = turns(weights, 6 * groups)
    seen = [0] * len(weights)
    expected = []
    for i in flat:
        one = sources[i]
        epoch, place = divmod(seen[i], len(one.prompts))
        seen[i] += 1
        key = DRAWS if len(sources) == 1 else DRAWS.at("source", one.name)
        expected.append(one.prompts[int(key.at(epoch).permutation(len(one.prompts))[place])])
    for iteration in (5, 0, 3, 1, 2, 4):  # nothing is kept from one to the next
        found = of_sources(sources, iteration, groups, DRAWS)
        assert found == expected[iteration * groups : (iteration + 1) * groups]


def test_a_far_iteration_costs_no_more() -> None:
    sources = sources_of((5, 3, 2))
    start = (10**12 * 4) % 10
    names = [prompt.source for prompt in of_sources(sources, 10**12, 4, DRAWS)]
    assert names == [f"s{i}" for i in turns((5, 3, 2), 20)[start : start + 4]]


def test_weights_of_steps_cost_no_more_than_the_groups_that_are_asked_for() -> None:
    weights = (1, 10**6, *range(999_000, 999_100))  # whose turns repeat after a hundred million groups
    taken, chosen = turns_of(weights, 40, 4)
    assert taken == [Counter(turns(weights, 40))[i] for i in range(len(weights))]
    assert chosen == turns(weights, 44)[40:]
    assert turns_of(weights, sum(weights) + 40, 4) == ([w + had for w, had in zip(weights, taken, strict=True)], chosen)


def test_one_source_has_the_order_of_a_run_without_any() -> None:
    (source,) = sources_of((7,))
    for iteration in range(5):
        assert of_sources([source], iteration, 4, DRAWS) == of_iteration(source.prompts, iteration, 4, DRAWS)


def test_updates_have_all_sources() -> None:
    prompts = of_sources(sources_of((2, 1, 1)), 3, 16, DRAWS)
    for update in range(4):
        assert Counter(p.source for p in prompts[4 * update : 4 * update + 4]) == {"s0": 2, "s1": 1, "s2": 1}


def block(name: str, **more: Any) -> SourceBlock:
    return SourceBlock.model_validate({"source": name, "use": "toy"} | more)


def test_weights_are_whole_numbers_of_steps() -> None:
    assert integer_weights([block("a", weight=0.5), block("b"), block("c", weight=0.25)]) == [2, 4, 1]
    assert integer_weights([block("a", weight=0.333), block("b", weight=0.667)]) == [333, 667]
    with pytest.raises(ValidationError, match=r"a multiple of 0\.001; the nearest is 0\.333"):
        block("a", weight=1 / 3)


def test_shares_of_an_evaluation() -> None:
    assert cut_to_shares(sources_of((2, 1, 1)), 10) == [5, 3, 2]
    assert cut_to_shares(sources_of((999, 1)), 10) == [10, 1], "at least one"
    sources = sources_of((1, 1), sizes=(3, 50))
    chosen = some_of_each(sources, 20)
    assert Counter(prompt.source for prompt in chosen) == {"s0": 3, "s1": 10}


def test_the_source_is_component_of_what_is_digested() -> None:
    assert digest([Prompt("a", source="x")]) != digest([Prompt("a")]) != digest([Prompt("a", source="y")])


# -- rewards of a source ----------------------------------------------------------------------------------------------


class Level(RewardModel):
    """Brightness; remembers the sources that it was shown."""

    range = (0.0, 1.0)

    def __init__(self) -> None:
        super().__init__(None, device=CPU)
        self.shown: list[str] = []

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        self.shown += [prompt.source for prompt in prompts]
        broken = ~media.flatten(1).isfinite().all(1)
        return Scores(media.flatten(1).mean(1).nan_to_num(0.5), broken)


NAMES = ["x", "y", "x", "z"]
PROMPTS = [Prompt(f"p{i}", source=name) for i, name in enumerate(NAMES)]
MEDIA = torch.rand(12, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def scored(micro_batch: int, media: Tensor = MEDIA) -> tuple[Scorer, Any, dict[str, Level]]:
    models = {label: Level() for label in "abc"}
    wins = WinRate(WinRateOptions(), device=CPU)
    rewards = [
        Reward("a", 1.0, models["a"]),
        Reward("b", 2.0, models["b"], sources=frozenset({"x", "y"})),
        Reward("c", 0.0, models["c"], sources=frozenset({"z"})),
        Reward("w", 3.0, wins, sources=frozenset({"z"})),
    ]
    scorer = Scorer(rewards)
    scorer.expect(Layout(3, DRAWS, [range(12)]))
    each = [prompt for prompt in PROMPTS for _ in range(3)]
    for start in range(0, 12, micro_batch):
        rows = range(start, min(12, start + micro_batch))
        scorer.submit(media[rows.start : rows.stop], each[rows.start : rows.stop], samples=rows)
    scorer.complete(Processes())
    return scorer, scorer.collect(), models


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5, 12])
def test_rewards_of_a_source_are_asked_for_its_samples_alone(micro_batch: int) -> None:
    scorer, samples, models = scored(micro_batch)
    scorer.close()
    level = MEDIA.flatten(1).mean(1).double()
    owners = [name for name in NAMES for _ in range(3)]
    assert models["a"].shown == owners
    assert models["b"].shown == [name for name in owners if name in "xy"]
    assert models["c"].shown == ["z"] * 3
    for label, asked in (("a", "xyz"), ("b", "xy"), ("c", "z"), ("w", "z")):
        absent = [name not in asked for name in owners]
        assert samples.values[label].isnan().tolist() == absent
        assert [one == {"asked": False} for one in samples.diagnostics[label]] == absent
    groups = scorer.groups(samples, [], PROMPTS, ScoringSection(), 1e-4)
    assert groups.scored.all(), "what is not asked for is not missing"
    assert missing_beyond(0.0, scorer.rewards, groups.scored, samples) is None
    expected = torch.where(torch.tensor([n == "z" for n in owners]), level + 3 * samples.values["w"], 3 * level)
    torch.testing.assert_close(groups.rewards.flatten(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(groups.summed, groups.rewards)
    assert groups.asked["b"].tolist() == [True, True, True, False]
    normalized = scorer.groups(samples, [], PROMPTS, ScoringSection(aggregation="group-normalized"), 1e-4)
    for g in range(3):
        one = level.view(4, 3)[g]
        z = 3 * (one - one.mean()) / (one.std(correction=0) + 1e-4)
        torch.testing.assert_close(normalized.rewards[g], z, rtol=0, atol=1e-9)


def test_media_that_are_not_finite_are_still_reported_from_failures() -> None:
    scorer, samples, _ = scored(4, torch.full_like(MEDIA, torch.nan))
    scorer.close()
    assert {one.get("reason") for one in samples.diagnostics["b"]} == {NOT_FINITE, None}
    assert not_finite(scorer.rewards[:2], samples)


@pytest.mark.parametrize("std", ["group", "batch", "none"])
def test_advantages_are_within_a_source(std: str) -> None:
    """As if each source were an iteration by itself."""
    rewards = torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    rewards[1] *= 100
    known = torch.ones(4, 3, dtype=torch.bool)
    known[2, 0] = False
    groups = ScoredGroups(tuple(PROMPTS), torch.zeros(12, 1), range(12), rewards, rewards, known, {}, torch.zeros(4))
    section = AdvantagesSection.model_validate({"std": std})

    found: Any = compute_advantages(groups, section, AbsAdvantage(None))
    for rows in ([0, 2], [1], [3]):
        assert found.advantages[rows].equal(advantages(rewards[rows], known[rows], section))
    whole = advantages(rewards, known, section)
    assert found.advantages.equal(whole) == (std != "batch")


def test_evaluation_records_report_the_sources() -> None:
    values = torch.tensor([[0.0, 1.0], [0.25, 0.25], [1.0, 1.0], [0.5, torch.nan]], dtype=torch.float64)
    common: Any = {"draws": Draws(0), "iteration": 0, "model": "ema"}
    found = evaluation_record("r", "target", values, prompts=PROMPTS, **common)
    assert {name: (one.value, one.n) for name, one in found.sources.items()} == {
        "x": (0.75, 2), "y": (0.25, 1), "z": (0.5, 1),
    }  # fmt: skip
    assert found.value == pytest.approx((0.5 + 0.25 + 1.0 + 0.5) / 4)
    plain = evaluation_record("r", "target", values, prompts=[Prompt(p.text) for p in PROMPTS], **common)
    assert "sources" not in plain.model_dump()
    assert (plain.low, plain.high) == (found.low, found.high)


# -- the run file -----------------------------------------------------------------------------------------------------


def data(directory: Path, **changes: Any) -> dict[str, Any]:
    made = run_data(
        directory,
        rewards=[{"use": "brightness"}, {"use": "brightness", "name": "twice", "weight": 0.5}],
        rollout={"groups": 6},
        optimizer={"updates": 2},
    )
    made["prompts"] = {
        "train": [
            {"source": "many", "use": "toy", "weight": 2, "options": {"count": 5}},
            {"source": "few", "use": "toy", "options": {"count": 2}, "rewards": ["brightness"]},
        ],
        "heldout": [
            {"source": "many", "use": "toy", "weight": 3},
            {"source": "few", "use": "toy", "rewards": ["brightness"], "options": {"count": 2}},
        ],
    }
    return made | changes


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("prompts.train.1.source", "many", "prompts.train.1.source: the name 'many' is already used"),
        ("prompts.train.1.rewards", ["brightnes"], "prompts.train.1.rewards.0: unknown reward 'brightnes' in "
         "rewards; did you mean brightness?"),
        ("prompts.train.1.rewards", ["twice", "twice"], "prompts.train.1.rewards.1: 'twice' is listed twice"),
        ("prompts.train.1.rewards", [], "prompts.train.1.rewards: must have at least 1 entry"),
        ("prompts.train.0.rewards", ["brightness"], "rewards.1: no source of prompts.train uses 'twice'"),
        ("rewards.1.weight", 0, ""),
        ("prompts.train.0.weight", 0, "prompts.train.0.weight: must be at least 0.001"),
        ("prompts.train.0.weight", 0.0015, "prompts.train.0.weight: must be a multiple of 0.001"),
        ("prompts.train.0.source", "a b", "prompts.train.0.source: 'a b' is not allowed here"),
        ("prompts.train.0.sorce", "a", "prompts.train.0.sorce: unknown key; did you mean source?"),
        ("prompts.train.0.file", "x.txt", "set exactly one of `file`"),
        ("prompts.train", [], "prompts.train: must have at least 1 entry"),
        ("prompts.train.1", "x.txt", "prompts.train.1: must be a section with keys such as"),
        ("prompts.heldout.1.rewards", ["twice", "monitor"],
         "prompts.heldout.1.rewards.1: unknown reward 'monitor'"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path: Path, key: str, value: Any, message: str) -> None:
    made = data(tmp_path)
    here: Any = made
    *path, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    for part in path:
        here = here[part]
    here[last] = value
    try:
        RunConfig.model_validate(made)
        said = ""
    except ValidationError as error:
        said = "\n".join(f"{'.'.join(map(str, at))}: {text}" for at, text in explain(RunConfig, made, error))
    assert (message in said) if message else not said


def test_a_source_with_nothing_to_learn_is_refused(tmp_path: Path) -> None:
    made = data(tmp_path)
    made["rewards"][0]["weight"] = 0
    with pytest.raises(ValidationError, match="weight 0, so there is nothing to learn from this source"):
        RunConfig.model_validate(made)


# -- runs -------------------------------------------------------------------------------------------------------------


def lines(directory: Path, log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "toy" / log).read_text().splitlines()]


def test_a_run_with_sources(tmp_path: Path, registry: Registry) -> None:
    made = data(tmp_path)
    made["run"]["iterations"] = 2
    made["evaluation"] |= {"prompts": 4}
    Trainer(RunConfig.model_validate(made), registry).train()
    for line in lines(tmp_path, "metrics.jsonl"):
        assert {name: one["groups"] for name, one in line["sources"].items()} == {"many": 4, "few": 2}
        both = line["rewards"]["brightness"]["mean"]
        many, few = (line["sources"][name]["mean"] for name in ("many", "few"))
        assert many == pytest.approx(1.5 * line["rewards"]["twice"]["mean"])
        assert (4 * many / 1.5 + 2 * few) / 6 == pytest.approx(both)
        assert (line["missing_rewards"], line["rewards"]["twice"]["missing"]) == (0, 0)
    records = {one["reward"]: one for one in lines(tmp_path, "evaluations.jsonl")}
    assert {name: one["n"] for name, one in records["brightness"]["sources"].items()} == {"many": 3, "few": 1}
    assert set(records["twice"]["sources"]) == {"many"}
    assert (records["twice"]["n"], records["twice"]["missing"]) == (3, 0)
    record = json.loads((tmp_path / "toy" / "run.json").read_text())
    assert record["prompts"]["train"]["sources"] == {"many": 5, "few": 2}
    made["prompts"]["train"][1]["weight"] = 2
    with pytest.raises(
        UserError, match=r"cannot resume .*\n  prompts\.train\.1\.weight: 1\.0 when it started, 2\.0 now"
    ):
        Trainer(RunConfig.model_validate(made | {"run": made["run"] | {"iterations": 3}}), registry).train(resume=True)


def test_a_list_of_one_is_the_run_without_a_list(tmp_path: Path, registry: Registry) -> None:
    """Weights are equal bit for bit."""
    found = []
    for name, prompts in (("plain", {"use": "toy"}), ("list", [{"source": "only", "use": "toy", "weight": 0.5}])):
        made = run_data(tmp_path / name, prompts={"train": prompts})
        made["run"]["iterations"] = 2
        made["evaluation"] |= {"every": 0, "at_start": False}
        trainer = Trainer(RunConfig.model_validate(made), registry)
        trainer.train()
        found.append({key: value.detach().clone() for key, value in trainer.build().policy.parameters.items()})
    assert all(found[0][key].equal(found[1][key]) for key in found[0])


def test_a_dry_run_tries_every_source(tmp_path: Path, registry: Registry) -> None:
    made = data(tmp_path, rewards=[{"use": "brightness"}, {"use": "win-rate", "name": "twice"}])
    made["evaluation"] |= {"samples_per_prompt": 2}
    found = dry_run(Trainer(RunConfig.model_validate(made), registry))
    assert {label: len(values) for label, values in found["rewards"].items()} == {"brightness": 4, "twice": 2}


def test_the_table_of_an_evaluation_has_a_row_for_each_source() -> None:
    values = torch.tensor([[0.0, 1.0], [0.25, 0.25], [1.0, 1.0], [0.5, torch.nan]], dtype=torch.float64)
    common: Any = {"draws": Draws(0), "iteration": 0, "model": "ema"}
    records = [
        evaluation_record("all", "target", values, prompts=PROMPTS, **common),
        evaluation_record("some", "target", values[:2], prompts=PROMPTS[:2], **common),
    ]
    console = Console(width=120, record=True, file=StringIO())
    print_evaluation(console, records)
    rows = {
        line.split("│")[1].strip(): line.split("│")[2:] for line in console.export_text().splitlines() if "│" in line
    }
    assert rows["source x"][0].strip() == "0.750"
    assert rows["source z"][2].strip() == "-"


def test_prompts_of_no_source_are_asked_for_all_rewards(tmp_path: Path, registry: Registry) -> None:
    """Those of `dgpo evaluate --prompts`."""
    engine = build_engine(RunConfig.model_validate(data(tmp_path)), registry)
    scorer = evaluation_scorer(engine, [Prompt("x", {"tag": "even"})])
    assert all(reward.asks(Prompt("x")) for reward in scorer.rewards)
    assert [reward.asks(Prompt("x", source="few")) for reward in scorer.rewards] == [True, False]
    engine.close()
