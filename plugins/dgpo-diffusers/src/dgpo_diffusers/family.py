"""Interface of a family of diffusers models: a `Layout`, and the methods here that differ from the defaults.

Shape letters: B samples, C latent channels, F frames, H W height and width (of latents: h w). sigma = 1 is noise, 0 is
data.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dgpo_core.contracts import Backbone
from dgpo_core.transfers import to_device
from dgpo_core.types import Conditioning, Prompt, Schedule
from dgpo_diffusers.checkpoint_check import Index
from dgpo_diffusers.geometry import check_flow, multiples, shift_of
from dgpo_diffusers.layout import Layout
from dgpo_diffusers.parameterization import EpsilonPrediction, FlowPrediction

__all__ = ["Family"]


class Family(Backbone):
    """Methods that `DiffusersBackbone` calls on a family.

    Attributes:
        index: The checkpoint's index.
        report: Of each loaded model, the number of tensors read and the tensors not used.
        pipeline: diffusers pipeline, on which a family calls `encode_prompt` and similar methods.
        network: The trained denoiser, including the adapter.
        others: Denoisers that are not trained, by subdirectory.
        vae: The autoencoder, in float32.
        dtype: dtype of the network's frozen weights, in which it runs.
        prediction: Prediction type of the network.
    """

    layout: ClassVar[Layout]
    ragged: ClassVar[bool] = False
    """Whether the network's inputs have another length in each batch of prompts (`Conditioning.lengths`)."""
    report: Mapping[str, str] = {}
    options: Any
    index: Index
    pipeline: Any
    network: Any
    others: Mapping[str, Any]
    vae: Any
    dtype: torch.dtype
    prediction: FlowPrediction

    @abstractmethod
    def embed(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Encode prompts as specified by `Backbone.encode`. Called without gradient and without autocast, with the text
        encoders on the device."""

    def embed_unconditional(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Encode the unconditional branch as specified by `Backbone.unconditional`; called like `embed`. By default
        `embed` of the negative prompt, or of ""."""
        return self.embed([replace(prompt, text=prompt.negative or "") for prompt in prompts])

    @abstractmethod
    def predict(self, network: Any, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """Run a denoiser. Returns its output [B, ...], of the type `prediction`, which the base class converts to a
        velocity.

        Args:
            x: Latents [B, ...] in the network's coordinates, in `dtype`.
            time: float32 [B]: sigma for flow models, otherwise timesteps of the noise schedule.
            conditioning: Conditioning with its floating-point tensors in `dtype`.
        """

    @abstractmethod
    def rows(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of one row of each tensor of `embed`, from configurations only (tokenizers may be None).

        Without those of `condition_rows`."""

    def condition_rows(self, height: int, width: int) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of one row of each tensor of `embed` that depends on the size of a sample in pixels, such as
        the latents of a condition image. They are float32. By default none."""
        return {}

    def to_pixels(self, x0: Tensor) -> Tensor:
        """Decode float32 latents [B, C, ...] to images [B, 3, H, W] or videos [B, 3, F, H, W], roughly in [-1, 1].

        By default, decodes x0 * latents_std / scaling_factor + latents_mean + shift_factor, with those of the factors
        that the autoencoder's config has.
        """
        config, sides = self.vae.config, (1,) * (x0.ndim - 2)
        std, mean, factor, shift = (
            to_device(value, x0.device).view(1, -1, *sides) if isinstance(value, list | tuple) else value
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
        """Return the possible heights and widths in pixels. By default, multiples of the autoencoder's factor times the
        patch size, up to the size of the position embeddings."""
        config = self.network.config
        step = self.pipeline.vae_scale_factor * (getattr(config, "patch_size", None) or 1)
        reach = getattr(config, "pos_embed_max_size", None)
        possible = multiples(step, step * reach) if reach else multiples(step)
        return possible, possible

    def latents(self, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of one latent for a possible size in pixels. By default (C, h, w) of the autoencoder."""
        factor = self.pipeline.vae_scale_factor
        return self.vae.config.latent_channels, height // factor, width // factor

    def readers(self) -> Sequence[tuple[Any, int]]:
        """Return tokenizers (or None) with the number of tokens that is used of each, for `truncated_prompts`."""
        return ()

    def schedule(self, height: int, width: int, steps: int) -> Schedule:
        """Return the noise schedule. By default the layout's grid with the shift and terminal time of the checkpoint's
        scheduler, or the scheduler's own times if the network predicts noise."""
        if isinstance(self.prediction, EpsilonPrediction):
            return self.prediction.schedule(steps)
        config = self.pipeline.scheduler.config
        shift, terminal = shift_of(config, self.tokens(height, width)), config.get("shift_terminal")
        return Schedule(shift=shift, grid=self.layout.grid, terminal=terminal)

    def parameterize(self) -> FlowPrediction:
        """Return the prediction type of the network, from the checkpoint's scheduler. By default the velocity. Raises
        UserError for an unsupported scheduler."""
        check_flow(self.pipeline.scheduler.config, f"backbone.checkpoint: {self.section.checkpoint}/scheduler")
        return FlowPrediction()

    def tokens(self, height: int, width: int) -> int:
        """Return the number of tokens of a sample, on which the shift of some schedulers depends. By default one per
        step of `sides` in each direction."""
        first, second = self.sides()
        return (height // first.step) * (width // second.step)

    def belonging(self, sigma: Tensor) -> tuple[Tensor, str]:
        """For a checkpoint with two denoisers: return a mask [B] of the samples that use the trained one, and a suffix
        for a message that tells users how to train at its times only."""
        raise NotImplementedError(f"{type(self).__name__} has several denoisers, but does not implement `belonging`")

    def components_to_load(self, index: Index) -> Sequence[str]:
        """Return the models of the layout to load, given the checkpoint's index. By default all."""
        return list(self.layout.models)

    def trained(self, components_to_load: Collection[str]) -> str:
        """Return the name of the denoiser to train."""
        return self.layout.denoiser

    def settings(self, index: Index) -> Mapping[str, Any]:
        """Return arguments of the pipeline from the checkpoint's index. By default none."""
        return {}

    def placeholders(self) -> Mapping[str, Any]:
        """Return objects in place of the tokenizers and processors that the pipeline's constructor calls, with which a
        pipeline without weights is created; it has None afterwards. By default none."""
        return {}

    def check(self, pipeline: Any, directory: Path) -> None:
        """Raise UserError if components do not match each other or this family. Missing attributes and keys need no
        handling here. By default checks nothing."""
