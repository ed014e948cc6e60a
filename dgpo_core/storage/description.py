"""Write and read config.yaml and run.json, the configuration and metadata of a run, each with a digest of itself.

A file that was changed after it was written, by a disk error or by hand, is rejected when a run is resumed, sampled,
evaluated or exported. Files without a digest are accepted.
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
    "versions",
    "write_record",
]

CONFIG = "config.yaml"
RECORD = "run.json"
LIBRARIES = (
    "dgpo", "torch", "diffusers", "transformers", "peft", "accelerate", "pydantic", "pluggy", "safetensors", "pillow",
)  # fmt: skip


def config_text(config: RunConfig, registry: Registry | None = None) -> str:
    """Return the text of config.yaml: a line with the digest, then all settings, with absolute paths."""
    return sealed_text(dump_yaml(located(config, registry).model_dump(mode="json")))


def read_config(path: Path, registry: Registry | None = None) -> RunConfig:
    """Read the resolved configuration of a run directory.

    With a registry, checks it against the plugins and updates paths if the run was moved (`started_in`, `moved_along`).
    Raises UserError if this is not a run directory, or if its config.yaml was changed.
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
    """Return why a run directory's config.yaml is rejected, with the remedy, or None if it is unchanged."""
    file = path / CONFIG
    try:
        seal = text_seal(read_file(file))
    except OSError as error:
        return f"{file}: cannot be read: {why(error)}"
    if seal != "broken":
        return None
    return (
        f"{file}: was changed since the run wrote it (it does not match the SHA-256 in its first line): restore it "
        "from a copy; or, if the change was intended, delete its first line"
    )


def read_record(path: Path) -> dict[str, Any]:
    """Read run.json of a run directory; empty if there is none. Raises UserError if it was changed."""
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
            f"{file}: was changed since the run wrote it (SHA-256): restore it from a copy, or delete it to continue "
            "without comparing prompts and base weights with those at the start of the run"
        )
    return data


def versions(registry: Registry) -> dict[str, str]:
    """Return the versions of dgpo, its plugins and the libraries that results depend on."""
    return _libraries() | registry.distributions()


def _libraries() -> dict[str, str]:
    return {name: version for name in LIBRARIES if (version := _version(name))}


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
    """Write run.json, then config.yaml: everything needed to understand and repeat the run.

    times: resolved timesteps of rollouts and training (`Times.record`). changes: settings changed by resumes
    (`changes.recorded`). start: the weights that the run started from, if not the base model's. config.yaml is written
    last, because changes are detected by comparison with it: if the process is killed in between, the next one detects
    and writes them again.
    """
    record = {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": _libraries(),
        "plugins": registry.distributions(),
        "git": _git_state(),
        "prompts": dict(prompts),
        "base": None if base is None else base.model_dump(mode="json"),
        "times": dict(times),
        "changes": [dict(change) for change in changes],
        **({} if start is None else {"start": dict(start)}),
    }
    write_text(path / RECORD, json.dumps(sealed(record), indent=1) + "\n")
    write_text(path / CONFIG, config_text(config, registry))


def summary(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Return the entry of run.json for the prompts of a split."""
    return {"count": len(prompts), "sha256": digest(prompts), **counts(prompts)}


def check_prompts(path: Path, prompts: Mapping[str, Any], *, mend: str = "") -> None:
    """Raise UserError if the run in `path` was started with other prompts.

    prompts: `summary` by split. mend: an additional remedy for the message.
    """
    saved = read_record(path).get("prompts")
    for split, found in prompts.items():
        before = saved.get(split) if isinstance(saved, dict) else None
        if isinstance(before, dict) and before != found:
            differs = (
                f"had {before.get('count')} prompts when the run started and has {found['count']} now"
                if before.get("count") != found["count"]
                else f"has changed since the run started (SHA-256 in {RECORD})"
                + (", or its media have" if found.get("media") and before.get("media") else "")
            )
            raise UserError(
                f"{path}: the prompts differ from those of the run: prompts.{split} {differs}; put them back{mend}"
            )


def recorded_base(path: Path) -> BaseRecord | None:
    """Return the record of the base weights at the start of the run, or None if unknown.

    Raises UserError like `read_record`.
    """
    found = read_record(path).get("base")
    try:
        return None if found is None else BaseRecord.model_validate(found)
    except ValidationError:  # written by a later version
        return None


def check_base(path: Path, now: BaseRecord | None, *, accept: bool = False) -> str | None:
    """Compare the base weights with those at the start of the run in `path`. Returns a note for the user, or None.

    Raises UserError if they differ, unless `accept` is set; the note then describes the difference.
    """
    before = recorded_base(path)
    if not (path / RECORD).exists():
        return f"{path / RECORD} is missing: prompts and base weights are not compared with those at the start"
    if before is None or now is None:
        if before is None and now is None:
            return None  # the backbone does not report its files
        known = (
            f"{path / RECORD} has no digests of the base weights"
            if before is None
            else "the backbone no longer reports the files of its base weights"
        )
        return f"{known}; they are not compared"
    found = differences(before, now)
    if not found:
        return None
    shown = "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
    if before.commit and now.commit and before.commit != now.commit:
        shown += f"; it was commit {before.commit} of the Hub repository and is {now.commit} (backbone.revision)"
    where = now.directory if now.directory == before.directory else f"{now.directory} (formerly {before.directory})"
    what = f"the base weights in {where} differ from those at the start of the run in {path}: {shown}"
    if accept:
        return f"{what}; accepted"
    raise UserError(f"{what}; put them back, or accept them with {option('accept', 'base')}")


def other_plugins(path: Path, registry: Registry) -> list[str]:
    """List plugins whose version has changed since the run in `path` was last started, or that are missing."""
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
    """Return the commit of the working directory's git repository and whether it is clean; None outside of one."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "clean": git("status", "--porcelain") == ""}
    except (OSError, subprocess.SubprocessError):
        return None
