"""Options common to all diffusers backbones (does not import torch)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator

from dgpo_schemas.base import ANYTIME, FROM_THERE_ON, Int, Options, ShortForm, StrictModel
from dgpo_schemas.places import PathOrName
from dgpo_schemas.problems import nearest

if TYPE_CHECKING:
    from dgpo_schemas.run import RunConfig
    from dgpo_schemas.sections.backbone import BackboneSection

__all__ = [
    "CACHES", "MOST_FRAMES", "DiffusersOptions", "QuantizeSection", "RolloutCache", "TinyDecoderSection",
    "VideoOptions",
]  # fmt: skip

CACHES = {"taylorseer": ("flux", "flux2-klein", "qwen-image", "wan", "wan-i2v", "ltx-video")}
"""Caches of diffusers, and the backbones that they are tested with."""
REFUSED = {
    "firstblockcache": "decides for a whole batch at once, so that samples would depend on their micro-batch",
    "seacache": "decides for a whole batch at once, so that samples would depend on their micro-batch",
    "magcache": "needs ratios that are measured for one checkpoint and schedule, and is not supported",
    "pab": "repeats outputs of attention as they are, which taylorseer does with `order: 0`",
    "fastercache": "guesses the unconditional prediction, and is not supported",
}
REFUSED["pyramidattentionbroadcast"] = REFUSED["pab"]
"""Other caches of diffusers, in lower case, and why they cannot be used."""


MOST_FRAMES = 10_000
"""Largest number of frames of a video that a run file may ask for."""
KEY = "backbone.options"
"""Where these options are in a run file."""
ON_CPU = "this run is on the CPU (or its model is sharded by run.shard), where nothing can be offloaded; leave it out"
WITHOUT_CUDA = "{method} requires a CUDA device, and this run is on {device}; use torchao-int8 there"
QUANTIZED_ON_MPS = "quantized weights are not supported on MPS; leave it out, or set run.device: cpu"
OFFLOADED_ON_MPS = "this run is on MPS, whose memory is the host's, so that nothing can be offloaded; leave it out"


def _pairs() -> str:
    return ", ".join(f"{name} with {', '.join(models[:-1])} or {models[-1]}" for name, models in CACHES.items())


def _known(cache: str) -> str:
    if cache in CACHES:
        return cache
    reason = REFUSED.get(cache.lower(), f"is not a known cache{nearest(cache.lower(), CACHES)}")
    raise ValueError(f"{cache!r} {reason}; possible: {_pairs()}")


class TinyDecoderSection(StrictModel):
    """A tiny decoder (diffusers' AutoencoderTiny, the TAESD project) in the place of the autoencoder's."""

    checkpoint: PathOrName = Field(
        min_length=1,
        json_schema_extra={"examples": ["madebyollin/taesd3", "taesd3_decoder.safetensors"]},
        description="Directory in diffusers' format, .safetensors file of the TAESD project, or Hub repository. It "
        "must be made for the model's autoencoder: taesd for SD1.5 and SD2.1, taesdxl, taesd3, taef1 for FLUX.1.",
    )
    evaluation: bool = Field(
        default=False,
        description="Decode evaluations and `dgpo sample` with it too. By default only the rollouts of training are, "
        "and evaluations show what the full decoder gives.",
    )


class QuantizeSection(StrictModel):
    """Frozen weights in 8 or 4 bits; adapters, norms, embedders and the autoencoder are not quantized."""

    method: Literal["torchao-int8", "torchao-float8", "bnb-nf4", "bnb-int8"] = Field(
        description="torchao's weight-only int8 (one scale per output) or float8, on the CPU and on CUDA; "
        "bitsandbytes' nf4 or int8, on CUDA devices only."
    )
    components: list[Literal["denoiser", "text_encoders"]] = Field(
        default=["denoiser", "text_encoders"], min_length=1, description="Models whose weights are quantized."
    )

    def contradictions(self, options: DiffusersOptions, section: BackboneSection) -> Iterator[str]:
        """Yield what is wrong with other options, and with the section that has them."""
        if "denoiser" in self.components and section.train == "full":
            yield (
                "train: full trains the denoiser's weights, which cannot be quantized; set `train: lora`, or "
                "components: [text_encoders]"
            )
        if "denoiser" in self.components and section.lora.dora:
            yield (
                "DoRA reads the norms of the weights, which a quantized denoiser has only approximately; remove "
                "backbone.lora.dora, or set components: [text_encoders]"
            )
        if self.keeps_encoders and options.offload_text:
            yield (
                f"{self.method} keeps text encoders on the device, which contradicts offload_text; leave one of the "
                "two out, or use torchao-int8"
            )

    @property
    def keeps_encoders(self) -> bool:
        """Whether text encoders are quantized by a library that loads them on their device, where they stay."""
        return self.method.startswith("bnb") and "text_encoders" in self.components


class RolloutCache(StrictModel):
    """A feature cache of diffusers. TaylorSeer (arXiv 2503.06923) predicts the outputs of attention layers from earlier
    steps with a Taylor series, at most steps."""

    use: Annotated[str, AfterValidator(_known)] = Field(description="Name of the cache: taylorseer.")
    interval: Int = Field(
        default=2, ge=2, le=100, description="After the first steps, layers run at every n-th step (`cache_interval`)."
    )
    full_steps: Int = Field(
        default=3, ge=2, le=100, description="Number of first steps without prediction (`disable_cache_before_step`)."
    )
    order: Int = Field(
        default=1,
        ge=0,
        le=4,
        description="Order of the Taylor series (`max_order`). 0 repeats the last output, as Pyramid Attention "
        "Broadcast does (arXiv 2408.12588). order + 1 outputs of each attention layer are kept in memory.",
    )


Quantize = Annotated[QuantizeSection, ShortForm("method", "The method.")]
TinyDecoder = Annotated[
    TinyDecoderSection, ShortForm("checkpoint", "Directory, .safetensors file or Hub repository of a tiny decoder.")
]


class DiffusersOptions(Options):
    """Options common to all diffusers backbones. The checkpoint, LoRA and dtype are keys of `backbone` itself."""

    media: ClassVar[Literal["image", "video"]] = "image"
    """What the backbones draw that have these options."""

    offload_text: bool = Field(
        default=False,
        json_schema_extra=ANYTIME,
        description="Keep the text encoders in CPU memory and move them to the device only to encode prompts.",
    )
    group_offload: Literal["block", "leaf"] | None = Field(
        default=None,
        json_schema_extra=ANYTIME,
        description="Keep the text encoders in CPU memory, and bring one block, or one layer, at a time to the device "
        "while prompts are encoded (`enable_group_offload` in diffusers): slower than `offload_text`, with less "
        "memory. CUDA devices only; the denoiser stays on the device.",
    )
    decode_chunk: Int = Field(
        default=8,
        ge=1,
        le=100_000,
        json_schema_extra=ANYTIME,
        description="Number of images per call of the autoencoder's decoder.",
    )
    quantize: Quantize | None = Field(
        default=None,
        description="Quantize frozen weights while they are loaded, to fit a smaller device. The base model is then "
        "another one, slightly; adapters stay float32 and cannot be merged. Requires dgpo-diffusers[quantize].",
    )
    tiny_decoder: TinyDecoder | None = Field(
        default=None,
        json_schema_extra=FROM_THERE_ON,
        description="Decode rollouts with a tiny decoder: a thousandth of the operations, but smoother images, which "
        "changes rewards; `dgpo decoders` measures by how much. Images only.",
    )
    variant: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$",
        json_schema_extra={"examples": ["fp16", "bf16", "non_ema"]},
        description="Variant of the weight files to load (`variant` in diffusers), such as fp16 for "
        "model.fp16.safetensors. Models without this variant are loaded from their plain files. Default: the plain "
        "files, or the only variant available. It does not affect the data type, which is `backbone.dtype`.",
    )
    rollout_cache: RolloutCache | None = Field(
        default=None,
        description="Feature cache of diffusers in the rollouts of training, which become faster and approximate: they "
        "are samples of a slightly different model. Losses, evaluations and other commands never use it.",
    )

    def contradictions(self, section: BackboneSection) -> Iterator[tuple[str, str]]:
        """Yield (key, message) of each combination of these options, and of others of the section, that cannot work on
        any machine."""
        quantize, cache = self.quantize, self.rollout_cache
        if quantize is not None:
            yield from ((f"{KEY}.quantize", message) for message in quantize.contradictions(self, section))
        if self.group_offload is not None and self.offload_text:
            yield (
                f"{KEY}.group_offload",
                "offload_text moves text encoders as a whole; leave one of the two out",
            )
        if self.group_offload is not None and quantize is not None and quantize.keeps_encoders:
            yield (
                f"{KEY}.group_offload",
                f"{quantize.method} keeps text encoders on the device; use torchao-int8, or set "
                f"{KEY}.quantize.components to [denoiser]",
            )
        if self.tiny_decoder is not None and self.media != "image":
            yield (
                f"{KEY}.tiny_decoder",
                f"tiny decoders decode images, and {section.use} draws videos; leave it out",
            )
        if cache is not None and section.use not in CACHES[cache.use]:
            yield (
                f"{KEY}.rollout_cache",
                f"{cache.use} is not possible with {section.use}: its layers are not known to be cached correctly; "
                f"possible: {_pairs()}",
            )
        if cache is not None and section.compile:
            yield f"{KEY}.rollout_cache", "layers of a compiled model cannot be cached; set compile: false"

    def conflicts(self, run: RunConfig, key: str) -> Iterator[tuple[str, str]]:
        """See `Options.conflicts`."""
        yield from self.contradictions(run.backbone)
        quantize, on_cpu, on_mps = self.quantize, run.run.device == "cpu", run.run.device == "mps"
        if quantize is not None and "denoiser" in quantize.components:
            instead = f"or set {key}.quantize.components to [text_encoders]"
            if run.run.shard:
                yield "run.shard", f"a quantized denoiser cannot be sharded; leave run.shard out, {instead}"
            if run.rollout.merge_adapter:
                yield (
                    "rollout.merge_adapter",
                    f"an adapter cannot be merged into a quantized denoiser without loss; set it to false, {instead}",
                )
        if quantize is not None and quantize.method.startswith("bnb") and on_cpu:
            yield f"{key}.quantize", WITHOUT_CUDA.format(method=quantize.method, device="cpu")
        if quantize is not None and on_mps:
            yield f"{key}.quantize", QUANTIZED_ON_MPS
        if self.group_offload is not None and on_mps:
            yield f"{key}.group_offload", OFFLOADED_ON_MPS
        if self.group_offload is not None and (on_cpu or run.run.shard):
            yield f"{key}.group_offload", ON_CPU
        if self.rollout_cache is not None and self.rollout_cache.full_steps >= run.rollout.steps:
            yield (
                f"{key}.rollout_cache.full_steps",
                f"{self.rollout_cache.full_steps} first steps without prediction are all {run.rollout.steps} steps "
                "(rollout.steps), so nothing is predicted; set fewer, or remove rollout_cache",
            )
        if self.rollout_cache is not None and run.run.shard:
            yield (
                f"{key}.rollout_cache",
                "cached predictions are not possible with weights sharded by run.shard; leave one of the two out",
            )


class VideoOptions(DiffusersOptions):
    """Options common to backbones that draw videos. Each has a field `frames`, at most `MOST_FRAMES`."""

    media = "video"
    compression: ClassVar[int]
    """Frames per latent frame, except for the first, which encodes one frame."""

    decode_chunk: Int = Field(
        default=1,
        ge=1,
        le=100_000,
        json_schema_extra=ANYTIME,
        description="Number of videos per call of the autoencoder's decoder.",
    )

    @field_validator("frames", check_fields=False)
    @classmethod
    def _whole_latent_frames(cls, frames: int) -> int:
        over = (frames - 1) % cls.compression
        if not over:
            return frames
        below, above = frames - over, frames - over + cls.compression
        nearest = f"nearest are {below} and {above}" if above <= MOST_FRAMES else f"nearest is {below}"
        raise ValueError(
            f"{frames} frames are not possible: the autoencoder requires {cls.compression} k + 1 frames; the {nearest}"
        )
