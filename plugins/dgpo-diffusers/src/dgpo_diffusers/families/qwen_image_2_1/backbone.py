"""Qwen-Image 2.1 (Qwen team, https://github.com/QwenLM/Qwen-Image) as a backbone.

Shape letters: B samples, C latent channels, h w height and width of latents (pixels / 16), T text tokens, D their
width. sigma = 1 is noise, 0 is data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo_core.transfers import to_device
from dgpo_core.types import Conditioning, Prompt, Schedule
from dgpo_diffusers.backbone import DiffusersBackbone
from dgpo_diffusers.families.qwen_image_2_1.checks import check_qwen_image_2_1, suggested_times
from dgpo_diffusers.families.qwen_image_2_1.meta import NoProcessor, keep_tables
from dgpo_diffusers.families.qwen_image_2_1.positions import own_positions
from dgpo_diffusers.geometry import multiples
from dgpo_diffusers.layout import Layout

if TYPE_CHECKING:
    from dgpo_diffusers.checkpoint_check import Index
    from dgpo_diffusers.families.qwen_image_2_1.options import QwenImage21Options

__all__ = ["QwenImage21Backbone"]

SLOT = 4
"""Image tokens, a square of 2x2, that the transformer counts as one in the sequence of the text encoder."""


class QwenImage21Backbone(DiffusersBackbone):
    """diffusers' Qwen-Image 2.1 transformer, autoencoder and Qwen3-VL; trains a peft LoRA, or the whole transformer.

    Prompts keep their lengths: padding is masked, and the position of an image depends on its own prompt only. Images
    have an alpha channel, and are composited over white.

    In bfloat16, or under bfloat16 autocast, the transformer rounds its timestep input to eight bits, as in diffusers'
    pipeline.
    """

    options: QwenImage21Options
    ragged = True
    layout = Layout(
        backbone="qwen-image-2.1",
        family="Qwen-Image 2.1",
        pipeline="QwenImage21Pipeline",
        models={
            "transformer": "QwenImage21Transformer2DModel",
            "vae": "AutoencoderKLQwenImage21",
            "text_encoder": "Qwen3VLForConditionalGeneration",
        },
        vocabularies={"processor": ("tokenizer.json", "vocab.json")},
        processors={"processor": "text_encoder"},
        numbers={"transformer": ("in_channels",), "vae": ("z_dim",)},
        grid="even",
        lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.device.type == "meta":
            keep_tables(self.network)

    def settings(self, index: Index) -> Mapping[str, Any]:
        """Return the times that the checkpoint suggests, if any."""
        times = suggested_times(index)
        return {"sample_sigmas": None if times is None else list(times)}

    def placeholders(self) -> Mapping[str, Any]:
        """Return the processor, which the pipeline's constructor calls."""
        return {"processor": NoProcessor()}

    def check(self, pipeline: Any, directory: Path) -> None:
        """Raise UserError if the components do not match."""
        check_qwen_image_2_1(pipeline, directory)

    def embed(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Return {"prompt_embeds" [B, T, D]} with lengths: the states of Qwen3-VL before its final norm, without those
        of the system prompt. The pipeline encodes "" as " "."""
        longest = self.options.text_length
        embeds, mask, _ = self.pipeline.encode_prompt([prompt.text for prompt in prompts], device=self.device)
        lengths = [embeds.shape[1]] * len(embeds) if mask is None else mask.sum(1).tolist()
        kept = tuple(min(int(length), longest) for length in lengths)
        return Conditioning({"prompt_embeds": embeds[:, :longest]}, {"prompt_embeds": kept})

    def rows(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of the longest possible row."""
        return {"prompt_embeds": (self.options.text_length, self.network.config.context_in_dim)}

    def readers(self) -> Sequence[tuple[Any, int]]:
        """Return the tokenizer with the number of tokens that are left beside the chat template."""
        if self.pipeline.processor is None:
            return ()
        tokenizer, template = self.pipeline.processor.tokenizer, self.pipeline.prompt_template_t2i
        added = len(tokenizer(template.format("")).input_ids) - self.pipeline._drop_idx
        return [(tokenizer, self.options.text_length - added)]

    def sides(self) -> tuple[range, range]:
        """Return multiples of twice the autoencoder's factor."""
        possible = multiples(2 * self.pipeline.vae_scale_factor)
        return possible, possible

    def latents(self, height: int, width: int) -> tuple[int, ...]:
        """Return (C, h, w) of the autoencoder."""
        return self.vae.config.z_dim, *(side // self.pipeline.vae_scale_factor for side in (height, width))

    def tokens(self, height: int, width: int) -> int:
        """Return the number of latents, each of which is a token."""
        _, h, w = self.latents(height, width)
        return h * w

    def schedule(self, height: int, width: int, steps: int) -> Schedule:
        """Return the schedule of the checkpoint's scheduler, on its `sample_sigmas` for their number of steps."""
        found, listed = super().schedule(height, width, steps), self.pipeline.config.sample_sigmas
        return replace(found, grid=tuple(listed), first=listed[0]) if listed and len(listed) == steps else found

    def to_pixels(self, x0: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to images over white: a video autoencoder with a single frame and alpha."""
        pixels = super().to_pixels(x0[:, :, None])[:, :, 0]
        color, alpha = pixels[:, :3], (pixels[:, 3:] + 1) / 2
        return 1 + (color - 1) * alpha

    def predict(self, network: Any, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict v = noise - x0 for x [B, C, h, w]. The transformer multiplies sigma by 1000."""
        (batch, _, h, w), text, mask = x.shape, conditioning.tensors["prompt_embeds"], None
        lengths, padded = conditioning.lengths.get("prompt_embeds", ()), text.shape[1]
        if any(length < padded for length in lengths):
            ends = to_device(lengths, x.device)
            mask = torch.arange(padded, device=x.device) < ends[:, None]
        slots = torch.arange(padded + h * w // SLOT, device=x.device)
        with nullcontext() if mask is None else own_positions(network.pos_embed, lengths, padded):
            out: Tensor = network(
                hidden_states=x.flatten(2).transpose(1, 2),
                encoder_hidden_states=text,
                encoder_hidden_states_mask=mask,
                timestep=time,
                img_shapes=[[(1, h, w)]] * batch,
                img_mask=(slots >= padded)[None],
                return_dict=False,
            )[0]
        return out[:, -h * w :].transpose(1, 2).reshape(x.shape)
