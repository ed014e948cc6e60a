"""Names of dgpo 0.1: which they are, and what rewriting a file keeps."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dgpo_core.config.migration.names import rename
from dgpo_core.config.migration.rewriting import rewrite
from dgpo_core.config.migration.table import REWARD_OPTIONS, RUN, SERVICE
from dgpo_core.config.reading import kind_of
from dgpo_schemas.loading import parse_yaml
from dgpo_schemas.problems import ConfigError


def migrated(text: str) -> str:
    """A text with the new names; writing it again changes nothing."""
    new = rewrite(text, "run.yaml", lambda document: kind_of(document) or "run").text
    again = rewrite(new, "run.yaml", lambda document: kind_of(document) or "run")
    assert (again.text, again.changes) == (new, [])
    return new


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        migrated(text)
    return str(caught.value)


def nested(path: str, value: Any) -> dict[str, Any]:
    """A value at a dotted path."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def data_of(text: str) -> Any:
    return parse_yaml(text, "run.yaml").data


# -- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [*RUN.keys.items()])
def test_every_key_of_a_run_file(old: str, new: str) -> None:
    text = yaml.safe_dump(nested(old, {"x": 1}))
    assert data_of(migrated(text)) == nested(new, {"x": 1})
    setting = f"base: run.yaml\nset: {{{old}.x: 1}}\n"
    assert data_of(migrated(setting))["set"] == {f"{new}.x": 1}


@pytest.mark.parametrize(
    ("path", "old", "new"), [(path, *names) for path, values in RUN.values.items() for names in values.items()]
)
def test_every_value_of_a_run_file(path: str, old: str, new: str) -> None:
    assert data_of(migrated(yaml.safe_dump(nested(path, old)))) == nested(path, new)
    assert data_of(migrated(f"base: b\nset: {{{path}: {old}}}\n"))["set"] == {path: new}
    assert data_of(migrated(f"base: b\naxes: [{{key: {path}, values: [{old}, other]}}]\n"))["axes"] == [
        {"key": path, "values": [new, "other"]}
    ]


@pytest.mark.parametrize(("old", "new"), [*SERVICE.keys.items()])
def test_every_key_of_a_service(old: str, new: str) -> None:
    service = {"host": "127.0.0.1"}
    assert data_of(migrated(yaml.safe_dump(service | nested(old, 1)))) == service | nested(new, 1)


@pytest.mark.parametrize(
    ("reward", "option", "old", "new"),
    [
        (reward, str(option), *names)
        for reward, options in REWARD_OPTIONS.items()
        for option, values in options.items()
        for names in values.items()
    ],
)
def test_every_option_of_a_reward(reward: str, option: str, old: str, new: str) -> None:
    def block(value: str, use: str = reward) -> dict[str, Any]:
        return {"use": use, "options": {option: value}}

    for where in ("rewards", "evaluation.rewards", "evaluation.monitors.rewards"):
        data = nested(where, [block(old), block(old, "another")])
        assert data_of(migrated(yaml.safe_dump(data))) == nested(where, [block(new), block(old, "another")])
    assert data_of(migrated(yaml.safe_dump({"reward": block(old)}))) == {"reward": block(new)}
    assert data_of(migrated(yaml.safe_dump(block(old)))) == block(new)
    key = f"rewards.0.options.{option}"
    assert data_of(migrated(f"base: b\nset: {{{key}: {old}}}\n"))["set"] == {key: new}


def test_the_issue_of_each_name_is_in_the_table() -> None:
    """What was renamed between the versions, from the record of that decision."""
    assert set(RUN.keys) == {
        "optimiser", "objective.switch", "objective.ema.fast", "objective.ema.slow", "evaluation.view",
        "evaluation.pictures", "evaluation.finer", "evaluation.guards", "evaluation.monitors.bands",
        "evaluation.monitors.tolerances.finer_sharpness",
    }  # fmt: skip
    assert RUN.values["evaluation.model"] == {"old": "ema_fast", "slow": "ema"}


# -- what stays -------------------------------------------------------------------------------------------------------


def test_a_half_renamed_file() -> None:
    text = "evaluation:\n  monitors: {bands: {finer_sharpness: 1}}\n  model: slow\n"
    assert migrated(text) == ("evaluation:\n  monitors: {tolerances: {many_step_sharpness: 1}}\n  model: ema\n")


def test_new_names_that_were_old_ones() -> None:
    text = "objective: {ema: {decay: 0.5}, ema_fast: {ramp: 0.1}, reference: ema_fast}\nevaluation: {model: ema}\n"
    assert migrated(text) == text


