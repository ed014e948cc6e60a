"""Models of published sizes for a few steps: what their passes take, beside the roofline and the plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.parts import registry_with_components
from benchmarks.session.cases import CASES, configuration
from benchmarks.session.exactness import LOW, compared, losses
from benchmarks.session.hardware import PRODUCT, seconds_of, tf32
from benchmarks.session.steps import Row, Session
from benchmarks.session.timers import Timers
from benchmarks.session.training import Said, Watch, tiny_checkpoint
from dgpo_core.errors import DgpoError
from dgpo_core.training.memory import free
from dgpo_core.training.trainer import Trainer
from dgpo_diffusers import compiling
from dgpo_schemas.run import RunConfig

__all__ = ["compiled", "decoding", "savings", "sd35_512", "sd35_1024", "wan"]

TARGETS = {"roll-out step": 0.55, "training micro-batch, all passes": 0.45}
"""Least shares of the sustained bf16 product that are aimed at."""


def sd35_512(session: Session) -> list[Row]:
    """SD3.5-M at 512 x 512 as it is by default: micro-batches of 8 in the optimization, then whole groups."""
    first, timers, _ = _measured(session, "sd3.5-m 512", profile=True)
    return [*first, *_profiled(session, "sd3.5-m 512", timers), *_measured(session, "sd3.5-m 512, whole groups")[0]]


def sd35_1024(session: Session) -> list[Row]:
    """SD3.5-M at 1024 x 1024."""
    return _measured(session, "sd3.5-m 1024")[0]


def wan(session: Session) -> list[Row]:
    """Wan 2.1 1.3B, 33 frames of 480 x 832."""
    return _measured(session, "wan2.1 1.3b")[0]


def savings(session: Session) -> list[Row]:
    """The adapter and the norms exact, then the adapter fast alone; both fast is the default, which was measured."""
    names = ("sd3.5-m 512, exact", "sd3.5-m 512, fast adapter")
    return [row for name in names for row in _measured(session, name)[0]]


def compiled(session: Session) -> list[Row]:
    """Compiled blocks: seconds of the first iteration, graphs, and what a pass takes then; the gradient of a tiny
    model, compiled against eager."""
    # A dry run traces graphs without generating code, which takes minutes on a CPU.
    with patch.object(compiling, "BACKEND", "aot_eager" if session.tiny else compiling.BACKEND):
        return _compiled(session)


def _compiled(session: Session) -> list[Row]:
    from torch._dynamo.utils import counters

    low: dict[str, dict[str, Any]] = {"run": {"device": session.device.type}, "precision": {"autocast": "bf16"}}
    eager = losses(session, "eager", low)
    rows = compared("compiled", losses(session, "compiled", low | {"backbone": {"compile": True}}), eager, LOW)
    counters.clear()
    more = {"backbone": {"compile": True}}
    found, _, said = _measured(session, "sd3.5-m 512", more, label="sd3.5-m 512, compiled")
    return [
        *rows, *found,
        Row("first iteration, compiled", said.seconds[0], "s"),
        Row("graphs", counters["stats"]["unique_graphs"]),
        Row("graph breaks", sum(counters["graph_break"].values())),
        *(Row("message", text) for text in said.messages if "compil" in text),
    ]  # fmt: skip


def decoding(session: Session) -> list[Row]:
    """SD3's autoencoder, four samples of 512 x 512, in each precision."""
    with torch.no_grad():
        trainer = Trainer(_configuration(session, "sd3.5-m 512", 1, None), registry_with_components())
        try:
            backbone: Any = trainer.build().backbone
            side = 16 if session.tiny else 64
            latents = torch.randn(4, backbone.vae.config.latent_channels, side, side, device=session.device)
            rows = []
            for label, allowed in (("TF32", True), ("float32", False)):
                with tf32(allowed):
                    taken = seconds_of(lambda: backbone.decode(latents), session)
                rows.append(Row(f"decoding 4 samples, {label}", taken * 1e3, "ms"))
            reference, config = backbone.decode(latents), backbone.vae.config
            low = backbone.vae.to(torch.bfloat16)
            unscaled = (latents / config.scaling_factor + (config.shift_factor or 0.0)).to(torch.bfloat16)
            taken = seconds_of(lambda: low.decode(unscaled), session)
            rows.append(Row("decoding 4 samples, bf16", taken * 1e3, "ms"))
            pixels = (low.decode(unscaled).sample.float() * 0.5 + 0.5).clamp(0, 1)
            rows.append(Row("bf16 pixels, largest difference", float((pixels - reference).abs().max()), "of 1"))
        finally:
            trainer.close()
    return rows


