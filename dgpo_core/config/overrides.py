"""Apply overrides of the command line to a run file."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

from dgpo_core.config.settings import put
from dgpo_core.system import spelling
from dgpo_schemas.decoding import half_character
from dgpo_schemas.loading import MAX_BYTES, Document, Position, read_value
from dgpo_schemas.problems import ConfigError, Problem

__all__ = ["apply_overrides"]


def apply_overrides(
    document: Document, overrides: Sequence[str], *, flag: str | None = None, under: str = ""
) -> Document:
    """Return the document with `KEY=VALUE` settings applied, such as `rewards.0.weight=2`; values are parsed as YAML.

    flag: the source of the settings in messages, by default `--set` on the command line. under: a prefix of every key,
    such as "options.". Raises ConfigError with every setting that cannot be parsed or applied.
    """
    changed = Document(document.source, deepcopy(document.data), dict(document.positions))
    problems: list[Problem] = []
    for number, override in enumerate(overrides):
        position = Position(f"{flag or spelling.override()} {override}", MAX_BYTES + number)
        try:
            if reason := half_character(override):
                raise ValueError(reason)
            _set(changed, under + override, position)
        except ConfigError as error:
            problems += error.problems
        except ValueError as error:
            problems.append(Problem(position.text, "", str(error)))
    if problems:
        raise ConfigError(problems)
    return changed


def _set(document: Document, override: str, position: Position) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise ValueError("must be KEY=VALUE, such as optimizer.learning_rate=1e-4")
    value, inner = read_value(text, position.text)
    put(document, key.strip(), value, inner, position)
