"""`dgpo bench`: a short measured run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgpo_cli.options import Preset

if TYPE_CHECKING:
    from dgpo_lab.planning.plan import Plan
    from dgpo_schemas.metrics import TimingRecord
    from dgpo_schemas.run import RunConfig

__all__ = ["bench", "lines", "measure"]

VERBS = {"roll_out": "roll out", "wait_for_scores": "score", "weigh": "weigh", "optimise": "optimise"}
"""As timings.jsonl names them, and as people do. Scoring hides behind the roll-out: its time is what is waited for."""


def bench(
    file: Annotated[
        Path | None, typer.Argument(help="A run file (YAML); by default the embedded miniature.", metavar="[RUN.yaml]")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting: --set rollout.groups=8.", metavar="KEY=VALUE"),
    ] = None,
    preset: Preset = None,
    iterations: Annotated[int, typer.Option(min=1, help="Measured iterations, after one to warm up.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print numbers as JSON, for `dgpo plan --measured`.")] = False,
) -> None:
    """Measure a run: seconds and samples a second of the four verbs, operations a second, peak memory.

    Trains a few iterations in a temporary directory, without evaluations. Operations are those of `dgpo plan`; the
    ceiling is measured too, with large matrix products in the precision that the model computes in.

    Examples:

        dgpo bench

        dgpo bench run.yaml --set rollout.groups=4 --json > bench.json
    """
    import json
    import tempfile

    from dgpo_core.config.resolve import load_run_config
    from dgpo_core.plugins.registry import get_registry

    registry = get_registry()
    with tempfile.TemporaryDirectory() as directory:
        settings = {
            "run.output": directory,
            "run.name": "bench",
            "run.iterations": iterations + 1,
            "evaluation.at_start": "false",
            "evaluation.every": 0,
            "checkpoints.every": 10**6,
            "logging.trackers": "[]",
        }
        path = file or _miniature(Path(directory))
        config = load_run_config(
            path, [*(overrides or ()), *(f"{key}={value}" for key, value in settings.items())], registry,
            preset=preset,
        )  # fmt: skip
        measured = measure(config, registry, iterations)
    if as_json:
        typer.echo(json.dumps(measured, indent=1))
        return
    typer.echo("\n".join(lines(measured)))


def _miniature(directory: Path) -> Path:
    """A run file for what every installation has."""
    from dgpo_schemas.loading import dump_yaml

    data: dict[str, Any] = {
        "run": {"name": "bench", "iterations": 1, "threads": 1},
        "backbone": {"use": "sd3", "checkpoint": "package:dgpo_miniature/checkpoint", "options": {"text_length": 0}},
        "prompts": {"train": {"use": "miniature"}},
        "rollout": {"sampler": "flow-euler", "steps": 8, "shift": 2.0, "group_size": 8, "groups": 12, "resolution": 64},
        "rewards": [{"use": "geneval", "options": {"detector": "shapes"}}],
    }
    path = directory / "bench.yaml"
    path.write_text(dump_yaml(data), encoding="utf-8")
    return path


def measure(config: RunConfig, registry: Any, iterations: int) -> dict[str, Any]:
    """Everything that is told, as plain data."""
    import torch

    from dgpo_core.training.callbacks import Callback
    from dgpo_core.training.trainer import Trainer
    from dgpo_lab.planning.ceiling import measured_tflops

    timings: list[TimingRecord] = []

    class Watcher(Callback):
        def on_iteration_end(self, metrics: object, timing: TimingRecord) -> None:
            timings.append(timing)

    trainer = Trainer(config.model_copy(update={"prompts": config.prompts}), registry, callbacks=[Watcher()])
    device = trainer.runtime.device
    trainer.train()
    low = config.backbone.dtype == "bfloat16" or config.precision.autocast == "bf16"
    dtype = torch.bfloat16 if low else torch.float32
    ceiling = measured_tflops(device, dtype)
    kept = timings[-iterations:]
    total = config.rollout.groups * config.rollout.group_size
    plan = _plan(config, registry)
    verbs: dict[str, Any] = {}
    for key, verb in VERBS.items():
        seconds = sum(t.verbs[key].seconds for t in kept if key in t.verbs) / len(kept)
        count = plan.operations.get(verb) if plan is not None else None
        achieved = count / seconds / 1e12 if count and seconds else None
        verbs[verb] = {
            "seconds": seconds,
            "samples_per_second": total / seconds if seconds else None,
            "tflops": achieved,
            "fraction": achieved / ceiling if achieved else None,
        }
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {
        "device": name,
        "dtype": str(dtype).removeprefix("torch."),
        "ceiling_tflops": ceiling,
        "samples": total,
        "iterations": len(kept),
        "seconds": sum(t.seconds for t in kept) / len(kept),
        "verbs": verbs,
        "peak_memory_bytes": max(t.peak_memory_bytes for t in kept),
    }


def _plan(config: RunConfig, registry: Any) -> Plan | None:
    """Its operations, if the backbone can be sketched."""
    from dgpo_core.errors import UserError
    from dgpo_lab.planning.plan import make_plan, measure_model

    try:
        return make_plan(config, measure_model(config, registry), registry)
    except UserError:
        return None


def lines(measured: dict[str, Any]) -> list[str]:
    """For people."""
    said = [
        f"{measured['device']}: {measured['samples']} samples an iteration, the mean of {measured['iterations']}",
        f"ceiling {measured['ceiling_tflops']:.3g} x 10^12 operations a second ({measured['dtype']} matrix products)",
        "",
        f"{'verb':<10} {'seconds':>9} {'samples/s':>11} {'10^12 op/s':>11} {'of ceiling':>11}",
    ]
    for verb, row in measured["verbs"].items():
        achieved = f"{row['tflops']:.3g}" if row["tflops"] else ""
        share = f"{row['fraction']:.0%}" if row["fraction"] else ""
        rate = f"{row['samples_per_second']:,.1f}" if row["samples_per_second"] and row["seconds"] > 1e-3 else ""
        said.append(f"{verb:<10} {row['seconds']:>9.3f} {rate:>11} {achieved:>11} {share:>11}")
    said += [
        f"{'iteration':<10} {measured['seconds']:>9.3f} {measured['samples'] / measured['seconds']:>11,.1f}",
        "",
        f"peak memory {measured['peak_memory_bytes'] / 2**30:.2f} GiB",
    ]
    if all(row["tflops"] is None for row in measured["verbs"].values()):
        said.append("operations are not known: the backbone does not say what it looks like (Backbone.sketch)")
    return said
