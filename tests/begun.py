"""Run files that `dgpo init` begins: what is installed, and the prompt files that examples name."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from dgpo_cli.new_run.choices import Choices
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.plugins.registry import get_registry
from dgpo_schemas.run import RunConfig

CHOICES = Choices(get_registry())


def prompt_files(directory: Path) -> None:
    """The files that examples name, with two prompts each."""
    (directory / "prompts").mkdir()
    Image.new("RGB", (32, 32)).save(directory / "prompts" / "a.png")
    for name in ("train", "heldout", "pickscore_train", "pickscore_test"):
        (directory / "prompts" / f"{name}.txt").write_text(f"a {name}\na second {name}\n")
    for name in ("i2v_train", "i2v_test"):
        (directory / "prompts" / f"{name}.jsonl").write_text(f'{{"prompt": "a {name}", "media": "a.png"}}\n')


def config_of(path: str | Path, *overrides: str, preset: str | None = None) -> RunConfig:
    return load_run_config(path, overrides, get_registry(), preset=preset)