def _configuration(
    session: Session, name: str, iterations: int, more: Mapping[str, Mapping[str, Any]] | None
) -> RunConfig:
    case = CASES[name]
    tiny = tiny_checkpoint(session.directory, name) if session.tiny else None
    label = name.replace(" ", "-").replace(",", "")
    sections: dict[str, Mapping[str, Any]] = {"run": {"name": f"{label}-{len(more or ())}"}, **(more or {})}
    return configuration(case, session.directory, iterations=iterations, tiny=tiny, more=sections)


def _measured(
    session: Session, name: str, more: Mapping[str, Mapping[str, Any]] | None = None, *, label: str | None = None,
    profile: bool = False,
) -> tuple[list[Row], Timers, Said]:  # fmt: skip
    """Train a case, on a GPU that holds nothing else; profile: in one more iteration at the end."""
    free()
    iterations = CASES[name].iterations
    config = _configuration(session, name, iterations + profile, more)
    timers, watch = Timers(session.device, profile=iterations if profile else None), Watch()
    trainer = Trainer(config, registry_with_components(), callbacks=[timers, watch])
    torch.manual_seed(0)  # the same random weights, whatever the settings
    timers.watch(trainer.build())
    trainer.train()
    counts = session.counts.get("cases", {}).get(name, {})
    rows = _passes(session, label or name, config, timers, counts)
    peak = max(counts["peak_gib"].values()) if counts else None
    rows.append(Row(f"peak memory, {label or name}", watch.said.peak / 2**30, "GiB", ideal=peak))
    rows.append(Row(f"gradient's norm, {label or name}", watch.said.gradient))
    return rows, timers, watch.said


def _passes(session: Session, name: str, config: RunConfig, timers: Timers, counts: Mapping[str, Any]) -> list[Row]:
    """What each pass of the roofline takes, and its share of the sustained bf16 product."""
    micro_batch = config.optimizer.micro_batch
    assert isinstance(micro_batch, int), "every case states it"
    learns = -(-config.rollout.group_size // micro_batch)
    sampled, optimized = timers.seconds("sample"), timers.seconds("optimize")
    seconds = {
        "roll-out step": None if sampled is None else sampled / config.rollout.steps,
        "decode": timers.seconds("decode"),
        "policy pass with gradient": timers.seconds("policy"),
        "its backward": timers.seconds("backward"),
        "training micro-batch, all passes": None if optimized is None else optimized / learns,
    }
    ideal = {row["pass"]: row for row in counts.get("passes", ())}
    ceiling, rows = session.value(PRODUCT), []
    for part, taken in seconds.items():
        if taken is None:
            continue
        counted = ideal.get(part)
        rows.append(Row(f"{part}, {name}", taken * 1e3, "ms", ideal=counted and counted["ideal_ms"]))
        if counted and ceiling and part in TARGETS:
            reached = counted["operations"] / taken / 1e12 / ceiling
            rows.append(Row(f"share of the product, {part}, {name}", reached, ideal=TARGETS[part]))
    return rows


def _profiled(session: Session, name: str, timers: Timers) -> list[Row]:
    """What the profiler saw of a roll-out pass."""
    found = timers.profiled
    if found is None:
        raise DgpoError("the profiler saw no pass")
    counts = session.counts.get("cases", {}).get(name, {})
    kernels = next((row["kernels"] for row in counts.get("passes", ()) if row["pass"] == "roll-out step"), None)
    return [
        Row("kernels of a pass" if session.cuda else "operators of a pass", found.kernels, ideal=kernels),
        Row("idle between its kernels", 1 - found.busy / found.span if found.span else 0.0, "of its span"),
        Row("host until it returns", found.host * 1e3, "ms"),
    ]
