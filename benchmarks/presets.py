"""`python -m benchmarks.presets [BACKBONE[/PRESET] ...]`: what presets are planned to need, and what they state.

Each preset is planned with the family's first example, on two cards if it spreads the model over them. Prints as it
goes; plans of large models take a minute each.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import yaml

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.config.presets import presets_of
from dgpo_core.plugins.registry import Registry
from dgpo_lab.planning.cards import CARDS
from dgpo_lab.planning.plan import make_plan, measure_model

__all__ = ["main"]

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALLEST = {"16gb": "t4", "24gb": "a10g", "48gb": "l40s", "80gb": "h100"}
"""The card of each size that leaves the least memory to a process."""
STATED = re.compile(r"(\d+) GiB (?:by|according to) `dgpo plan`")
GIB = 2**30


def _example_of(backbone: str) -> Path | None:
    for path in sorted(EXAMPLES.glob("*.yaml")):
        section = yaml.safe_load(path.read_text(encoding="utf-8")).get("backbone") or {}
        if section.get("use") == backbone and not section["checkpoint"].startswith("package:"):
            return path
    return None


def _stated(path: Path) -> str:
    text = " ".join(line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines())
    found = STATED.search(text)
    return found[1] if found else "none"


def main() -> None:
    """Print a line for each preset."""
    registry, wanted = Registry(), sys.argv[1:]
    sys.stdout.write(f"{'preset':<24} {'planned':>8} {'stated':>7} {'card':>7} {'has':>6}   phases\n")
    for backbone in sorted(registry.components("backbone")):
        example = _example_of(backbone)
        for name, path in presets_of(backbone, registry).items() if example is not None else ():
            if wanted and not {backbone, f"{backbone}/{name}"} & set(wanted):
                continue
            assert example is not None
            config = load_run_config(example, registry=registry, preset=name)
            processes = 2 if config.run.shard else 1
            plan = make_plan(config, measure_model(config, registry), registry, processes)
            card = SMALLEST[name]
            phases = ", ".join(f"{phase} {peak / GIB:.1f}" for phase, peak in plan.peaks.items())
            sys.stdout.write(
                f"{backbone + '/' + name:<24} {plan.peak / GIB:>8.2f} {_stated(path):>7} {card:>7} "
                f"{CARDS[card].memory:>6}   {phases}\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
