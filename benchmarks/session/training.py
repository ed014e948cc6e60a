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
from dgpo_core.training.memory import free
from dgpo_core.training.trainer import Trainer
from dgpo_schemas.metrics import MetricsRecord, TimingRecord
from dgpo_schemas.run import RunConfig

__all__ = ["Said", "Watch", "tiny_checkpoint", "tiny_run", "trained"]


@dataclass
class Said:
    """What a run said. loss: denoising error, gradient: its norm, both of the first iteration; peak: bytes; seconds: of
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
        """Keep the seconds, and of the first iteration the loss and the norm of the gradient."""
        if not self.said.seconds:
            self.said.loss, self.said.gradient = metrics.dsm or float("nan"), metrics.grad_norm or float("nan")
        self.said.peak = max(self.said.peak, timing.peak_memory_bytes)
        self.said.seconds.append(timing.seconds)


def tiny_checkpoint(directory: Path, case: str = "sd3") -> Path:
    """Make the tiny checkpoint of a case's family in a directory, once."""
    from dgpo_sd3.testing import make_tiny_checkpoint as make_sd3
    from dgpo_wan.testing import make_tiny_checkpoint as make_wan

    wan = "wan" in case
    path = directory / ("tiny-wan" if wan else "tiny-sd3")
    return path if path.is_dir() else (make_wan if wan else make_sd3)(path)


def tiny_run(session: Session, name: str, more: Mapping[str, Mapping[str, Any]], *, wide: bool = False) -> RunConfig:
    """A run of the tiny SD3, in float32 unless `more` says otherwise; wide: of a larger one, whose activations take
    gigabytes at 256 pixels."""
    from dgpo_sd3.testing import make_tiny_checkpoint

    checkpoint = session.directory / "wide-sd3" if wide else tiny_checkpoint(session.directory)
    if not checkpoint.is_dir():
        make_tiny_checkpoint(checkpoint, layers=4, width=512, pos_embed_max_size=32)
    case = Case(SD3 | {"use": "sd3", "options": {"text_length": 0}}, "sd35-geneval.yaml", 64, 4, 2)
    sections: dict[str, Any] = {
        "run": {"name": name}, "backbone": {"dtype": "float32"}, "precision": {"autocast": "no"},
    }  # fmt: skip
    for section, keys in more.items():
        sections[section] = sections.get(section, {}) | dict(keys)
    return configuration(case, session.directory, iterations=1, tiny=checkpoint, more=sections)


def trained(config: RunConfig, callbacks: Sequence[Callback] = ()) -> Said:
    """Train a run from its start, on a GPU that holds nothing else; returns what it said."""
    free()
    watch = Watch()
    Trainer(config, registry_with_components(), callbacks=[watch, *callbacks]).train()
    return watch.said


def main() -> None:
    """Train the run of a file up to an iteration."""
    file, end, *rest = sys.argv[1:]
    config = RunConfig.model_validate_json(Path(file).read_text(encoding="utf-8"))
    left = int(end) - (2 if rest else 0)
    Trainer(config, registry_with_components()).train(resume=bool(rest), max_iterations=left)


if __name__ == "__main__":
    main()
