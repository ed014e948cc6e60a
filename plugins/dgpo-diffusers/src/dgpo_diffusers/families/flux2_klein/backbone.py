"""FLUX.2 klein (4B and 9B, base and distilled; Black Forest Labs, https://github.com/black-forest-labs/flux2) as a
backbone.

Shape letters: B samples, C channels of patched latents, h w height and width in patches (pixels / 16), T text tokens, D
their width. sigma = 1 is noise, 0 is data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo_core.flow.schedules import flux2_shift
from dgpo_core.types import Conditioning, Prompt, Schedule
from dgpo_diffusers.backbone import DiffusersBackbone
from dgpo_diffusers.families.flux2_klein.details import check_klein, in_template
from dgpo_diffusers.families.flux2_klein.names import LORA_TARGETS, NAMES
from dgpo_diffusers.geometry import multiples
from dgpo_diffusers.layout import Layout

if TYPE_CHECKING:
    from dgpo_diffusers.checkpoint_check import Index
    from dgpo_diffusers.families.flux2_klein.options import Flux2KleinOptions

__all__ = ["Flux2KleinBackbone"]

LAYERS = (9, 18, 27)
"""Hidden states of Qwen3 that are joined to the embedding of a token."""


class Flux2KleinBackbone(DiffusersBackbone):
    """diffusers' FLUX.2 transformer, autoencoder and Qwen3; trains a peft LoRA, or the whole transformer.

    Latents have shape [C, h, w]: patches of 2x2 latents of the autoencoder, normalized with the statistics of its
    BatchNorm layer.

    With weights in bfloat16, the transformer rounds its timestep input to eight bits, as in the original: it cannot
    distinguish 0.901 from 0.903. With float32 weights it does not, also under autocast.
    """

    options: Flux2KleinOptions
    layout = Layout(
        backbone="flux2-klein",
        family="FLUX.2 klein, base and distilled; FLUX.2 dev is another pipeline",
        pipeline="Flux2KleinPipeline",
        models={
            "transformer": "Flux2Transformer2DModel",
            "vae": "AutoencoderKLFlux2",
            "text_encoder": "Qwen3ForCausalLM",
        },
        vocabularies={"tokenizer": ("tokenizer.json", "vocab.json")},
        alike="Flux2KleinInpaintPipeline",
        numbers={"transformer": ("in_channels",)},
        grid="even",
        lora_targets=LORA_TARGETS,
        original=NAMES.original_pairs,
        comfyui=NAMES.comfyui_pairs,
    )

    def settings(self, index: Index) -> Mapping[str, Any]:
        """Return whether the model is distilled."""
        return {"is_distilled": index.flag("is_distilled")}

    @property
    def supports_guidance(self) -> bool:
        """False for distilled models; diffusers' pipeline ignores their guidance scale."""
        return not self.pipeline.config.is_distilled

    def check(self, pipeline: Any, directory: Path) -> None:
        """Raise UserError if the components do not match, or if tokenizer or autoencoder are incomplete."""
        check_klein(pipeline, directory, LAYERS)

    def embed(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Return {"prompt_embeds" [B, T, D]}: three hidden states of Qwen3 for each token, padding included."""
        prompt_embeds, _ = self.pipeline.encode_prompt(
            [prompt.text for prompt in prompts],
            device=self.device,
            max_sequence_length=self.options.text_length,
            text_encoder_out_layers=LAYERS,
        )
        return Conditioning({"prompt_embeds": prompt_embeds})

    def rows(self) -> Mapping[str, tuple[int, ...]]:
        """Return the row shape of the text embeddings."""
        return {"prompt_embeds": (self.options.text_length, self.network.config.joint_attention_dim)}

    def readers(self) -> Sequence[tuple[Any, int]]:
        """Return Qwen3's tokenizer with its maximum length."""
        return [(self.pipeline.tokenizer, self.options.text_length)]

    def truncated_prompts(self, prompts: Sequence[Prompt]) -> tuple[Sequence[int], int]:
        """Return the prompts that have more than `text_length` tokens in the chat template, in which they are read."""
        tokenizer = self.pipeline.tokenizer
        if tokenizer is not None:
            prompts = [replace(prompt, text=in_template(tokenizer, prompt.text)) for prompt in prompts]
        return super().truncated_prompts(prompts)

    def sides(self) -> tuple[range, range]:
        """Return multiples of twice the autoencoder's factor: one token covers 16 pixels."""
        possible = multiples(2 * self.pipeline.vae_scale_factor)
        return possible, possible

    def latents(self, height: int, width: int) -> tuple[int, ...]:
        """Return (C, h, w)."""
        step = 2 * self.pipeline.vae_scale_factor
        return self.network.config.in_channels, height // step, width // step

    def schedule(self, height: int, width: int, steps: int) -> Schedule:
        """Return the schedule of Flux2KleinPipeline, whose shift depends on the numbers of tokens and of steps."""
        config = self.pipeline.scheduler.config
        found = super().schedule(height, width, steps)
        if not config.get("use_dynamic_shifting"):
            return found
        shift = flux2_shift(self.tokens(height, width), steps)
        return replace(found, shift=math.log(shift) if config.get("time_shift_type") == "linear" else shift)

    def to_pixels(self, x0: Tensor) -> Tensor:
        """Decode latents [B, C, h, w]. The means and variances of the C channels are buffers of the autoencoder."""
        statistics = self.vae.bn
        mean, variance = (t.view(1, -1, 1, 1) for t in (statistics.running_mean, statistics.running_var))
        z = x0 * (variance + self.vae.config.batch_norm_eps).sqrt() + mean
        # Channels of a patch are ordered by channel of the autoencoder, then by position in the 2x2 patch.
        z = z.unflatten(1, (-1, 2, 2)).permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3)
        pixels: Tensor = self.vae.decode(z, return_dict=False)[0]
        return pixels

    def predict(self, network: Any, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict v = noise - x0 for x [B, C, h, w]. The transformer multiplies sigma by 1000.

        Positions have four axes: reference image, row, column, text token.
        """
        text = conditioning.tensors["prompt_embeds"]
        lengths = (1, x.shape[2], x.shape[3], text.shape[1])
        one, rows, columns, words = (torch.arange(length, device=x.device) for length in lengths)
        out: Tensor = network(
            hidden_states=x.flatten(2).transpose(1, 2),
            encoder_hidden_states=text,
            timestep=time,
            guidance=None,
            img_ids=torch.cartesian_prod(one, rows, columns, one),
            txt_ids=torch.cartesian_prod(one, one, one, words),
            return_dict=False,
        )[0]
        return out.transpose(1, 2).reshape(x.shape)
