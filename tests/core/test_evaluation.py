"""Evaluation against scipy's bootstrap and against tables worked out by hand."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.distributed.processes import Processes
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.engine import build_engine
from dgpo_core.training.evaluation import Evaluation, Evaluator, ManyStepSolve
from dgpo_core.training.evaluation_records import evaluation_record, interval
from dgpo_core.training.reward_building import evaluation_scorer
from dgpo_core.training.reward_calls import Reward
from dgpo_core.training.rollout import RolloutSampler
from dgpo_core.training.scoring import Scorer
from dgpo_core.types import Prompt, Rollout, Schedule, Scores
from dgpo_kit.given import prompts_of
from dgpo_schemas.metrics import EvaluationRecord
from dgpo_schemas.run import RunConfig

NAN = float("nan")


# -- the interval ---------------------------------------------------------------------------------------------------


def samples(*sizes: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.gamma(2.0, 1.0 + i, size=size) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("sizes", [(40,), (25, 60), (12, 30, 50)])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_the_interval_is_scipys(sizes: tuple[int, ...], level: float) -> None:
    """Strata resampled apart, percentile method, of the unweighted mean of their means."""
    strata = samples(*sizes)
    expected = scipy.stats.bootstrap(
        strata,
        lambda *components, axis: sum(component.mean(axis) for component in components) / len(components),
        n_resamples=20_000,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    found = interval(strata, np.random.default_rng(2), level)
    # Two Monte-Carlo estimates of the same quantiles: within a fifth of the standard error of the mean.
    close = expected.standard_error / 5
    assert found == pytest.approx(tuple(expected.confidence_interval), abs=close)


def test_the_interval_of_many_prompts_is_that_of_the_normal_distribution() -> None:
    strata = samples(4000, 1000)
    mean = np.mean([s.mean() for s in strata])
    error = np.sqrt(sum(s.var() / len(s) for s in strata)) / 2
    low, high = interval(strata, np.random.default_rng(0))
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=error / 5)


@pytest.mark.parametrize("strata", [[np.array([0.25])], [np.full(9, 0.5), np.zeros(3)]])
def test_values_without_sharded_have_no_interval(strata: list[np.ndarray]) -> None:
    assert interval(strata, np.random.default_rng(0)) == (0.25, 0.25)


def test_the_draws_of_an_interval_have_the_key_that_they_always_had() -> None:
    """A statistic's new name must not change its intervals."""
    values = torch.tensor(np.random.default_rng(3).normal(size=(6, 1)))
    prompts = [Prompt(str(i)) for i in range(6)]
    for name, key in (("many_step_sharpness", "finer_sharpness"), ("diversity", "diversity")):
        record = evaluation_record(name, "statistic", values, prompts=prompts, draws=Draws(5), iteration=1, model="ema")
        seed = Draws(5, ("bootstrap", key, "overall")).generator().initial_seed()
        expected = interval([values[:, 0].numpy()], np.random.default_rng(seed))
        assert (record.low, record.high) == expected


# -- a table --------------------------------------------------------------------------------------------------------


class Table(RewardModel):
    """Looks up the score of a sample under the number that is its image's first pixel; nan is missing."""

    range = (0.0, 1.0)

    def __init__(self, values: Sequence[float], group_by: str | None = "tag") -> None:
        super().__init__(None, device=torch.device("cpu"))
        self.table = torch.tensor(values)
        self.group_by = group_by  # type: ignore[misc]

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        values = self.table[media[:, 0, 0, 0].long()]
        diagnostics = tuple({"place": i, "value": "a diagnostic of this name"} for i in range(len(media)))
        return Scores(values.nan_to_num(0.0), values.isnan(), diagnostics)


