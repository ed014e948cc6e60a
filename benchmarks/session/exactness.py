"""Whether the GPU computes what the CPU does, repeats itself, and halves what does not fit."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.parts import registry_with_components
from benchmarks.session.steps import Row, Session
from benchmarks.session.training import Said, tiny_run, trained
from dgpo_core.training.policy import ModelName
from dgpo_core.training.run import TrainingRun
from dgpo_core.training.trainer import Trainer
from dgpo_diffusers.backbone import DiffusersBackbone

__all__ = ["LOW", "agreement", "compared", "determinism", "halving", "losses"]

ROOT = Path(__file__).parents[2]
MODELS: tuple[ModelName, ...] = ("base", "policy", "ema_fast", "ema")
EXACT, LOW = 1e-4, 0.05
"""Largest relative difference of a gradient between CPU and GPU in float32, and from float32 in bfloat16."""
WHOLE = 16
"""Samples of the micro-batch that is not to fit."""
AS_WHOLE = 1e-4
"""Largest relative difference of a loss between micro-batches of different sizes."""


Losses = dict[str, tuple[float, Tensor | None]]
"""Loss and gradient [all trained weights, float32, CPU] by model."""


def agreement(session: Session) -> list[Row]:
    """Loss and gradient of each model of a tiny SD3, CPU against GPU: in float32 without TF32, in bfloat16 by
    autocast, and in bfloat16 with the fast adapter and norms."""
    device = session.device.type
    low = {"tf32": False, "autocast": "bf16"}
    fast = {"backbone": {"dtype": "bfloat16"}, "precision": low | {"adapter": "fast", "norms": "fast"}}
    reference = losses(session, "cpu", _on("cpu"))
    return [
        *compared("float32", losses(session, "float32", _on(device)), reference, EXACT),
        *compared("autocast", losses(session, "autocast", _on(device) | {"precision": low}), reference, LOW),
        *compared("fast", losses(session, "fast", _on(device) | fast), reference, LOW),
    ]


def compared(label: str, found: Losses, wanted: Losses, bound: float) -> list[Row]:
    """Rows of the relative differences of losses and gradients."""
    rows = []
    for name, (loss, gradient) in found.items():
        wanted_loss, wanted_gradient = wanted[name]
        rows.append(Row(f"loss of {name}, {label}", abs(loss / wanted_loss - 1), "relative", bound=bound))
        if gradient is not None and wanted_gradient is not None:
            difference = float((gradient - wanted_gradient).norm() / wanted_gradient.norm())
            rows.append(Row(f"gradient of {name}, {label}", difference, "relative", bound=bound))
    return rows


def _on(device: str) -> dict[str, Any]:
    return {"run": {"device": device}, "precision": {"tf32": False, "autocast": "no"}}


def losses(session: Session, name: str, more: Mapping[str, Mapping[str, Any]]) -> Losses:
    """Return loss and gradient of each model of a tiny run, whose weights and inputs are drawn on the CPU from a fixed
    seed."""
    trainer = Trainer(tiny_run(session, f"agree-{name}", more), registry_with_components())
    try:
        run = trainer.build()
        _differ(run)
        return {model: _loss(run, model) for model in MODELS}
    finally:
        trainer.close()


def _loss(run: TrainingRun, name: ModelName) -> tuple[float, Tensor | None]:
    draws, device = torch.Generator().manual_seed(1), run.runtime.device
    shape = run.training_rollout_sampler.shape
    x, noise = (torch.randn(4, *shape, generator=draws).to(device) for _ in range(2))
    sigma = torch.tensor([0.2, 0.5, 0.8, 1.0], device=device)
    wide = sigma.view(-1, *[1] * len(shape))
    run.policy.forget_gradient()
    with run.policy.activate(name), run.runtime.autocast():
        conditioning = run.conditioning(run.sized(run.train_prompts[:4]))
        velocity = run.policy.velocity((1 - wide) * x + wide * noise, sigma, conditioning)
        loss = (velocity.float() - (noise - x)).square().mean()
        if loss.requires_grad:
            run.policy.backward(loss)
    gradients = [p.grad.flatten().cpu().float() for p in run.policy.parameters.values() if p.grad is not None]
    return float(loss.detach()), torch.cat(gradients) if gradients else None


def _differ(run: TrainingRun) -> None:
    """Give each stored model other weights, the same on every device."""
    draws = torch.Generator().manual_seed(0)
    state = {
        key: tensor.cpu() + 0.1 * torch.randn(tensor.shape, generator=draws)
        for key, tensor in sorted(run.policy.state().items())
    }
    run.policy.load_state(state, 10**6)  # after so many updates no average stands for another


def determinism(session: Session) -> list[Row]:
    """A deterministic run of four iterations twice, and once interrupted after two; bytes of the weights compared.

    Each is a process of its own, because determinism is set before cuBLAS is first used."""
    kinds = {"first": [4], "second": [4], "resumed": [2, 4]}
    for turn in (0, 1):
        started = [
            (kind, _start(session, kind, ends[turn], resume=turn > 0))
            for kind, ends in kinds.items() if turn < len(ends)
        ]  # fmt: skip
        _all_end(started)
    digests = {kind: _digest(session.directory / f"deterministic-{kind}") for kind in kinds}
    return [
        Row("weights of a second run differ", int(digests["second"] != digests["first"]), bound=0),
        Row("weights of a resumed run differ", int(digests["resumed"] != digests["first"]), bound=0),
        Row("digest of the weights", digests["first"][:16]),
    ]


def _all_end(started: Sequence[tuple[str, subprocess.Popen[str]]]) -> None:
    """Wait for all runs. If one fails the others are ended, because a later step has the GPU for itself."""
    try:
        for kind, process in started:
            _, error = process.communicate()
            if process.returncode:
                raise RuntimeError(f"the {kind} run: {error.strip().splitlines()[-1] if error.strip() else 'failed'}")
    finally:
        for _, process in started:
            with process:
                process.kill()


def _start(session: Session, kind: str, end: int, *, resume: bool) -> subprocess.Popen[str]:
    config = tiny_run(
        session, f"deterministic-{kind}",
        {"run": {"device": session.device.type, "deterministic": True, "iterations": 4},
         "checkpoints": {"every": 2}, "precision": {"autocast": "bf16"}},
    )  # fmt: skip
    file = session.directory / f"deterministic-{kind}.json"
    file.write_text(config.model_dump_json(), encoding="utf-8")
    words = [sys.executable, "-m", "benchmarks.session.training", str(file), str(end), *(["resume"] if resume else [])]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        words, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def _digest(directory: Path) -> str:
    """Digest of all tensors' files of the last checkpoint, weights and moments."""
    last = sorted(directory.rglob("*.safetensors"), key=lambda path: path.parent.name)
    newest = [path for path in last if path.parent == last[-1].parent]
    digest = hashlib.sha256()
    for path in sorted(newest):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def halving(session: Session) -> list[Row]:
    """A micro-batch that does not fit is halved, with the same loss as one that fits."""
    fitting = _trained_at(session, 2, "fitting")
    whole = _trained_at(session, WHOLE, "whole")
    with _too_small_for(whole.peak, fitting.peak, session):
        halved = _trained_at(session, WHOLE, "halved")
    said = sum("out of memory: continuing with micro-batches" in message for message in halved.messages)
    return [
        Row("peak of a micro-batch of 2", fitting.peak / 2**20, "MiB"),
        Row(f"peak of a micro-batch of {WHOLE}", whole.peak / 2**20, "MiB"),
        Row("halvings", said),
        Row("not halved", int(said == 0), bound=0),
        Row("loss, against a micro-batch that fits", abs(halved.loss / fitting.loss - 1), "relative", bound=AS_WHOLE),
    ]


