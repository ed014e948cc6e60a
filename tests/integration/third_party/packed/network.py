"""The model itself, which knows nothing of dgpo: a small packed transformer, its text encoder and its decoder."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dgpo_core.errors import UserError

CHANNELS, FACTOR, TOKENS = 4, 4, 32
"""Channels of a latent, pixels to its side, tokens of a prompt."""


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))
        self.shift = nn.Linear(width, width)

    def forward(self, tokens: Tensor, embedded: Tensor) -> Tensor:
        x = functional.layer_norm(tokens + self.shift(embedded)[:, None], tokens.shape[-1:])
        mixed = functional.scaled_dot_product_attention(self.to_q(x), self.to_k(x), self.to_v(x))
        out: Tensor = tokens + self.to_out(mixed)
        return out


class PackedTransformer(nn.Module):
    """Tokens [B, n, 4 C] with their rows and columns, text [B, t, W], time [B] and guidance [B] to [B, n, 4 C]."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(4 * CHANNELS, width), nn.Linear(width, 4 * CHANNELS)
        self.embedding, self.places = nn.Linear(2, width), nn.Linear(2, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.checkpointing = False

    def forward(self, tokens: Tensor, places: Tensor, text: Tensor, time: Tensor, guidance: Tensor) -> Tensor:
        embedded = self.embedding(torch.stack([time, guidance / 10], 1).to(tokens.dtype))
        x = torch.cat([text, self.inside(tokens) + self.places(places)], 1)
        for block in self.blocks:
            x = checkpoint(block, x, embedded, use_reentrant=False) if self.checkpointing else block(x, embedded)
        out: Tensor = self.outside(x[:, text.shape[1] :])
        return out


class Model(nn.Module):
    """All of it, as a checkpoint holds it."""

    def __init__(self, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.network = PackedTransformer(width, layers)
        self.letters = nn.Embedding(256, width)
        self.decoder = nn.Conv2d(CHANNELS, 3 * FACTOR**2, 3, padding=1)

    @staticmethod
    def load(directory: str, device: torch.device) -> "Model":
        """From config.json and model.safetensors; on the meta device without its weights. Frozen, float32."""
        config = Path(directory, "config.json")
        if not config.is_file():
            raise UserError(f"backbone.checkpoint: {directory} has no config.json, so it is no packed transformer")
        with torch.device("meta"):  # where no random number is drawn
            model = Model(**json.loads(config.read_text())).requires_grad_(False)
        if device.type != "meta":
            model.load_state_dict(load_file(config.with_name("model.safetensors"), str(device)), assign=True)
        return model

    def read(self, texts: list[str]) -> Tensor:
        """A token for each of the first bytes."""
        read = [text.encode()[:TOKENS].ljust(TOKENS) for text in texts]
        out: Tensor = self.letters(torch.tensor([list(row) for row in read], device=self.letters.weight.device))
        return out

    def draw(self, latents: Tensor) -> Tensor:
        return functional.pixel_shuffle(self.decoder(latents), FACTOR).sigmoid()
