"""What a tree from before the words of the field calls otherwise, and the translation of what goes in and comes out.

The definitions of runs have the words of today. A tree that lacks them gets run files and commands in its own words,
and what the working tree writes is compared in those of the other tree, so that only words may differ.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["BEFORE", "TODAY", "Words", "of"]

WITNESS = "dgpo_core/training/monitors.py"
"""Only a tree that has the words of today has this file."""


@dataclass(frozen=True)
class Words:
    """A table of today's words and those of a tree; by default they are the same.

    settings: dotted keys of a run file, moved one after another; choices: values of a dotted key (`*`: of each in a
    list); options: of the
    command line; records: patterns of files, their keys at any depth; entries: of such a key, its values; texts:
    beginnings of the values of any key; files: in the paths of a run's directory; tensors: beginnings of the names of a
    checkpoint's tensors; sizes: patterns of files and of keys that follow from the length of names.
    """

    settings: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    records: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    entries: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    sizes: Sequence[tuple[str, str]] = ()

    def run_file(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """A run file's data, in the words of the tree."""
        found = deepcopy(dict(data))
        for key, values in self.choices.items():
            for section, name in _holders(found, key.split(".")):
                section[name] = values.get(section[name], section[name])
        for key, other in self.settings.items():
            section, name = _section(found, key)
            if name not in section:
                continue
            inner, last = _section(section, other.removeprefix(key[: len(key) - len(name)]), create=True, place=name)
            inner[last] = section[name]
            if inner is section:
                _take_place(section, name, last)
            else:
                del section[name]
        return found

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Arguments of `dgpo`, in the words of the tree."""
        models = self.choices.get("evaluation.model", {})
        before = ("", *arguments)
        return [
            models.get(argument, argument) if before[i] == "--model" else self.options.get(argument, argument)
            for i, argument in enumerate(arguments)
        ]

    def path(self, file: str) -> str:
        """A path below a side, in the words of the tree."""
        return next(
            (file.replace(part, other, 1) for part, other in self.files.items() if part in file and "runs/" in file),
            file,
        )

    def tensor(self, file: str, name: str) -> str:
        """A tensor's name in a file of a checkpoint, in the words of the tree."""
        return _renamed(name, self.tensors) if "/checkpoints/" in file else name

    def data(self, file: str, data: Any) -> Any:
        """What a file of today holds, in the words of the tree."""
        if fnmatch.fnmatchcase(file, "runs/*/config.yaml"):
            return self.run_file(data)
        keys = next((keys for pattern, keys in self.records.items() if fnmatch.fnmatchcase(file, pattern)), None)
        return data if keys is None else self._record(data, keys)

    def _record(self, data: Any, keys: Mapping[str, str]) -> Any:
        if isinstance(data, dict):
            return {keys.get(key, key): self._value(key, value, keys) for key, value in data.items()}
        return [self._record(value, keys) for value in data] if isinstance(data, list) else data

    def _value(self, key: str, value: Any, keys: Mapping[str, str]) -> Any:
        if not isinstance(value, str):
            return self._record(value, keys)
        return _renamed(self.entries.get(key, {}).get(value, value), self.texts)

    def follows(self, file: str, where: str) -> bool:
        """Whether a value follows from the length of names alone."""
        return any(fnmatch.fnmatchcase(file, one) and fnmatch.fnmatchcase(where, key) for one, key in self.sizes)


def _renamed(text: str, beginnings: Mapping[str, str]) -> str:
    return next((b + text.removeprefix(a) for a, b in beginnings.items() if text.startswith(a)), text)


def _holders(data: Any, key: Sequence[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """The sections that have a key with a text, `*` for each entry of a list, and its last name."""
    first, *rest = key
    if isinstance(data, list):
        for inner in data if first == "*" else ():
            yield from _holders(inner, rest)
    elif isinstance(data, dict) and rest:
        yield from _holders(data.get(first), rest)
    elif isinstance(data, dict) and isinstance(data.get(first), str):
        yield data, first


def _section(data: dict[str, Any], key: str, *, create: bool = False, place: str = "") -> tuple[dict[str, Any], str]:
    """The section that has a dotted key, an empty one where there is none, and the last name. A section that is created
    stands in front of the key `place`."""
    *outer, name = key.split(".")
    for one in outer:
        if create and one not in data:
            data[one] = {}
            _take_place(data, place, one, keep=True)
        inner = data.get(one)
        data = inner if isinstance(inner, dict) else {}
    return data, name


def _take_place(data: dict[str, Any], old: str, new: str, *, keep: bool = False) -> None:
    """Put the last key `new` where `old` stands, which goes, or else comes after it."""
    items = {key: value for key, value in data.items() if key != new}
    value = data[new]
    data.clear()
    for key, other in items.items():
        if key == old:
            data[new] = value
        if key != old or keep:
            data[key] = other


TODAY = Words()

MODELS = {"ema_fast": "old", "ema": "slow"}
RECORD = {"model": "view", "subscores": "parts", "optimized_members": "optimised_members"}

BEFORE = Words(
    settings={
        "optimizer": "optimiser",
        "objective.ema_rollouts_after": "objective.switch",
        "objective.ema": "objective.slow",  # out of the way of the section that gets its name
        "objective.ema_fast": "objective.ema.fast",
        "objective.slow": "objective.ema.slow",
        "evaluation.model": "evaluation.view",
        "evaluation.monitors.tolerances": "evaluation.monitors.bands",
        "evaluation.monitors": "evaluation.guards",
        "evaluation.many_step": "evaluation.finer",
        "evaluation.images": "evaluation.pictures",
    },
    choices={
        "objective.reference": {"ema_fast": "ema"},
        "evaluation.model": MODELS,
        "scoring.aggregation": {"group-normalized": "group-normalised"},
        "rewards.*.options.rule": {"normalized": "normalised"},
        "evaluation.rewards.*.options.rule": {"normalized": "normalised"},
    },
    options={"--model": "--view"},
    records={
        "runs/*/metrics.jsonl": RECORD,
        "runs/*/evaluations.jsonl": RECORD,
        "runs/*/scores/*.json": RECORD,
        "runs/*/manifest.json": {"optimizer.safetensors": "optimiser.safetensors"},
        "out/*/evaluation.json": RECORD,
        "out/*/dgpo.json": RECORD,
    },
    entries={
        "model": MODELS,
        "role": {"monitor": "guard"},
        "reward": {"many_step_sharpness": "finer_sharpness"},
    },
    texts={"color: ": "colour: "},
    files={"/optimizer.safetensors": "/optimiser.safetensors", "/images/": "/pictures/"},
    tensors={"ema_fast/": "old/", "ema/": "slow/"},
    sizes=(("*/manifest.json", "files.*.bytes"),),
)
"""Of a tree from before `Moves: the words of the field`."""


def of(tree: Path) -> Words:
    """The words of a tree."""
    return TODAY if (tree / WITNESS).is_file() else BEFORE
