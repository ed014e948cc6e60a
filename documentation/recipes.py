"""The page of recipes: for each model family its example run files, and what its presets set for each size of GPU."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from dgpo_core.config.presets import presets_of
from dgpo_core.plugins.registry import Registry
from dgpo_schemas.loading import load_yaml
from documentation.links import ROOT, address

__all__ = ["recipes_page"]

HEAD = """# Recipes per model and GPU

A recipe is an example run file, which has the settings of the experiment, and a preset, which makes it fit a GPU:

```
dgpo train examples/sd35-geneval.yaml --preset 24gb
```

Presets were sized with `dgpo plan`, without a GPU, and each is tested to fit. Unless a preset says otherwise, it does
not change the result. `dgpo plan RUN.yaml --fit 24` looks for settings of other sizes, `dgpo plan RUN.yaml --card all`
compares seconds and prices. [Model families](model-families.md) says what each family supports.
"""


def recipes_page(registry: Registry) -> str:
    """Return the page: every backbone that has presets, with the text and the settings of each."""
    lines = [HEAD]
    for name in sorted(registry.components("backbone")):
        if presets := presets_of(name, registry):
            lines += _family(name, presets)
    return "\n".join(lines)


def _family(name: str, presets: dict[str, Path]) -> Iterator[str]:
    yield from (f"## {name}", "")
    examples = [path for path in sorted((ROOT / "examples").glob("*.yaml")) if _backbone(path) == name]
    for path in examples:
        place = path.relative_to(ROOT).as_posix()
        yield f"- [{path.name}]({address(place)}): {_comment(path)[0]}"
    yield ""
    for preset, path in presets.items():
        settings = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
        yield from (f"### {name}, {preset}", "", " ".join(_comment(path)), "", "```yaml", settings.strip(), "```", "")


def _backbone(path: Path) -> str | None:
    section = load_yaml(path).data.get("backbone")
    use = section.get("use") if isinstance(section, dict) else section
    return use if isinstance(use, str) else None


def _comment(path: Path) -> list[str]:
    """Return the paragraphs of the comment at the top of a file; of a run file without the line for editors."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(re.sub(r"^# ?", "", line))
    text = "\n".join(line for line in lines if not line.startswith("yaml-language-server:"))
    return [" ".join(part.split()) for part in text.strip().split("\n\n")]
