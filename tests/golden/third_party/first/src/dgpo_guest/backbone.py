"""A backbone that stands on nothing but dgpo: small, and with an adapter of its own."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from dgpo_core.contracts import Backbone
from dgpo_core.errors import UserError
from dgpo_core.types import Conditioning
from dgpo_schemas.run import BackboneSection

__all__ = ["GuestBackbone"]

LATENT, PIXELS, TEXT, WIDTH = 4, 2, 8, 16


class Adapted(nn.Module):
    """A layer of fixed weights with a low-rank part beside it."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float) -> None:
        super().__init__()
        self.base = nn.Conv2d(inputs, outputs, 1)
        self.down, self.up = nn.Conv2d(inputs, rank, 1, bias=False), nn.Conv2d(rank, outputs, 1, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scale, self.on = scale, True

    def forward(self, x: Tensor) -> Tensor:
        """With the low-rank part where it is on."""
        y: Tensor = self.base(x)
        return y + self.scale * self.up(self.down(x)) if self.on else y


class GuestBackbone(Backbone):
    """One small network at each place of the latent; its weights come from a fixed seed."""

    def __init__(self, section: BackboneSection, options: Any, *, device: torch.device) -> None:
        super().__init__(section, options, device=device)
        rank, scale = section.lora.rank, section.lora.alpha / section.lora.rank
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._layers = [Adapted(LATENT + 1 + TEXT, WIDTH, rank, scale), Adapted(WIDTH, LATENT, rank, scale)]
        self._network = nn.Sequential(self._layers[0], nn.Tanh(), self._layers[1]).to(device)
        for layer in self._layers:
            layer.on = section.train == "lora"
        self._network.requires_grad_(False)
        for parameter in self.trainable().values():
            parameter.requires_grad_(True)

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self._network

    def trainable(self) -> Mapping[str, nn.Parameter]:
        """The adapter, or what it stands beside."""
        adapter = self.section.train == "lora"
        return {name: p for name, p in self._network.named_parameters() if (".base." not in name) == adapter}

    def without_adapter(self) -> AbstractContextManager[None] | None:
        """The low-rank parts off."""
        return self._off() if self.section.train == "lora" else None

    @contextmanager
    def _off(self) -> Iterator[None]:
        before = [layer.on for layer in self._layers]
        for layer in self._layers:
            layer.on = False
        try:
            yield
        finally:
            for layer, on in zip(self._layers, before, strict=True):
                layer.on = on

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """A few numbers in [-1, 1] from each text."""
        rows = [[byte / 127.5 - 1 for byte in hashlib.sha256(text.encode()).digest()[:TEXT]] for text in texts]
        return Conditioning({"text": torch.tensor(rows, device=self.device)})

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """One place for 2x2 pixels."""
        if height % PIXELS or width % PIXELS:
            nearest = f"{height + height % PIXELS}x{width + width % PIXELS}"
            raise UserError(f"rollout.resolution: {height}x{width} is not possible; the nearest is {nearest}")
        return LATENT, height // PIXELS, width // PIXELS

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """x_sigma [B, C, H, W], sigma [B] to an estimate of noise - x0 [B, C, H, W]."""
        told = torch.cat([sigma[:, None], conditioning.tensors["text"]], 1)
        everywhere = told[:, :, None, None].expand(-1, -1, *x_sigma.shape[2:])
        velocity: Tensor = self._network(torch.cat([x_sigma, everywhere], 1))
        return velocity

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Three channels as colours, [B, 3, H, W] in [0, 1]."""
        return torch.sigmoid(x0[:, :3].float()).repeat_interleave(PIXELS, 2).repeat_interleave(PIXELS, 3)

    def save_adapter(self, directory: Path) -> None:
        """What was trained, as one file."""
        directory.mkdir(parents=True, exist_ok=True)
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self.trainable().items()}
        safetensors.torch.save_file(weights, directory / "weights.safetensors")
