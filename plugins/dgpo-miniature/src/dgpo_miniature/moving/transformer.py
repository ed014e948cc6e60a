"""The transformer of the world of moving shapes with its text encoder, and its batches of captioned latents."""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from transformers import T5TokenizerFast

from dgpo_miniature.moving.autoencoder import CHANNELS
from dgpo_miniature.moving.data import Bank, Captioner
from dgpo_miniature.moving.text import WIDTH, build_text_encoder
from dgpo_miniature.training.flow import Draw, FlowSettings

__all__ = ["TextToVideo", "captioned"]


class TextToVideo(nn.Module):
    """The trained components in one module: text encoder and transformer."""

    def __init__(self, tokenizer: T5TokenizerFast, settings: FlowSettings) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(tokenizer)
        width = settings.heads * settings.head_width
        # Patches of 4x4 latents (8 tokens per clip) cost a quarter of patches of 2x2.
        self.transformer = WanTransformer3DModel(
            patch_size=(1, 4, 4),
            num_attention_heads=settings.heads,
            attention_head_dim=settings.head_width,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            text_dim=WIDTH,
            freq_dim=64,
            ffn_dim=4 * width,
            num_layers=settings.layers,
            rope_max_seq_len=32,
        )

    def encode(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Encode tokens and mask [B, T] to embeddings [B, T, WIDTH], zero at padding, like WanPipeline."""
        hidden: Tensor = self.text_encoder(tokens, mask).last_hidden_state
        return hidden * mask[..., None]

    def forward(self, x_sigma: Tensor, sigma: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the velocity [B, C, f, h, w] at x_sigma of the same shape, sigma [B] in [0, 1]."""
        velocity: Tensor = self.transformer(
            hidden_states=x_sigma,
            timestep=1000.0 * sigma,
            encoder_hidden_states=self.encode(tokens, mask),
            return_dict=False,
        )[0]
        return velocity


def captioned(bank: Bank, captioner: Captioner, settings: FlowSettings, fault_rate: float = 0.0) -> Draw:
    """Return a function that draws latents with captions, some of them wrong in one word or empty."""

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, tuple[Tensor, ...]]:
        index = torch.randint(len(bank.latents), (count,), generator=generator)
        return bank.latents[index], captioner(bank.content[index], fault_rate, settings.empty_share)

    return draw
