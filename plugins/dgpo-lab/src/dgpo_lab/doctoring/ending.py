"""How the run ended, and whether its logs are whole."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from dgpo_core.config.changes import history
from dgpo_lab.doctoring.facts import Facts
from dgpo_lab.doctoring.rules import Rule, Subject, Values
from dgpo_schemas.text import shell_word

__all__ = ["ENDING", "LOGS", "resume_command"]


def resume_command(path: Path) -> str:
    """What goes on with a run: its own config.yaml is a run file."""
    return f"dgpo train {shell_word(str(path / 'config.yaml'))} --resume"


def _ending(run: Facts) -> Values:
    """Whether the last process ended as it should."""
    done = run.data.done
    changed = [f"settings changed {line} (run.json)" for line in history(run.data.record.get("changes"))]
    outcome = run.state if run.outcome is None else run.outcome.outcome
    said = {
        "failed": ["outcome failed (outcome.json)"],
        "interrupted": [f"outcome {outcome} (outcome.json)"],
        "paused": [f"outcome {outcome} (outcome.json)"],
    }
    last = ["there is no outcome.json, and no process holds the run's lock"] if run.state == "killed" else []
    logged = f"{done} of {run.config.run.iterations} iterations are logged (metrics.jsonl, evaluations.jsonl)"
    ended = "; ".join([f"it came to its end ({run.data.ended_by or 'iterations'})", *changed])
    return Values(
        state=run.state, done=done, resume=resume_command(run.data.path),
        fine="a process works on it; this is how it looks so far" if run.state == "running" else ended,
        seen=[*said.get(run.state, []), logged, *changed, *last],
    )  # fmt: skip


RESUME = ("{resume}  goes on from the last checkpoint, bit for bit",)

ENDING = Subject("ending", _ending, "{fine}", (
    Rule(
        "run-failed", "problem",
        "The run stopped itself or crashed after iteration {done}.",
        "Its message stands at the end of what the command printed, in an ablation in the cell's train.log.",
        lambda v: v.state == "failed", advice=RESUME,
    ),
    Rule(
        "run-killed", "warning",
        "The run was killed after iteration {done}: no process works on it.",
        "A process that is killed, for its memory or by a time limit, leaves no outcome behind.",
        lambda v: v.state == "killed", advice=RESUME,
    ),
    Rule(
        "run-interrupted", "note",
        "The run was stopped after iteration {done}, with its state saved.",
        "Ctrl-C, SIGTERM or --max-iterations ends a run so.",
        lambda v: v.state in ("interrupted", "paused"), advice=RESUME,
    ),
))  # fmt: skip


def _logs(run: Facts) -> Values:
    """Whether every iteration is there and every line could be read."""
    there = {int(i) for i in run.data.iterations}
    absent = list(islice((i for i in range(1, max(there, default=0) + 1) if i not in there), 9))
    which = ", ".join(map(str, absent[:8])) + (", ..." if len(absent) > 8 else "")
    missing = [f"metrics.jsonl has no line of iteration {which}"] if absent else []
    return Values(count=run.iterations, seen=[*run.data.problems, *missing])


LOGS = Subject("logs", _logs, "{count} iterations, none missing", (
    Rule(
        "logs-incomplete", "note",
        "Part of the run's record could not be read.",
        "What follows is said of the rest.",
        lambda v: bool(v.seen),
        advice=("a resume computes the iterations after its checkpoint anew and writes their lines again",),
    ),
))  # fmt: skip