BLOCK = """\
# of the file
objective:   # of the section
  switch: 500                # of switch
  "ema":                     # of both
    # before fast

    'fast': {max_decay: 0.3}   # of fast
    slow:                    # of slow
      decay: 0.9             # of decay,
                             # continued
      every: 8
      # below every

    # below slow
  kl: 0.5   # of kl
"""
LIFTED = """\
# of the file
objective:   # of the section
  ema_rollouts_after: 500    # of switch
  # of both
  # before fast

  'ema_fast': {max_decay: 0.3} # of fast
  ema:                       # of slow
    decay: 0.9               # of decay,
                             # continued
    every: 8
    # below every

  # below slow
  kl: 0.5   # of kl
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_comments_blank_lines_and_columns(newline: str) -> None:
    new = migrated(BLOCK.replace("\n", newline))
    assert new.replace(newline, "\n") == LIFTED.replace("{max_decay: 0.3} #", "{max_decay: 0.3}  #")
    assert ("\r" in new) == ("\r" in newline)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ema: {slow: {decay: 0.9, every: 1}}", "ema: {decay: 0.9, every: 1}"),
        ("ema: {fast: {ramp: 1}}", "ema_fast: {ramp: 1}"),
        ("ema: { slow: {decay: 0.9} }  # c", "ema: {decay: 0.9}   # c"),
        ("ema: {slow: {every: 1}, fast: {ramp: 1}}  # c", "ema: {every: 1}\n  ema_fast: {ramp: 1} # c"),
        ("ema: {fast: {ramp: 1},  # f\n        slow: {every: 1}}  # s",
         "ema_fast: {ramp: 1}  # f\n  ema: {every: 1} # s"),
        ("ema: {\n    slow: {every: 1}  # s\n  }", "ema: {every: 1}  # s"),
        ("ema: &e {slow: {every: 1}}", "ema: &e {every: 1}"),
        ("'ema': {\"slow\": {every: 1}}", "'ema': {every: 1}"),
        ("ema:\n      slow:\n        every: 1", "ema:\n    every: 1"),
        ("ema:\n   slow: {every: 1,\n      decay: 0.5}", "ema: {every: 1,\n     decay: 0.5}"),
        ("ema: {}", "ema: {}"),
        ("ema: null", "ema: null"),
    ],
)  # fmt: skip
def test_ways_to_write_both_averages(old: str, new: str) -> None:
    found = migrated(f"objective:\n  kl: 1\n  {old}\n  beta: 2\n")
    assert re.sub(" +#", " #", found) == re.sub(" +#", " #", f"objective:\n  kl: 1\n  {new}\n  beta: 2\n")


def test_json_with_tabs() -> None:
    text = '{\n\t"objective": {"ema": {"fast": {"ramp": 1}, "slow": {"every": 1}}, "kl": 1},\n\t"optimiser": {}\n}'
    assert migrated(text) == (
        '{\n\t"objective": {"ema_fast": {"ramp": 1}, "ema": {"every": 1}, "kl": 1},\n\t"optimizer": {}\n}'
    )


def test_aliases_and_merged_mappings() -> None:
    text = """\
base: run.yaml
axes:
  - name: rate
    variants:
      low: &low {optimiser.learning_rate: 1, objective: &o {switch: null, ema: {slow: &s {every: 1}}}}
      high: {<<: *low, optimiser.betas: [0, 1]}
      same: {objective: *o, objective.ema.slow: *s}
