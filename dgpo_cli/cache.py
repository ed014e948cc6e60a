"""`dgpo cache fill`, `list` and `clear`: prompt embeddings on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgpo_cli.options import Overrides, Preset, RunFile

if TYPE_CHECKING:
    from dgpo_core.storage.embeddings import EncoderDirectory

__all__ = ["clear", "fill", "list_encoders"]

Directory = Annotated[
    Path | None,
    typer.Option(help="Directory of the cache, `backbone.cache.directory`; default its default.", metavar="DIRECTORY"),
]


def fill(
    file: RunFile,
    overrides: Overrides = None,
    preset: Preset = None,
    device: Annotated[
        str | None, typer.Option(help="Device to encode on: auto, cpu, cuda or mps; default run.device.")
    ] = None,
) -> None:
    """Encode all prompts of a run file into the cache (`backbone.cache`), so that its runs load no encoder.

    Encodes training, held-out and negative prompts, with their condition images; loads the encoders and the
    autoencoder, but no denoiser. Embeddings that are there already are not encoded again, so an interrupted command
    continues where it was. Run it on the kind of GPU that trains: embeddings of another kind, or of the CPU, differ in
    their last bits, and a run does not use them. Prompts that are given later, as to `dgpo sample --prompt`, are
    encoded then.

    Examples:

        dgpo cache fill run.yaml

        dgpo cache fill run.yaml --set backbone.cache.max_gb=60

        dgpo cache fill run.yaml --set backbone.cache={} --device cuda
    """
    from dgpo_cli.console import bar
    from dgpo_cli.opening import note
    from dgpo_core.api.filling import fill_cache
    from dgpo_core.config.pipeline import load_run_config
    from dgpo_core.plugins.isolation import printing_aside
    from dgpo_core.plugins.registry import get_registry
    from dgpo_core.system.device import choose_device

    settings = list(overrides or ())
    if device is not None:
        choose_device(device, "--device")
        settings.append(f"run.device={device}")
    registry = get_registry()
    config = load_run_config(file, settings, registry, preset=preset)
    with bar("embeddings", shown=True) as on_progress, printing_aside():
        filled = fill_cache(config, registry, on_message=note, on_progress=on_progress)
    typer.echo(
        f"{filled.directory}: {filled.rows} embeddings of {file}, {filled.new} of them new, {filled.bytes / 1e9:.3f} GB"
    )


def list_encoders(
    directory: Directory = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the text encoders of which prompt embeddings are on disk (`backbone.cache`), the last used first.

    Embeddings of a model are listed separately for every data type, device, option and version of a library that they
    depend on.

    Examples:

        dgpo cache list

        dgpo cache list --directory /shared/embeddings --json
    """
    import json

    place, found = _found(directory)
    if as_json:
        typer.echo(json.dumps({"directory": str(place), "encoders": [_data(one) for one in found]}, indent=1))
        return
    typer.echo(f"{place}: {sum(one.bytes for one in found) / 1e9:.3f} GB")
    for one in found:
        data = _data(one)
        size = f"{one.rows:>7} embeddings {one.bytes / 1e9:>8.3f} GB  {data['used'] or '-':<16}"
        shown = f"{data['backbone']} {data['checkpoint']}, {data['dtype']}, {data['device']}"
        typer.echo(f"  {one.path.name[:12]}  {size}  {shown}")


def clear(
    encoders: Annotated[
        list[str] | None,
        typer.Argument(help="Names of encoders, as in `dgpo cache list`; default all.", metavar="[ENCODER...]"),
    ] = None,
    directory: Directory = None,
) -> None:
    """Delete prompt embeddings on disk. Runs in progress are not affected: they compute them again.

    Examples:

        dgpo cache clear

        dgpo cache clear 3f2a90c1d4e5
    """
    from dgpo_core.errors import UserError

    place, found = _found(directory)
    chosen = found
    if encoders:
        for name in encoders:
            if not name or not any(one.path.name.startswith(name) for one in found):
                known = ", ".join(one.path.name[:12] for one in found) or "none"
                raise UserError(f"{place}: there are no embeddings of an encoder {name!r} (known: {known})")
        chosen = [one for one in found if one.path.name.startswith(tuple(encoders))]
    for one in chosen:
        one.remove()
    rows, size = sum(one.rows for one in chosen), sum(one.bytes for one in chosen)
    typer.echo(f"{place}: {rows} embeddings deleted, {size / 1e9:.3f} GB")


def _found(directory: Path | None) -> tuple[Path, list[EncoderDirectory]]:
    from dgpo_core.storage.embeddings import default_directory, encoder_directories

    place = default_directory() if directory is None else directory.absolute()
    return place, encoder_directories(place)


def _data(one: EncoderDirectory) -> dict[str, Any]:
    """Return JSON data about an encoder."""
    from datetime import datetime

    from dgpo_schemas.text import clean

    shown = {key: clean(str(one.info.get(key, "?")), 200) for key in ("backbone", "checkpoint", "dtype", "device")}
    used = datetime.fromtimestamp(one.used).isoformat(" ", "minutes") if one.rows else None
    return {"encoder": one.path.name, **shown, "rows": one.rows, "bytes": one.bytes, "used": used}