class Numbered:
    """A rollout sampler whose n-th sample is an image of the number n."""

    def __init__(self, micro_batch: int) -> None:
        self.micro_batch = micro_batch
        self.policy = types.SimpleNamespace(backbone=types.SimpleNamespace(decode=self.decode), finish=lambda: None)

    @staticmethod
    def decode(x0: Tensor) -> Tensor:
        return x0.view(-1, 1, 1, 1).expand(-1, 3, 2, 2)

    def sample_groups(
        self,
        prompts: Sequence[Prompt],
        members: int,
        draws: Draws,
        model: str,
        *,
        places: object = None,
        samples: Sequence[int],
    ) -> Iterator[Rollout]:
        for start in range(0, len(samples), self.micro_batch):
            here = samples[start : start + self.micro_batch]
            yield Rollout(here, tuple(prompts[i // members] for i in here), torch.tensor(here, dtype=torch.float32))


def run(
    tables: Mapping[str, Sequence[float]] | Scorer,
    tags: Sequence[str | None],
    *,
    members: int = 1,
    micro_batch: int = 3,
    group_by: str | None = "tag",
    images: int = 0,
    **keywords: Any,
) -> Evaluation:
    prompts = [Prompt(f"prompt {i}", {} if tag is None else {"tag": tag}) for i, tag in enumerate(tags)]
    scorer = (
        tables
        if isinstance(tables, Scorer)
        else Scorer([Reward(label, 1.0, Table(values, group_by)) for label, values in tables.items()])
    )
    try:
        evaluator = Evaluator(
            rollout_sampler=cast(RolloutSampler, Numbered(micro_batch)), scorer=scorer, prompts=prompts,
            members=members,             draws=Draws(0), images=images,
        )  # fmt: skip
        return evaluator.evaluate("ema", 7, **keywords)
    finally:
        if scorer is not tables:
            scorer.close()


def rewards(found: Evaluation) -> list[EvaluationRecord]:
    """Records without those of the media's statistics."""
    return [record for record in found.records if record.role != "statistic"]


def statistics(found: Evaluation) -> dict[str, EvaluationRecord]:
    """Those, by name."""
    return {record.reward: record for record in found.records if record.role == "statistic"}


def test_the_score_is_the_unweighted_mean_of_the_tasks_means() -> None:
    """Five prompts of three tasks with the means 0.25, 1 and 0.25: theirs is 0.5, that of the prompts 0.4."""
    (record,) = rewards(run({"r": [0.0, 0.25, 1.0, 0.5, 0.25]}, ["a", "a", "b", "a", None]))
    assert record.value == 0.5
    assert {name: (g.value, g.n) for name, g in record.groups.items()} == {
        "a": (0.25, 3),
        "b": (1, 1),
        "other": (0.25, 1),
    }
    assert (record.iteration, record.model, record.reward, record.n, record.missing) == (7, "ema", "r", 5, 0)
    assert record.role == "target"
    assert record.low <= record.value <= record.high
    a = record.groups["a"]
    assert 0 <= a.low < a.value < a.high <= 0.5
    assert record.groups["b"].low == record.groups["b"].high == 1.0


def test_without_tasks_it_is_the_mean_over_prompts() -> None:
    (record,) = rewards(run({"r": [0.0, 1.0, 0.5, 0.1]}, ["a", "a", "b", "a"], group_by=None))
    assert record.value == pytest.approx(0.4)
    assert record.groups == {}
    assert record.n == 4


def test_missing_samples_are_left_out_and_counted() -> None:
    """Two samples a prompt. A prompt's value is the mean of its scored samples; one without any is no prompt of the
    task, and a task without any is no task: ((1 + 0.5) / 2 + 0.25) / 2 = 0.5."""
    table = [1.0, NAN, 0.25, 0.75, NAN, NAN, 0.25, 0.25, NAN, NAN]
    (record,) = rewards(run({"r": table}, ["a", "a", "a", "b", "c"], members=2))
    assert record.value == pytest.approx(0.5)
    assert {name: (g.value, g.n) for name, g in record.groups.items()} == {"a": (0.75, 2), "b": (0.25, 1)}
    assert (record.n, record.missing) == (3, 5)


@pytest.mark.parametrize("second", [[0.5, NAN], [NAN, NAN]])
def test_a_reward_that_scores_nothing_is_an_error(second: list[float]) -> None:
    tables = {"first": [0.5, 0.5], "second": second}
    if second[0] == second[0]:
        assert [r.missing for r in rewards(run(tables, ["a", "a"]))] == [0, 1]
    else:
        with pytest.raises(UserError, match="evaluation: second scored none of 2 samples: see the diagnostics"):
            run(tables, ["a", "a"])


def test_a_reward_that_raises_says_why() -> None:
    with pytest.raises(UserError, match=r"r scored none of 3 samples: r: IndexError: index 1 is out of bounds"):
        run({"r": [0.5]}, ["a", "a", "a"], micro_batch=3)


def test_the_reason_is_that_of_the_reward_that_scored_nothing() -> None:
    """Another one may have failed later."""
    with pytest.raises(UserError, match=r"first scored none of 2 samples: see the diagnostics"):
        run({"first": [NAN, NAN], "second": [0.5]}, ["a", "a"], micro_batch=1)


def test_no_prompts() -> None:
    with pytest.raises(UserError, match=r"no held-out prompts to evaluate on: set prompts\.heldout"):
        run({"r": []}, [])


def test_every_reward_has_its_record_and_every_sample_its_scores() -> None:
    found = run({"r": [0.5, NAN, 0.25, 1.0], "s": [0.0, 1.0, 0.0, 1.0]}, ["a", "b"], members=2, micro_batch=4)
    assert [(record.reward, record.value) for record in rewards(found)] == [("r", 0.5625), ("s", 0.5)]
    assert [record.reward for record in found.records[2:]] == ["diversity", "saturation", "edge_density", "dark_pixels"]
    assert [(s["prompt"], s["member"]) for s in found.samples] == [
        ("prompt 0", 0), ("prompt 0", 1), ("prompt 1", 0), ("prompt 1", 1)
    ]  # fmt: skip
    assert [s["r"]["value"] for s in found.samples] == [0.5, None, 0.25, 1.0]
    assert [s["s"]["value"] for s in found.samples] == [0.0, 1.0, 0.0, 1.0]
    assert [s["r"]["place"] for s in found.samples] == [0, 1, 2, 3]


def test_diversity_is_the_mean_distance_of_a_prompts_samples() -> None:
    """Flat images of the numbers 0 to 5: two apart within neither, 1 apart within each prompt of two."""
    two = statistics(run({"r": [0.5] * 6}, ["a"] * 3, members=2))["diversity"]
    assert (two.value, two.n, two.missing, two.groups) == (pytest.approx(1.0), 3, 0, {})
    # Three samples of one prompt: distances 1, 1 and 2.
    assert statistics(run({"r": [0.5] * 6}, ["a"] * 2, members=3))["diversity"].value == pytest.approx(4 / 3)
    assert "diversity" not in statistics(run({"r": [0.5] * 6}, ["a"] * 6)), "one sample has no distance to another"


def test_statistics_are_means_over_prompts_with_intervals() -> None:
    """Flat images of the numbers 0 to 5, clamped to black and white: two prompts, of which the first has the only
    black sample of its two. Tasks split rewards, not statistics."""
    found = statistics(run({"r": [0.5] * 4}, ["a", "b"], members=2))
    assert (found["saturation"].value, found["edge_density"].value) == (0.0, 0.0)
    dark = found["dark_pixels"]
    assert (dark.value, dark.n, dark.missing, dark.groups) == (0.25, 2, 0, {})
    # Resampling two prompts with the values 1/2 and 0: their mean is 0 or 1/2 with a quarter of the draws each.
    assert (dark.low, dark.high) == (0.0, 0.5)
    assert (dark.iteration, dark.model) == (7, "ema")


def test_monitors_are_reported_apart_and_follow_the_targets() -> None:
    scorer = Scorer(
        [Reward("r", 1.0, Table([0.5, 1.0])), Reward("s", 1.0, Table([0.0, 1.0])),
         Reward("g", 1.0, Table([1.0, 0.5]), monitor=True)]
    )  # fmt: skip
    found = run(scorer, ["a", "b"])
    scorer.close()
    roles = {record.reward: (record.role, record.value) for record in rewards(found)}
    assert roles == {"r": ("target", 0.75), "s": ("target", 0.5), "g": ("monitor", 0.75)}
    assert found.records[0].reward == "r"
    assert [s["g"]["value"] for s in found.samples] == [1.0, 0.5]


@pytest.mark.parametrize("micro_batch", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("images", "chosen"),
    [(0, []), (1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (6, [0, 1, 2, 3, 4, 5]), (12, [0, 1, 2, 3, 4, 5])],
)
def test_images_are_first_samples_sharded_over_the_prompts(images: int, chosen: list[int], micro_batch: int) -> None:
    found = run({"r": [0.5] * 12}, ["a"] * 6, members=2, micro_batch=micro_batch, images=images)
    assert [prompt.text for prompt in found.prompts] == [f"prompt {i}" for i in chosen]
    if chosen:
        media = torch.stack(list(found.media))
        assert media.shape == (len(chosen), 3, 2, 2)
        assert media[:, 0, 0, 0].tolist() == [2.0 * i for i in chosen]
    else:
        assert not found.media


def test_the_same_samples_give_the_same_record_in_any_micro_batches() -> None:
    table = np.random.default_rng(0).random(24).tolist()
    tags = [*"aabbbbaccacc"]
    first = run({"r": table}, tags, members=2, micro_batch=1)
    for micro_batch in (5, 24):
        again = run({"r": table}, tags, members=2, micro_batch=micro_batch)
        assert again.records == first.records
    assert first.records[0].low < first.records[0].value < first.records[0].high


def test_progress_counts_samples() -> None:
    reported: list[tuple[int, int]] = []
    run({"r": [0.5] * 8}, ["a"] * 4, members=2, progress=lambda done, total: reported.append((done, total)))
    assert reported == [(3, 8), (6, 8), (8, 8)]


def test_an_interrupted_evaluation_leaves_nothing_to_the_next() -> None:
    class Stop(Exception):
        pass

    calls = []

    def interrupt() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Stop

    scorer = Scorer([Reward("r", 1.0, Table([0.0, 0.25, 0.5, 1.0]))])
    with pytest.raises(Stop):
        run(scorer, ["a"] * 4, interrupt=interrupt)
    assert run(scorer, ["a"] * 2).records[0].value == 0.125
    scorer.close()


# -- in few steps and in many -----------------------------------------------------------------------------------------

Make = Callable[..., RunConfig]
STEPS = ("step_disagreement", "many_step_sharpness")


def of_steps(config: RunConfig, registry: Registry, many_step: bool = True) -> dict[str, EvaluationRecord]:
    """Statistics of the toy's held-out prompts, evaluated as the run file says."""
    engine = build_engine(config, registry)
    prompts = engine.load_prompts("heldout")
    try:
        found = Evaluator(
            rollout_sampler=engine.evaluation_rollout_sampler(), scorer=evaluation_scorer(engine, prompts),
            prompts=prompts, members=config.evaluation.samples_per_prompt, draws=Draws(5),
            many_step=ManyStepSolve.of(engine) if many_step else None,
        ).evaluate("ema", 2)  # fmt: skip
    finally:
        engine.close()
    return statistics(found)


def by_hand(config: RunConfig, registry: Registry, prompts: Sequence[int], fine: int) -> tuple[list[float], ...]:
    """(disagreement, sharpness) of the first sample of each prompt, drawn one by one; in float64."""
    engine = build_engine(config, registry)
    heldout = engine.load_prompts("heldout")
    velocity, backbone = engine.policy.velocity, engine.backbone
    disagreements, sharpnesses = [], []
    for p in prompts:
        rows = backbone.encode(prompts_of([heldout[p].text]))
        media = []
        for steps in (config.evaluation.steps or config.rollout.steps, fine):
            x = Draws(5).at(p, 0, "noise").normal((1, 2, 4, 4))
            sigmas = engine.sampler.sigmas(steps, Schedule(1.0)).float()
            for here, there in pairwise(sigmas):
                with torch.no_grad():
                    x = x + (there - here) * velocity(x, here.expand(1), rows)
            media.append(backbone.decode(x)[0].double().numpy())
        few, many = media
        luma = np.tensordot([0.299, 0.587, 0.114], many, 1)
        steps_apart = [*np.diff(luma, axis=0).ravel(), *np.diff(luma, axis=1).ravel()]
        disagreements.append(float(np.sqrt(np.mean((few - many) ** 2))))
        sharpnesses.append(float(np.sqrt(np.mean(np.square(steps_apart)))))
    return disagreements, sharpnesses


@pytest.mark.parametrize(("members", "micro_batch"), [(1, None), (2, 3), (3, 1), (3, 4), (2, 100)])
def test_samples_are_compared_with_many_step_ones_of_the_same_noise(
    members: int, micro_batch: int | None, make_config: Make, registry: Registry
) -> None:
    """Three of five prompts, spread over them; the first sample of each."""
    config = make_config(
        rollout={"micro_batch": micro_batch, "guidance": 1.0},
        evaluation={"prompts": 5, "samples_per_prompt": members, "steps": 2, "many_step": {"steps": 11, "prompts": 3}},
    )
    found = of_steps(config, registry)
    for name, expected in zip(STEPS, by_hand(config, registry, [0, 1, 3], 11), strict=True):
        record = found[name]
        assert record.value == pytest.approx(np.mean(expected), rel=1e-4)
        assert (record.n, record.missing, record.groups, record.iteration, record.model) == (3, 0, {}, 2, "ema")
        assert min(expected) * 0.999 <= record.low < record.value < record.high <= max(expected) * 1.001
    assert found["step_disagreement"].value > 1e-3


def test_as_many_steps_agree_with_themselves(make_config: Make, registry: Registry) -> None:
    """And there are never more prompts than there are."""
    config = make_config(evaluation={"prompts": 3, "samples_per_prompt": 2, "many_step": {"steps": 3}})
    found = of_steps(config, registry)
    disagreement = found["step_disagreement"]
    assert (
        0 <= disagreement.low <= disagreement.value <= disagreement.high < 1e-6
    )  # batches of another size round apart
    assert disagreement.n == 3
    assert found["many_step_sharpness"].value > 0.01


def test_samples_are_drawn_once_unless_it_is_asked_for(make_config: Make, registry: Registry) -> None:
    assert not set(STEPS) & of_steps(make_config(), registry).keys()
    asked = make_config(evaluation={"many_step": {"steps": 9}})
    assert not set(STEPS) & of_steps(asked, registry, many_step=False).keys()


def test_the_other_records_do_not_depend_on_the_many_step_samples(make_config: Make, registry: Registry) -> None:
    plain = of_steps(make_config(), registry)
    both = of_steps(make_config(evaluation={"many_step": {"steps": 9}}), registry)
    assert list(both) == [*plain, *STEPS]
    assert {name: both[name] for name in plain} == plain


@pytest.mark.parametrize("where", ["rollout", "evaluation"])
def test_random_samplers_have_no_many_step_samples(where: str, make_config: Make, registry: Registry) -> None:
    asked: dict[str, Any] = {"many_step": {"steps": 9}}
    if where == "rollout":
        config = make_config(rollout={"sampler": "flow-sde"}, evaluation=asked)
    else:
        config = make_config(evaluation=asked | {"sampler": "flow-sde"})
    with pytest.raises(UserError, match=r"evaluation\.many_step: .*evaluation sampler flow-sde is random; set eval"):
        of_steps(config, registry)
    mended = make_config(rollout={"sampler": "flow-sde"}, evaluation=asked | {"sampler": "flow-euler"})
    assert of_steps(mended, registry)["step_disagreement"].value > 0


def test_the_many_step_samples_can_be_interrupted(make_config: Make, registry: Registry) -> None:
    class Stop(Exception):
        pass

    config = make_config(rollout={"micro_batch": 2}, evaluation={"prompts": 4, "many_step": {"steps": 9}})
    engine = build_engine(config, registry)
    prompts = engine.load_prompts("heldout")
    calls = []

    def interrupt() -> None:
        calls.append(1)
        if len(calls) == 4:  # two micro-batches in few steps, two in many
            raise Stop

    with pytest.raises(Stop):
        Evaluator(
            rollout_sampler=engine.evaluation_rollout_sampler(), scorer=evaluation_scorer(engine, prompts),
            prompts=prompts,
            members=1, draws=Draws(5), many_step=ManyStepSolve.of(engine),
        ).evaluate("ema", 0, interrupt=interrupt)  # fmt: skip
    engine.close()


def test_what_failed_in_another_process_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """In the main process, which alone is heard; once, however often it is evaluated."""

    class Main(Processes):
        def all_gather_object(self, value: Any) -> list[Any]:
            return [value, ["r: it broke there"]]

    scorer = Scorer([Reward("r", 1.0, Table([0.0, 1.0]))])
    evaluator = Evaluator(
        rollout_sampler=cast(RolloutSampler, Numbered(3)), scorer=scorer, prompts=[Prompt("a"), Prompt("b")],
        members=1, draws=Draws(0),
        processes=Main(),
    )  # fmt: skip
    try:
        for _ in range(2):
            evaluator.evaluate("ema", 7)
    finally:
        scorer.close()
    reported = [record.getMessage() for record in caplog.records]
    assert reported == ["reward failed in another process: r: it broke there"]
    assert scorer.failure_of("r") == "r: it broke there"
