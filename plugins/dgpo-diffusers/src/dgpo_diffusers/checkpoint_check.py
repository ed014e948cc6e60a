"""Validation of checkpoints in diffusers' format before any weights are loaded.

Each problem is a one-line UserError that names the file, the key and the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpo_core.errors import UserError
from dgpo_core.weights import check_file, check_weights, fetch_again, read_json, refuse_quantized, shapes, where_instead
from dgpo_diffusers.layout import Layout
from dgpo_diffusers.sizes import check_sizes
from dgpo_schemas.problems import is_number, show
from dgpo_schemas.text import clean

__all__ = ["CHECKPOINT", "INDEX", "Index", "check_models", "check_tokenizers", "index_in", "read_index"]

CHECKPOINT = "backbone.checkpoint"
"""Prefix of all messages."""
INDEX = "model_index.json"
KNOWN = {
    "StableDiffusion3Pipeline": "sd3",
    "WanPipeline": "wan",
    "WanImageToVideoPipeline": "wan-i2v",
    "FluxPipeline": "flux",
    "Flux2KleinPipeline": "flux2-klein",
    "Lumina2Pipeline": "lumina2",
    "LTXPipeline": "ltx-video",
    "LTXConditionPipeline": "ltx-video",
    "StableDiffusionPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "QwenImagePipeline": "qwen-image",
    "QwenImage21Pipeline": "qwen-image-2.1",
    "ZImagePipeline": "z-image",
    "SanaPipeline": "sana",
}
"""Known pipelines and their backbones, for suggestions in messages."""
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Index:
    """Content of a checkpoint's model_index.json."""

    path: Path
    data: Mapping[str, Any]

    def part(self, name: str) -> tuple[str, str] | None:
        """Return library and class of a component, or None if it is absent, which programs write as a missing key,
        null, [], [null] or [null, null]. Raises UserError for other values."""
        value = self.data.get(name)
        if value is None or (isinstance(value, list) and (len(value) < 2 or None in value[:2])):
            if not value or all(item is None or isinstance(item, str) for item in value):
                return None
        elif isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) and item for item in value):
            return value[0], value[1]
        raise UserError(
            f"{CHECKPOINT}: {self.path}: {name} is {show(value)}; allowed is [library, class], or [null, null] for none"
        )

    def number(self, name: str) -> float | None:
        """Return a number from 0 to 1, or None if it is absent. Raises UserError for other values."""
        value = self.data.get(name)
        if value is None:
            return None
        if not is_number(value) or not 0 <= value <= 1:
            raise UserError(f"{CHECKPOINT}: {self.path}: {name} is {show(value)}; allowed is a number from 0 to 1")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a boolean; null is false, as in diffusers. Raises UserError for other values."""
        value = self.data.get(name, default)
        if value is not None and not isinstance(value, bool):
            raise UserError(f"{CHECKPOINT}: {self.path}: {name} is {show(value)}; allowed is true or false")
        return bool(value)


def index_in(directory: Path, layout: Layout, given: str) -> Path:
    """Return the path of the index in a directory. Raises UserError, with its actual location if found, if it is
    missing.

    given: value in the run file, which may also be the name of a repository.
    """
    path = directory / INDEX
    if path.is_file():
        return path
    twice = (
        "; a local directory takes precedence over the Hub repository of the same name" if NAME.fullmatch(given) else ""
    )
    raise UserError(
        f"{CHECKPOINT}: {directory} has no {INDEX}{where_instead(directory, INDEX)}{twice}; allowed is a directory in "
        f"diffusers' format ({layout.pipeline}.save_pretrained), with the subdirectories "
        f"{', '.join(layout.models)}, ..."
    )


def read_index(path: Path, source: str, layout: Layout) -> Index:
    """Read the index of a checkpoint. Raises UserError if it is damaged or of another architecture than the layout."""
    data = read_json(path, CHECKPOINT)
    found = data.get("_class_name")
    if not isinstance(found, str) or not found:
        raise UserError(
            f"{CHECKPOINT}: {path} is not a pipeline's index: _class_name is {show(found)}, not the name of a pipeline"
        )
    if found not in (layout.pipeline, *layout.accepted):
        raise UserError(
            f"{CHECKPOINT}: {source} contains a {clean(found, 100)}; the backbone {layout.backbone} requires a "
            f"{layout.pipeline} ({layout.family}){_other(found, layout)}"
        )
    return Index(path, data)


def _other(found: str, layout: Layout) -> str:
    if found in KNOWN:
        return f"; for this checkpoint, set use: {KNOWN[found]}"
    if re.fullmatch(layout.alike, found):
        return f"; it has the same models: set _class_name to {layout.pipeline} in its {INDEX}"
    return f"; known pipelines: {', '.join(f'{name} ({backbone})' for name, backbone in KNOWN.items())}"


def check_models(
    directory: Path, layout: Layout, names: Iterable[str], *, variant: str | None = None
) -> dict[str, str | None]:
    """Check models by name, and return the variant of the weights to load for each.

    variant: preferred variant. Raises UserError for models that are missing, incomplete, damaged, quantized or of
    another class, and for a variant that none of them has.
    """
    chosen = {name: _check_model(directory / name, layout, name, variant) for name in names}
    if variant is not None and variant not in chosen.values():
        raise UserError(
            f"backbone.options.variant: no model in {directory} has weights of the variant {clean(variant, 100)}; "
            "remove the option to load the available weights"
        )
    return chosen


def _check_model(directory: Path, layout: Layout, name: str, variant: str | None) -> str | None:
    kind = layout.kind_of(name)
    where = f"{CHECKPOINT}: {name}"
    library = kind.__module__.partition(".")[0]
    again = fetch_again(directory.parent, name)
    try:
        path = directory / "config.json"
        if not directory.exists():
            raise UserError(f"{where}: {INDEX} lists it, but there is no directory {directory}{again}")
        if not directory.is_dir():
            raise UserError(f"{where}: {directory} is not a directory")
        if not path.is_file():
            raise UserError(f"{where}: {directory} has no config.json{again}")
        config = read_json(path, where)
        refuse_quantized(config, path, where)
        found = config.get("_class_name")
        if library == "diffusers" and found is not None and found != kind.__name__:
            raise UserError(f"{where}: {path} is the config of {clean(str(found), 100)}, not of {kind.__name__}")
        stem = "diffusion_pytorch_model" if library == "diffusers" else "model"
        chosen = check_weights(directory, stem, where, variant=variant)
        check_sizes(config, shapes(directory, stem, where, variant=chosen), f"{where}: {path}")
        return chosen
    except UserError as error:
        if name not in layout.optional:
            raise
        raise UserError(f"{error}; or {layout.optional[name]}") from error


def check_tokenizers(directory: Path, layout: Layout, left_out: Collection[str] = ()) -> None:
    """Raise UserError for a tokenizer without a vocabulary or with damaged files."""
    for name, files in layout.vocabularies.items():
        if name in left_out:
            continue
        where, place = f"{CHECKPOINT}: {name}", directory / name
        present = [file for file in files if (place / file).is_file()]
        if not present:
            do_without = f"; or {layout.optional[name]}" if name in layout.optional else ""
            raise UserError(f"{CHECKPOINT}: {place} has no vocabulary: {' or '.join(files)}{do_without}")
        if present == ["vocab.json"] and not (place / "merges.txt").is_file():
            raise UserError(f"{CHECKPOINT}: {place} has vocab.json, but not merges.txt, which is required with it")
        for file in present:
            check_file(place / file, where)
        settings = place / "tokenizer_config.json"
        if settings.is_file():
            length = read_json(settings, where).get("model_max_length")
            if isinstance(length, bool) or not isinstance(length, int | float | None):
                raise UserError(
                    f"{where}: {settings}: model_max_length is {show(length)}; allowed is the number of tokens that "
                    "the text encoder reads"
                )
