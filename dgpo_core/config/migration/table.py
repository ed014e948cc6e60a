"""The keys and values of dgpo 0.1 that have another name in dgpo 0.2.

A path on the left has the new names of its sections and the old name of its last key, so that a file in which only
some keys were renamed by hand is covered too. `*` stands for an entry of a list.
"""

from __future__ import annotations

from dataclasses import dataclass

from dgpo_schemas.problems import KeyPath

__all__ = ["REWARD_OPTIONS", "RUN", "SERVICE", "Table"]


@dataclass(frozen=True)
class Table:
    """The names of one kind of file. keys: old path to new path; values: new path to old and new values."""

    keys: dict[str, str]
    values: dict[str, dict[str, str]]

    def key(self, path: KeyPath) -> KeyPath:
        """The new path of a key; the same path if the key was not renamed."""
        new = self.keys.get(_pattern(path))
        return path if new is None else tuple(new.split("."))

    def value(self, path: KeyPath, value: object, component: str | None) -> str | None:
        """The new name of a value; None if it was not renamed.

        component: the `use` of the block whose options hold the value; None if that is unknown, as for a dotted key.
        """
        if not isinstance(value, str):
            return None
        found = self.values.get(_pattern(path), {}).get(value)
        if found is None and path[-2:-1] == ("options",):
            known = component is not None or not {"reward", "rewards"} & set(path)
            tables = [REWARD_OPTIONS.get(str(component), {})] if known else REWARD_OPTIONS.values()
            found = next((table[path[-1]][value] for table in tables if value in table.get(path[-1], {})), None)
        return found


def _pattern(path: KeyPath) -> str:
    return ".".join("*" if isinstance(part, int) or part.isdigit() else part for part in path)


RUN = Table(
    keys={
        "optimiser": "optimizer",
        "objective.switch": "objective.ema_rollouts_after",
        "objective.ema.fast": "objective.ema_fast",
        "objective.ema.slow": "objective.ema",
        "evaluation.view": "evaluation.model",
        "evaluation.pictures": "evaluation.images",
        "evaluation.finer": "evaluation.many_step",
        "evaluation.guards": "evaluation.monitors",
        "evaluation.monitors.bands": "evaluation.monitors.tolerances",
        "evaluation.monitors.tolerances.finer_sharpness": "evaluation.monitors.tolerances.many_step_sharpness",
    },
    values={
        "objective.reference": {"ema": "ema_fast"},
        "evaluation.model": {"old": "ema_fast", "slow": "ema"},
        "scoring.aggregation": {"group-normalised": "group-normalized"},
    },
)
"""Run files, presets, and the settings of ablation files."""

SERVICE = Table(keys={"limits.picture_seconds": "limits.image_seconds"}, values={})
"""Files of reward services."""

REWARD_OPTIONS: dict[str, dict[str | int, dict[str, str]]] = {"ocr": {"rule": {"normalised": "normalized"}}}
"""Reward to option to old and new values, wherever a file chooses the reward."""
