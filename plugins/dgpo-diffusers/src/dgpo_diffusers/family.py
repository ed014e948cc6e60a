"""What a family of diffusers models writes: a `Layout`, and the methods here that are not as they are by default.

Shape letters: B samples, C latent channels, F frames, H W height and width (of latents: h w). sigma = 1 is noise, 0 is
data.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dgpo_core.contracts import Backbone
from dgpo_core.types import Conditioning, Prompt, Schedule
from dgpo_diffusers.checkpoint_check import Index
from dgpo_diffusers.geometry import check_flow, multiples, shift_of
from dgpo_diffusers.layout import Layout
from dgpo_diffusers.parameterization import EpsilonPrediction, FlowPrediction

__all__ = ["Family"]


class Family(Backbone):
    """What `DiffusersBackbone` asks a family.

    pipeline: diffusers' own, on which a family calls `encode_prompt` and the like; network: the denoiser that is
    trained, adapter included; others: the denoisers that are not, by subdirectory; vae: the autoencoder, in float32;
    dtype: of the network's frozen weights, in which it is run; prediction: what the network gives.
    """

    layout: ClassVar[Layout]
    options: Any
    pipeline: Any
    network: Any
    others: Mapping[str, Any]
    vae: Any
    dtype: torch.dtype
    prediction: FlowPrediction

    @abstractmethod
    def embed(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Prompts to conditioning as `Backbone.encode` promises: called without gradient, without autocast, while the
        text encoders are on the device."""

    @abstractmethod
    def predict(self, network: Any, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """The output [B, ...] of a denoiser, of whichever kind `prediction` says; the base makes a velocity of it.

        x [B, ...]: the state as the network knows it, in `dtype`; time float32 [B]: sigma itself for flow models, else
        places in the table of noise levels; conditioning: its floating tensors in `dtype`.
        """

    @abstractmethod
    def rows(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of one row of each of `embed`'s tensors, from configurations alone: tokenizers are None here."""

    def to_pixels(self, x0: Tensor) -> Tensor:
        """Float32 latents [B, C, ...] to images [B, 3, H, W] or videos [B, 3, F, H, W] about [-1, 1]: by default the
        autoencoder's decoding of x0 * latents_std / scaling_factor + latents_mean or shift_factor, where it has
        these."""
        config, sides = self.vae.config, (1,) * (x0.ndim - 2)
        std, mean, factor, shift = (
            torch.tensor(value, device=x0.device).view(1, -1, *sides) if isinstance(value, list | tuple) else value
            for name in ("latents_std", "latents_mean", "scaling_factor", "shift_factor")
            for value in (getattr(config, name, None),)
        )
        z = x0 if std is None else x0 * std
        z = z if factor is None else z / factor
        for moved in (mean, shift):
            z = z if moved is None else z + moved
        pixels: Tensor = self.vae.decode(z, return_dict=False)[0]
        return pixels

    def sides(self) -> tuple[range, range]:
        """Heights and widths in pixels that are possible, as `multiples`: by default of the autoencoder's factor times
        the patch size, as far as the position embeddings reach."""
        config = self.network.config
        step = self.pipeline.vae_scale_factor * (getattr(config, "patch_size", None) or 1)
        reach = getattr(config, "pos_embed_max_size", None)
        possible = multiples(step, step * reach) if reach else multiples(step)
        return possible, possible

    def latents(self, height: int, width: int) -> tuple[int, ...]:
        """Shape of one latent for a possible size in pixels: by default (C, h, w) of the autoencoder."""
        factor = self.pipeline.vae_scale_factor
        return self.vae.config.latent_channels, height // factor, width // factor

    def readers(self) -> Sequence[tuple[Any, int]]:
        """Tokenizers, some of which may be None, with how many of their tokens are read: for `truncated_prompts`."""
        return ()

    def schedule(self, height: int, width: int, steps: int) -> Schedule:
        """By default the layout's grid, with the shift and the terminal time of the checkpoint's scheduler; of a
        network that predicts noise the scheduler's own times."""
        if isinstance(self.prediction, EpsilonPrediction):
            return self.prediction.schedule(steps)
        config = self.pipeline.scheduler.config
        shift, terminal = shift_of(config, self.tokens(height, width)), config.get("shift_terminal")
        return Schedule(shift=shift, grid=self.layout.grid, terminal=terminal)

    def parameterize(self) -> FlowPrediction:
        """What the network gives, by what the checkpoint's scheduler says: by default the velocity. Raises UserError
        for a scheduler whose times are not known."""
        check_flow(self.pipeline.scheduler.config, f"backbone.checkpoint: {self.section.checkpoint}/scheduler")
        return FlowPrediction()

    def tokens(self, height: int, width: int) -> int:
        """Tokens of a sample of a possible size, by which some schedulers shift: by default one for each step of
        `sides`."""
        first, second = self.sides()
        return (height // first.step) * (width // second.step)

    def belonging(self, sigma: Tensor) -> tuple[Tensor, str]:
        """Of a checkpoint with two denoisers: which samples [B] are the trained one's, and the end of a sentence that
        tells a user how to train at these times alone."""
        raise NotImplementedError(f"{type(self).__name__} has several denoisers and does not say which one is run")

    def components_to_load(self, index: Index) -> Sequence[str]:
        """Which models of the layout are loaded, by what the checkpoint's index says: by default all."""
        return list(self.layout.models)

    def trained(self, components_to_load: Collection[str]) -> str:
        """Which of the loaded denoisers is trained."""
        return self.layout.denoiser

    def settings(self, index: Index) -> Mapping[str, Any]:
        """Arguments of the pipeline, read from the checkpoint's index: by default none."""
        return {}

    def check(self, pipeline: Any, directory: Path) -> None:
        """Raise UserError for parts that do not fit each other, or this family; attributes and keys that are not there
        may be met without care. By default nothing."""
