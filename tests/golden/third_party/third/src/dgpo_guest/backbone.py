"""A backbone that stands on nothing but dgpo: small, and with an adapter of its own."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from dgpo_core.contracts import Adapter, Backbone
from dgpo_core.errors import UserError
from dgpo_core.types import Conditioning, Prompt
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


class GuestAdapter(Adapter):
    """The low-rank parts of a network's layers."""

    formats = ("guest",)

    def __init__(self, network: nn.Module) -> None:
        self._layers = [layer for layer in network.children() if isinstance(layer, Adapted)]
        self._parameters = {name: p for name, p in network.named_parameters() if ".base." not in name}

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What each layer has beside its fixed weights."""
        return self._parameters

    @contextmanager
    def off(self) -> Iterator[None]:
        """The low-rank parts off."""
        before = [layer.on for layer in self._layers]
        for layer in self._layers:
            layer.on = False
        try:
            yield
        finally:
            for layer, on in zip(self._layers, before, strict=True):
                layer.on = on

    def save(self, directory: Path, format: str) -> None:
        """As one file."""
        directory.mkdir(parents=True, exist_ok=True)
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self._parameters.items()}
        safetensors.torch.save_file(weights, directory / "weights.safetensors")


class GuestBackbone(Backbone):
    """One small network at each place of the latent; its weights come from a fixed seed."""

    def __init__(self, section: BackboneSection, options: Any, *, device: torch.device) -> None:
        super().__init__(section, options, device=device)
        rank, scale = section.lora.rank, section.lora.alpha / section.lora.rank
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = [Adapted(LATENT + 1 + TEXT, WIDTH, rank, scale), Adapted(WIDTH, LATENT, rank, scale)]
        self._network = nn.Sequential(layers[0], nn.Tanh(), layers[1]).to(device)
        if section.train == "lora":
            self.adapter = GuestAdapter(self._network)
        for layer in layers:
            layer.on = self.adapter is not None
        for name, parameter in self._network.named_parameters():
            parameter.requires_grad_((".base." not in name) == layers[0].on)

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self._network

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        """A few numbers in [-1, 1] from each text."""
        rows = [[byte / 127.5 - 1 for byte in hashlib.sha256(p.text.encode()).digest()[:TEXT]] for p in prompts]
        return Conditioning({"text": torch.tensor(rows, device=self.device)})

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """One place for 2x2 pixels."""
        if height % PIXELS or width % PIXELS:
            nearest = f"{height + height % PIXELS}x{width + width % PIXELS}"
            raise UserError(f"rollout.resolution: {height}x{width} is not possible; the nearest is {nearest}")
        return LATENT, height // PIXELS, width // PIXELS

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """x_sigma [B, C, H, W], sigma [B] to an estimate of noise - x0 [B, C, H, W]."""
        given = torch.cat([sigma[:, None], conditioning.tensors["text"]], 1)
        everywhere = given[:, :, None, None].expand(-1, -1, *x_sigma.shape[2:])
        velocity: Tensor = self._network(torch.cat([x_sigma, everywhere], 1))
        return velocity

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Three channels as colors, [B, 3, H, W] in [0, 1]."""
        return torch.sigmoid(x0[:, :3].float()).repeat_interleave(PIXELS, 2).repeat_interleave(PIXELS, 3)
