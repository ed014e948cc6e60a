"""What explains a run and is read again: config.yaml and run.json, each with a digest of itself.

Whatever of it was changed since it was written, by a disk or by hand, is refused when a run goes on, samples, is
evaluated or exported. Directories of older versions have no digests; they are taken as they are.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dgpo_core.config.locations import located, moved_along, started_in
from dgpo_core.config.migration.earlier import check_run
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.data.prompts import counts, digest
from dgpo_core.errors import UserError
from dgpo_core.storage.bases import differences
from dgpo_core.system.files import write_text
from dgpo_core.system.reading import read_file, read_json, why
from dgpo_core.system.spelling import option
from dgpo_schemas.origin import BaseRecord
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sealing import seal_of, sealed, sealed_text, text_seal
from dgpo_schemas.yaml_text import dump_yaml

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry
    from dgpo_core.types import Prompt

__all__ = [
    "CONFIG",
    "RECORD",
    "changed_config",
    "check_base",
    "check_prompts",
    "config_text",
    "other_plugins",
    "read_config",
    "read_record",
    "recorded_base",
    "summary",
    "write_record",
]

CONFIG = "config.yaml"
RECORD = "run.json"
LIBRARIES = (
    "dgpo", "torch", "diffusers", "transformers", "peft", "accelerate", "pydantic", "pluggy", "safetensors", "pillow",
)  # fmt: skip


def config_text(config: RunConfig, registry: Registry | None = None) -> str:
    """config.yaml: every setting, with absolute paths, below its digest."""
    return sealed_text(dump_yaml(located(config, registry).model_dump(mode="json")))


def read_config(path: Path, registry: Registry | None = None) -> RunConfig:
    """The resolved configuration of a run directory; with a registry it is checked against the plugins, and paths
    lead to where things are now (`started_in`, `moved_along`).

    Raises UserError if this is no run directory, or if its config.yaml is not as it was written.
    """
    file = path / CONFIG
    if not path.is_dir():
        raise UserError(f"{path}: no such run directory")
    if not file.is_file():
        raise UserError(f"{path}: not a run directory (it has no {CONFIG})")
    check_run(path)
    reason = changed_config(path)
    if reason is not None:
        raise UserError(reason)
    config = load_run_config(file, registry=registry)
    if registry is None:
        return config
    start = started_in(config, path)
    return moved_along(config if start is None else located(config, registry, start), path, registry)


def changed_config(path: Path) -> str | None:
    """Why a run directory's config.yaml cannot be trusted, and what to do; None if it can."""
    file = path / CONFIG
    try:
        seal = text_seal(read_file(file))
    except OSError as error:
        return f"{file}: cannot be read: {why(error)}"
    if seal != "broken":
        return None
    return (
        f"{file}: was changed since the run wrote it (the SHA-256 in its first line is another): put it back from a "
        "copy; or, if the change was meant, delete its first line"
    )


def read_record(path: Path) -> dict[str, Any]:
    """run.json of a run directory; empty if there is none. Raises UserError if it is not as it was written."""
    file = path / RECORD
    try:
        data = read_json(file)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {why(error)}") from error
    except ValueError:
        data = None
    if not isinstance(data, dict) or seal_of(data) == "broken":
        raise UserError(
            f"{file}: is not as the run wrote it (SHA-256): put it back from a copy, or delete it to go on without "
            "comparing prompts and base weights with those that the run began with"
        )
    return data


def write_record(
    path: Path,
    config: RunConfig,
    registry: Registry,
    prompts: Mapping[str, Any],
    base: BaseRecord | None,
    times: Mapping[str, Any],
    changes: Sequence[Mapping[str, Any]] = (),
    start: Mapping[str, Any] | None = None,
) -> None:
    """run.json, then config.yaml: everything needed to understand and repeat the run.

    times: those of rollouts and training, which a run file may leave to the model (`Times.record`); changes: what
    resumes have changed (`changes.recorded`); start: the weights that it started from, if not the base model's.
    config.yaml comes last, because a change is known by it: what a killed process did not write of both, the next one
    finds and writes again.
    """
    versions = {name: _version(name) for name in LIBRARIES}
    record = {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version for name, version in versions.items() if version},
        "plugins": registry.distributions(),
        "git": _git_state(),
        "prompts": dict(prompts),
        "base": None if base is None else base.model_dump(mode="json"),
        "times": dict(times),
        "changes": [dict(one) for one in changes],
        **({} if start is None else {"start": dict(start)}),
    }
    write_text(path / RECORD, json.dumps(sealed(record), indent=1) + "\n")
    write_text(path / CONFIG, config_text(config, registry))


def summary(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What run.json says of the prompts of a split."""
    return {"count": len(prompts), "sha256": digest(prompts), **counts(prompts)}


def check_prompts(path: Path, prompts: Mapping[str, Any], *, mend: str = "") -> None:
    """Raise UserError if the run in `path` was started on other prompts than these (split to `summary`).

    mend: what else people can do about it.
    """
    saved = read_record(path).get("prompts")
    for split, found in prompts.items():
        before = saved.get(split) if isinstance(saved, dict) else None
        if isinstance(before, dict) and before != found:
            differs = (
                f"gave {before.get('count')} when it started and gives {found['count']} now"
                if before.get("count") != found["count"]
                else f"has another content than when it started (SHA-256 in {RECORD})"
                + (", or the media that it names have" if found.get("media") and before.get("media") else "")
            )
            raise UserError(
                f"{path}: other prompts than those of the run: prompts.{split} {differs}; put them back{mend}"
            )


def recorded_base(path: Path) -> BaseRecord | None:
    """What the run's base weights were when it began; None if that is not known. Raises UserError like
    `read_record`."""
    found = read_record(path).get("base")
    try:
        return None if found is None else BaseRecord.model_validate(found)
    except ValidationError:  # a later version's
        return None


def check_base(path: Path, now: BaseRecord | None, *, accept: bool = False) -> str | None:
    """A note for people, if any. Raises UserError if the base weights are not those that the run in `path` began with,
    unless that is accepted, which the note tells."""
    before = recorded_base(path)
    if not (path / RECORD).exists():
        return f"there is no {path / RECORD}: prompts and base weights are not compared with those of the start"
    if before is None or now is None:
        if before is None and now is None:
            return None  # of a backbone that does not say what it was read from
        known = (
            f"{path / RECORD} has no digests of the base weights"
            if before is None
            else "the backbone no longer says what its base weights were read from"
        )
        return f"{known}; they are not compared"
    found = differences(before, now)
    if not found:
        return None
    shown = "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
    if before.commit and now.commit and before.commit != now.commit:
        shown += f"; it was commit {before.commit} of the Hub repository and is {now.commit} (backbone.revision)"
    where = now.directory if now.directory == before.directory else f"{now.directory} (then {before.directory})"
    what = f"the base weights in {where} are not those that the run in {path} began with: {shown}"
    if accept:
        return f"{what}; accepted"
    raise UserError(f"{what}; put them back, or take them as they are with {option('accept', 'base')}")


def other_plugins(path: Path, registry: Registry) -> list[str]:
    """Plugins that have another version than when the run in `path` was last started, and those that are gone."""
    saved, now = read_record(path).get("plugins"), registry.distributions()
    if not isinstance(saved, dict):
        return []
    return [
        f"{name} was {version} and is {now.get(name) or 'not installed'}"
        for name, version in saved.items()
        if now.get(name) != version
    ]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """Commit and cleanness of the working directory's repository, if it is one."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "clean": git("status", "--porcelain") == ""}
    except (OSError, subprocess.SubprocessError):
        return None
