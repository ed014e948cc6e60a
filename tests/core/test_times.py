"""Times that a run file leaves to the model: its shift, the range that it knows, where its noise begins; guidance."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dgpo_core.config.changes import changes
from dgpo_core.draws import Draws, normal_rows
from dgpo_core.errors import UserError
from dgpo_core.flow.schedules import only_one
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.engine import build_engine
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_core.types import Schedule
from dgpo_kit.given import prompts_of
from dgpo_kit.toy import SHAPE, ToyBackbone
from dgpo_schemas.run import RunConfig

Make = Callable[..., RunConfig]
LOW, HIGH = 0.02834, 0.93596


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives the toy a schedule, a range and a start of its own."""

    def change(
        schedule: Any = None, sigma_range: Any = None, start: Any = None, supports_guidance: bool = True
    ) -> None:
        if schedule is not None:
            monkeypatch.setattr(ToyBackbone, "schedule", lambda self, height, width, steps: schedule(steps))
        if sigma_range is not None:
            monkeypatch.setattr(ToyBackbone, "sigma_range", property(lambda self: sigma_range))
        if start is not None:
            monkeypatch.setattr(ToyBackbone, "start", lambda self, sigma: start(sigma))
        monkeypatch.setattr(ToyBackbone, "supports_guidance", property(lambda self: supports_guidance))

    return change


def noise_model(own: Any) -> None:
    """As of a variance-preserving model: an explicit grid from 0.92 down, within its range."""
    grid = {steps: tuple(torch.linspace(0.92, 0.1, steps, dtype=torch.float64).tolist()) for steps in range(1, 20)}
    own(
        schedule=lambda steps: Schedule(grid=(0.92, *grid[steps][1:]), first=0.92),
        sigma_range=(LOW, HIGH),
        start=lambda sigma: ((1 - sigma) ** 2 + sigma**2) ** 0.5,
    )


def test_auto_is_the_models_shift_and_a_number_takes_its_place(own: Any, make_config: Make, registry: Registry) -> None:
    own(schedule=lambda steps: Schedule(2.0 + steps, "even"))
    for shift, expected, shown in (("auto", 5.0, "5 (the model's own)"), (2.0, 2.0, "2")):
        config = make_config(rollout={"steps": 3, "shift": shift}, timesteps={"t_min": "shift(0.3)"})
        engine = Trainer(config, registry).build()
        sigmas = [expected * s / (1 + (expected - 1) * s) for s in (1, 2 / 3, 1 / 3)]
        assert engine.training_sigmas.tolist() == pytest.approx([*sigmas, 0.0])
        assert engine.times.training_range == pytest.approx((expected * 0.3 / (1 + (expected - 1) * 0.3), 1.0))
        assert engine.facts()["shift"] == shown
        path = next(engine.rollout_sampler().sample_groups(prompts_of(["a"]), 1, Draws(0), "base", keep_path=True)).path
        assert path is not None
        assert torch.equal(path.sigmas, engine.training_sigmas)


def test_a_run_says_which_times_it_had(own: Any, make_config: Make, registry: Registry) -> None:
    own(schedule=lambda steps: Schedule(5.0, "even"))
    config = make_config(rollout={"shift": "auto"}, timesteps={"t_min": "shift(0.3)"})
    Trainer(config, registry).train(max_iterations=1)
    said = json.loads((run_path(config) / "run.json").read_text())["times"]
    assert said["shift"] == 5.0
    assert (said["t_min"], said["t_max"]) == (pytest.approx(1.5 / 2.2), 1.0)
    assert said["sigmas"] == pytest.approx([1.0, 10 / 11, 5 / 7, 0.0])


def test_samples_begin_at_the_models_start(own: Any, make_config: Make, registry: Registry) -> None:
    def first(scale: float) -> torch.Tensor:
        own(start=lambda sigma: scale * sigma)
        engine = build_engine(make_config(), registry)
        drawn = next(
            engine.rollout_sampler().sample_groups(prompts_of(["a"], (8, 8)), 2, Draws(0), "base", keep_path=True)
        )
        assert drawn.path is not None
        return drawn.path.states[0]

    noise = normal_rows([Draws(0).at(0, i).at("noise") for i in range(2)], SHAPE, torch.device("cpu"))
    assert torch.equal(first(1.0), noise)
    assert torch.equal(first(0.75), 0.75 * noise)


