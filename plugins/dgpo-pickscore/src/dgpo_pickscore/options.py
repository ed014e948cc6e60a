"""Options of the three rewards. Light: no torch, no transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dgpo_schemas.base import ANYTIME, Int, Options
from dgpo_schemas.places import FileOrTag, PathOrName, SchemedPath

__all__ = ["AestheticOptions", "ClipOptions", "ClipScoreOptions", "PickScoreOptions", "TextOptions"]


class ClipOptions(Options):
    """What every reward on top of a CLIP can be told."""

    batch: Int = Field(
        default=32,
        ge=1,
        le=100_000,
        json_schema_extra=ANYTIME,
        description="Images (or frames, or prompts) in one call of the network.",
    )
    every: Int = Field(
        default=4, ge=1, le=10**6, description="Of a video, every so many frames are scored and averaged."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="Precision of the network. Embeddings are normalized and compared in float32 in any case.",
    )


class TextOptions(ClipOptions):
    """The same for rewards that read the prompt."""

    text_cache: Int = Field(
        default=4096,
        ge=1,
        le=10**8,
        description="Prompts whose embeddings are kept, the least recently used going first.",
    )


class PickScoreOptions(TextOptions):
    """What `pickscore` can be told. The defaults are the published model."""

    model: PathOrName = Field(
        default="yuvalkirstain/PickScore_v1",
        min_length=1,
        description="A CLIP model in transformers' format with its logit scale: a directory or a Hub repository.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of `model`, if that is on the Hub.")
    processor: PathOrName = Field(
        default="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        min_length=1,
        description="Tokenizer and preprocessor_config.json: a directory or a Hub repository.",
    )
    processor_revision: str | None = Field(
        default=None, description="Branch, tag or commit of `processor`, if that is on the Hub."
    )
    scale: Literal["flowgrpo", "paper"] = Field(
        default="flowgrpo",
        description="flowgrpo: exp(logit_scale) * cosine / 26, what runs are trained on; paper: the same without the "
        "division, as tables print it (21.72, 23.89).",
    )


class ClipScoreOptions(TextOptions):
    """What `clipscore` can be told. The defaults are OpenAI's ViT-L-14, as in Flow-GRPO and DiffusionNFT."""

    model: SchemedPath = Field(
        default="ViT-L-14-quickgelu",
        min_length=1,
        description="Model in open_clip's terms: a built-in name, local-dir:PATH (open_clip_config.json and weights), "
        "or hf-hub:OWNER/NAME.",
    )
    pretrained: FileOrTag | None = Field(
        default="openai",
        description="With a built-in name, required: a pretrained tag of it, or a file of weights. "
        "local-dir: and hf-hub: bring their own weights and ignore it.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit, for hf-hub: alone.")
    scale: Literal["cosine", "percent", "hessel", "flowgrpo"] = Field(
        default="cosine",
        description="cosine: the plain cosine; percent: 100 * cosine; hessel: 2.5 * max(cosine, 0), the original "
        "CLIPScore; flowgrpo: exp(logit_scale) * cosine / 30, Flow-GRPO's training reward.",
    )


class AestheticOptions(ClipOptions):
    """What `aesthetic` can be told. The defaults are the published predictor, sac+logos+ava1-l14-linearMSE."""

    model: PathOrName = Field(
        default="openai/clip-vit-large-patch14",
        min_length=1,
        description="The CLIP that the head was trained on, in transformers' format: a directory or a Hub repository.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of `model`, if that is on the Hub.")
    processor: PathOrName | None = Field(
        default=None, description="Where preprocessor_config.json is, if not with `model`: a directory or a repository."
    )
    processor_revision: str | None = Field(
        default=None, description="Branch, tag or commit of `processor`, if that is on the Hub."
    )
    head: PathOrName = Field(
        default="camenduru/improved-aesthetic-predictor",
        min_length=1,
        description="The trained head: a .pth or .safetensors file, or a Hub repository that holds `head_file`.",
    )
    head_file: str = Field(
        default="sac+logos+ava1-l14-linearMSE.pth", min_length=1, description="Name of the file in a Hub repository."
    )
    head_revision: str | None = Field(
        default=None, description="Branch, tag or commit of `head`, if that is on the Hub."
    )
