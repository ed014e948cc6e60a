"""`dgpo bench`: measure a short run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dgpo_cli.options import Preset
from dgpo_cli.working import working

__all__ = ["bench"]


def bench(
    file: Annotated[
        Path | None, typer.Argument(help="The run file (YAML); default: the built-in miniature.", metavar="RUN.yaml")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting: --set rollout.groups=8.", metavar="KEY=VALUE"),
    ] = None,
    preset: Preset = None,
    iterations: Annotated[int, typer.Option(min=1, help="Measured iterations, after one warmup iteration.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for `dgpo plan --measured`.")] = False,
) -> None:
    """Measure the time, samples per second and FLOP/s of each phase, and the peak memory of a run.

    Trains a few iterations in a temporary directory, without evaluations. The FLOPs come from `dgpo plan`; the ceiling
    is measured with large matrix products in the model's precision.

    Examples:

        dgpo bench

        dgpo bench run.yaml --set rollout.groups=4 --json > bench.json
    """
    import json
    import tempfile

    with working("loading torch"):
        from dgpo_core.config.pipeline import load_run_config
        from dgpo_core.plugins.registry import get_registry
        from dgpo_lab.measuring import lines, measure

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
        with working(f"loading {config.backbone.checkpoint}") as work:
            measured = measure(config, registry, iterations, work.say)
    typer.echo(json.dumps(measured, indent=1) if as_json else "\n".join(lines(measured)))


def _miniature(directory: Path) -> Path:
    """Write the run file of the miniature, which every installation has."""
    from dgpo_schemas.yaml_text import dump_yaml

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
