"""`dgpo validate --explain`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from dgpo_cli.explain import _Table, explained
from dgpo_core.config.keys import Keys, KnownKey, keys_in, keys_of_file
from dgpo_core.plugins.registry import Registry
from dgpo_kit.toy import run_data
from dgpo_schemas.annotations import items_of, models_of
from dgpo_schemas.changes import effect_of
from dgpo_schemas.keys import Key, keys_of
from dgpo_schemas.run import RunConfig

Run = Callable[..., Any]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy run file in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump(run_data("runs")))
    return Path("run.yaml")


def line_of(file: Path, section: str, key: str) -> int:
    """The line of a key in a section of a file without nested keys of that name."""
    lines = file.read_text().splitlines()
    start = lines.index(f"{section}:")
    return next(i for i, line in enumerate(lines[start:], start + 1) if line.strip().startswith(f"{key}:"))


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a model, found by its annotations and not by its JSON Schema."""
    for name, field in model.model_fields.items():
        yield prefix + name, field
        for inner in models_of(field.annotation):
            yield from fields(inner, f"{prefix}{name}.")
        for item in items_of(field.annotation):
            for inner in models_of(item):
                yield from fields(inner, f"{prefix}{name}.0.")


def words(text: str) -> str:
    return " ".join(text.split())


def test_every_key_of_a_run_file_in_80_columns(registry: Registry) -> None:
    keys = dict(fields(RunConfig))
    assert len(keys) > 150
    lines = list(explained(list(keys), None, (), None, registry))
    assert max(map(len, lines)) <= 80
    entries = {block[0].split(" ")[0]: block for block in _entries(lines) if block[0].endswith("(key of a run file)")}
    for name, field in keys.items():
        text = words(" ".join(entries[name]))
        assert words(field.description or "")[:60] in text, name
        assert ("default: none, the key is required" in text) == field.is_required(), name
        said = {"fixed": "fixed: ", "any time": "any time", "from there on": "from the resumed"}[effect_of(name)]
        inner = any(other.startswith(f"{name}.") for other in keys) or name.endswith(".options")
        assert f"on resume: {said}" in re.sub("may change(; results differ| at)? ", "", text) or inner, name


def _entries(lines: list[str]) -> Iterator[list[str]]:
    """The blocks of lines that begin with a key at the left margin."""
    block: list[str] = []
    for line in lines:
        if line and not line.startswith(" ") and block:
            yield block
            block = []
        block.append(line)
    yield block


def test_a_key_without_a_file(dgpo: Run) -> None:
    done = dgpo("validate", "--explain", "rollout.group_size")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "rollout.group_size (key of a run file)",
        "  Group size G: number of samples per prompt.",
        "  type:      integer, ≤ 10000",
        "  default:   24",
        "  on resume: fixed: a resumed run must have the same value",
    ]


def test_where_a_file_sets_a_key(dgpo: Run, file: Path) -> None:
    """By the file, by a preset, on the command line, and by none of them."""
    mine = Path("mine.yaml")
    mine.write_text("# more\noptimizer: {updates: 2}\n")
    given = ["--preset", mine, "--set", "rollout.groups=2"]
    names = ["optimizer.learning_rate", "optimizer.updates", "rollout.groups", "optimizer.schedule", "rollout.sampler"]
    done = dgpo("validate", file, *given, *(word for name in names for word in ("--explain", name)))
    assert (done.code, done.err) == (0, "")
    entries = dict(zip(names, (words(" ".join(block)) for block in _entries(done.out.splitlines())), strict=True))
    assert entries["optimizer.learning_rate"].endswith(
        f"here: 0.01, set in {file}:{line_of(file, 'optimizer', 'learning_rate')}"
    )
    assert entries["optimizer.updates"].endswith(f"here: 2, set by the preset {mine} ({mine}:2)")
    assert entries["rollout.groups"].endswith("here: 2, set by --set rollout.groups=2")
    assert entries["optimizer.schedule"].endswith("default: constant on resume: may change; results differ from the "
                                                  "resumed iteration on here: not set, so the default")  # fmt: skip
    assert f"here: flow-euler, set in {file}:{line_of(file, 'rollout', 'sampler')}" in entries["rollout.sampler"]


