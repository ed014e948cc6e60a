"""Checkpoints in diffusers' format, whatever the architecture: finding, fetching and reading their parts.

What an architecture's checkpoints consist of is a `Layout`; `checkpoint_check` looks at files before they are read.
Only safetensors are read, never pickles. Whatever can be wrong is a UserError of one line.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
import transformers
from huggingface_hub import hf_hub_download

from dgpo_core.errors import UserError
from dgpo_core.weights import fetch_again, resolve_checkpoint, unreachable
from dgpo_diffusers.checkpoint_check import (
    CHECKPOINT,
    INDEX,
    Index,
    check_models,
    check_tokenizers,
    index_in,
    read_index,
)
from dgpo_diffusers.layout import Layout
from dgpo_diffusers.libraries import quiet
from dgpo_schemas.text import error_text

if TYPE_CHECKING:
    from dgpo_schemas.sections.backbone import BackboneSection

__all__ = ["Opened", "empty_model", "load_model", "load_pipeline", "open_checkpoint"]


BLOCK = re.compile(r"(.*?)\.\d+\.")
"""Of the name of a layer's weight: the name of the list of layers."""
KINDS = ("Scheduler", "Tokenizer", "TokenizerFast", "Processor", "ImageProcessorFast")
"""Endings of classes that an index may name."""
ADVICE = " If you want to instead overwrite"
"""Beginning of what diffusers advises for tensors of another shape, which would make random weights of them."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint on this machine.

    left_out: models and tokenizers that are not there, or not wanted; variants: of every checked model the variant of
    its weights that is read.
    """

    directory: Path
    index: Index
    layout: Layout
    left_out: Collection[str]
    variants: Mapping[str, str | None]
    report: dict[str, str] = field(default_factory=dict)
    """Of each model that was loaded: how many tensors were read, and which of its files are not used."""


def open_checkpoint(
    section: BackboneSection,
    layout: Layout,
    *,
    wanted: Callable[[Index], Iterable[str]],
    variant: str | None = None,
) -> Opened:
    """Find or fetch the checkpoint that `section` names, and check everything of it that will be read.

    wanted: which of the layout's models, by the index; a tokenizer goes with its text encoder; variant: of weights,
    preferred where a model has several. Raises UserError for a checkpoint that is missing, cannot be fetched, is of
    another architecture, incomplete, damaged or quantized.
    """
    source, revision = resolve_checkpoint(section.checkpoint), section.revision
    here = Path(source).is_dir()
    if here and revision is not None:
        raise UserError(
            f"backbone.revision: {revision} is set, but {source} is a directory; a revision is for a Hub repository: "
            "leave it out"
        )
    # The index first: it is a few lines, and tells whether the rest is wanted.
    path = (
        index_in(Path(source), layout, section.checkpoint)
        if here
        else _fetched(section, lambda: hf_hub_download(source, INDEX, revision=revision))
    )
    index = read_index(path, source, layout)
    names = list(wanted(index))
    left_out, directory = _left_out(layout, names), Path(source)
    if not here:
        arguments: dict[str, Any] = dict.fromkeys((*(left_out & layout.optional.keys()), *layout.unused))
        if variant is not None:
            arguments["variant"] = variant
        directory = _fetched(
            section, lambda: layout.kind.download(source, revision=revision, use_safetensors=True, **arguments)
        )
    variants = check_models(directory, layout, names, variant=variant)
    check_tokenizers(directory, layout, left_out)
    return Opened(directory, index, layout, left_out, variants)


def _left_out(layout: Layout, names: Collection[str]) -> set[str]:
    """Models that are not among `names`, with their tokenizers and image processors."""
    tokenizers = {name for name in layout.vocabularies if layout.encoder_of(name) not in names}
    processors = {name for name, model in layout.processors.items() if model not in names}
    return (set(layout.models) - set(names)) | tokenizers | processors


def _fetched(section: BackboneSection, fetch: Callable[[], str | Path]) -> Path:
    try:
        return Path(fetch())
    except Exception as error:  # of the Hub's client, of its network library, of diffusers
        raise unreachable(CHECKPOINT, section.checkpoint, section.revision, error) from error


def load_model(opened: Opened, name: str, dtype: torch.dtype, **arguments: Any) -> torch.nn.Module:
    """One model of a checkpoint on the CPU; arguments: more of `from_pretrained`, as a quantization configuration.

    Raises UserError if it is damaged, lacks a weight, which the libraries would fill with random numbers, or has more
    layers than its configuration, which they would leave out.
    """
    kind, directory = opened.layout.kind_of(name), opened.directory
    where = f"{CHECKPOINT}: {directory / name}"
    # What is missing is said below, what is tied is not missing. Some classes draw weights before they are read.
    with _loading(directory / name, f" as {kind.__name__}"), torch.random.fork_rng(devices=[]):
        model, info = kind.from_pretrained(
            directory,
            subfolder=name,
            torch_dtype=dtype,
            use_safetensors=True,
            variant=opened.variants[name],
            output_loading_info=True,
            local_files_only=True,
            **arguments,
        )
    tied = set(opened.layout.tied.get(name, ()))
    missing = sorted(set(info["missing_keys"]) - tied)
    if missing:
        raise UserError(f"{where} lacks {len(missing)} of the weights of {kind.__name__}, among them {missing[0]}")
    lists = {name for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)}
    over = sorted(key for key in info["unexpected_keys"] if (found := BLOCK.match(key)) and found[1] in lists)
    if over:
        raise UserError(
            f"{where} holds {len(over)} weights of layers that its config.json does not have, among them {over[0]}: "
            "the two are of different models"
        )
    opened.report[name] = _report(len(model.state_dict()) - len(tied), sorted(info["unexpected_keys"]))
    if tied:
        model.set_input_embeddings(model.get_input_embeddings())  # the encoder's own become the shared ones
    assert isinstance(model, torch.nn.Module)
    return model


