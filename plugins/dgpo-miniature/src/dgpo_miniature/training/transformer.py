"""The transformer of the image worlds with its text encoders, and its batches of captioned latents."""

from __future__ import annotations

from typing import Protocol

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from transformers import CLIPTokenizer

from dgpo_miniature.training.flow import Draw, FlowSettings
from dgpo_miniature.training.text import WIDTH, build_text_encoder

__all__ = ["CaptionedLatents", "TextToImage", "captioned"]


class CaptionedLatents(Protocol):
    """Training data: latents float32 [N, 4, h, w]; tokens int64 [N, T]; empty int64 [T], tokens of the empty prompt."""

    @property
    def latents(self) -> Tensor: ...
    @property
    def tokens(self) -> Tensor: ...
    @property
    def empty(self) -> Tensor: ...


class TextToImage(nn.Module):
    """The trained components in one module: two text encoders and the transformer."""

    def __init__(self, tokenizer: CLIPTokenizer, settings: FlowSettings) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(tokenizer)
        self.text_encoder_2 = build_text_encoder(tokenizer)
        self.transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=settings.layers,
            attention_head_dim=settings.head_width,
            num_attention_heads=settings.heads,
            caption_projection_dim=settings.heads * settings.head_width,
            joint_attention_dim=2 * WIDTH,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
        )

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode tokens [B, T] to (sequence [B, T, 2 WIDTH], pooled [B, 2 WIDTH]), like the pipeline without T5."""
        sequences, pooled = [], []
        for encoder in (self.text_encoder, self.text_encoder_2):
            out = encoder(tokens, output_hidden_states=True)
            sequences.append(out.hidden_states[-2])
            pooled.append(out.text_embeds)
        return torch.cat(sequences, dim=-1), torch.cat(pooled, dim=-1)

    def forward(self, x_sigma: Tensor, sigma: Tensor, tokens: Tensor) -> Tensor:
        """Return the velocity at x_sigma [B, 4, h, w], sigma [B] in [0, 1]; h and w are even, at most 16."""
        sequence, pooled = self.encode(tokens)
        velocity: Tensor = self.transformer(
            hidden_states=x_sigma,
            timestep=1000.0 * sigma,
            encoder_hidden_states=sequence,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        return velocity


def captioned(bank: CaptionedLatents, settings: FlowSettings, mismatched_share: float = 0.0) -> Draw:
    """Return a function that draws latents with their tokens, some of them empty or of another image."""

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, tuple[Tensor, ...]]:
        index = torch.randint(len(bank.latents), (count,), generator=generator)
        tokens = bank.tokens[index].clone()
        chance = torch.rand(count, generator=generator)
        tokens[chance < settings.empty_share] = bank.empty
        mismatched = chance > 1 - mismatched_share
        strangers = torch.randint(len(bank.latents), (count,), generator=generator)
        tokens[mismatched] = bank.tokens[strangers[mismatched]]
        return bank.latents[index], (tokens,)

    return draw