def test_a_section_lists_its_keys_one_a_line(dgpo: Run, file: Path) -> None:
    done = dgpo("validate", file, "--explain", "optimizer")
    lines = done.out.splitlines()
    number = file.read_text().splitlines().index("optimizer:") + 1
    assert lines[:3] == ["optimizer", "  AdamW optimizer.", f"  here:      set in {file}:{number}"]
    table = lines[lines.index("") + 1 :]
    assert table[0].split() == ["key", "value", "set", "by", "meaning"]
    from dgpo_schemas.sections.training import OptimizerSection

    assert [line.split()[0] for line in table[1:]] == list(OptimizerSection.model_fields)
    assert re.match(rf"  learning_rate  +0\.01  +line {number + 1}  +Peak learning rate\.", table[1])
    assert max(map(len, lines)) <= 80


def test_lists_and_their_items(dgpo: Run, file: Path) -> None:
    for name in ("rewards", "rewards.0"):
        out = dgpo("validate", file, "--explain", name).out
        assert re.search(r"^  use  +brightness  +line \d+ ", out, re.MULTILINE), out
        assert re.search(r"^  weight  +1\.0  +Weight of this", out, re.MULTILINE), out


def test_options_are_those_of_the_components_in_the_file(dgpo: Run, file: Path) -> None:
    done = dgpo("validate", file, "--set", "rewards.0.options.scale=2", "--explain", "rewards.0.options.scale")
    assert done.out.splitlines() == [
        "rewards.0.options.scale (option of reward brightness)",
        "  Factor of the brightness.",
        "  type:      number",
        "  default:   1.0",
        "  on resume: fixed: a resumed run must have the same value",
        "  here:      2, set by --set rewards.0.options.scale=2",
    ]
    section = dgpo("validate", file, "--explain", "rewards.0.options").out
    assert [line.split()[0] for line in section.split("meaning\n")[1].splitlines()] == ["scale", "fail"]
    other = dgpo("validate", file, "--set", "rewards.0.use=win-rate", "--explain", "rewards.0.options.scale")
    assert other.code == 2
    assert "--explain rewards.0.options.scale: unknown key" in other.err


def test_options_of_defaults_too(dgpo: Run, file: Path) -> None:
    """A timestep policy that the file does not name."""
    data = yaml.safe_load(file.read_text())
    assert "use" not in data["timesteps"]
    found = dgpo("validate", file, "--explain", "timesteps.options")
    assert (found.code, found.err) == (0, "")
    assert dgpo("validate", file, "--explain", "weighting.use").out.startswith("weighting.use\n")


def test_options_of_any_component_without_a_file(dgpo: Run, known: Registry, gloom: object) -> None:
    """Components with the same option are named together."""
    known.register(gloom, distribution="gloom")
    done = dgpo("validate", "--explain", "rewards.0.options.scale")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0] == "rewards.0.options.scale (option of reward brightness, reward gloom)"


def test_options_in_options(registry: Registry) -> None:
    """With the file of the quickstart, whose reward has a detector."""
    quickstart = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
    data = yaml.safe_load(quickstart.read_text())
    data["rewards"][0]["options"]["detector"] = {"use": "mask2former"}
    found = keys_in("run", data, registry).find("rewards.0.options.detector.options.side")
    assert [known.owners for known in found] == [("detector mask2former",)]
    assert not keys_in("run", yaml.safe_load(quickstart.read_text()), registry).find(
        "rewards.0.options.detector.options.side"
    )


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("rollout.group_sise", "rollout.group_size"),
        ("group_size", "rollout.group_size"),
        ("optimizer.lerning_rate", "optimizer.learning_rate"),
        ("rewards.0.wieght", "rewards.0.weight"),
        ("rolout.steps", "rollout.steps"),
        ("guidnace", "rollout.guidance"),
    ],
)
def test_an_unknown_key_has_the_nearest(dgpo: Run, file: Path, key: str, near: str) -> None:
    for place in ([], [file]):
        done = dgpo("validate", *place, "--explain", key, "--explain", "rollout.steps")
        assert (done.code, done.out) == (2, "")
        (line,) = done.err.splitlines()
        assert line.startswith(f"--explain {key}: unknown key; did you mean ")
        assert near in line.partition("did you mean ")[2].rstrip("?").split(" or ")


def test_all_unknown_keys_are_reported_at_once(dgpo: Run) -> None:
    done = dgpo("validate", "--explain", "xyzzy.q", "--explain", "rollout.step")
    assert done.code == 2
    first, second = done.err.splitlines()
    assert first.startswith("--explain xyzzy.q: unknown key; allowed: run, backbone, prompts, rollout, ")
    assert second.startswith("--explain rollout.step: unknown key; did you mean rollout.steps")


