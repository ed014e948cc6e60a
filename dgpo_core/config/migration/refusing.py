"""Files with names of an earlier version are refused: one message lists every old name with the new one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dgpo_core.config.migration.earlier import is_config_of_run, refusal
from dgpo_core.config.migration.names import rename, rename_setting
from dgpo_schemas.loading import MAX_BYTES, Document, Position, read_value
from dgpo_schemas.problems import ConfigError, Problem, dotted
from dgpo_schemas.text import shell_word

__all__ = ["refuse"]


def refuse(document: Document, kind: str, overrides: Sequence[str] = ()) -> None:
    """Raise ConfigError, with every old name, if a file or the `KEY=VALUE` settings for it have some.

    kind: as of `names.rename`. Raises UserError if the file is the config.yaml of a run directory.
    """
    changes = rename(document.data, kind).changes
    problems = [*document.error([(change.where, change.message) for change in changes]).problems]
    if changes and is_config_of_run(Path(document.source)):
        raise refusal(Path(document.source).parent)
    problems += [problem for i, override in enumerate(overrides) for problem in _setting(document, kind, override, i)]
    if changes:
        advice = f"`dgpo migrate {shell_word(document.source)}` rewrites the file"
        problems.append(Problem(document.source, "", advice))
    if problems:
        raise ConfigError(problems)


def _setting(document: Document, kind: str, override: str, number: int) -> Iterator[Problem]:
    """The old names in a setting; none in one that cannot be read, which is reported when it is applied."""
    key, _, text = override.partition("=")
    position = Position(f"--set {override}", MAX_BYTES + number)
    try:
        value, _ = read_value(text, position.text)
    except ValueError:
        value = None
    for change in rename_setting(key.strip(), value, kind, _component(document.data, key.strip())).changes:
        yield Problem(position.text, dotted(change.where), change.message)


def _component(data: Any, key: str) -> str | None:
    """The `use` of the innermost block around a dotted key; None if there is none."""
    component = None
    for part in key.split("."):
        if isinstance(data, dict):
            component = data["use"] if isinstance(data.get("use"), str) else component
            data = data.get(part)
        else:
            data = data[int(part)] if isinstance(data, list) and part in map(str, range(len(data))) else None
    return component
