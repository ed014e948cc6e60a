"""Plan an ablation: build and check the run file of every cell before anything runs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_core.config.migration.refusing import refuse
from dgpo_core.config.pipeline import run_config_of
from dgpo_core.config.reading import read
from dgpo_core.config.settings import apply_settings
from dgpo_lab.ablation.names import written_out
from dgpo_schemas.ablation import RESERVED, AblationConfig
from dgpo_schemas.loading import Document, Position, load_yaml, validate
from dgpo_schemas.problems import ConfigError, KeyPath, Problem, nearest
from dgpo_schemas.run import RunConfig

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry

__all__ = ["BASE", "Cell", "Plan", "Variant", "make_plan"]

BASE = "base"
"""The variant of `crossing: each` that changes no axis."""
MAX_CELLS = 2000


@dataclass(frozen=True)
class Variant:
    """A choice for every axis. axes: label of the value, by axis; config: the configuration without the seed."""

    name: str
    axes: Mapping[str, str]
    config: RunConfig

    @property
    def slug(self) -> str:
        """Name of the directory."""
        return slug_of(self.name)


def slug_of(name: str) -> str:
    """Convert a variant's name to a directory name; long names are cut and end with a digest."""
    slug = re.sub(r"[^A-Za-z0-9._=,+-]+", "-", name).strip("-.") or "variant"
    return slug if len(slug) <= 100 else f"{slug[:90]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Cell:
    """A variant with a seed: one run, in the directory `path`."""

    variant: str
    seed: int
    path: Path
    config: RunConfig

    @property
    def label(self) -> str:
        """Name of the cell in messages."""
        return f"{self.variant}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """A checked ablation. reward: the deciding reward; baseline: the variant that others are compared with."""

    ablation: AblationConfig
    variants: Sequence[Variant]
    reward: str
    baseline: str
    found: Path | None = None
    """The directory that the plan was read from, which may have been moved."""

    @property
    def path(self) -> Path:
        """The ablation's directory."""
        return self.found or Path(self.ablation.output) / self.ablation.name

    @property
    def target(self) -> float | None:
        """The target score: seconds and samples to reach it are compared."""
        return self.ablation.stop.target if self.ablation.target is None else self.ablation.target

    def cells(self) -> Iterator[Cell]:
        """Yield the cells seed by seed, so that finished cells can be compared early."""
        for seed in self.ablation.seeds:
            for variant in self.variants:
                where = self.path / "cells" / variant.slug
                run = variant.config.run.model_copy(update={"name": f"seed-{seed}", "output": str(where), "seed": seed})
                config = variant.config.model_copy(update={"run": run})
                yield Cell(variant.name, seed, where / run.name, config)


@dataclass(frozen=True)
class _Choice:
    """A value of an axis: its label, its settings, and its place in the ablation file."""

    axis: str
    label: str
    settings: Mapping[str, Any]
    path: KeyPath


def make_plan(file: str | Path, registry: Registry) -> Plan:
    """Read an ablation file and build every variant's run file.

    Raises ConfigError with all mistakes in the file's keys, in the base and in the axis values, with the line of the
    ablation file, the axis, the value and the key.
    """
    document = read(file, "ablation")
    ablation = validate(AblationConfig, document)
    choices = _choices(ablation, document, registry)
    named = _named(ablation, document, choices)
    base = _base(ablation, document, registry)
    variants = _build(document, base, named, registry)
    reward = _reward(ablation, document, variants)
    return Plan(ablation, variants, reward, _baseline(ablation, document, variants))


# -- names ----------------------------------------------------------------------------------------------------------


def _choices(ablation: AblationConfig, document: Document, registry: Registry) -> list[list[_Choice]]:
    """Return the values of each axis. Raises ConfigError."""
    mistakes: list[tuple[KeyPath, str]] = []
    found = []
    titles = [axis.title for axis in ablation.axes]
    for number, axis in enumerate(ablation.axes):
        where: KeyPath = ("axes", number)
        if axis.title in titles[:number]:
            mistakes.append((where, f"two axes are called {axis.title!r}; give one another `name`"))
        values = [
            _Choice(axis.title, label_of(value), written_out(str(axis.key), value, registry), (*where, "values", i))
            for i, value in enumerate(axis.values or ())
        ] + [
            _Choice(axis.title, name, _written_out(settings, registry), (*where, "variants", name))
            for name, settings in (axis.variants or {}).items()
        ]
        for i, choice in enumerate(values):
            if any(other.label == choice.label for other in values[:i]):
                mistakes.append((choice.path, f"two variants of axis {axis.title!r} have the name {choice.label!r}"))
            mistakes += _reserved(ablation, choice.settings, (*where, "key") if axis.key else choice.path)
        found.append(values)
    for key in ablation.set:
        mistakes += _reserved(ablation, {key: None}, ("set", key))
    if mistakes:
        raise document.error(list(dict.fromkeys(mistakes)))
    return found


