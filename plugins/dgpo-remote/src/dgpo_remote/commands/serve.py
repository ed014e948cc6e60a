"""`dgpo serve`: a reward behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["serve"]


def serve(
    file: Annotated[Path, typer.Argument(help="The reward file (YAML).", metavar="REWARD.yaml")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting: --set port=8501.", metavar="KEY=VALUE"),
    ] = None,
) -> None:
    """Serve a reward over HTTP, to training runs and to curl.

    A reward file names the reward; everything else has a default:

        reward: {use: geneval, options: {detector: mask2former}}

        device: cuda

    A run that is to be scored by it says where it is:

        rewards: [{use: geneval, service: {urls: [http://127.0.0.1:8500]}}]

    And images can be sent by hand:

        curl -F image=@cat.png -F prompt='a photo of a cat' http://127.0.0.1:8500/v1/score

    Beyond this machine a token is asked for (token_variable). /health, /ready and /metrics are for load balancers
    and Prometheus. SIGTERM and Ctrl-C let requests under way finish.

    Example:

        dgpo serve examples/reward-service.yaml --set port=8501
    """
    from dgpo_core.config.pipeline import load_serve_config
    from dgpo_core.plugins.registry import get_registry

    registry = get_registry()
    config = load_serve_config(file, overrides or (), registry)
    from dgpo_remote.server.server import run

    run(config, registry, lambda line: typer.echo(line, err=True))
