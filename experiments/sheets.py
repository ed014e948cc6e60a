"""Draw contact sheets: a column per variant, with the same prompts and noise."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw

from dgpo_core.media.images import contact_sheet, to_image
from dgpo_lab.ablation.plan import Plan

__all__ = ["draw_sheet"]

ROWS = 6
Column = list[tuple[str, Image.Image]]
"""Prompts and their images, from top to bottom."""
SIDE = 128
"""Minimum height of an image in pixels; smaller images are enlarged by repeating pixels."""
LABEL = 22


def draw_sheet(plan: Plan, path: Path, *, steps: int | None) -> list[str]:
    """Write the sheet of an ablation's first seed, with the base model in the first column; return the prompts.

    steps: draw new samples with this many solver steps; None: use the images of the last evaluation, and of the base
    model those of the evaluation before training, if there was one.
    """
    seed = plan.ablation.seeds[0]
    cells = [cell for cell in plan.cells() if cell.seed == seed]
    columns: dict[str, Column] = {}
    for cell in cells:
        for name, base in (("base model", True), (cell.variant, False)):
            if name not in columns and not (base and steps is None and not _evaluated_at_start(cell.path)):
                drawn = _images(cell.path, base=base) if steps is None else _sampled(cell.path, steps, base=base)
                columns[name] = drawn
    rows = min(map(len, columns.values()))
    prompts = [prompt for prompt, _ in next(iter(columns.values()))]
    images = [_enlarged(found[row][1]) for row in range(rows) for found in columns.values()]
    sheet = contact_sheet(images, len(columns))
    width = images[0].width + 4
    labeled = Image.new("RGB", (sheet.width, sheet.height + LABEL), "white")
    labeled.paste(sheet, (0, LABEL))
    pen = ImageDraw.Draw(labeled)
    for i, name in enumerate(columns):
        pen.text((i * width + 2, 5), name, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    labeled.quantize(128).save(path, optimize=True)
    return prompts[:rows]


def _evaluated_at_start(run: Path) -> bool:
    return any(d.name.isdecimal() and int(d.name) == 0 for d in (run / "images").iterdir())


def _images(run: Path, *, base: bool) -> Column:
    """Return images of a run's first or last evaluation, evenly spaced over the prompts."""
    numbered = sorted((d for d in (run / "images").iterdir() if d.name.isdecimal()), key=lambda d: int(d.name))
    chosen = numbered[0] if base else numbered[-1]
    prompts = json.loads((chosen / "prompts.json").read_text(encoding="utf-8"))
    files = sorted((file for file in chosen.glob("*.png") if file.stem.isdecimal()), key=lambda file: int(file.stem))
    places = [i * len(files) // ROWS for i in range(ROWS)] if len(files) > ROWS else range(len(files))
    return [(prompts[int(files[i].stem)], Image.open(files[i]).convert("RGB")) for i in places]


def _sampled(run: Path, steps: int, *, base: bool) -> Column:
    from dgpo_core.draws import Draws
    from dgpo_core.plugins.registry import get_registry
    from dgpo_core.storage.checkpoint import Checkpoints
    from dgpo_core.storage.description import read_config
    from dgpo_core.training.engine import build_engine

    registry = get_registry()
    engine = build_engine(read_config(run, registry), registry)
    try:
        engine.load_weights(Checkpoints(run / "checkpoints").find("newest"))
        model = "base" if base else engine.policy.available("ema")
        prompts = engine.load_prompts("heldout")
        chosen = [prompts[i * len(prompts) // ROWS] for i in range(min(ROWS, len(prompts)))]
        drawn = engine.evaluation_rollout_sampler(steps=steps).sample_groups(chosen, 1, Draws(0).at("sheet"), model)
        images = [to_image(one) for rollout in drawn for one in engine.backbone.decode(rollout.x0).cpu()]
        return [(prompt.text, image) for prompt, image in zip(chosen, images, strict=True)]
    finally:
        engine.close()


def _enlarged(image: Image.Image) -> Image.Image:
    factor = max(1, SIDE // image.height)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
