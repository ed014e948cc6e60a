"""From an ablation file to its cells, and every mistake told before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgpo_adaptive_tmin import plugin as adaptive_tmin
from dgpo_baselines import plugin as baselines
from dgpo_core.plugins.registry import Registry
from dgpo_kit.toy import sizes_plugin
from dgpo_lab.ablation.pairing import unpaired
from dgpo_lab.ablation.plan import Plan, make_plan
from dgpo_schemas.problems import ConfigError

Write = Callable[..., Path]
FILE = """\
name: trial
base: run.yaml
seeds: 2
axes:
  - key: weighting
    values:
      - abs-advantage
      - uniform
"""


def plan(known: Registry, text: str = FILE) -> Plan:
    Path("ablation.yaml").write_text(text)
    return make_plan("ablation.yaml", known)


def refused(known: Registry, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        plan(known, text)
    return str(caught.value).splitlines()


def axes(*entries: Any, **keys: Any) -> str:
    """An ablation file in flow style: line 1 holds the axes."""
    data = {"axes": list(entries), "name": "trial", "base": "run.yaml", "seeds": 2} | keys
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=10_000)


@pytest.fixture(autouse=True)
def _base(write_run: Write) -> None:
    write_run()


def test_one_axis(known: Registry) -> None:
    found = plan(known)
    assert [v.name for v in found.variants] == ["abs-advantage", "uniform"]
    assert (found.baseline, found.reward, found.target) == ("abs-advantage", "brightness", None)
    cells = list(found.cells())
    assert [(c.variant, c.seed) for c in cells] == [
        ("abs-advantage", 0), ("uniform", 0), ("abs-advantage", 1), ("uniform", 1)
    ]  # fmt: skip
    last = cells[-1]
    assert last.path == Path("runs/trial/cells/uniform/seed-1")
    assert (last.config.weighting.use, last.config.run.seed, last.config.run.name) == ("uniform", 1, "seed-1")
    assert Path(last.config.run.output, last.config.run.name) == last.path


@pytest.fixture
def twins(known: Registry, gloom: object, film: object) -> Registry:
    """At least two components of every kind."""
    for name, plugin in (("gloom", gloom), ("film", film), ("sizes", sizes_plugin), ("times", adaptive_tmin)):
        known.register(plugin, distribution=name)
    if "awm" not in known.components("objective"):
        known.register(baselines, distribution="baselines")
    return known


def uses(known: Registry, key: str, *values: Any) -> list[Any]:
    """What the variants of an axis have at the key."""
    found = []
    for variant in plan(known, axes({"key": key, "values": list(values)})).variants:
        here: Any = variant.config
        for name in key.split("."):
            here = here[int(name)] if name.isdigit() else getattr(here, name)
        found.append(here)
    return found


@pytest.mark.parametrize(
    ("key", "names"),
    [("backbone", ["toy", "film"]), ("rollout.sampler", ["flow-euler", "flow-dpmpp"]),
     ("rewards.0", ["brightness", "gloom"]), ("weighting", ["uniform", "rank"]), ("objective", ["dgpo", "awm"]),
     ("timesteps", ["uniform", "scheduled-t-min"]), ("prompts.train", ["toy", "toy-sizes"]),
     ("evaluation.sampler", ["flow-euler", "flow-dpmpp"])],
)  # fmt: skip
def test_a_name_alone_is_a_component_of_every_kind(
    key: str, names: list[str], twins: Registry, write_run: Write
) -> None:
    write_run(evaluation={"rewards": [{"use": "brightness"}]})  # variants are compared by it, whatever they train on
    assert [block.use for block in uses(twins, key, *names)] == names


def test_a_name_alone_keeps_the_rest_of_its_section(twins: Registry, write_run: Write) -> None:
    write_run(
        timesteps={"count": 3, "t_min": 0.3, "use": "scheduled-t-min", "options": {"end": 0.4}},
        rewards=[{"use": "brightness", "options": {"scale": 0.5}, "weight": 2.0}],
        evaluation={"rewards": [{"use": "brightness"}]},
    )
    uniform, scheduled = uses(twins, "timesteps", "uniform", "scheduled-t-min")
    assert (uniform.count, uniform.options) == (3, {"weights": "none", "weights_power": 1.0})
    assert (scheduled.count, scheduled.t_min) == (3, 0.3)
    assert "end" not in uniform.options
    dark, bright = uses(twins, "rewards.0", "gloom", "brightness")
    assert (dark.use, dark.weight) == ("gloom", 2.0)
    assert bright.options["scale"] == 1.0
    one, several, full = uses(
        twins, "rewards", "gloom", ["brightness", "gloom"], [{"use": "brightness", "weight": 0.5}, "gloom"]
    )
    assert [block.use for block in one] == ["gloom"]
    assert [(block.use, block.weight) for block in several] == [("brightness", 1.0), ("gloom", 1.0)]
    assert [(block.use, block.weight) for block in full] == [("brightness", 0.5), ("gloom", 1.0)]


def test_names_in_variants_and_for_all(twins: Registry) -> None:
    found = plan(
        twins,
        axes(
            {"name": "times", "variants": {"plain": {}, "moving": {"timesteps": "scheduled-t-min"}}},
            set={"objective": "awm"},
        ),
    )
    assert [(v.config.timesteps.use, v.config.objective.use) for v in found.variants] == [
        ("uniform", "awm"), ("scheduled-t-min", "awm")
    ]  # fmt: skip
    (mistake,) = refused(twins, axes({"key": "timesteps", "values": ["uniform", "unifrom"]}))
    assert mistake.startswith("ablation.yaml:3 (axis timesteps, value unifrom): timesteps.use: ")
    assert "did you mean uniform?" in mistake
    file, generator = uses(twins, "prompts.train", "nothing.txt", "toy")
    assert (file.file, file.use, generator.use) == ("nothing.txt", None, "toy")


def test_a_product_and_one_at_a_time(known: Registry) -> None:
    two = [
        {"key": "weighting", "values": ["abs-advantage", {"use": "softmax", "options": {"temperature": 0.5}}]},
        {"name": "size", "variants": {"small": {}, "big": {"rollout.groups": 8, "optimizer.updates": 2}}},
    ]
    found = plan(known, axes(*two))
    assert [v.name for v in found.variants] == [
        "weighting=abs-advantage size=small", "weighting=abs-advantage size=big",
        "weighting=softmax temperature=0.5 size=small", "weighting=softmax temperature=0.5 size=big",
    ]  # fmt: skip
    last = found.variants[-1]
    assert last.axes == {"weighting": "softmax temperature=0.5", "size": "big"}
    assert last.slug == "weighting=softmax-temperature=0.5-size=big"
    assert (last.config.rollout.groups, last.config.optimizer.updates) == (8, 2)
    assert last.config.weighting.options["temperature"] == 0.5
    single = [
        {"key": "weighting", "values": ["uniform"]},
        {"key": "optimizer.learning_rate", "values": [0.02, "3e-3"]},
    ]
    found = plan(known, axes(*single, crossing="each", baseline="weighting=uniform"))
    assert [v.name for v in found.variants] == [
        "base", "weighting=uniform", "optimizer.learning_rate=0.02", "optimizer.learning_rate=0.003"
    ]  # fmt: skip
    assert [v.config.optimizer.learning_rate for v in found.variants] == [0.01, 0.01, 0.02, 0.003]
    assert found.baseline == "weighting=uniform"


def test_what_is_set_for_all(known: Registry) -> None:
    text = axes(
        {"key": "rewards.0.weight", "values": [1, 2]},
        set={"rollout.sampler": "flow-dpmpp", "evaluation.every": 1},
        stop={"iterations": 7, "seconds": 30, "samples": 99, "target": 0.8},
        threads=1,
        reward="brightness",
    )
    found = plan(known, text)
    for variant, weight in zip(found.variants, (1, 2), strict=True):
        config = variant.config
        assert config.rollout.sampler.use == "flow-dpmpp"
        assert (config.run.iterations, config.run.threads) == (7, 1)
        stop = config.stop
        assert (stop.seconds, stop.samples, stop.target, stop.reward) == (30, 99, 0.8, "brightness")
        assert config.rewards[0].weight == weight
    assert found.target == 0.8
    assert plan(known, axes({"key": "rewards.0.weight", "values": [1, 2]}, target=0.4,
                            set={"evaluation.every": 1})).target == 0.4  # fmt: skip


def test_every_mistake_names_line_axis_value_and_key(known: Registry) -> None:
    text = FILE.replace("- uniform", "- unifrom\n      - {use: softmax, options: {temprature: 1}}")
    first, second = refused(known, text)
    assert first.startswith(
        "ablation.yaml:8 (axis weighting, value unifrom): weighting: unknown weighting 'unifrom'; did you mean uniform?"
    )
    assert second == (
        "ablation.yaml:9 (axis weighting, value softmax temprature=1): weighting.options.temprature: unknown key; "
        "did you mean temperature?"
    )


@pytest.mark.parametrize(
    ("entry", "keys", "says"),
    [
        ({"key": "optimzer.learning_rate", "values": [1]}, {},
         "(axis optimzer.learning_rate, value 1): optimzer: unknown key; did you mean optimizer?"),
        ({"key": "rollout.group_sise", "values": [4]}, {},
         "(axis rollout.group_sise, value 4): rollout.group_sise: unknown key; did you mean group_size?"),
        ({"key": "rollout.group_size", "values": [4, "many"]}, {},
         "(axis rollout.group_size, value many): rollout.group_size: must be an integer, not 'many'"),
        ({"key": "rollout.group_size", "values": [4, 1]}, {},
         "(axis rollout.group_size, value 1): rollout.group_size: must be at least 2, got 1"),
        ({"key": "optimizer.learning_rate", "values": [True]}, {},
         "value true): optimizer.learning_rate: must be a number"),
        ({"key": "rewards.3.weight", "values": [1]}, {},
         "(axis rewards.3.weight, value 1): rewards.3.weight: rewards is a list; '3' is not one of its indices"),
        ({"key": "rollout..steps", "values": [1]}, {}, "must be a dotted key"),
        ({"key": "rollout.groups", "values": [4, 5]}, {"set": {"optimizer.updates": 2}},
         "optimizer.updates: 2 does not divide rollout.groups = 5"),
        ({"key": "run.seed", "values": [1, 2]}, {}, "run.seed cannot be set here: use `seeds` of the ablation"),
        ({"key": "run", "values": [{}]}, {}, "run cannot be set here"),
        ({"key": "run.iterations", "values": [1, 2]}, {"stop": {"iterations": 3}},
         "run.iterations cannot be set here: stop.iterations of the ablation sets it"),
        ({"key": "weighting", "values": ["uniform"]}, {"set": {"run.name": "x"}}, "set.run.name: run.name cannot"),
        ({"key": "optimizer.updates", "values": [1, 1.0]}, {},
         "two variants of axis 'optimizer.updates' have the name '1'"),
        ({"name": "x", "variants": {"a b": {}, "a-b": {"rollout.steps": 2}}}, {},
         "would share the directory a-b"),
        ({"name": "x", "variants": {"a": {}, "b": {"rollout.steps": 3}}}, {},
         "'b' is the same run as 'a'; leave one of the two out"),
        ({"key": "weighting", "values": ["abs-advantage"]}, {"crossing": "each"},
         "'abs-advantage' is the same run as 'base'; leave one of the two out"),
        ({"key": "weighting", "values": ["uniform"]}, {"baseline": "unifrom"},
         "baseline: there is no variant 'unifrom'; did you mean uniform? (there is uniform)"),
        ({"key": "weighting", "values": ["uniform"]}, {"reward": "brightnes"},
         "reward: 'brightnes' is not evaluated by variant 'uniform', which has brightness; did you mean brightness?"),
        ({"key": "weighting", "values": ["uniform"]}, {"target": 0.5, "set": {"evaluation.every": 0}},
         "target: is looked for at evaluations: set evaluation.every, which is 0 in variant 'uniform'"),
        ({"key": "weighting", "values": ["uniform"]}, {"stop": {"target": 0.5}, "set": {"evaluation.every": 0}},
         "(stop): stop.target: is checked only at evaluations, but evaluation.every is 0"),
        ({"key": "weighting", "values": ["uniform"]}, {"set": {"prompts.heldout": None, "evaluation.every": 0}},
         "there is nothing to compare without held-out prompts"),
        ({"key": "weighting", "values": ["uniform"]}, {"base": "rum.yaml"},
         "base: rum.yaml: no such file"),
        ({"key": "run.iterations", "values": list(range(1, 1500))}, {},
         "1499 variants with 2 seeds are 2,998 runs, more than 2,000"),
    ],
)  # fmt: skip
def test_bad_input(known: Registry, entry: dict[str, Any], keys: dict[str, Any], says: str) -> None:
    lines = refused(known, axes(entry, **keys))
    assert any(says in line for line in lines), lines
    assert all(line.startswith("ablation.yaml:") for line in lines)
    assert not Path("runs").exists()


def test_two_axes_of_one_name(known: Registry) -> None:
    (line,) = refused(known, axes({"key": "rollout.steps", "values": [1]}, {"key": "rollout.steps", "values": [2]}))
    assert "two axes are called 'rollout.steps'" in line


def test_a_mistake_of_the_base_is_reported_once_and_as_its_own(known: Registry, write_run: Write) -> None:
    write_run(rollout={"stepps": 3})
    (line,) = refused(known, FILE)
    assert line.startswith("run.yaml:")
    assert "rollout.stepps: unknown key; did you mean steps?" in line


def test_a_variant_that_breaks_a_rule_elsewhere_is_named(known: Registry, write_run: Write) -> None:
    write_run(optimizer={"updates": 2})
    (line,) = refused(known, axes({"key": "rollout.groups", "values": [4, 5]}))
    assert line.startswith("ablation.yaml:3 (variant 5): optimizer.updates: 2 does not divide rollout.groups = 5")
    assert "(set in run.yaml:" in line


def test_where_pairing_ends_is_reported(known: Registry) -> None:
    assert unpaired(plan(known).variants) == []
    assert unpaired(plan(known, axes({"key": "optimizer.learning_rate", "values": [1, 2]})).variants) == []
    (size,) = unpaired(plan(known, axes({"key": "rollout.group_size", "values": [4, 6]})).variants)
    assert size.startswith("rollout.group_size: the group size differs: groups share prompts and the noise of their")
    found = plan(known, axes({"key": "rollout.sampler", "values": ["flow-euler", "flow-dpmpp"]}))
    (sampler,) = unpaired(found.variants)
    assert "initial noise is the same" in sampler
