"""The initial weights of a new run that does not start from the base model: an adapter, or those of another run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.lora.files import open_adapter
from dgpo_core.storage.bases import differences
from dgpo_core.storage.checkpoint import Checkpoints
from dgpo_core.storage.description import read_config, recorded_base
from dgpo_core.weights import file_digest
from dgpo_schemas.problems import nearest
from dgpo_schemas.sections.backbone import LoraSection

if TYPE_CHECKING:
    from dgpo_core.training.run import TrainingRun
    from dgpo_schemas.run import RunConfig

__all__ = ["Origin", "Start", "check_start", "origin_of", "start_new"]

KEY = "run.init_from"
MODELS = ("policy", "ema_fast", "ema")
CHECKPOINT = re.compile(r"newest|best|[0-9]{1,15}")


@dataclass(frozen=True, slots=True)
class Start:
    """What a run started from: `record` for run.json, None for the base model; `message` for the user."""

    record: Mapping[str, Any] | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """The weights of another run: its directory, the checkpoint ("newest", "best" or an iteration) and the model."""

    run: Path
    checkpoint: str = "newest"
    model: str = "ema"


def origin_of(text: str) -> Origin:
    """Parse `RUN`, `RUN@CHECKPOINT`, `RUN:MODEL` or `RUN@CHECKPOINT:MODEL`. Raises UserError.

    The text is a path if a directory of this name exists.
    """
    origin = _parsed(text)
    if not origin.run.is_dir():
        raise UserError(
            f"{KEY}: {origin.run}: no such run directory; allowed is RUN, RUN@CHECKPOINT or RUN@CHECKPOINT:MODEL, with "
            f"newest, best or an iteration, and {', '.join(MODELS)}"
        )
    return origin


def check_start(config: RunConfig, *, here: bool = True) -> None:
    """Raise UserError, before a model is loaded, for an adapter or a run to start from that cannot be read, or that is
    of another kind of adapter.

    here: whether this is the machine that trains. If it may be another one, what is not found is not checked.
    """
    section, text = config.backbone, config.run.init_from
    adapter = section.lora.init if section.train == "lora" else None
    if adapter is not None and (here or Path(adapter).exists()):
        open_adapter(Path(adapter))
    if text is not None and (here or _parsed(text).run.is_dir()):
        origin = origin_of(text)
        _check_same_adapter(origin.run, _config_of(origin), config, ())


def _parsed(text: str) -> Origin:
    if Path(text).is_dir():
        return Origin(Path(text))
    head, colon, model = text.rpartition(":")
    if colon and "/" not in model and model not in MODELS:
        known = ", ".join(MODELS) + nearest(model, MODELS)
        raise UserError(f"{KEY}: {text}: {model!r} is not a model of a run; choose one of {known}")
    named = colon != "" and model in MODELS
    head, model = (head, model) if named else (text, "ema")
    path, at, checkpoint = head.rpartition("@")
    if not Path(head).is_dir() and Path(path).is_dir() and at and not CHECKPOINT.fullmatch(checkpoint):
        known = "newest, best or an iteration" + nearest(checkpoint, ["newest", "best"])
        raise UserError(f"{KEY}: {text}: {checkpoint!r} is not a checkpoint of a run; choose {known}")
    if Path(head).is_dir() or not at or not CHECKPOINT.fullmatch(checkpoint):
        path, checkpoint = head, "newest"
    return Origin(Path(path), checkpoint, model)


def start_new(run: TrainingRun) -> Start:
    """Give a new run its initial weights. All ranks call this together. Raises UserError."""
    config, processes = run.config, run.runtime.processes
    adapter = run.backbone.adapter
    if adapter is not None and adapter.source is not None:
        file = file_digest(adapter.source).model_dump(mode="json")
        message = f"starts from the adapter {adapter.source}"
        return Start({"adapter": str(adapter.source.absolute()), "file": file}, message)
    if config.run.init_from is None:
        return Start()
    weights: dict[str, Tensor] | None = None
    fields: tuple[dict[str, Any], str] | None = None
    if processes.main:
        weights, fields = _read(run, config.run.init_from)
    found = processes.broadcast_object(fields)
    assert found is not None
    record, message = found
    run.policy.start_from(processes.broadcast_tensors(weights))
    return Start(record, message)


def _read(run: TrainingRun, text: str) -> tuple[dict[str, Tensor], tuple[dict[str, Any], str]]:
    """Return the weights by parameter name, and the fields of `Start`. Raises UserError."""
    origin = origin_of(text)
    saved = _config_of(origin)
    try:
        checkpoint = Checkpoints(origin.run / "checkpoints").find(origin.checkpoint)
    except UserError as error:
        raise UserError(f"{KEY}: {error}") from error
    _check_same_adapter(origin.run, saved, run.config, run.backbone.trained_options())
    manifest, model = checkpoint.manifest, origin.model
    if model == "ema" and manifest.updates < saved.objective.ema.first_move:
        model = "policy"  # as in sampling and export: this average has not moved yet
    prefix = f"{model}/"
    weights = {
        name.removeprefix(prefix): tensor for name, tensor in checkpoint.weights.items() if name.startswith(prefix)
    }
    expected = {name: tuple(parameter.shape) for name, parameter in run.policy.parameters.items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    differing = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
    if differing:
        first = differing[0]
        raise UserError(
            f"{KEY}: {checkpoint.path}: made by another model or adapter: {len(differing)} weights differ, the first "
            f"is {first} (this run has {expected.get(first, 'none')}, the other {found.get(first, 'none')}); allowed "
            "is a run of the same backbone and adapter"
        )
    record = {
        "run": str(origin.run.absolute()),
        "iteration": manifest.iteration,
        "model": model,
        "weights": manifest.files["weights.safetensors"].model_dump(mode="json"),
    }
    message = f"starts from the {model} weights of {origin.run} after iteration {manifest.iteration}"
    return weights, (record, message + _other_base(run, origin.run))


def _config_of(origin: Origin) -> RunConfig:
    try:
        return read_config(origin.run)
    except UserError as error:
        raise UserError(f"{KEY}: {error}") from error


def _check_same_adapter(path: Path, saved: RunConfig, config: RunConfig, selecting: Iterable[str]) -> None:
    """Raise UserError if the same weights would mean another model in this run.

    selecting: options of the backbone that select what is trained.
    """
    theirs, ours = saved.backbone, config.backbone
    pairs: list[tuple[str, Any, Any]] = [("use", theirs.use, ours.use), ("train", theirs.train, ours.train)]
    if theirs.train == ours.train == "lora":
        keys = [key for key in LoraSection.model_fields if key not in ("targets", "init")]
        pairs += [(f"lora.{key}", getattr(theirs.lora, key), getattr(ours.lora, key)) for key in keys]
    pairs += [(f"options.{key}", theirs.options.get(key), ours.options.get(key)) for key in sorted(selecting)]
    for key, there, here in pairs:
        if there != here:
            had, has = (str(value).lower() if isinstance(value, bool) else value for value in (there, here))
            raise UserError(
                f"{KEY}: {path} was trained with backbone.{key}: {had}, but this run has {has}; allowed is a run with "
                "the same"
            )


def _other_base(run: TrainingRun, path: Path) -> str:
    """Return a note for the message if the base model is not that of the other run, as far as that is known."""
    before, now = recorded_base(path), run.read_base()
    if run.backbone.adapter is None or before is None or now is None or not (found := differences(before, now)):
        return ""
    return f"; its adapter was trained on another base model ({found[0]})"
