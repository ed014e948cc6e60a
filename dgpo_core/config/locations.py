"""Make the paths of a configuration absolute, and update them if a run was moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_core.config.components import chosen
from dgpo_schemas.places import Place, absolute, places
from dgpo_schemas.problems import KeyPath, dotted
from dgpo_schemas.run import RunConfig

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry

__all__ = ["located", "moved_along", "recalled", "run_path", "started_in", "with_paths", "without_places"]


def run_path(config: RunConfig) -> Path:
    """Return the directory of a run."""
    return Path(config.run.output) / config.run.name


def located(config: RunConfig, registry: Registry | None = None, start: Path | None = None) -> RunConfig:
    """Return the configuration with absolute paths, resolved from `start` (default: the working directory).

    With a registry, also resolves paths in plugins' options. Names of Hub repositories and packages are unchanged.
    """
    found = _replaced(config, registry, lambda _, text, place: absolute(text, place, start))
    return RunConfig.model_validate(found)


def started_in(config: RunConfig, directory: Path) -> Path | None:
    """Return the working directory in which a run with relative paths was started, given its run directory.

    None if its paths are absolute, or if it was moved.
    """
    output, resolved = Path(config.run.output, config.run.name), directory.resolve()
    if output.is_absolute() or resolved.parts[-len(output.parts) :] != output.parts:
        return None
    return Path(*resolved.parts[: -len(output.parts)])


def moved_along(config: RunConfig, directory: Path, registry: Registry | None = None) -> RunConfig:
    """Update the paths of a run that was moved to `directory` together with its surroundings, such as a project.

    A missing path becomes the corresponding path at the new location if that exists. Digests verify its content.
    """
    before, now = list(Path(config.run.output).parts), list(directory.resolve().parent.parts)
    alike = 0
    while alike < min(len(before), len(now)) and before[-1 - alike] == now[-1 - alike]:
        alike += 1
    if before == now or alike == 0 or not Path(config.run.output).is_absolute():
        return config
    old, new = Path(*before[:-alike]), Path(*now[:-alike])

    def moved(_: KeyPath, text: str, place: Place) -> str:
        path = Path(text)
        if place.known_by == "scheme" or not path.is_relative_to(old) or path.exists():
            return text
        target = new / path.relative_to(old)
        return str(target) if target.exists() else text

    return RunConfig.model_validate(_replaced(config, registry, moved))


def recalled(config: RunConfig, saved: RunConfig, registry: Registry, *, own: bool) -> dict[str, str]:
    """Return the paths of `config` to replace with those of the run: dotted key to saved path.

    saved: the run's configuration, with absolute paths. own: `config` is that of the run directory; then all differing
    paths are replaced. Otherwise only a relative path that does not exist and is a suffix of the saved path is.
    """
    now, before, found = config.model_dump(mode="json"), saved.model_dump(mode="json"), {}
    for path, _ in _all_places(now, registry):
        if any(isinstance(component, int) for component in path):
            continue  # inside a list: not the key of a setting
        text = _holder(now, path)[path[-1]]
        try:
            was = _holder(before, path)[path[-1]]
        except (KeyError, TypeError):
            continue
        if was != text and (own or _leads_nowhere(text, was)):
            found[dotted(path)] = was
    return found


def _leads_nowhere(text: str, was: Any) -> bool:
    """Return whether a path is relative, does not exist, and is a suffix of the absolute path `was`."""
    if Path(text).is_absolute() or Path(text).exists() or not isinstance(was, str) or not Path(was).is_absolute():
        return False
    ending = tuple(component for component in Path(text).parts if component != "..")
    return ending != () and Path(was).parts[-len(ending) :] == ending


def with_paths(config: RunConfig, paths: Mapping[str, str], registry: Registry) -> RunConfig:
    """Return the configuration with the paths of `recalled`."""
    found = _replaced(config, registry, lambda path, text, _: paths.get(dotted(path), text))
    return RunConfig.model_validate(found)


def without_places(config: RunConfig, registry: Registry | None = None) -> dict[str, Any]:
    """Return the settings with empty paths, because paths differ between machines."""
    return _replaced(config, registry, lambda _, text, place: "")


def _replaced(
    config: RunConfig, registry: Registry | None, new: Callable[[KeyPath, str, Place], str]
) -> dict[str, Any]:
    """Return the settings with each path replaced by the result of `new`."""
    data = config.model_dump(mode="json")
    for path, place in list(_all_places(data, registry)):
        holder = _holder(data, path)
        holder[path[-1]] = new(path, holder[path[-1]], place)
    return data


def _all_places(data: dict[str, Any], registry: Registry | None) -> Iterator[tuple[KeyPath, Place]]:
    yield from places(RunConfig, data)
    if registry is not None:
        for where, model, options in chosen(data, registry):
            yield from (((*where, *path), place) for path, place in places(model, options))


def _holder(data: Any, path: KeyPath) -> Any:
    for component in path[:-1]:
        data = data[component]
    return data
