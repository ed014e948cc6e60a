"""How the run ended, and whether its logs are complete."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from dgpo_core.config.changes import history
from dgpo_lab.doctoring.facts import Facts
from dgpo_lab.doctoring.rules import Rule, Subject, Values
from dgpo_schemas.text import shell_word

__all__ = ["ENDING", "LOGS", "resume_command"]


def resume_command(path: Path) -> str:
    """Return the command that resumes a run. Its config.yaml is itself a run file."""
    return f"dgpo train {shell_word(str(path / 'config.yaml'))} --resume"


def _ending(run: Facts) -> Values:
    """Whether the last process ended normally."""
    done = run.data.done
    changed = [f"settings changed {line} (run.json)" for line in history(run.data.record.get("changes"))]
    outcome = run.state if run.outcome is None else run.outcome.outcome
    outcomes = {
        "failed": ["outcome failed (outcome.json)"],
        "interrupted": [f"outcome {outcome} (outcome.json)"],
        "paused": [f"outcome {outcome} (outcome.json)"],
    }
    last = ["outcome.json does not exist, and no process holds the run's lock"] if run.state == "killed" else []
    logged = f"{done} of {run.config.run.iterations} iterations are logged (metrics.jsonl, evaluations.jsonl)"
    ended = "; ".join([f"the run is complete ({run.data.ended_by or 'iterations'})", *changed])
    return Values(
        state=run.state, done=done, resume=resume_command(run.data.path),
        fine="the run is in progress; this is its state so far" if run.state == "running" else ended,
        evidence=[*outcomes.get(run.state, []), logged, *changed, *last],
    )  # fmt: skip


RESUME = ("{resume}  (continues from the last checkpoint, bit for bit)",)

ENDING = Subject("ending", _ending, "{fine}", (
    Rule(
        "run-failed", "problem",
        "The run stopped with an error after iteration {done}.",
        "The error message is at the end of the command's output; for a cell of an ablation, in its train.log.",
        lambda v: v.state == "failed", advice=RESUME,
    ),
    Rule(
        "run-killed", "warning",
        "The run was killed after iteration {done}.",
        "A process that is killed, for example for its memory use or by a time limit, cannot write an outcome.",
        lambda v: v.state == "killed", advice=RESUME,
    ),
    Rule(
        "run-interrupted", "note",
        "The run was stopped after iteration {done}; its state is saved.",
        "Ctrl-C, SIGTERM and --max-iterations stop a run this way.",
        lambda v: v.state in ("interrupted", "paused"), advice=RESUME,
    ),
))  # fmt: skip


def _logs(run: Facts) -> Values:
    """Whether every iteration is logged and every line can be read."""
    logged = {int(i) for i in run.data.iterations}
    absent = list(islice((i for i in range(1, max(logged, default=0) + 1) if i not in logged), 9))
    which = ", ".join(map(str, absent[:8])) + (", ..." if len(absent) > 8 else "")
    missing = [f"metrics.jsonl has no line for iteration {which}"] if absent else []
    return Values(count=run.iterations, evidence=[*run.data.problems, *missing])


LOGS = Subject("logs", _logs, "{count} iterations, none missing", (
    Rule(
        "logs-incomplete", "note",
        "Parts of the run directory are missing, damaged or modified.",
        "The other findings are based on what could be read.",
        lambda v: bool(v.evidence),
        advice=("resuming repeats the iterations after the last checkpoint and logs them again",),
    ),
))  # fmt: skip
