"""Load the model of `clipscore` with open_clip, an optional dependency.

Every mismatch is an error that names it.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_core.errors import UserError
from dgpo_core.weights import check_file, locate, read_json, refuse_quantized, where_instead
from dgpo_pickscore.images import Preprocessing
from dgpo_pickscore.libraries import quiet
from dgpo_pickscore.loading import UNREADABLE, commit, fetch, reason
from dgpo_pickscore.open_clip_encoder import import_open_clip

if TYPE_CHECKING:
    from dgpo_pickscore.options import ClipScoreOptions

__all__ = ["load_open_clip"]

HUB, LOCAL = "hf-hub:", "local-dir:"
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
"""In the order in which open_clip looks for them."""
POSITIONS = ("positional_embedding", "visual.positional_embedding")
"""Weights that open_clip would silently resize to fit."""


def load_open_clip(options: ClipScoreOptions) -> tuple[tuple[Any, Any, Preprocessing], dict[str, str | None]]:
    """Load (model, tokenizer, preprocessing), float32 on the CPU, and return them with their origin.

    Raises UserError if open_clip is missing, or if the model is unknown, cannot be downloaded, is damaged, or does not
    match its weights.
    """
    open_clip = import_open_clip("clipscore")
    name, weights = _source(options)
    where = f"reward clipscore: model {options.model}"
    pretrained = None if name.startswith(LOCAL) else options.pretrained
    if not name.startswith(LOCAL):
        _check_name(open_clip, name, pretrained)
        where += f", pretrained {pretrained}"
    try:
        with quiet():
            model = open_clip.create_model(name, pretrained=pretrained, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(name)
    except UNREADABLE as error:
        raise UserError(f"{where} cannot be loaded: {_keys(error)}; a tag requires network access, a "
                        f"directory ({LOCAL}PATH) or a weights file does not") from error  # fmt: skip
    if weights is not None:  # a tag's weights match its model
        _check_positions(open_clip, model, weights, where)
    revision = options.revision if weights is None else commit(weights.parent, options.revision)
    origin = {"model": options.model, "pretrained": pretrained, "revision": revision}
    return (model, tokenizer, _preprocessing(model.visual.preprocess_cfg, where)), origin


def _source(options: ClipScoreOptions) -> tuple[str, Path | None]:
    """Return open_clip's model name and the local weights file, if any. Raises UserError without weights, which
    open_clip would initialize at random."""
    if options.model.startswith(HUB):
        # Downloaded here because open_clip does not support revisions and would accept pickles.
        directory = fetch(
            options.model.removeprefix(HUB),
            options.revision,
            "reward clipscore: option model",
            ["*.json", "*.txt", "*.model", "open_clip*.safetensors"],
        )
        return f"{LOCAL}{directory}", _weights_in(directory)
    if options.revision is not None:
        raise UserError(f"reward clipscore: option revision: only supported for {HUB} models, not for {options.model}")
    if options.model.startswith(LOCAL):
        where = "reward clipscore: option model"
        place = options.model.removeprefix(LOCAL)
        found = locate(place, where, forms=f"{LOCAL}PATH of a directory")
        if found is None:
            raise UserError(f"{where}: no such directory {place}; for a Hub repository, set {HUB}{place}")
        return f"{LOCAL}{found}", _weights_in(found)
    if options.pretrained is None:
        raise UserError(
            f"reward clipscore: option pretrained: {options.model} would use random weights; set a tag or a "
            "weights file"
        )
    file = Path(options.pretrained)
    if not file.is_file():
        return options.model, None
    check_file(file, "reward clipscore: option pretrained")
    return options.model, file


def _weights_in(directory: Path) -> Path:
    where, config = "reward clipscore: option model", directory / "open_clip_config.json"
    for name in FILES:
        if (directory / name).exists():
            if config.is_file():
                refuse_quantized(read_json(config, where), config, where)
            check_file(directory / name, where)
            return directory / name
    instead = where_instead(directory, config.name)
    raise UserError(f"{where}: {directory} contains none of {', '.join(FILES)}{instead}")


def _check_name(open_clip: Any, name: str, pretrained: str | None) -> None:
    """Raise UserError for an unknown model or tag, and for an activation that the weights were not trained with;
    open_clip only warns."""
    config = open_clip.get_model_config(name)
    if config is None:
        nearest = ", ".join(get_close_matches(name, open_clip.list_models(), 3)) or "see open_clip.list_models()"
        raise UserError(f"reward clipscore: option model: unknown open_clip model {name}; nearest: {nearest}")
    assert pretrained is not None
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if not tag:
        if not Path(pretrained).is_file():
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
            raise UserError(
                f"reward clipscore: option pretrained: {pretrained} is neither a file nor a tag of {name} (tags: "
                f"{tags})"
            )
    elif bool(tag.get("quick_gelu")) != bool(config.get("quick_gelu")):
        other = name.removesuffix("-quickgelu") if config.get("quick_gelu") else f"{name}-quickgelu"
        raise UserError(
            f"reward clipscore: option model: the weights {pretrained} were trained with another activation "
            f"(quick_gelu) than {name} uses; set {other}"
        )


def _check_positions(open_clip: Any, model: Any, weights: Path, where: str) -> None:
    """Raise UserError for a checkpoint of another image size or prompt length."""
    loaded = open_clip.factory.load_state_dict(str(weights))
    present = model.state_dict()
    for key in POSITIONS:
        if key in loaded and key in present and loaded[key].shape != present[key].shape:
            raise UserError(
                f"{where}: the weights do not match: {key} is {list(loaded[key].shape)}, the model has "
                f"{list(present[key].shape)}"
            )


def _preprocessing(config: dict[str, Any], where: str) -> Preprocessing:
    size, mode, interpolation = config["size"], config["resize_mode"], config["interpolation"]
    crop = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    known = mode == "squash" or (mode == "shortest" and crop[0] == crop[1])
    if not known or interpolation not in ("bilinear", "bicubic"):
        raise UserError(f"{where}: its preprocessing ({mode} to {crop}, {interpolation}) is not supported; allowed: "
                        "squash or, to a square, shortest; bilinear or bicubic")  # fmt: skip
    return Preprocessing(
        size=crop if mode == "squash" else crop[0],
        crop=crop,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=interpolation,
        rounds_offset=True,
    )


def _keys(error: Exception) -> str:
    """Join the lines of a message: torch lists mismatched keys after the first line."""
    lines = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return lines or reason(error)
