"""`dgpo serve`: serve a reward over HTTP."""

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
    """Serve a reward over HTTP, for training runs and for curl.

    The reward file names the reward; all other settings have defaults:

        reward: {use: geneval, options: {detector: mask2former}}

        device: cuda

    A run that uses this server gives its address:

        rewards: [{use: geneval, service: {urls: [http://127.0.0.1:8500]}}]

    Images can also be sent by hand:

        curl -F image=@cat.png -F prompt='a cat' http://127.0.0.1:8500/v1/score

    A server that other machines can reach requires a token (token_variable). /health, /ready and /metrics are for
    load balancers and Prometheus. SIGTERM and Ctrl-C let requests in progress finish.

    Example:

        dgpo serve examples/reward-service.yaml --set port=8501
    """
    from dgpo_remote.posix import require_posix

    require_posix("dgpo serve")
    from dgpo_core.config.pipeline import load_serve_config
    from dgpo_core.plugins.registry import get_registry

    registry = get_registry()
    config = load_serve_config(file, overrides or (), registry)
    from dgpo_remote.server.server import run

    run(config, registry, lambda line: typer.echo(line, err=True))
