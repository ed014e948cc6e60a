"""Write files from the templates in `experiments/pages`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_lab.ablation import words
from experiments.catalog import HERE

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["write"]


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(HERE / "pages"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {"interval": words.interval, "signed": words.signed, "p": words.p_value}
    return made


def write(path: Path, **values: Any) -> Path:
    """Write NAME.md from the template NAME.md.jinja and return its path."""
    text = _environment().get_template(f"{path.name}.jinja").render(**values)
    path.write_text(text.rstrip() + "\n", encoding="utf-8")
    return path
