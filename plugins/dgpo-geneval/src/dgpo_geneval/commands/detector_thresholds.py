"""`dgpo detector-thresholds`: choose a detector's thresholds from labeled pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgpo_cli.options import number_option

if TYPE_CHECKING:
    from dgpo_geneval.detector import Detector
    from dgpo_geneval.labeled_pictures import Entry
    from dgpo_geneval.thresholds import Labeled

__all__ = ["detector_thresholds"]


def detector_thresholds(
    detector: Annotated[str, typer.Argument(help="The detector's name (`dgpo plugins list --kind detector`).")],
    pictures: Annotated[
        Path,
        typer.Argument(
            help='A .jsonl file, one picture a line: {"file": "cat.png", "objects": {"cat": 1, "dog": 0}}. Paths are '
            "relative to the file; classes that are not named are not judged.",
            metavar="PICTURES.jsonl",
        ),
    ],
    options: Annotated[
        list[str] | None,
        typer.Option("--option", help="An option of the detector; may be repeated.", metavar="KEY=VALUE"),
    ] = None,
    lowest: Annotated[float, number_option(min=0, max=0.99, help="Lowest threshold to try.")] = 0.05,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps, ...")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Choose a detector's thresholds from labeled pictures.

    Scores of detectors have no common scale, so thresholds belong to a checkpoint. `score` is chosen for the best F1 of
    objects, `counting` for the largest share of exact counts: the middle of the widest range of thresholds that have
    it. Put the printed options into the run file, beside the checkpoint; use other pictures to judge them.

    Example:

        dgpo detector-thresholds yolox pictures.jsonl --option file=yolox_s.onnx
    """
    import json

    from dgpo_geneval.detector import Thresholds
    from dgpo_geneval.labeled_pictures import read_entries

    entries = read_entries(pictures)
    built, before = _build(detector, options or (), lowest, device)
    labeled = _labeled(built, entries)
    found = _measured(labeled, Thresholds(**before), lowest)
    if as_json:
        typer.echo(json.dumps({"detector": detector, "pictures": len(labeled), **found}, indent=1))
    else:
        typer.echo("\n".join(_lines(detector, labeled, found)))


def _build(name: str, settings: Sequence[str], lowest: float, device: str) -> tuple[Detector, dict[str, Any]]:
    """Return the detector with the lowest thresholds, and its own thresholds. Raises UserError."""
    import torch

    from dgpo_core.errors import UserError
    from dgpo_core.plugins.registry import get_registry
    from dgpo_schemas.base import UseBlock
    from dgpo_schemas.loading import read_value

    chosen: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--option {setting}: must be KEY=VALUE, such as file=yolox_s.onnx")
        chosen[key.strip()] = read_value(text, f"--option {setting}")[0]
    registry = get_registry()
    place = torch.device(device)
    own: Detector = registry.create("detector", UseBlock(use=name, options=chosen), device=place)
    if not {"score", "counting"} <= set(type(own.options).model_fields):
        raise UserError(f"detector {name}: has no options `score` and `counting` to choose")
    low = {**chosen, "score": lowest, "counting": lowest}
    thresholds = own.thresholds
    before = {"score": thresholds.score, "counting": thresholds.counting, "per_class": thresholds.per_class}
    return registry.create("detector", UseBlock(use=name, options=low), device=place), before


def _labeled(detector: Detector, entries: Sequence[Entry]) -> list[Labeled]:
    """Run the detector on every picture. Raises UserError for a class that it cannot see."""
    from dgpo_core.errors import UserError
    from dgpo_geneval.labeled_pictures import read_picture
    from dgpo_geneval.thresholds import Labeled
    from dgpo_schemas.problems import nearest

    for entry in entries:
        for label in entry.objects:
            if label not in detector.labels:
                near = nearest(label, detector.labels)
                raise UserError(f"{entry.where}: objects: the detector does not know the class {label!r}{near}")
    return [Labeled(entry.objects, detector.detect(read_picture(entry)[None])[0]) for entry in entries]


def _measured(pictures: Sequence[Labeled], before: Any, lowest: float) -> dict[str, Any]:
    """Return the choice of each threshold, and the agreement of the present one."""
    from dataclasses import asdict

    from dgpo_geneval.thresholds import agreement, choose, exact_share, f1

    found = {}
    for name, measure, present in (("score", f1, before.score), ("counting", exact_share, before.counting)):
        choice = choose(pictures, lowest, before.per_class, measure)
        now = agreement(pictures, present, before.per_class, measure)
        found[name] = {**asdict(choice), "present": present, "present_agreement": now}
    return found


def _lines(name: str, pictures: Sequence[Labeled], found: dict[str, Any]) -> list[str]:
    counts = sum(len(picture.objects) for picture in pictures)
    lines = [f"detector {name}: {len(pictures)} pictures, {counts} counts"]
    lines += [f"{'':10}{'threshold':>10}{'range':>16}{'agreement':>11}{'present':>10}{'agreement':>11}"]
    for key, one in found.items():
        span = f"{one['lowest']:.3f}-{one['highest']:.3f}"
        lines.append(
            f"{key:10}{one['threshold']:>10g}{span:>16}{one['agreement']:>11.3f}"
            f"{one['present']:>10g}{one['present_agreement']:>11.3f}"
        )
    chosen = ", ".join(f"{key}: {one['threshold']:g}" for key, one in found.items())
    return [*lines, f"options: {{{chosen}}}"]
