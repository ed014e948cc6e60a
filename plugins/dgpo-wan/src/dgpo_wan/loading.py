"""What a Wan checkpoint consists of, and what this backbone demands of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import diffusers
import torch
import transformers

from dgpo_core.errors import UserError
from dgpo_diffusers.checkpoints import Layout, Opened, load_model, load_pipeline, open_checkpoint
from dgpo_wan.libraries import WanPipeline
from dgpo_wan.options import COMPRESSION

if TYPE_CHECKING:
    from dgpo_diffusers.checkpoint_check import Index
    from dgpo_schemas.run import BackboneSection
    from dgpo_wan.options import WanOptions

__all__ = ["load_wan"]

LAYOUT = Layout(
    backbone="wan",
    family="Wan 2.1 and 2.2 text-to-video; image-to-video, VACE and Animate are other pipelines",
    pipeline=WanPipeline,
    models={
        "transformer": diffusers.WanTransformer3DModel,
        "transformer_2": diffusers.WanTransformer3DModel,
        "vae": diffusers.AutoencoderKLWan,
        "text_encoder": transformers.UMT5EncoderModel,
    },
    vocabularies={"tokenizer": ("tokenizer.json", "spiece.model")},
    optional={},
)
TIED = "encoder.embed_tokens.weight"
"""Wan's text encoders are published with this weight as `shared.weight` alone and a configuration that says the two are
not tied; some versions of transformers 5 then leave the first one blank."""


def load_wan(section: BackboneSection, options: WanOptions) -> WanPipeline:
    """The pipeline on the CPU: transformers and text encoder in `section.dtype`, the autoencoder in float32, and the
    trained transformer in float32 if all of it is trained.

    `transformer_2` is None where the pipeline would not use it (one without a boundary). Raises UserError for
    a checkpoint that is missing, cannot be fetched, damaged, or not Wan text-to-video.
    """
    opened = open_checkpoint(section, LAYOUT, wanted=_wanted, variant=options.variant)
    two = "transformer_2" in opened.variants
    trained = "transformer_2" if two and options.expert == "low" else "transformer"
    dtype = getattr(torch, section.dtype)
    models: dict[str, torch.nn.Module | None] = {"transformer_2": None}
    for name in opened.variants:
        full = name == trained and section.train == "full"
        wanted = torch.float32 if name == "vae" or full else dtype
        models[name] = load_model(opened, name, wanted, tied=[TIED] if name == "text_encoder" else [])
    encoder: Any = models["text_encoder"]
    encoder.set_input_embeddings(encoder.get_input_embeddings())  # the encoder's own become the shared ones
    pipeline = load_pipeline(
        opened,
        models,
        boundary_ratio=opened.index.number("boundary_ratio"),
        expand_timesteps=opened.index.flag("expand_timesteps"),
    )
    try:
        _check(pipeline, opened)
    except (TypeError, AttributeError, IndexError, KeyError) as error:
        raise UserError(
            f"backbone.checkpoint: a config.json in {opened.directory} has a value of another kind than Wan's: {error}"
        ) from error
    return pipeline


def _wanted(index: Index) -> list[str]:
    """Two transformers if the pipeline changes from one to another at a boundary (Wan 2.2 A14B)."""
    boundary = index.number("boundary_ratio") is not None
    if boundary and index.part("transformer_2") is None:
        raise UserError(f"backbone.checkpoint: {index.path} has a boundary_ratio, but no transformer_2 to change to")
    return [name for name in LAYOUT.models if boundary or name != "transformer_2"]


def _check(pipeline: Any, opened: Opened) -> None:
    """Raise UserError for parts that do not fit each other, or text-to-video."""
    vae = pipeline.vae.config
    for name in ("transformer", "transformer_2"):
        transformer = getattr(pipeline, name)
        if transformer is None:
            continue
        config = transformer.config
        if config.in_channels != vae.z_dim or config.image_dim is not None:
            raise UserError(
                f"backbone.checkpoint: {opened.directory}/{name} takes {config.in_channels} channels"
                f"{' and an image' if config.image_dim is not None else ''}, the autoencoder gives {vae.z_dim}: it is "
                "not text-to-video"
            )
        if config.patch_size[0] != 1:
            raise UserError(
                f"backbone.checkpoint: {opened.directory}/{name} joins {config.patch_size[0]} latent frames into one "
                "patch; the backbone wan knows patches of one frame"
            )
    if vae.scale_factor_temporal != COMPRESSION:
        raise UserError(
            f"backbone.checkpoint: {opened.directory}/vae makes one latent frame of {vae.scale_factor_temporal}; the "
            f"backbone wan knows {COMPRESSION}"
        )
    if not len(vae.latents_mean) == len(vae.latents_std) == vae.z_dim:
        raise UserError(
            f"backbone.checkpoint: {opened.directory}/vae/config.json has {len(vae.latents_mean)} latents_mean and "
            f"{len(vae.latents_std)} latents_std for {vae.z_dim} channels"
        )
