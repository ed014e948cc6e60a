"""`dgpo watch`: a live page about runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["watch"]


def watch(
    paths: Annotated[list[Path], typer.Argument(help="Run directories, or directories of runs.", metavar="RUN")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines connect, with a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any free one.", min=0, max=65535)] = 8787,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Further name by which browsers call the server, such as that of a proxy; may be repeated."),
    ] = None,
    token_variable: Annotated[
        str | None,
        typer.Option(help="Environment variable with the token; default: a new one, if others can connect."),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Show runs on a live page: curves, samples, speed, memory, time left, and what the doctor finds.

    The page follows runs in progress and compares several. It reads the files of the runs, changes nothing and takes
    no lock, so a run can be watched while it trains. It needs no network beyond this server. Ctrl-C ends the server;
    the runs go on.

    Only this machine can connect. From another machine, forward the port (ssh -L 8787:localhost:8787 MACHINE), or
    listen on an address of the network with --host; the printed address then contains a token.

    Examples:

        dgpo watch runs/quickstart --open

        dgpo watch runs

        dgpo watch runs --host 0.0.0.0 --port 9000
    """
    from dgpo_lab.watching.access import make_access
    from dgpo_lab.watching.discovery import Watched
    from dgpo_lab.watching.server import PageServer

    watched = Watched(paths)
    count = len(watched.runs())
    access = make_access(host, allow_host or (), token_variable)
    with PageServer(watched, access, host, port) as server:
        url = address(host, server.server_port, access.token)
        typer.echo(f"watching {count} {'run' if count == 1 else 'runs'}; Ctrl-C ends", err=True)
        typer.echo(url)
        if open_page:
            import webbrowser

            webbrowser.open(url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo(err=True)


def address(host: str, port: int, token: str | None) -> str:
    """Return the address to open: of this machine by its name if the server listens on all of its addresses."""
    import socket

    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    shown = f"[{name.strip('[]')}]" if ":" in name else name
    return f"http://{shown}:{port}/" + (f"?token={token}" if token else "")
