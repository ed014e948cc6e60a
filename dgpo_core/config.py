"""From a run file to a `RunConfig` whose plugins exist and accept their options.

Paths in a run file (`prompts.train.file`, `backbone.checkpoint`, `run.output`) are relative to the working directory,
like paths on a command line, not to the run file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from dgpo_core.errors import PluginError
from dgpo_core.hookspecs import KINDS
from dgpo_schemas.base import UseBlock
from dgpo_schemas.loading import Document, apply_overrides, load_yaml
from dgpo_schemas.problems import ConfigError, KeyPath, dotted, explain, show
from dgpo_schemas.run import RunConfig

if TYPE_CHECKING:
    from dgpo_core.registry import Registry

__all__ = ["ConfigError", "differing_keys", "load_run_config"]

_PLACES: dict[KeyPath, str] = {
    ("backbone",): "backbone",
    ("prompts", "train"): "prompts",
    ("prompts", "heldout"): "prompts",
    ("rollout", "sampler"): "sampler",
    ("rewards",): "reward",
    ("weighting",): "weighting",
    ("objective",): "objective",
    ("timesteps",): "timesteps",
    ("evaluation", "rewards"): "reward",
}
"""Where a run file chooses plugins, and of which kind."""

_SHORT_FORM_IS_FILE = "prompts"
"""Kind whose short form, a text, is a file and not a name."""

MAY_DIFFER = (
    "run.output",
    "run.iterations",
    "rollout.micro_batch",
    "optimiser.micro_batch",
    "backbone.gradient_checkpointing",
    "evaluation.pictures",
    "checkpoints.every",
    "checkpoints.keep",
    "logging",
)
"""Settings that a resumed run may change: where it lies, how long it lasts (unless the learning rate follows a
schedule), how it fits into memory, what it keeps and says. None changes what is computed, but for the rounding of sums
that a micro-batch splits otherwise."""


def load_run_config(path: str | Path, overrides: Sequence[str] = (), registry: Registry | None = None) -> RunConfig:
    """Read a run file, apply `KEY=VALUE` overrides, and check it all at once.

    With a registry every plugin that the file names must exist and accept its options, whose defaults are then filled
    in. Without one plugins are left unchecked: a run directory can be read where its plugins are not installed.
    Raises ConfigError with every problem, in the file's order.
    """
    document = apply_overrides(load_yaml(path), overrides)
    mistakes: list[tuple[KeyPath, str]] = []
    config = None
    try:
        config = RunConfig.model_validate(document.data)
    except ValidationError as error:
        mistakes += explain(RunConfig, document.data, error)
    resolved = deepcopy(document.data)
    if registry is not None:
        for place, kind in _PLACES.items():
            for where, block in _blocks(document.data, place):
                options = _check_block(registry, kind, where, block, mistakes)
                if options is not None:
                    _put(resolved, where, options)
    if mistakes or config is None:
        raise document.error(_known_places(document, mistakes))
    return config if registry is None else RunConfig.model_validate(resolved)


def _blocks(data: Mapping[str, Any], place: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """(path, value) of the block at a place, or of each block in the list there."""
    here: Any = data
    for part in place:
        here = here.get(part) if isinstance(here, dict) else None
    if isinstance(here, list):
        yield from (((*place, i), block) for i, block in enumerate(here))
    elif here is not None:
        yield place, here


def _check_block(
    registry: Registry, kind: str, where: KeyPath, block: Any, mistakes: list[tuple[KeyPath, str]]
) -> dict[str, Any] | None:
    """The block's options with their defaults; None, with the reason among the mistakes, if they cannot be had."""
    short = isinstance(block, str)
    if short and kind == _SHORT_FORM_IS_FILE:
        return None
    default = RunConfig.model_fields[str(where[0])].annotation if len(where) == 1 else None
    name = block if short else _get(block, "use", _default_use(default))
    options = {} if short else _get(block, "options", {})
    if not isinstance(name, str) or not name or not isinstance(options, dict):
        return None  # the run file's own model has said what is wrong
    try:
        model = registry.options_model(registry.find(kind, name))
    except PluginError as error:
        mistakes.append((where if short else (*where, "use"), str(error)))
        return None
    return _check_options(registry, model, (*where, "options"), options, mistakes)