def _report(count: int, unused: Sequence[str]) -> str:
    some = f"{', '.join(unused[:3])}{', ...' if len(unused) > 3 else ''}"
    return f"{count} tensors, none missing, {len(unused)} unused{f' ({some})' if unused else ''}"


def empty_model(opened: Opened, name: str, dtype: torch.dtype) -> torch.nn.Module:
    """One model of a checkpoint without its weights, on torch's meta device. Raises UserError for its config.json."""
    kind, directory = opened.layout.kind_of(name), opened.directory / name
    config = getattr(kind, "config_class", None)  # of transformers
    with _loading(directory, f" as {kind.__name__}"), torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = (
            kind.from_config(kind.load_config(directory, local_files_only=True))
            if config is None
            else kind(config.from_pretrained(directory, local_files_only=True))
        )
        assert isinstance(model, torch.nn.Module)
        return model.to(dtype)


def load_pipeline(opened: Opened, models: Mapping[str, torch.nn.Module], **settings: Any) -> Any:
    """The pipeline of these models (those that are not given: None) with the checkpoint's tokenizers and scheduler.

    settings: the pipeline's own arguments, as the index has them. It is put together here and not by diffusers, whose
    reading of an index stops at ways to leave a part out that are not its own. Raises UserError for damaged files.
    """
    parts: dict[str, Any] = dict.fromkeys((*opened.layout.models, *opened.layout.unused)) | dict(models)
    for name in opened.layout.vocabularies:
        parts[name] = None if name in opened.left_out else _tokenizer(opened, name, parts)
    for name in opened.layout.processors.keys() - opened.layout.vocabularies.keys():
        unused = name in opened.left_out
        parts[name] = None if unused else _named(opened, name, transformers, transformers.AutoImageProcessor)
    # Samplers bring their own times, so that the scheduler's class matters to nobody but users of the pipeline.
    parts["scheduler"] = _named(opened, "scheduler", diffusers, diffusers.FlowMatchEulerDiscreteScheduler)
    kind = opened.layout.kind
    known = inspect.signature(kind.__init__).parameters
    with _loading(opened.directory):
        pipeline = kind(**parts, **{k: v for k, v in settings.items() if k in known})
        pipeline.register_to_config(_name_or_path=str(opened.directory))
    return pipeline


def _tokenizer(opened: Opened, name: str, parts: Mapping[str, Any]) -> Any:
    """A tokenizer, or a processor with one."""
    encoder, both = opened.layout.encoder_of(name), name in opened.layout.processors
    default = transformers.AutoProcessor if both else transformers.AutoTokenizer
    found = _named(opened, name, transformers, default, trust_remote_code=False)
    count = len(found.tokenizer if both else found)
    vocabulary = parts[encoder].config.get_text_config().vocab_size  # of models that read images too
    if count > vocabulary:
        raise UserError(
            f"{CHECKPOINT}: {opened.directory / name} knows {count} tokens, but {encoder} {vocabulary}: they do not "
            "belong together"
        )
    return found


def _named(opened: Opened, name: str, library: Any, default: Any, **settings: Any) -> Any:
    """A scheduler, tokenizer or image processor, of the class that the index names if the library has it."""
    _, named = opened.index.part(name) or ("", "")
    kind = getattr(library, named, None) if named.endswith(KINDS) else None
    if not (opened.directory / name).is_dir():  # diffusers would look for a repository of this name
        again = fetch_again(opened.directory, name)
        raise UserError(f"{CHECKPOINT}: {name}: there is no directory {opened.directory / name}{again}")
    with _loading(opened.directory / name):
        return (kind or default).from_pretrained(opened.directory / name, local_files_only=True, **settings)


@contextmanager
def _loading(what: Path, kind: str = "") -> Iterator[None]:
    """Libraries raise what they like for a file that is not as they think: inside, it is one UserError."""
    try:
        with quiet():
            yield
    except Exception as error:
        said = error_text(error).removeprefix(f"{type(error).__name__}: ")
        lines = [line.strip() for line in said.splitlines() if line.strip()] or [type(error).__name__]
        reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1]).partition(ADVICE)[0]
        if isinstance(error, ImportError):
            reason = reason.partition(". ")[0]  # how to install a library is said over several lines
        raise UserError(f"{CHECKPOINT}: {what} cannot be loaded{kind}: {reason}") from error
