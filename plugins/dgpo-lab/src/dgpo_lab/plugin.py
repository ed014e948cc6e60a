"""The plugin module of dgpo-lab: registers its commands. It must not import anything heavy."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Command

__all__ = ["dgpo_commands"]

dgpo_contract = 3


@hookimpl
def dgpo_commands() -> Sequence[Command]:
    """Return the analysis commands."""
    summary = "Score image and video files with any reward, and show the reasons."
    return [
        Command("score", summary, "dgpo_lab.commands.score:score", 40),
        Command("report", "Write one HTML page about a run.", "dgpo_lab.commands.report:report", 50),
        Command("doctor", "Diagnose a run and suggest settings to change.", "dgpo_lab.commands.doctor:doctor", 60),
        Command("watch", "Show runs on a live page.", "dgpo_lab.commands.watch:watch", 65),
        Command("ablate", "Compare variants of a run over several seeds.", "dgpo_lab.commands.ablate:ablate", 70),
        Command("compare", "Compare runs and suites in one table.", "dgpo_lab.commands.compare:compare", 75),
        Command("plan", "Estimate memory, time and cost of a run.", "dgpo_lab.commands.plan:plan", 110),
        Command("bench", "Measure time, throughput and memory of a run.", "dgpo_lab.commands.bench:bench", 120),
        Command("decoders", "Compare rewards of two decoders.", "dgpo_lab.commands.decoders:decoders", 130),
    ]
