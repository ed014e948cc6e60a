"""`dgpo plugins`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

import dgpo_cli.plugins as plugins_module
from dgpo_core.hookspecs import KINDS, Component, hookimpl
from dgpo_core.plugins.declared import BrokenPlugin
from dgpo_core.plugins.registry import Registry
from dgpo_schemas.base import Float, Int, Options, Use

Run = Callable[..., Any]


class Inner(Options):
    """Nested."""

    depth: Int = Field(default=1, description="Depth.")


class Many(Options):
    """One option of each sort."""

    count: Int = Field(default=3, ge=1, le=9, description="How many.")
    share: Float | None = Field(default=None, gt=0, lt=1, description="Which share.")
    mode: Literal["a", "b"] = Field(default="a", description="Which mode.")
    only: Literal["x"] = Field(default="x", description="No choice.")
    names: list[str] = Field(default_factory=list, description="Names.")
    sizes: Annotated[list[Int], Field(min_length=1)] = Field(default=[1], description="Sizes.")
    detector: Use | None = Field(default=None, description="Detector.")
    label: str = Field(description="A label.")
    inner: Inner = Field(default_factory=Inner, description="Inner.")
    silent: bool = False
    extra: Any = Field(default=None, description="Anything.")


class Plugin:
    """A reward with many options, and a name that is taken."""

    @hookimpl
    def dgpo_rewards(self) -> Sequence[Component]:
        return [Component("many", "Has many options.", "nowhere:X", Many)]

    @hookimpl
    def dgpo_weightings(self) -> Sequence[Component]:
        return [Component("abs-advantage", "Also.", "nowhere:X")]


def test_the_list_is_a_table(dgpo: Run) -> None:
    done = dgpo("plugins", "list")
    assert (done.code, done.err) == (0, "")
    head, *rows = done.out.splitlines()
    assert head.split() == ["kind", "name", "from", "summary"]
    assert ["backbone", "toy", "toy", "2.0", "Toy", "velocity", "network"] in [row.split() for row in rows]
    kinds = [row.split()[0] for row in rows]
    assert kinds == sorted(kinds, key=list(KINDS).index)
    column = head.index("summary")
    assert all(row[column - 1] == " " and row[column] != " " for row in rows)


def test_one_kind(dgpo: Run) -> None:
    rows = dgpo("plugins", "list", "--kind", "reward").out.splitlines()[1:]
    assert [row.split()[1] for row in rows] == ["brightness", "win-rate"]
    done = dgpo("plugins", "list", "--kind", "rewrad")
    assert done.code == 2
    assert "--kind rewrad: unknown kind; did you mean reward? (kinds: backbone, sampler" in done.err


def test_what_does_not_work_is_reported_beside_the_list(dgpo: Run, known: Registry) -> None:
    known.register(Plugin(), distribution="other")
    known.broken.append(BrokenPlugin("bad", "point", "does not import"))
    done = dgpo("plugins", "list")
    assert done.code == 0
    assert "abs-advantage" not in done.out
    assert done.err.splitlines() == [
        "unusable: weighting abs-advantage is claimed by dgpo and other: uninstall one of them",
        "broken: bad (entry point point): does not import",
    ]
    record = json.loads(dgpo("plugins", "list", "--json").out)
    assert record["broken"] == [{"distribution": "bad", "entry_point": "point", "reason": "does not import"}]
    assert record["conflicts"] == [{"kind": "weighting", "name": "abs-advantage", "distributions": ["dgpo", "other"]}]
    assert ("reward", "many", "other") in {(p["kind"], p["name"], p["distribution"]) for p in record["components"]}


def test_every_option_is_shown_in_words(dgpo: Run, known: Registry) -> None:
    known.register(Plugin(), distribution="other", version="3")
    lines = [line.strip() for line in dgpo("plugins", "show", "many").out.splitlines()]
    assert lines[:3] == ["many (reward)", "Has many options.", "from other 3, nowhere:X"]
    for line in (
        "count: integer at least 1 and at most 9, default 3",
        "share: number greater than 0 and less than 1 or null, default null",
        'mode: one of a, b, default "a"',
        'only: "x", default "x"',
        "names: list of (string), default []",
        "sizes: list of (integer), default [1]",
        "detector: a component's name, or `use` with `options`, default null",
        "label: string, required",
        "extra: any value, default null",
        'inner: section, default {"depth": 1}',
        "silent: true or false, default false",
    ):
        assert line in lines
    assert lines[lines.index("label: string, required") + 1] == "A label."


def test_a_component_without_options(dgpo: Run) -> None:
    assert dgpo("plugins", "show", "dgpo").out.splitlines()[-1] == "  no options"


def test_a_name_of_two_kinds(dgpo: Run) -> None:
    assert dgpo("plugins", "show", "uniform").out.count("uniform (") == 2
    assert dgpo("plugins", "show", "uniform", "--kind", "timesteps").out.startswith("uniform (timesteps)")


def test_json_gives_the_options_schema(dgpo: Run) -> None:
    (component,) = json.loads(dgpo("plugins", "show", "brightness", "--json").out)["components"]
    assert component["implementation"] == "dgpo_kit.toy:BrightnessReward"
    assert component["options"]["properties"]["fail"]["enum"] == ["never", "raise", "dark"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["brihgtness"],
            "unknown component 'brihgtness'; did you mean brightness? (`dgpo plugins list` shows all)",
        ),
        (["brihgtness", "--kind", "reward"], "unknown reward 'brihgtness'; did you mean brightness? (installed: bri"),
        (
            ["geneval"],
            "unknown reward 'geneval'; it comes with dgpo-geneval; in a checkout of dgpo: pip install -e plugins/",
        ),
        (
            ["shapes"],
            "unknown detector 'shapes'; it comes with dgpo-miniature; in a checkout of dgpo: pip install -e plugins",
        ),
        (["x", "--kind", "y"], "--kind y: unknown kind"),
    ],
)
def test_unknown_names(dgpo: Run, arguments: list[str], expected: str) -> None:
    done = dgpo("plugins", "show", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(expected)


def test_a_claimed_name_cannot_be_shown(dgpo: Run, known: Registry) -> None:
    known.register(Plugin(), distribution="other")
    done = dgpo("plugins", "show", "abs-advantage")
    assert done.code == 2
    assert "'abs-advantage' is claimed by dgpo and other" in done.err


def test_a_terminal_gets_wrapped_summaries(dgpo: Run, known: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is wider than the terminal, and the words are those of the unwrapped list."""
    plain = dgpo("plugins", "list").out
    monkeypatch.setattr(plugins_module, "_terminal_width", lambda: 80)
    wrapped = dgpo("plugins", "list").out
    assert max(map(len, plain.splitlines())) > 80 >= max(map(len, wrapped.splitlines()))
    assert wrapped.split() == plain.split()
