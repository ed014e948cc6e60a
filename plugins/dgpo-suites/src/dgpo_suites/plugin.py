"""Hook implementations of dgpo-suites. This module must not import anything heavy."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Component

__all__ = ["dgpo_suites"]

dgpo_contract = 3


@hookimpl
def dgpo_suites() -> Sequence[Component]:
    """Declare the benchmarks."""
    return [
        _suite("geneval2", "GenEval 2: 800 prompts, questions to a judge; Soft-TIFA GM, and AM by skill", "geneval2"),
        _suite("dpg", "DPG-Bench: 1,065 prompts x 4, questions that depend on each other", "dpg", "Dpg"),
        _suite(
            "dpg-reference", "DPG-Bench as its script counts, quirks included", "dpg", "DpgReference", options="Dpg"
        ),
        _suite("drawbench", "DrawBench: 200 prompts x 4, any rewards; means by category", "categories", "DrawBench"),
        _suite("parti", "PartiPrompts: 1,632 prompts, any rewards; means by category", "categories", "Parti"),
        _suite("longtext", "LongText-Bench: 160 prompts x 4, share of the words that are read", "longtext", "LongText"),
    ]


def _suite(name: str, summary: str, module: str, base: str = "GenEval2", options: str = "") -> Component:
    return Component(
        name, summary, f"dgpo_suites.{module}:{base}Suite", f"dgpo_suites.options:{options or base}Options"
    )
