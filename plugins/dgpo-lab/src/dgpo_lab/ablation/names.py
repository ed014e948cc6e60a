"""Bare names of components in an ablation file: `key: timesteps` with `values: [uniform, ...]`, for every kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dgpo_core.config.components import PLACES

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry

__all__ = ["written_out"]

SHORT = {"sampler", "weighting"}
"""Kinds whose name alone is a valid value in a run file too."""


def written_out(key: str, value: Any, registry: Registry) -> dict[str, Any]:
    """Return the settings of a run file that a value of an ablation file stands for.

    A name alone means the component with its default options. The other keys of its section, such as `timesteps.count`,
    stay as they are; in a list, such as `rewards`, each name is an entry. A name of `prompts.train` that is not a
    prompt generator's is a file.
    """
    names = key.split(".")
    kind = PLACES.get(tuple(name for name in names if not name.isdigit()))
    if kind is None or kind in SHORT:
        return {key: value}
    if kind == "prompts":
        generator = isinstance(value, str) and value in registry.components(kind)
        return {key: {"use": value} if generator else value}
    if kind == "reward" and not names[-1].isdigit():
        entries = [value] if isinstance(value, str) else value
        return {key: [_entry(entry) for entry in entries] if isinstance(entries, list) else value}
    return {f"{key}.use": value, f"{key}.options": {}} if isinstance(value, str) else {key: value}


def _entry(value: Any) -> Any:
    return {"use": value} if isinstance(value, str) else value
