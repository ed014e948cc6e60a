"""Find the reward that a command line names: a component, a reward file, or a reward of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_cli.paths import at_home
from dgpo_core.config.migration.earlier import check_run
from dgpo_core.config.migration.refusing import refuse
from dgpo_core.config.overrides import apply_overrides
from dgpo_core.config.pipeline import reward_block_of
from dgpo_core.config.reading import kind_of
from dgpo_core.errors import UserError
from dgpo_core.storage.description import changed_config
from dgpo_schemas.loading import Document, Position, load_yaml
from dgpo_schemas.problems import KeyPath, dotted, nearest, show
from dgpo_schemas.sections.rewards import RewardBlock

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry

__all__ = ["reward_block"]

LISTS: tuple[KeyPath, ...] = (("rewards",), ("evaluation", "rewards"), ("evaluation", "monitors", "rewards"))
"""The lists of rewards in a run file, in search order."""


def reward_block(
    name: str,
    registry: Registry,
    *,
    label: str | None = None,
    options: Sequence[str] = (),
    worker_python: str | None = None,
    urls: Sequence[str] = (),
    token_variable: str | None = None,
) -> RewardBlock:
    """Return the configuration of a reward.

    name: a component, a YAML file with one reward (at the top level, or under `reward` as for `dgpo serve`), or a run
    file or run directory, of which `label` selects the reward. options: KEY=VALUE settings of the reward's options.
    Raises UserError or ConfigError, listing every mistake, if the reward does not exist or refuses its options.
    """
    document = _document(name, registry, label)
    for option in options:
        key, equals, _ = option.partition("=")
        if not equals or not all(key.strip().split(".")):
            raise UserError(f"--option {option}: must be KEY=VALUE, such as detector=shapes")
    document = apply_overrides(document, options, flag="--option", under="options.")
    _place(document, worker_python, urls, token_variable)
    return reward_block_of(document, registry)


def _document(name: str, registry: Registry, label: str | None) -> Document:
    path = at_home(Path(name))
    directory = path.is_dir()
    is_file = directory or path.suffix in (".yaml", ".yml") or "/" in name
    if name in registry.components("reward") or not is_file:
        if label is not None:
            raise UserError(f"--reward {label}: selects a reward of a run, but {name} is the name of a reward")
        if path.is_file():
            raise UserError(f"{name}: is a file; the reward comes first: dgpo score REWARD {name}")
        return Document(f"reward {name}", {"use": name})
    if directory and not (path / "config.yaml").is_file():
        raise UserError(f"{name}: neither a reward nor a run directory (it has no config.yaml)")
    if path.is_file() and path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{name}: is a file; the reward comes first: dgpo score REWARD {name}")
    if directory:
        check_run(path)
    reason = changed_config(path) if directory else None
    if reason is not None:
        raise UserError(reason)
    document = load_yaml(path / "config.yaml" if directory else path)
    refuse(document, kind_of(document) or "run")
    if "rewards" in document.data:
        return _of_run(document, label)
    if label is not None:
        raise UserError(f"--reward {label}: {name} is not a run file (it has no `rewards`); it contains one reward")
    return _inside(document, ("reward",)) if "reward" in document.data else document


def _of_run(document: Document, label: str | None) -> Document:
    """Return the reward of a run with the given label, or its only reward."""
    found: dict[str, KeyPath] = {}
    for path_of_list in LISTS:
        for known, path in _labeled(document.data, path_of_list):
            found.setdefault(known, path)
    if label is None and len(found) == 1:
        label = next(iter(found))
    if label is None:
        raise UserError(f"{document.source}: select one of its rewards with --reward {' or '.join(found) or 'LABEL'}")
    if label not in found:
        raise UserError(
            f"--reward {label}: {document.source} has no such reward{nearest(label, found)} "
            f"(available: {', '.join(found) or 'none'})"
        )
    return _inside(document, found[label])


def _inside(document: Document, path: KeyPath) -> Document:
    """Return one section of a document; its keys keep their positions in the file."""
    data: Any = document.data
    for part in path:
        data = data[part]
    inside = {key[len(path) :]: at for key, at in document.positions.items() if key[: len(path)] == path}
    source = document.position(path).text
    if isinstance(data, str):  # the short form
        data = {"use": data}
    if not isinstance(data, dict):
        raise UserError(f"{source}: {dotted(path)}: must be a reward, such as {{use: NAME}}, not {show(data)}")
    return Document(source, deepcopy(data), {key: at for key, at in inside.items() if key})


def _labeled(data: Any, path: KeyPath) -> Iterator[tuple[str, KeyPath]]:
    """Yield (label, path) of each reward in the list at `path`; entries that are not rewards are skipped."""
    for part in path:
        data = data.get(part) if isinstance(data, dict) else None
    for i, block in enumerate(data if isinstance(data, list) else ()):
        label = (block.get("name") or block.get("use")) if isinstance(block, dict) else None
        if isinstance(label, str):
            yield label, (*path, i)


def _place(document: Document, worker_python: str | None, urls: Sequence[str], token_variable: str | None) -> None:
    """Set in the document where the reward runs, from the command line."""
    if worker_python is not None and urls:
        raise UserError("--worker-python, --url: give only one of them; a reward runs in one place")
    if worker_python is not None:
        document.data.pop("service", None)
        _set(document, ("worker", "python"), worker_python, "--worker-python")
    if urls:
        document.data.pop("worker", None)
        _set(document, ("service", "urls"), list(urls), "--url")
    if token_variable is not None:
        if document.data.get("service") is None:
            raise UserError("--token-variable: requires a service; give its --url")
        _set(document, ("service", "token_variable"), token_variable, "--token-variable")


def _set(document: Document, path: tuple[str, str], value: Any, flag: str) -> None:
    section = document.data.get(path[0])
    document.data[path[0]] = {**(section if isinstance(section, dict) else {}), path[1]: value}
    document.positions[path] = Position(flag, 0)
