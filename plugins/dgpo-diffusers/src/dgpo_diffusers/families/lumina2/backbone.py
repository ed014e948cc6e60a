"""Lumina-Image 2.0 (Qin et al., arXiv 2503.21758) as a backbone.

Shape letters: B samples, C latent channels, h w height and width of latents (pixels / 8), T text tokens, D their width.
sigma = 1 is noise, 0 is data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.linalg import vector_norm

from dgpo_core.errors import UserError
from dgpo_core.types import Conditioning, Prompt
from dgpo_diffusers.backbone import DiffusersBackbone
from dgpo_diffusers.families.lumina2.meta import without_values
from dgpo_diffusers.families.lumina2.names import NAMES
from dgpo_diffusers.geometry import multiples
from dgpo_diffusers.layout import Layout

if TYPE_CHECKING:
    from dgpo_diffusers.families.lumina2.options import Lumina2Options

__all__ = ["Lumina2Backbone"]

SEPARATOR = " <Prompt Start> "
"""Between the system prompt and a prompt."""


class Lumina2Backbone(DiffusersBackbone):
    """diffusers' Lumina2 transformer, autoencoder and Gemma 2; trains a peft LoRA, or the whole transformer.

    Rows of prompts have padding, which a mask excludes: it does not change the images.
    """

    options: Lumina2Options
    ragged = True
    layout = Layout(
        backbone="lumina2",
        family="Lumina-Image 2.0",
        pipeline="Lumina2Pipeline",
        accepted=("Lumina2Text2ImgPipeline",),
        models={
            "transformer": "Lumina2Transformer2DModel",
            "vae": "AutoencoderKL",
            "text_encoder": "Gemma2Model",
        },
        vocabularies={"tokenizer": ("tokenizer.json", "tokenizer.model")},
        numbers={"transformer": ("in_channels", "patch_size"), "vae": ("scaling_factor", "shift_factor")},
        grid="even",
        lora_targets=("to_q", "to_k", "to_v", "to_out.0"),  # of the refiners too
        original=NAMES.original_pairs,
        comfyui=NAMES.comfyui_pairs,
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.device.type == "meta":
            without_values(self.network.rope_embedder)

    def check(self, pipeline: Any, directory: Path) -> None:
        """Raise UserError if the components do not match, or if prompts can be longer than the position embeddings."""
        config, vae, where = pipeline.transformer.config, pipeline.vae.config, f"backbone.checkpoint: {directory}"
        for name, found, wanted in (
            ("transformer/config.json: in_channels", config.in_channels, vae.latent_channels),
            ("transformer/config.json: cap_feat_dim", config.cap_feat_dim, pipeline.text_encoder.config.hidden_size),
            ("vae/config.json: the length of block_out_channels", len(vae.block_out_channels), 4),  # a factor of 8
        ):
            if found != wanted:
                raise UserError(f"{where}/{name} is {found}; allowed is {wanted} with the components beside it")
        if self.options.text_length >= config.axes_lens[0]:
            raise UserError(
                f"backbone.options.text_length: {self.options.text_length} is more than the position embeddings of "
                f"{directory} support; the most is {config.axes_lens[0] - 1}"
            )

    def embed(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Return {"prompt_embeds" [B, T, D], "mask" [B, T]}: the last but one hidden state of Gemma, and 1 for tokens,
        0 for padding, of the system prompt and the prompts."""
        return self._embedded([prompt.text for prompt in self._instructed(prompts)])

    def embed_unconditional(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Encode the negative prompts, "" by default, without a system prompt."""
        return self._embedded([prompt.negative or "" for prompt in prompts])

    def _embedded(self, texts: list[str]) -> Conditioning:
        prompt_embeds, mask = self.pipeline._get_gemma_prompt_embeds(
            texts, device=self.device, max_sequence_length=self.options.text_length
        )
        return Conditioning({"prompt_embeds": prompt_embeds, "mask": mask.to(prompt_embeds.dtype)})

    def _instructed(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        return [replace(prompt, text=f"{self.options.system_prompt}{SEPARATOR}{prompt.text}") for prompt in prompts]

    def rows(self) -> Mapping[str, tuple[int, ...]]:
        """Return the row shapes of the text embeddings and their mask."""
        length = self.options.text_length
        return {"prompt_embeds": (length, self.network.config.cap_feat_dim), "mask": (length,)}

    def readers(self) -> Sequence[tuple[Any, int]]:
        """Return Gemma's tokenizer with its maximum length."""
        return [(self.pipeline.tokenizer, self.options.text_length)]

    def truncated_prompts(self, prompts: Sequence[Prompt]) -> tuple[Sequence[int], int]:
        """Return the prompts that have more than `text_length` tokens with the system prompt."""
        return super().truncated_prompts(self._instructed(prompts))

    def sides(self) -> tuple[range, range]:
        """Return multiples of the autoencoder's factor times the patch size, as far as positions are embedded."""
        config = self.network.config
        step = self.pipeline.vae_scale_factor * config.patch_size
        height, width = (multiples(step, step * reach) for reach in config.axes_lens[1:])
        return height, width

    def tokens(self, height: int, width: int) -> int:
        """Return the number of latent channels, which Lumina2Pipeline takes for the number of tokens."""
        channels: int = self.network.config.in_channels
        return channels

    def guide(
        self, conditional: Tensor, unconditional: Tensor, guidance: float, *, x_sigma: Tensor, sigma: Tensor
    ) -> Tensor:
        """Classifier-free guidance, rescaled as in Lumina2Pipeline: every row of latents [w] of the guided velocity has
        the norm of the same row of the conditional one."""
        guided = super().guide(conditional, unconditional, guidance, x_sigma=x_sigma, sigma=sigma)
        if not self.options.renormalize:
            return guided
        scale: Tensor = vector_norm(conditional, dim=-1, keepdim=True) / vector_norm(guided, dim=-1, keepdim=True)
        return guided * scale

    def predict(self, network: Any, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict v = noise - x0 for x [B, C, h, w]. Lumina2's time is 1 - sigma, its output x0 - noise."""
        out: Tensor = network(
            hidden_states=x,
            timestep=1 - time,
            encoder_hidden_states=conditioning.tensors["prompt_embeds"],
            encoder_attention_mask=conditioning.tensors["mask"].bool() | self.without_weights,
            return_dict=False,
        )[0]
        return -out
