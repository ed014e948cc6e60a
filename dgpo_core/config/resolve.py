"""Resolve a document to a configuration: validate it and its components' options, and fill in defaults."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from dgpo_core.config.components import blocks_at, conflicts
from dgpo_core.errors import PluginError
from dgpo_core.plugins.registry import Registry
from dgpo_schemas.base import UseBlock
from dgpo_schemas.loading import Document
from dgpo_schemas.problems import KeyPath, dotted, explain
from dgpo_schemas.run import RunConfig
from dgpo_schemas.text import error_text

__all__ = ["resolve"]

M = TypeVar("M", bound=BaseModel)

_SHORT_FORM_IS_FILE = "prompts"
"""Kind whose short form, a string, is a file and not a component's name."""


def resolve(model: type[M], places: Mapping[KeyPath, str], document: Document, registry: Registry | None) -> M:
    """Validate a document as a model. places: keys that select components, with their kinds.

    With a registry, every component must exist and accept its options, alone and with the other settings of a run file.
    Raises ConfigError with every mistake, in the file's order.
    """
    mistakes: list[tuple[KeyPath, str]] = []
    config = None
    try:
        config = model.model_validate(document.data)
    except ValidationError as error:
        mistakes += explain(model, document.data, error)
    resolved = deepcopy(document.data)
    if registry is not None:
        for place, kind in places.items():
            for where, block in blocks_at(document.data, place):
                options = _check_block(registry, kind, where, block, mistakes)
                if options is not None:
                    _put(resolved, where, options)
        resolved |= _left_out(model, places, document.data, registry)
    if mistakes or config is None:
        raise document.error(_at_short_forms(document, mistakes))
    if registry is None:
        return config
    config = model.model_validate(resolved)
    if isinstance(config, RunConfig) and (found := list(conflicts(config, registry))):
        raise document.error(_at_short_forms(document, found))
    return config


def _left_out(
    model: type[BaseModel], places: Mapping[KeyPath, str], data: Any, registry: Registry
) -> dict[str, dict[str, Any]]:
    """Return the default options of the components of sections that a file leaves out, as if it had empty sections."""
    found = {}
    for place, kind in places.items():
        key = str(place[0]) if len(place) == 1 else ""
        if key in model.model_fields and key not in (data or {}) and _default_use(model.model_fields[key].annotation):
            options = _check_block(registry, kind, place, {}, [])
            if options:
                found[key] = {"options": options}
    return found


def _check_block(
    registry: Registry,
    kind: str,
    where: KeyPath,
    block: Any,
    mistakes: list[tuple[KeyPath, str]],
    *,
    elsewhere: bool = False,
) -> dict[str, Any] | None:
    """Return the block's options with defaults; None if they are invalid, which is added to `mistakes`, or unknown.

    elsewhere: the component runs in a worker or service and may be installed only there; it is then checked on start.
    """
    short = isinstance(block, str)
    if short and kind == _SHORT_FORM_IS_FILE:
        return None
    field = RunConfig.model_fields.get(str(where[0])) if len(where) == 1 else None
    default = field.annotation if field is not None else None
    name = block if short else _get(block, "use", _default_use(default))
    options = {} if short else _get(block, "options", {})
    if not isinstance(name, str) or not name or not isinstance(options, dict):
        return None  # already reported by the run file's model
    places = [key for key in ("worker", "service") if kind == "reward" and _get(block, key, None) is not None]
    for key in places:
        try:
            registry.find_transport(key)
        except PluginError as error:
            mistakes.append(((*where, key), str(error)))
    if "service" in places and not options:
        return None  # the service uses its own options
    elsewhere = elsewhere or bool(places)
    try:
        registered = registry.find(kind, name)
        registry.check_contract(registered)
        model = registry.options_model(registered)
    except PluginError as error:
        if not elsewhere:
            mistakes.append((where if short else (*where, "use"), str(error)))
        return None
    return _check_options(registry, model, (*where, "options"), options, mistakes, elsewhere=elsewhere)


def _check_options(
    registry: Registry,
    model: type[BaseModel],
    where: KeyPath,
    options: dict[str, Any],
    mistakes: list[tuple[KeyPath, str]],
    *,
    elsewhere: bool,
) -> dict[str, Any] | None:
    """Validate options with the plugin's model, and those of the components that they select in turn."""
    try:
        accepted = model.model_validate(options)
    except ValidationError as error:
        mistakes += [((*where, *path), message) for path, message in explain(model, options, error)]
        return None
    except Exception as error:
        mistakes.append((where, f"the plugin's own check failed with {error_text(error)}"))
        return None
    for kind in registry.kinds:
        # An option named after a kind that contains a `use` block selects a component of that kind.
        chosen = getattr(accepted, kind, None)
        if isinstance(chosen, UseBlock):
            inner = options.get(kind) or chosen.model_dump()
            _check_block(registry, kind, (*where, kind), inner, mistakes, elsewhere=elsewhere)
    try:
        full: dict[str, Any] = accepted.model_dump(mode="json", warnings=False)
        same = bool(model.model_validate(full) == accepted)
    except Exception:  # the model has fields that JSON cannot represent
        same = False
    return full if same else options  # options that do not survive a round trip through JSON stay as written


def _get(block: Any, key: str, default: Any) -> Any:
    return block.get(key, default) if isinstance(block, dict) else None


def _default_use(section: Any) -> Any:
    fields = getattr(section, "model_fields", {})
    return fields["use"].default if "use" in fields and not fields["use"].is_required() else None


def _put(data: dict[str, Any], where: KeyPath, options: dict[str, Any]) -> None:
    if not where:  # the whole document is the block
        data["options"] = options
        return
    here: Any = data
    for component in where[:-1]:
        here = here[component]
    block = here[where[-1]]
    here[where[-1]] = {"use": block, "options": options} if isinstance(block, str) else block | {"options": options}


def _at_short_forms(document: Document, mistakes: list[tuple[KeyPath, str]]) -> list[tuple[KeyPath, str]]:
    """Move mistakes inside a short form to the key that contains it."""
    out = []
    for path, message in mistakes:
        here: Any = document.data
        for end, component in enumerate(path):
            if isinstance(here, str):
                path, message = path[:end], f"{dotted(path[end:])}: {message}"
                break
            inside = isinstance(here, dict) and component in here
            here = here[component] if inside or (isinstance(here, list) and component in range(len(here))) else None
        out.append((path, message))
    return list(dict.fromkeys(out))