def test_a_noise_prediction_model_trains_within_its_range(own: Any, make_config: Make, registry: Registry) -> None:
    noise_model(own)
    trainer = Trainer(make_config(rollout={"shift": "auto"}, timesteps={"t_min": 0.1}), registry)
    assert trainer.build().times.training_range == (0.1, HIGH)
    assert trainer.build().training_sigmas[0] == 0.92
    trainer.train(max_iterations=1)
    (line,) = (run_path(trainer.config) / "metrics.jsonl").read_text().splitlines()
    assert 0.1 <= json.loads(line)["t_min"] < json.loads(line)["t_max"] <= HIGH


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"timesteps": {"t_max": 0.95}},
            "timesteps.t_max: 0.95 (sigma 0.95) is too high: the backbone toy supports only times from 0.02834 to "
            "0.936; the nearest value is 0.9359",
        ),
        ({"timesteps": {"t_min": 0.01}}, "timesteps.t_min: 0.01 (sigma 0.01) is too low: "),
        ({"timesteps": {"t_min": 0.01}}, "the nearest value is 0.0284"),
        ({"timesteps": {"t_min": 0.94}}, "0.94 (sigma 0.94) must be below t_max = 0.936, the model's; 1 is noise"),
        ({"rollout": {"shift": 3.0}}, "rollout.shift: with 3, samples in 3 steps visit sigma 0.9718"),
        ({"rollout": {"shift": 3.0}}, "use a lower shift, or auto (here 1)"),
        (
            {"rollout": {"sampler": "flow-dpmpp", "steps": 19}, "evaluation": {"sampler": "flow-dpmpp"}},
            None,
        ),
        (
            {"rollout": {"sampler": "flow-dpmpp", "steps": 9}, "evaluation": {"steps": 19, "sampler": "flow-dpmpp"}},
            None,
        ),
    ],
)
def test_times_that_the_model_does_not_know(
    own: Any, make_config: Make, registry: Registry, change: dict[str, Any], message: str | None
) -> None:
    noise_model(own)
    if message is None:  # 0.92 / 19 is inside
        own(sigma_range=(0.06, HIGH))
        steps = "rollout.steps" if "steps" not in change["evaluation"] else "steps"
        message = (
            f"{steps}: 19 steps of this sampler visit sigma 0.04842, but the backbone toy supports only times from 0.06"
        )
    sections = {"rollout": {"shift": "auto"}, "timesteps": {"t_min": 0.1}}
    config = make_config(**{key: {**sections.get(key, {}), **change.get(key, {})} for key in {*sections, *change}})
    with pytest.raises(UserError, match=re.escape(message)):
        Trainer(config, registry).build()


def test_fewer_steps_are_named_where_they_help(own: Any, make_config: Make, registry: Registry) -> None:
    own(sigma_range=(0.1, 1.0))
    engine = build_engine(make_config(rollout={"sampler": "flow-dpmpp", "steps": 12}), registry)
    with pytest.raises(UserError, match="use at most 9 steps"):
        engine.rollout_sampler()
    own(sigma_range=(0.5, 0.6))
    with pytest.raises(UserError, match="use flow-euler, which follows the model's grid"):
        build_engine(make_config(rollout={"sampler": "flow-dpmpp", "shift": "auto"}), registry).rollout_sampler()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"rollout": {"guidance": 2.0}}, "rollout.guidance: 2"),
        ({"evaluation": {"guidance": 3.5}}, "evaluation.guidance: 3.5"),
        ({"prompts": {"heldout": None}, "evaluation": {"every": 0, "guidance": 3.5}}, "evaluation.guidance: 3.5"),
        ({"objective": {"kl_cfg": 4.5}}, "objective.kl_cfg: 4.5"),
    ],
)
def test_guidance_of_a_model_that_has_none(
    own: Any, make_config: Make, registry: Registry, change: dict[str, Any], key: str
) -> None:
    own(supports_guidance=False)
    expected = f"{key} is not possible: backbone: toy has no unconditional prediction for classifier-free guidance"
    with pytest.raises(UserError, match=re.escape(expected)):
        Trainer(make_config(**change), registry).build()
    Trainer(make_config(), registry).build()


def test_sizes_whose_paths_have_other_times() -> None:
    one, other = Schedule(1.5, "even"), Schedule(2.5, "even")
    only_one({(8, 8): one, (8, 16): one}, "flow-grpo")
    with pytest.raises(UserError) as caught:
        only_one({(8, 8): one, (8, 16): other}, "flow-grpo")
    assert str(caught.value) == (
        "objective: flow-grpo requires the same sampling times for all samples, but 8x8 (shift 1.5) and 8x16 "
        "(shift 2.5) differ in the model's schedule: set rollout.shift to a number, or use one size for all prompts, "
        "that of rollout.resolution"
    )
    with pytest.raises(UserError, match="schedule: use one size for all prompts"):
        only_one({(8, 8): one, (8, 16): Schedule(1.5, "scheduler")}, "flow-grpo")


def test_a_largest_time_of_1_is_what_no_setting_means(make_config: Make) -> None:
    """Runs of older versions have it in their config.yaml."""
    before, now = make_config(timesteps={"t_max": 1.0}), make_config()
    assert changes(before, now) == changes(now, before) == []
    assert [str(one) for one in changes(before, make_config(timesteps={"t_max": 0.9}))] == [
        "timesteps.t_max: 1.0 when it started, 0.9 now"
    ]
