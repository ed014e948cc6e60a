"""Short training runs of the session, and the process that trains one of them: `python -m benchmarks.session.training
RUN.json ITERATIONS [resume]`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.parts import registry_with_components
from benchmarks.session.cases import SD3, Case, configuration
from benchmarks.session.steps import Session
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.trainer import Trainer
from dgpo_schemas.metrics import MetricsRecord, TimingRecord
from dgpo_schemas.run import RunConfig

__all__ = ["Said", "Watch", "tiny_checkpoint", "tiny_run", "trained"]


@dataclass
class Said:
    """What a run said. loss: denoising error, gradient: its norm, both of the last iteration; peak: bytes; seconds: of
    each iteration; messages: of the trainer."""

    loss: float = float("nan")
    gradient: float = float("nan")
    peak: float = 0.0
    seconds: list[float] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


class Watch(Callback):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.said = Said()

    def on_message(self, text: str) -> None:
        """Keep the message."""
        self.said.messages.append(text)

    def on_iteration_end(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
        """Keep the loss, the norm of the gradient, and the seconds."""
        self.said.loss, self.said.gradient = metrics.dsm or float("nan"), metrics.grad_norm or float("nan")
        self.said.peak = max(self.said.peak, timing.peak_memory_bytes)
        self.said.seconds.append(timing.seconds)


def tiny_checkpoint(session: Session, kind: str = "sd3") -> Path:
    """Make the tiny checkpoint of a family, once, in the session's directory."""
    from dgpo_sd3.testing import make_tiny_checkpoint as make_sd3
    from dgpo_wan.testing import make_tiny_checkpoint as make_wan

    path = session.directory / f"tiny-{kind}"
    return path if path.is_dir() else (make_sd3 if kind == "sd3" else make_wan)(path)


def tiny_run(session: Session, name: str, more: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    """A run of the tiny SD3 with its real weights, in float32 unless `more` says otherwise."""
    case = Case(SD3 | {"use": "sd3", "options": {"text_length": 0}}, "sd35-geneval.yaml", 64, 4, 2)
    sections = {"run": {"name": name}, "backbone": {"dtype": "float32"}, "precision": {"autocast": "no"}}
    for section, keys in more.items():
        sections[section] = sections.get(section, {}) | dict(keys)
    return configuration(case, session.directory, iterations=1, tiny=tiny_checkpoint(session), more=sections)


def trained(config: RunConfig, callbacks: Sequence[Callback] = ()) -> Said:
    """Train a run from its start; returns what it said."""
    watch = Watch()
    Trainer(config, registry_with_components(), callbacks=[watch, *callbacks]).train(resume="auto")
    return watch.said


def main() -> None:
    """Train the run of a file up to an iteration."""
    file, end, *rest = sys.argv[1:]
    config = RunConfig.model_validate_json(Path(file).read_text(encoding="utf-8"))
    left = int(end) - (2 if rest else 0)
    Trainer(config, registry_with_components()).train(resume=bool(rest), max_iterations=left)


if __name__ == "__main__":
    main()
