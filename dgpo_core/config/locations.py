"""Where a run's files are, whatever directory it is looked at from: its paths made absolute."""

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
    """The directory of a run."""
    return Path(config.run.output) / config.run.name


def located(config: RunConfig, registry: Registry | None = None, start: Path | None = None) -> RunConfig:
    """The same with absolute paths, as they are from `start`, by default the working directory; those in plugins'
    options too, with a registry. Names of Hub repositories and of packages stay."""
    found = _replaced(config, registry, lambda _, text, place: absolute(text, place, start))
    return RunConfig.model_validate(found)


def started_in(config: RunConfig, directory: Path) -> Path | None:
    """Where a run of an older version, whose paths are relative, was started: seen from there, `directory` is its
    output. None if its paths are absolute, or if it was moved since."""
    output, here = Path(config.run.output, config.run.name), directory.resolve()
    if output.is_absolute() or here.parts[-len(output.parts) :] != output.parts:
        return None
    return Path(*here.parts[: -len(output.parts)])


def moved_along(config: RunConfig, directory: Path, registry: Registry | None = None) -> RunConfig:
    """The configuration of a run that was moved to `directory` together with what lay beside it, such as a whole
    project that was renamed: paths that are gone lead to where they are now, if they are there. Digests tell whether it
    is the same that is found."""
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
        there = new / path.relative_to(old)
        return str(there) if there.exists() else text

    return RunConfig.model_validate(_replaced(config, registry, moved))


def recalled(config: RunConfig, saved: RunConfig, registry: Registry, *, own: bool) -> dict[str, str]:
    """Keys of paths that mean nothing here, to what they were when the run began.

    saved: the run's configuration, with absolute paths. own: `config` is that of the run's directory, so all its paths
    are as the run has them. A path in a run file is one that leads nowhere from the working directory, and is how the
    recorded one ends.
    """
    now, before, found = config.model_dump(mode="json"), saved.model_dump(mode="json"), {}
    for path, _ in _all_places(now, registry):
        if any(isinstance(component, int) for component in path):
            continue  # no key of a setting
        text = _holder(now, path)[path[-1]]
        try:
            was = _holder(before, path)[path[-1]]
        except (KeyError, TypeError):
            continue
        if was != text and (own or _leads_nowhere(text, was)):
            found[dotted(path)] = was
    return found


def _leads_nowhere(text: str, was: Any) -> bool:
    """Whether a path is a relative one, not there, and how the absolute path `was` ends."""
    if Path(text).is_absolute() or Path(text).exists() or not isinstance(was, str) or not Path(was).is_absolute():
        return False
    ending = tuple(component for component in Path(text).parts if component != "..")
    return ending != () and Path(was).parts[-len(ending) :] == ending


def with_paths(config: RunConfig, paths: Mapping[str, str], registry: Registry) -> RunConfig:
    """The same with what `recalled` has found."""
    found = _replaced(config, registry, lambda path, text, _: paths.get(dotted(path), text))
    return RunConfig.model_validate(found)


def without_places(config: RunConfig, registry: Registry | None = None) -> dict[str, Any]:
    """Its settings without those that say where something is, which differ between machines."""
    return _replaced(config, registry, lambda _, text, place: "")


def _replaced(
    config: RunConfig, registry: Registry | None, new: Callable[[KeyPath, str, Place], str]
) -> dict[str, Any]:
    """Its settings, with what `new` says in the place of each path."""
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
