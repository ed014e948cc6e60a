"""Options of the rewards. Light: no torch, no transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dgpo_schemas.base import ANYTIME, Int, Options
from dgpo_schemas.places import FileOrTag, PathOrName, SchemedPath

__all__ = [
    "AestheticOptions",
    "ClipOptions",
    "ClipScoreOptions",
    "HpsOptions",
    "ImageRewardOptions",
    "PickScoreOptions",
    "SiglipOptions",
    "TextOptions",
]


class ClipOptions(Options):
    """Options of every CLIP-based reward."""

    batch: Int = Field(
        default=32,
        ge=1,
        le=100_000,
        json_schema_extra=ANYTIME,
        description="Batch size: images, frames or prompts per forward pass.",
    )
    every: Int = Field(
        default=4, ge=1, le=10**6, description="For videos: score every n-th frame and average the values."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="Data type of the network. What follows it (norms, cosines, heads) is always in float32.",
    )


class TextOptions(ClipOptions):
    """Options of CLIP-based rewards that use the prompt."""

    text_cache: Int = Field(
        default=4096,
        ge=1,
        le=10**8,
        description="Number of cached prompt embeddings; the least recently used are evicted first.",
    )


class PickScoreOptions(TextOptions):
    """Options of `pickscore`. The defaults are the published model."""

    model: PathOrName = Field(
        default="yuvalkirstain/PickScore_v1",
        min_length=1,
        description="CLIP model in transformers' format, with its logit scale: a directory or a Hub repository.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of `model`, if that is on the Hub.")
    processor: PathOrName = Field(
        default="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        min_length=1,
        description="Source of the tokenizer and preprocessor_config.json: a directory or a Hub repository.",
    )
    processor_revision: str | None = Field(
        default=None, description="Branch, tag or commit of `processor`, if that is on the Hub."
    )
    scale: Literal["flowgrpo", "paper"] = Field(
        default="flowgrpo",
        description="flowgrpo: exp(logit_scale) * cosine / 26, the scale used for training; paper: without the "
        "division, as published tables report it (21.72, 23.89).",
    )


class ClipScoreOptions(TextOptions):
    """Options of `clipscore`. The defaults are OpenAI's ViT-L-14, as in Flow-GRPO and DiffusionNFT."""

    model: SchemedPath = Field(
        default="ViT-L-14-quickgelu",
        min_length=1,
        description="open_clip model: a built-in name, local-dir:PATH (open_clip_config.json and weights), "
        "or hf-hub:OWNER/NAME.",
    )
    pretrained: FileOrTag | None = Field(
        default="openai",
        description="Pretrained tag or weights file; required with a built-in model name. local-dir: and hf-hub: "
        "models have their own weights and ignore it.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of an hf-hub: model.")
    scale: Literal["cosine", "percent", "hessel", "flowgrpo"] = Field(
        default="cosine",
        description="cosine: the plain cosine; percent: 100 * cosine; hessel: 2.5 * max(cosine, 0), the original "
        "CLIPScore; flowgrpo: exp(logit_scale) * cosine / 30, Flow-GRPO's training reward.",
    )


class HpsOptions(TextOptions):
    """Options of `hpsv2`. The defaults are version 2.1."""

    model: PathOrName = Field(
        default="xswu/HPSv2",
        min_length=1,
        description="Trained weights: a .pt or .safetensors file, or a directory or Hub repository that contains "
        "`model_file`.",
    )
    model_file: str = Field(
        default="HPS_v2.1_compressed.pt",
        min_length=1,
        description="File name of the weights in a directory or Hub repository. Values of HPS_v2_compressed.pt "
        "(version 2.0) are not comparable.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of `model`, if that is on the Hub.")
    architecture: FileOrTag = Field(
        default="ViT-H-14",
        min_length=1,
        description="open_clip architecture of the weights: a built-in name or a .json file with its `model_cfg`.",
    )
    scale: Literal["cosine", "percent"] = Field(
        default="cosine", description="cosine: the plain cosine; percent: 100 * cosine, as published tables report it."
    )


class ImageRewardOptions(ClipOptions):
    """Options of `imagereward`. The defaults are version 1.0."""

    model: PathOrName = Field(
        default="THUDM/ImageReward",
        min_length=1,
        description="Directory or Hub repository with `model_file` and med_config.json.",
    )
    model_file: str = Field(
        default="ImageReward.pt", min_length=1, description="File name of the weights: .pt or .safetensors."
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of `model`, if that is on the Hub.")
    tokenizer: PathOrName = Field(
        default="google-bert/bert-base-uncased",
        min_length=1,
        description="Source of BERT's tokenizer: a directory or a Hub repository.",
    )
    tokenizer_revision: str | None = Field(
        default=None, description="Branch, tag or commit of `tokenizer`, if that is on the Hub."
    )


class SiglipOptions(TextOptions):
    """Options of `siglipscore`."""

    model: PathOrName = Field(
        default="google/siglip2-so400m-patch14-384",
        min_length=1,
        description="SigLIP or SigLIP 2 model of a fixed resolution in transformers' format, with tokenizer and "
        "preprocessor_config.json: a directory or a Hub repository.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of `model`, if that is on the Hub.")
    scale: Literal["cosine", "percent"] = Field(
        default="cosine", description="cosine: the plain cosine; percent: 100 * cosine."
    )


class AestheticOptions(ClipOptions):
    """Options of `aesthetic`. The defaults are the published predictor, sac+logos+ava1-l14-linearMSE."""

    model: PathOrName = Field(
        default="openai/clip-vit-large-patch14",
        min_length=1,
        description="CLIP model of the head, in transformers' format: a directory or a Hub repository.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of `model`, if that is on the Hub.")
    processor: PathOrName | None = Field(
        default=None,
        description="Source of preprocessor_config.json: a directory or a Hub repository; by default `model`.",
    )
    processor_revision: str | None = Field(
        default=None, description="Branch, tag or commit of `processor`, if that is on the Hub."
    )
    head: PathOrName = Field(
        default="camenduru/improved-aesthetic-predictor",
        min_length=1,
        description="Trained head: a .pth or .safetensors file, or a Hub repository that contains `head_file`.",
    )
    head_file: str = Field(
        default="sac+logos+ava1-l14-linearMSE.pth",
        min_length=1,
        description="File name of the head in a Hub repository.",
    )
    head_revision: str | None = Field(
        default=None, description="Branch, tag or commit of `head`, if that is on the Hub."
    )