def _trained_at(session: Session, micro_batch: int, name: str) -> Said:
    """Train for one iteration; on a GPU with a model whose activations take gigabytes."""
    more: dict[str, dict[str, Any]] = {
        "run": {"device": session.device.type},
        "optimizer": {"micro_batch": micro_batch},
        "rollout": {"group_size": WHOLE, "micro_batch": 2, "resolution": 64 if session.tiny else 256},
    }
    return trained(tiny_run(session, f"halving-{name}", more, wide=not session.tiny))


@contextmanager
def _too_small_for(whole: float, fitting: float, session: Session) -> Iterator[None]:
    """Context in which a micro-batch of `WHOLE` does not fit: on a GPU by a limit on memory between the two peaks, on
    the CPU by an error of the network for more than half of it."""
    if session.cuda:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(session.device).total_memory
        torch.cuda.set_per_process_memory_fraction((whole + fitting) / 2 / total, session.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, session.device)
        return
    velocity = DiffusersBackbone.velocity

    @wraps(velocity)
    def refusing(self: Any, x_sigma: Tensor, *arguments: Any) -> Tensor:
        if len(x_sigma) > WHOLE // 2 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return velocity(self, x_sigma, *arguments)

    with patch.object(DiffusersBackbone, "velocity", refusing):
        yield
