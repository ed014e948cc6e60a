"""Files with names of an earlier version are refused: one message lists every old name with the new one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dgpo_core.config.migration.earlier import is_config_of_run, refusal
from dgpo_core.config.migration.names import rename, rename_setting
from dgpo_schemas.loading import Document, Position
from dgpo_schemas.problems import ConfigError, Problem, dotted
from dgpo_schemas.text import shell_word

__all__ = ["old_names", "old_setting", "refuse"]


def refuse(document: Document, kind: str, settings: Sequence[Problem] = ()) -> None:
    """Raise ConfigError, with every old name, if a file or the settings of the command line have some.

    kind: as of `names.rename`; settings: what `old_setting` found. Raises UserError if the file is the config.yaml of a
    run directory.
    """
    found = old_names(document, kind)
    if found and is_config_of_run(Path(document.source)):
        raise refusal(Path(document.source).parent)
    advice = f"`dgpo migrate {shell_word(document.source)}` rewrites the file"
    if found or settings:
        raise ConfigError([*found, *settings, *([Problem(document.source, "", advice)] if found else [])])


def old_names(document: Document, kind: str) -> Sequence[Problem]:
    """Every old name in a file, in the order of the file."""
    changes = rename(document.data, kind).changes
    return document.error([(change.where, change.message) for change in changes]).problems


def old_setting(document: Document, kind: str, key: str, value: Any, position: Position) -> Iterator[Problem]:
    """The old names in one setting that is to be laid over a document."""
    component = None
    here: Any = document.data
    for part in key.split("."):
        if isinstance(here, dict):
            component = here["use"] if isinstance(here.get("use"), str) else component
            here = here.get(part)
        else:
            here = here[int(part)] if isinstance(here, list) and part in map(str, range(len(here))) else None
    for change in rename_setting(key, value, kind, component).changes:
        yield Problem(position.text, dotted(change.where), change.message)