def _check_options(
    registry: Registry,
    model: type[BaseModel],
    where: KeyPath,
    options: dict[str, Any],
    mistakes: list[tuple[KeyPath, str]],
) -> dict[str, Any] | None:
    """Options as the plugin's model understands them, and those of the parts that they choose in turn."""
    try:
        accepted = model.model_validate(options)
    except ValidationError as error:
        mistakes += [((*where, *path), message) for path, message in explain(model, options, error)]
        return None
    except Exception as error:
        mistakes.append((where, f"the plugin's own check failed with {type(error).__name__}: {error}"))
        return None
    for kind in KINDS:
        # An option that is called after a kind and holds a `use` block chooses a part of that kind.
        chosen = getattr(accepted, kind, None)
        if isinstance(chosen, UseBlock):
            _check_block(registry, kind, (*where, kind), options.get(kind) or chosen.model_dump(), mistakes)
    full = accepted.model_dump(mode="json")
    try:
        same = model.model_validate(full) == accepted
    except ValidationError:
        same = False
    return full if same else options  # a model that does not survive being written keeps what was written


def _get(block: Any, key: str, default: Any) -> Any:
    return block.get(key, default) if isinstance(block, dict) else None


def _default_use(section: Any) -> Any:
    fields = getattr(section, "model_fields", {})
    return fields["use"].default if "use" in fields and not fields["use"].is_required() else None


def _put(data: dict[str, Any], where: KeyPath, options: dict[str, Any]) -> None:
    here: Any = data
    for part in where[:-1]:
        here = here[part]
    block = here[where[-1]]
    here[where[-1]] = {"use": block, "options": options} if isinstance(block, str) else block | {"options": options}


def _known_places(document: Document, mistakes: list[tuple[KeyPath, str]]) -> list[tuple[KeyPath, str]]:
    """Mistakes inside a short form are shown at the key that holds it."""
    out = []
    for path, message in mistakes:
        here: Any = document.data
        for end, part in enumerate(path):
            if isinstance(here, str):
                path, message = path[:end], f"{dotted(path[end:])}: {message}"
                break
            inside = isinstance(here, dict) and part in here
            here = here[part] if inside or (isinstance(here, list) and part in range(len(here))) else None
        out.append((path, message))
    return list(dict.fromkeys(out))


# -- comparing ----------------------------------------------------------------------------------------------------


def differing_keys(saved: RunConfig, new: RunConfig) -> list[str]:
    """`key: saved value, now new value` for each setting that differs and must not on a resume (see MAY_DIFFER)."""
    before, after = _flat(saved), _flat(new)
    return [
        f"{key}: {_shown(before, key)} when it started, {_shown(after, key)} now"
        for key in dict.fromkeys([*before, *after])
        if _shown(before, key) != _shown(after, key) and not _may_differ(key, saved, new)
    ]


def _may_differ(key: str, saved: RunConfig, new: RunConfig) -> bool:
    if key == "run.iterations" and {saved.optimiser.schedule, new.optimiser.schedule} != {"constant"}:
        return False
    return any(key == free or key.startswith(f"{free}.") for free in MAY_DIFFER)


def _shown(flat: Mapping[str, Any], key: str) -> str:
    value = flat.get(key, "not given")
    return show(value) if key in flat and not isinstance(value, dict | list) else str(value)


def _flat(config: RunConfig) -> dict[str, Any]:
    """Dotted keys to scalars (and empty lists and sections)."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict | list) and value:
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = value

    walk("", config.model_dump(mode="json"))
    return flat
