"""What dgpo-lab declares. Nothing heavy may be imported here."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Command

__all__ = ["dgpo_commands"]

dgpo_contract = 3


@hookimpl
def dgpo_commands() -> Sequence[Command]:
    """What looks at runs and samples, before, after and beside training."""
    summary = "Score image and video files with any reward, and see why."
    return [
        Command("score", summary, "dgpo_lab.commands.score:score", 40),
        Command("report", "Write one HTML page about a run.", "dgpo_lab.commands.report:report", 50),
        Command("doctor", "Say what ails a run, and what to change.", "dgpo_lab.commands.doctor:doctor", 60),
        Command("ablate", "Vary parts of a run, with seeds, and compare.", "dgpo_lab.commands.ablate:ablate", 70),
        Command("plan", "Plan a run: memory, operations, seconds, money.", "dgpo_lab.commands.plan:plan", 110),
        Command("bench", "Measure a run: seconds, operations, memory.", "dgpo_lab.commands.bench:bench", 120),
    ]