"""
    new = migrated(text)
    assert new.split("low: ")[1].split("\n") == [
        "&low {optimizer.learning_rate: 1, objective: &o {ema_rollouts_after: null, ema: &s {every: 1}}}",
        "      high: {<<: *low, optimizer.betas: [0, 1]}",
        "      same: {objective: *o, objective.ema: *s}",
        "",
    ]


def test_an_axis_whose_values_are_sections() -> None:
    text = "base: b\naxes:\n- key: objective\n  values:\n  - ema:   # of both\n      slow: {every: 1}\n    kl: 1\n"
    text += "  - ema:\n      fast: {ramp: 1}\n"
    assert migrated(text).split("values:\n")[1] == (
        "  - # of both\n    ema: {every: 1}\n    kl: 1\n  - ema_fast: {ramp: 1}\n"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimiser: {}\noptimizer: {}\n",
         r"run.yaml:2: optimizer: the file has this key twice, with its old and its new name \(optimizer\)"),
        ("objective: {ema: {slow: {}, decay: 1}}\n", r"objective.ema.decay: stands beside fast or slow"),
        ("objective: {ema: {fast: {}}, ema_fast: {}}\n", r"objective.ema_fast: the file has this key twice"),
        ("objective: {ema: &e {fast: {}, slow: {}}}\n", r"objective.ema: has the anchor &e"),
        ("evaluation: &e {view: slow}\nprompts: *e\n", r"run.yaml: cannot be rewritten, probably because an alias"),
        ("objective:\n  x: &s {fast: {}, slow: {}}\n  ema: *s\n", r"objective.ema: is an alias or has `<<`"),
        ("base: b\nset: {objective.ema: {slow: {}}}\n", r"run.yaml:2: set.objective.ema: sets both averages"),
        ("base: b\naxes: [{key: objective.ema, values: [{slow: {}}]}]\n", r"axes.0.values.0: sets both averages"),
        ("optimiser: {}\noptimiser: {}\n", r"run.yaml:2: optimiser: duplicate key, first used in line 1"),
        ("optimiser: [\n", r"run.yaml:2: not YAML"),
        ("optimiser\n", r"run.yaml:1: must be a mapping"),
        ("evaluation:\n  view: |\n    slow\n", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_rewritten(text: str, expected: str) -> None:
    if expected:
        assert re.search(expected, refusal(text))
    else:
        assert migrated(text) == text.replace("view", "model")  # "slow\n" never was a value


# -- any file ---------------------------------------------------------------------------------------------------------

COMMENTS = st.sampled_from(["", "", "  # note", " # 'quoted' {", "       # far"])
BETWEEN = st.sampled_from(["", "", "\n", "# line\n", "    # deep\n"])
LEAVES: dict[str, Any] = {
    "objective.switch": st.sampled_from(["null", "200"]),
    "objective.reference": st.sampled_from(["ema", "'ema'", "frozen"]),
    "evaluation.view": st.sampled_from(["old", "slow", '"slow"', "policy"]),
    "evaluation.pictures": st.just("4"),
    "evaluation.finer": st.sampled_from(["null", "{steps: 64}", "\n    steps: 64"]),
    "evaluation.guards": st.sampled_from(["{bands: {motion: 1}}", "\n    bands:\n      finer_sharpness: 0.5"]),
    "scoring.aggregation": st.sampled_from(["group-normalised", "sum"]),
    "optimiser.micro_batch": st.just("8"),
}
EMA = st.sampled_from([
    "{slow: {every: 1}}", "{fast: {ramp: 1}, slow: {every: 1}}", "\n    slow: {every: 1}", "\n    fast:\n      ramp: 1",
    "\n      fast: {ramp: 1}   # f\n      # s\n      slow:\n          every: 1 # e", "{}",
])  # fmt: skip


@st.composite
def run_files(draw: st.DrawFn) -> str:
    """A run file with some of the old names, in some order, with comments."""
    keys = draw(st.lists(st.sampled_from([*LEAVES, "objective.ema", "objective.kl"]), unique=True, min_size=1))
    sections: dict[str, list[str]] = {}
    for key in keys:
        section, _, name = key.partition(".")
        value = draw(EMA if name == "ema" else LEAVES.get(key, st.just("0.1")))
        text = draw(BETWEEN) + f"  {name}:{'' if value.startswith(chr(10)) else ' '}{value}{draw(COMMENTS)}\n"
        sections.setdefault(section, []).append(text)
    text = "".join(f"{name}:{draw(COMMENTS)}\n{''.join(lines)}{draw(BETWEEN)}" for name, lines in sections.items())
    return text if draw(st.booleans()) else text.replace("\n", "\r\n").removesuffix("\r\n")


def comments(text: str) -> Counter[str]:
    return Counter(re.findall(r"(?:^|(?<=\s))#[^\r\n]*", text))


@settings(max_examples=150, deadline=None)
@given(run_files())
@example("objective:\n  ema: # a\n    slow: {every: 1}   # b\n")
def test_any_file(text: str) -> None:
    new = migrated(text)
    assert data_of(new) == rename(data_of(text), "run").data
    assert not rename(data_of(new), "run").changes
    assert comments(new) == comments(text)
    assert new.count("\n\n") >= text.count("\n\n") or "ema:" in text
    assert new.endswith("\n") == text.endswith("\n")


def test_the_frozen_files_have_old_names() -> None:
    directory = Path(__file__).parents[1] / "cli" / "migration"
    old = [file.name for file in directory.rglob("*.yaml") if migrated(file.read_text()) != file.read_text()]
    assert len(old) > 20