def _written_out(settings: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    return {key: inner for name, value in settings.items() for key, inner in written_out(name, value, registry).items()}


def _reserved(ablation: AblationConfig, settings: Mapping[str, Any], where: KeyPath) -> list[tuple[KeyPath, str]]:
    """Return mistakes: keys that the ablation sets itself, and sections that contain them."""
    reported = {key: ".".join(path) for key, (path, _) in _set_by_ablation(ablation).items() if key != "stop.reward"}
    taken = RESERVED | {key: f"{where} of the ablation sets it" for key, where in reported.items()}
    clashes = [(key, own) for key in settings for own in taken if own == key or own.startswith(f"{key}.")]
    return [(where, f"{key} cannot be set here: {taken[own]}") for key, own in clashes]


def _set_by_ablation(ablation: AblationConfig) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Return run-file settings that the ablation sets: the path of the ablation's key, and the value."""
    stop = ablation.stop
    found: dict[str, tuple[tuple[str, ...], Any]] = {
        "run.iterations": (("stop", "iterations"), stop.iterations),
        "stop.seconds": (("stop", "seconds"), stop.seconds),
        "stop.samples": (("stop", "samples"), stop.samples),
        "stop.target": (("stop", "target"), stop.target),
        "stop.in_a_row": (("stop", "in_a_row"), stop.in_a_row),
        "stop.reward": (("reward",), None if stop.target is None else ablation.reward),
        "run.threads": (("threads",), ablation.threads),
    }
    return {key: (path, value) for key, (path, value) in found.items() if value is not None}


def label_of(value: Any) -> str:
    """Return a short name of a value: `0.3`, `uniform`, `softmax temperature=0.5`."""
    if isinstance(value, dict) and isinstance(value.get("use"), str):
        options = value.get("options")
        named = options if isinstance(options, dict) else {}  # other types are rejected with the run files
        rest = {**named, **{k: v for k, v in value.items() if k not in ("use", "options")}}
        return " ".join([value["use"], *(f"{key}={label_of(inner)}" for key, inner in rest.items())])
    if isinstance(value, dict):
        return " ".join(f"{key}={label_of(inner)}" for key, inner in value.items()) or "nothing"
    if isinstance(value, list):
        return "+".join(label_of(inner) for inner in value) or "nothing"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _named(ablation: AblationConfig, document: Document, choices: list[list[_Choice]]) -> dict[str, Sequence[_Choice]]:
    """Return the choices of each variant, by its name. Raises ConfigError."""
    single = len(ablation.axes) == 1
    count = sum(map(len, choices)) + 1 if ablation.crossing == "each" else 1
    for values in choices if ablation.crossing == "product" else ():
        count *= len(values)
    if count * len(ablation.seeds) > MAX_CELLS:
        size = f"{count} variants with {len(ablation.seeds)} seeds"
        raise document.error([(("axes",), f"{size} are {count * len(ablation.seeds):,} runs, more than {MAX_CELLS:,}")])

    def name(chosen: Sequence[_Choice]) -> str:
        return chosen[0].label if single else " ".join(f"{choice.axis}={choice.label}" for choice in chosen)

    if ablation.crossing == "product":
        combinations: list[Sequence[_Choice]] = list(product(*choices))
    else:
        combinations = [(), *((choice,) for values in choices for choice in values)]
    named: dict[str, Sequence[_Choice]] = {}
    slugs: dict[str, str] = {}
    for chosen in combinations:
        label = name(chosen) if chosen else BASE
        slug = slug_of(label)
        if slug.lower() in slugs:  # file systems may be case-insensitive
            other = slugs[slug.lower()]
            why = f"is the name of two variants: {other!r} and {label!r} would share the directory {slug}"
            raise document.error([(chosen[-1].path if chosen else ("axes",), f"{label!r} {why}")])
        named[label], slugs[slug.lower()] = chosen, label
    return named


# -- run files ------------------------------------------------------------------------------------------------------


def _base(ablation: AblationConfig, document: Document, registry: Registry) -> Document:
    """Return the base run file with `set` and the settings of the ablation applied."""
    try:
        base = load_yaml(ablation.base)
        refuse(base, "run")
    except ConfigError as error:
        where = document.position(("base",)).text
        raise ConfigError([Problem(where, "base", str(problem)) for problem in error.problems]) from None

    def at(*path: str | int) -> Position:
        found = document.position(path)
        return Position(f"{found.text} ({path[0]})", found.order)

    settings = [
        (key, value, at("set", name))
        for name, given in ablation.set.items()
        for key, value in written_out(name, given, registry).items()
    ]
    settings += [(key, value, at(*path)) for key, (path, value) in _set_by_ablation(ablation).items()]
    return apply_settings(base, settings)


def _build(
    document: Document, base: Document, named: Mapping[str, Sequence[_Choice]], registry: Registry
) -> list[Variant]:
    """Build every variant's configuration. Raises ConfigError with the mistakes of all variants, each once."""
    found: dict[str, Sequence[Problem]] = {}
    variants: list[Variant] = []
    for name, chosen in named.items():
        settings = [
            (key, value, _position(document, choice)) for choice in chosen for key, value in choice.settings.items()
        ]
        try:
            config = run_config_of(apply_settings(base, settings), registry)
        except ConfigError as error:
            found[name] = error.problems
            continue
        twin = next((other for other in variants if other.config == config), None)
        if twin is not None:
            where = document.position(chosen[-1].path if chosen else ("axes",)).text
            found[name] = [Problem(where, "", f"{name!r} is the same run as {twin.name!r}; leave one of the two out")]
        variants.append(Variant(name, {choice.axis: choice.label for choice in chosen}, config))
    if found:
        everywhere = set.intersection(*map(set, found.values())) if len(found) == len(named) else set()
        reported = [
            problem if problem in everywhere else _reported(problem, document, name, named[name])
            for name, problems in found.items()
            for problem in problems
        ]
        raise ConfigError(list(dict.fromkeys(reported)))
    return variants


def _position(document: Document, choice: _Choice) -> Position:
    found = document.position(choice.path)
    return Position(f"{found.text} (axis {choice.axis}, value {choice.label})", found.order)


def _reported(problem: Problem, document: Document, name: str, chosen: Sequence[_Choice]) -> Problem:
    """Add the variant to a mistake that it causes elsewhere in its run file."""
    if not chosen or problem.where.startswith(f"{document.source}:"):
        return problem
    where = f"{document.position(chosen[-1].path).text} (variant {name})"
    return Problem(where, problem.key, f"{problem.message} (set in {problem.where})")


# -- reward and baseline --------------------------------------------------------------------------------------------


def _reward(ablation: AblationConfig, document: Document, variants: Sequence[Variant]) -> str:
    """Return the deciding reward. Raises ConfigError if a variant does not evaluate it."""
    mistakes: list[tuple[KeyPath, str]] = []
    reward = ablation.reward
    for variant in variants:
        config = variant.config
        labels = [block.label for block in config.evaluation.rewards or config.rewards]
        if config.prompts.heldout is None:
            why = "there is nothing to compare without held-out prompts: set prompts.heldout"
            mistakes.append((("base",), why))
            continue
        reward = reward or labels[0]
        if reward not in labels:
            why = f"{reward!r} is not evaluated by variant {variant.name!r}, which has {', '.join(labels)}"
            mistakes.append((("reward",) if ablation.reward else ("axes",), why + nearest(reward, labels)))
        if ablation.target is not None and not config.evaluation.every:
            why = "is looked for at evaluations: set evaluation.every, which is 0"
            mistakes.append((("target",), f"{why} in variant {variant.name!r}"))
    if mistakes:
        raise document.error(list(dict.fromkeys(mistakes)))
    return str(reward)


def _baseline(ablation: AblationConfig, document: Document, variants: Sequence[Variant]) -> str:
    names = [variant.name for variant in variants]
    if ablation.baseline is None:
        return names[0]
    if ablation.baseline not in names:
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        why = f"there is no variant {ablation.baseline!r}{nearest(ablation.baseline, names)} (there is {shown})"
        raise document.error([(("baseline",), why)])
    return ablation.baseline
