"""What checkpoints of a family consist of, in names alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dgpo_diffusers.libraries import library_class

if TYPE_CHECKING:
    from dgpo_core.lora import Pairs

__all__ = ["CLIP_VOCABULARY", "JOINT_ATTENTION", "T5_VOCABULARY", "Layout"]

CLIP_VOCABULARY = ("tokenizer.json", "vocab.json")
T5_VOCABULARY = ("tokenizer.json", "spiece.model")
JOINT_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Of images, and of the texts that they attend to as to themselves."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A family's checkpoints and adapters.

    backbone: the name in a run file; family: the models in words; pipeline: the name of diffusers' class, which an
    index holds; accepted: names of other pipelines of the same models, which an index may hold too. models:
    subdirectory to the name of a class of diffusers or transformers, "vae" and the text encoders ("text_encoder",
    "text_encoder_2", ...) among them; denoiser: the subdirectory of the network that is trained.
    vocabularies: a tokenizer's subdirectory to the files of which one holds its vocabulary, without which transformers
    would make an empty tokenizer. processors: the subdirectory of an image processor, or of a processor of texts and
    images, to the model that it prepares them for; one of texts is among `vocabularies` too. exact: models that are
    kept in float32, whatever the dtype of a run. optional: subdirectory of a model or tokenizer to how to do without
    it, in words. tied: subdirectory of a model to its weights that are another name for one which is there. unused:
    parts of the pipeline that nothing here needs, as a safety checker; they are neither fetched nor loaded. alike: a
    regular expression of other pipelines' names that are made of the same models. numbers: subdirectory of a model to
    settings of its config.json that images are computed with, and that must be numbers.
    grid: how diffusers' pipeline spaces the times (`dgpo_core.types.Schedule`).
    lora_targets: endings of the names of the linear layers that an adapter binds by default, if they are there.
    original, comfyui: pairs of an adapter by diffusers' names to pairs by the names of the family's first publication
    (kohya's files) and by the keys that ComfyUI looks up; without one the format is not offered.
    """

    backbone: str
    family: str
    pipeline: str
    models: Mapping[str, str]
    vocabularies: Mapping[str, Sequence[str]]
    lora_targets: Sequence[str]
    denoiser: str = "transformer"
    processors: Mapping[str, str] = field(default_factory=dict)
    exact: Sequence[str] = ("vae",)
    optional: Mapping[str, str] = field(default_factory=dict)
    tied: Mapping[str, Sequence[str]] = field(default_factory=dict)
    accepted: Sequence[str] = ()
    unused: Sequence[str] = ()
    alike: str = ""
    numbers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    grid: Literal["even", "scheduler"] = "scheduler"
    original: Callable[[Pairs], Pairs] | None = None
    comfyui: Callable[[Pairs], Pairs] | None = None

    @property
    def kind(self) -> Any:
        """diffusers' class of the pipeline."""
        return library_class(self.pipeline)

    def kind_of(self, model: str) -> Any:
        """The class of a model."""
        return library_class(self.models[model])

    @property
    def networks(self) -> Sequence[str]:
        """Subdirectories of the denoisers: of several, as experts for a part of the times, one is trained."""
        return [name for name, kind in self.models.items() if kind == self.models[self.denoiser]]

    @property
    def encoders(self) -> Sequence[str]:
        """Subdirectories of what reads prompts and their images."""
        return [name for name in self.models if name != "vae" and name not in self.networks]

    def encoder_of(self, tokenizer: str) -> str:
        """The subdirectory of the text encoder that a tokenizer or processor is for."""
        return self.processors.get(tokenizer) or tokenizer.replace("tokenizer", "text_encoder")
