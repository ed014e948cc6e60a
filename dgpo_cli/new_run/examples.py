"""Example run files, from which the settings of new ones come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpo_core.config.reading import kind_of
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.weights.packages import PACKAGE, in_package
from dgpo_schemas.loading import load_yaml

__all__ = ["Example", "example_files", "examples", "scored"]


@dataclass(frozen=True, slots=True)
class Example:
    """A run file of the project's examples, and its content."""

    path: Path
    data: dict[str, Any]

    @property
    def backbone(self) -> str:
        """Name of the backbone."""
        return str(self.data["backbone"]["use"])

    @property
    def is_miniature(self) -> bool:
        """Whether the model is a small one that comes with a plugin."""
        return str(self.data["backbone"]["checkpoint"]).startswith(PACKAGE)

    @property
    def place(self) -> str:
        """Path in the repository."""
        return f"examples/{self.path.name}"

    def rewards(self, registry: Registry) -> list[str]:
        """Return the names of the rewards that are trained on, of one on frames the reward that scores the frames."""
        return [scored(block, registry) for block in self.data["rewards"]]


def scored(block: Any, registry: Registry) -> str:
    """Return the name of the reward in a block; of a reward that passes single frames on, the name of that one."""
    if isinstance(block, str):
        return block
    name = str(block["use"])
    registered = registry.components("reward").get(name)
    inner = block.get("options", {}).get("reward")
    adapts = registered is not None and registered.component.adapts is not None
    return scored(inner, registry) if adapts and inner is not None else name


def example_files() -> list[Path]:
    """Return the files in examples/: of a checkout, or of an installed wheel, which contains them."""
    package = Path(__file__).resolve().parents[1]
    installed, checkout = package / "examples", package.parent
    directory = checkout / "examples" if (checkout / "pyproject.toml").is_file() else installed
    return sorted(directory.glob("*.yaml"))


def examples(registry: Registry) -> Sequence[Example]:
    """Return the example run files of installed models, the most typical ones first.

    A typical one has a single reward and list of prompts, the objective `dgpo`, and a short name.
    """
    found = [Example(path, document.data) for path in example_files() if kind_of(document := load_yaml(path)) == "run"]
    return sorted((one for one in found if _is_installed(one, registry)), key=_rank)


def _is_installed(example: Example, registry: Registry) -> bool:
    if example.is_miniature:
        try:
            in_package(example.data["backbone"]["checkpoint"], "")
        except UserError:
            return False
    return example.backbone in registry.components("backbone")


def _rank(example: Example) -> tuple[Any, ...]:
    data, name = example.data, example.path.stem
    several = len(data["rewards"]) > 1 or isinstance(data["prompts"]["train"], list)
    other = data.get("objective", {}).get("use", "dgpo") != "dgpo"
    return several, other, len(name), name
