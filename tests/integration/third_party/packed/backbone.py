"""A packed transformer of one's own, from a directory with config.json and model.safetensors."""

from collections.abc import Mapping, Sequence

import torch
from dgpo_packed.network import CHANNELS, FACTOR, TOKENS, Model
from dgpo_packed.options import PackedOptions
from torch import Tensor, nn

from dgpo_core.contracts import Backbone
from dgpo_core.errors import UserError
from dgpo_core.flow.schedules import exponential_shift
from dgpo_core.lora import LoraAdapter
from dgpo_core.types import Conditioning, Prompt, Schedule
from dgpo_core.weights import resolve_checkpoint
from dgpo_schemas.run import BackboneSection

SIDE = 2 * FACTOR
"""Pixels to the side of a token."""


class PackedBackbone(Backbone):
    """Latents [B, C, h, w]; the network sees 2x2 of their places as one token of 4 C channels."""

    uses = Backbone.uses - {"revision"}
    options: PackedOptions

    def __init__(self, section: BackboneSection, options: PackedOptions, *, device: torch.device) -> None:
        super().__init__(section, options, device=device)
        self.model = Model.load(resolve_checkpoint(section.checkpoint), device)
        if section.train == "lora":
            self.module.to(getattr(torch, section.dtype))
            targets = ("to_q", "to_k", "to_v", "to_out")
            self.adapter = LoraAdapter(self.module, section.lora, targets=targets, base=section.checkpoint)
        else:
            self.module.requires_grad_(True)
        self.model.network.checkpointing = section.gradient_checkpointing
        if section.compile:
            self.module.compile()

    @classmethod
    def meta_model(cls, section: BackboneSection, options: PackedOptions) -> "PackedBackbone":
        """For `dgpo plan`: no weights are read."""
        return cls(section, options, device=torch.device("meta"))

    @property
    def module(self) -> nn.Module:
        """The transformer; the rest is frozen and has no adapter."""
        return self.model.network

    def components(self) -> Mapping[str, nn.Module]:
        """Everything that has weights."""
        return {"model": self.model}

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Text tokens [B, t, W]."""
        return Conditioning({"text": self.model.read([prompt.text for prompt in prompts])})

    def truncated_prompts(self, prompts: Sequence[Prompt]) -> tuple[Sequence[int], int]:
        """Bytes are tokens."""
        return [i for i, prompt in enumerate(prompts) if len(prompt.text.encode()) > TOKENS], TOKENS

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """[C, h, w]. Raises UserError for sides that are not made of whole tokens."""
        if height % SIDE or width % SIDE:
            near = "x".join(str(max(1, round(side / SIDE)) * SIDE) for side in (height, width))
            raise UserError(f"rollout.resolution: {height}x{width} is not possible; the nearest is {near}")
        return CHANNELS, height // FACTOR, width // FACTOR

    def schedule(self, height: int, width: int, steps: int) -> Schedule:
        """Larger images have their times shifted more: `rollout.shift: auto`."""
        return Schedule(shift=exponential_shift(height * width // SIDE**2), grid="even")

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Packed, through the network in its weights' type, and unpacked."""
        (b, c, h, w), dtype = x_sigma.shape, next(self.module.parameters()).dtype
        tokens = x_sigma.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, 4 * c)
        places = torch.cartesian_prod(*(torch.arange(side // 2, device=x_sigma.device) for side in (h, w)))
        guidance = torch.full_like(sigma, self.options.embedded_guidance)
        text = conditioning.tensors["text"].to(dtype)
        out = self.module(tokens.to(dtype), places.to(dtype), text, sigma, guidance).float()
        return out.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x_sigma.shape)

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """One image at a time, so that any number fits."""
        return torch.cat([self.model.draw(one[None].float()) for one in x0])
