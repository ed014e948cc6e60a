"""Details of FLUX.2 klein: checks of checkpoints, and the chat template of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dgpo_core.errors import UserError
from dgpo_schemas.problems import is_number, show

__all__ = ["check_klein", "in_template"]


def check_klein(pipeline: Any, directory: Path, layers: Sequence[int]) -> None:
    """Raise UserError if components do not match, or if tokenizer or autoencoder are incomplete.

    layers: hidden states of the text encoder that are used.
    """
    denoiser, text, vae = (getattr(pipeline, name).config for name in ("transformer", "text_encoder", "vae"))
    where = f"backbone.checkpoint: {directory}"
    for name, found, wanted in (
        ("in_channels", denoiser.in_channels, 4 * vae.latent_channels),
        ("joint_attention_dim", denoiser.joint_attention_dim, len(layers) * text.hidden_size),
    ):
        if found != wanted:
            raise UserError(
                f"{where}/transformer/config.json: {name} is {show(found)}; allowed is {wanted} with the autoencoder "
                "and text encoder beside it"
            )
    if text.num_hidden_layers < max(layers):
        raise UserError(
            f"{where}/text_encoder/config.json: num_hidden_layers is {show(text.num_hidden_layers)}; allowed is at "
            f"least {max(layers)}, since prompts are encoded as the hidden states {', '.join(map(str, layers))}"
        )
    if pipeline.tokenizer.chat_template is None:
        raise UserError(f"{where}/tokenizer has no chat template, usually the file chat_template.jinja")
    eps, statistics = vae.batch_norm_eps, pipeline.vae.bn
    known = torch.isfinite(statistics.running_mean) & torch.isfinite(statistics.running_var)
    if not is_number(eps) or not bool((known & (statistics.running_var + eps > 0)).all()):
        raise UserError(
            f"{where}/vae: the mean and variance of the latents (bn.running_mean, and bn.running_var with "
            "batch_norm_eps) must be finite numbers, variances above 0"
        )


def in_template(tokenizer: Any, text: str) -> str:
    """Return a prompt in the tokenizer's chat template, without thinking, as Flux2KleinPipeline encodes it."""
    message = {"role": "user", "content": text}
    found: str = tokenizer.apply_chat_template(
        [message], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    return found