def test_other_kinds_of_files(dgpo: Run, file: Path) -> None:
    """Reward files and ablation files, with a file and without one."""
    service = file.with_name("service.yaml")
    service.write_text("reward: {use: brightness, options: {scale: 3}}\nport: 80\n")
    done = dgpo("validate", service, "--explain", "port", "--explain", "reward.options.scale")
    assert done.code == 0
    assert f"here:      80, set in {service}:2" in done.out
    assert f"here:      3, set in {service}:1" in done.out
    assert "on resume" not in done.out
    assert dgpo("validate", "--explain", "queue").out.startswith("queue (key of a reward file)\n")
    both = dgpo("validate", "--explain", "stop").out
    assert "stop (key of a run file)\n" in both
    assert "stop (key of an ablation file)\n" in both


def test_a_file_with_mistakes_is_explained(dgpo: Run, file: Path) -> None:
    """That is when one asks."""
    file.write_text(file.read_text().replace("groups: 4", "groups: many"))
    done = dgpo("validate", file, "--explain", "rollout.groups")
    assert done.code == 0
    assert f"here:      many, set in {file}:{line_of(file, 'rollout', 'groups')}" in done.out


def test_what_cannot_be_explained(dgpo: Run, tmp_path: Path) -> None:
    assert dgpo("validate", tmp_path / "no.yaml", "--explain", "run").err == f"{tmp_path}/no.yaml: no such file\n"
    assert dgpo("validate", "--explain", "run", "--set", "a=1").err == "--set: requires a run file\n"


@pytest.mark.parametrize("index", ["9" * 5000, "\N{ARABIC-INDIC DIGIT ZERO}", "\N{SUPERSCRIPT TWO}"], ids=ascii)
def test_what_is_no_index_is_an_unknown_key(dgpo: Run, file: Path, index: str) -> None:
    for place in ([], [file]):
        done = dgpo("validate", *place, "--explain", f"rewards.{index}.weight")
        assert (done.code, done.out) == (2, "")
        assert "unknown key; did you mean rewards.0.weight" in done.err


def test_an_item_that_is_not_in_the_list(dgpo: Run, file: Path) -> None:
    assert "here:      not set, so the default" in dgpo("validate", file, "--explain", "rewards.0.weight").out
    for name in ("rewards.1.weight", "rewards.7"):
        assert "here:      not there, the list has 1 item\n" in dgpo("validate", file, "--explain", name).out


def test_an_unknown_key_is_shown_in_one_line(dgpo: Run) -> None:
    done = dgpo("validate", "--explain", "run.name\n\x1b[31m" + "x" * 5000)
    (line,) = done.err.splitlines()
    assert line.startswith("--explain run.name\\n\\x1b[31mxxx")
    assert len(line) < 300


def test_a_description_of_several_lines_is_joined() -> None:
    key = Key("run.x", "integer", "1", required=False, description="First\nand \x1b[31m second\tline.")
    table = _Table("run", Keys(iter([KnownKey(key, None), KnownKey(replace(key, name="run"), None)])), None, {})
    for name in ("run.x", "run"):
        lines = list(table.entry(name, table.keys.find(name)[0]))
        assert "  First and \\x1b[31m second line." in lines
    assert lines[-1] == "  x    1        First and \\x1b[31m second line."


def test_defaults_that_a_factory_makes() -> None:
    """JSON Schemas leave them out."""
    keys = {key.name: key for key in keys_of(RunConfig)}
    assert keys["logging.tags"].default == "[]"
    assert keys["backbone.options"].default == "{}"
    assert keys["rollout"].default is None
    for name, field in fields(RunConfig):
        factory = field.default_factory
        if name.replace(".0.", ".N.") not in keys:
            assert name.rpartition(".")[2] in ("use", "options"), "keys of a `use` block"
        elif factory is not None and not (isinstance(factory, type) and issubclass(factory, BaseModel)):
            assert keys[name.replace(".0.", ".N.")].default == str(factory()), name


def test_use_blocks_have_their_keys() -> None:
    keys = keys_of_file("run")
    assert list(keys.below("rollout.sampler")) == ["use", "options"]
    assert list(keys.below("evaluation.monitors.rewards.0")) == list(keys.below("rewards.3"))
