"""How the run ended, and whether its logs are whole."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from dgpo_core.config.changes import history
from dgpo_lab.doctoring.facts import Facts
from dgpo_lab.doctoring.findings import Examination, Finding
from dgpo_schemas.text import shell_word

__all__ = ["ending", "logs", "resume_command"]


def resume_command(path: Path) -> str:
    """What goes on with a run: its own config.yaml is a run file."""
    return f"dgpo train {shell_word(str(path / 'config.yaml'))} --resume"


def ending(run: Facts) -> Examination:
    """Whether the last process ended as it should."""
    done, total = run.data.done, run.config.run.iterations
    advice = (f"{resume_command(run.data.path)}  goes on from the last checkpoint, bit for bit",)
    changed = tuple(f"settings changed {line} (run.json)" for line in history(run.data.record.get("changes")))
    seen = (f"{done} of {total} iterations are logged (metrics.jsonl, evaluations.jsonl)", *changed)
    if run.state == "failed":
        finding = Finding(
            "run-failed",
            "problem",
            f"The run stopped itself or crashed after iteration {done}.",
            ("outcome failed (outcome.json)", *seen),
            "Its message stands at the end of what the command printed, in an ablation in the cell's train.log.",
            advice=advice,
        )
    elif run.state == "killed":
        finding = Finding(
            "run-killed",
            "warning",
            f"The run was killed after iteration {done}: no process works on it.",
            (*seen, "there is no outcome.json, and no process holds the run's lock"),
            "A process that is killed, for its memory or by a time limit, leaves no outcome behind.",
            advice=advice,
        )
    elif run.state in ("interrupted", "paused"):
        finding = Finding(
            "run-interrupted",
            "note",
            f"The run was stopped after iteration {done}, with its state saved.",
            (f"outcome {run.state if run.outcome is None else run.outcome.outcome} (outcome.json)", *seen),
            "Ctrl-C, SIGTERM or --max-iterations ends a run so.",
            advice=advice,
        )
    elif run.state == "running":
        return Examination("ending", fine="a process works on it; this is how it looks so far")
    else:
        since = f"; {'; '.join(changed)}" if changed else ""
        return Examination("ending", fine=f"it came to its end ({run.data.ended_by or 'iterations'}){since}")
    return Examination("ending", (finding,))


def logs(run: Facts) -> Examination:
    """Whether every iteration is there and every line could be read."""
    there = {int(i) for i in run.data.iterations}
    absent = list(islice((i for i in range(1, max(there, default=0) + 1) if i not in there), 9))
    seen = list(run.data.problems)
    if absent:
        which = ", ".join(map(str, absent[:8])) + (", ..." if len(absent) > 8 else "")
        seen.append(f"metrics.jsonl has no line of iteration {which}")
    if not seen:
        return Examination("logs", fine=f"{run.iterations} iterations, none missing")
    finding = Finding(
        "logs-incomplete",
        "note",
        "Part of the run's record could not be read.",
        seen,
        "What follows is said of the rest.",
        advice=("a resume computes the iterations after its checkpoint anew and writes their lines again",),
    )
    return Examination("logs", (finding,))
