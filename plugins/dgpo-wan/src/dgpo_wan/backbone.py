"""Wan 2.1 and 2.2 text-to-video (Wan Team, arXiv 2503.20314) as a backbone.

Shape letters: B samples, C latent channels, F frames (f of latents: 1 + (F - 1) / 4), H W height and width of frames
(h w of latents: pixels / vae factor), T text tokens, D their width. sigma = 1 is noise, 0 is data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dgpo_core.contracts import Backbone
from dgpo_core.errors import UserError
from dgpo_core.types import Conditioning, Prompt, Schedule
from dgpo_diffusers.adapter_files import DiffusersAdapter
from dgpo_wan.libraries import prompt_clean, quiet, unread
from dgpo_wan.loading import load_wan
from dgpo_wan.lora import ATTENTION_PROJECTIONS, NAMES
from dgpo_wan.options import COMPRESSION

if TYPE_CHECKING:
    from dgpo_schemas.run import BackboneSection
    from dgpo_wan.options import WanOptions

__all__ = ["WanBackbone"]

PIPELINE_STEP = 16
"""WanPipeline takes sides that are multiples of this, whatever the checkpoint."""


class WanBackbone(Backbone):
    """diffusers' Wan transformer, autoencoder and text encoder; trains a peft LoRA, or the whole transformer.

    Wan 2.2's two experts: one is trained (`options.expert`), the other is frozen and draws its part of the way, as in
    WanPipeline. Training both would take twice the memory for optimiser and gradients, and a time belongs to one of
    them alone: with `timesteps.t_min` at the boundary or above it, the default, high-noise one is trained at every
    step and settles content and motion, which is what rewards ask for.
    """

    media = "video"
    options: WanOptions

    def __init__(self, section: BackboneSection, options: WanOptions, *, device: torch.device) -> None:
        super().__init__(section, options, device=device)
        self._pipeline: Any = self._load(section, options)
        self._vae = self._pipeline.vae
        experts = [self._pipeline.transformer, self._pipeline.transformer_2]
        if experts[1] is not None and options.expert == "low":
            experts.reverse()
        self._transformer, self._other = experts
        self._dtype: torch.dtype = self._transformer.dtype
        models = [m for m in (self._pipeline.text_encoder, self._vae, *experts) if m is not None]
        for model in models:
            model.eval().requires_grad_(False)
        if section.train == "lora":
            self.adapter = DiffusersAdapter(
                self._transformer, section.lora, targets=ATTENTION_PROJECTIONS, base=section.checkpoint, names=NAMES
            )
        else:
            self._transformer.requires_grad_(True)
        for model in models:
            model.to(device)
        if section.gradient_checkpointing:
            self._transformer.enable_gradient_checkpointing()
        if section.compile:
            for expert in experts:
                if expert is not None:
                    expert.compile()  # in place: parameters keep their names

    def _load(self, section: BackboneSection, options: WanOptions) -> Any:
        return load_wan(section, options)

    def base_directory(self) -> Path | None:
        """The pipeline's directory; of a Hub repository the snapshot."""
        place = self._pipeline.name_or_path
        return Path(place) if place else None

    @classmethod
    def sketch(cls, section: BackboneSection, options: WanOptions) -> WanBackbone:
        """The model without its weights; from a directory's configuration files, or a published model's name."""
        from dgpo_wan.sketch import WanSketch

        return WanSketch(section, options)

    def parts(self) -> Mapping[str, nn.Module]:
        """The transformers, the autoencoder and the text encoder."""
        other = {} if self._other is None else {"other transformer": self._other}
        text = {"autoencoder": self._vae, "text encoder": self._pipeline.text_encoder}
        return {"transformer": self._transformer, **other, **text}

    @property
    def module(self) -> nn.Module:
        """The transformer that is trained, adapter included."""
        module = self._transformer
        assert isinstance(module, nn.Module)
        return module

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        """{"prompt_embeds" [B, T, D]} in the frozen weights' dtype, T = `text_length`, as WanPipeline makes them:
        the tokens of a prompt attend to each other alone, and zeros follow them."""
        with torch.autocast(self.device.type, enabled=False), quiet():  # `unread` counts what is too long
            prompt_embeds, _ = self._pipeline.encode_prompt(
                [prompt.text for prompt in prompts],
                do_classifier_free_guidance=False,
                max_sequence_length=self.options.text_length,
                device=self.device,
            )
        return Conditioning({"prompt_embeds": prompt_embeds})

    def unread(self, prompts: Sequence[Prompt]) -> tuple[Sequence[int], int]:
        """Prompts of more than `text_length` tokens."""
        tokenizer = self._pipeline.tokenizer
        cleaned = [prompt_clean(prompt.text) for prompt in prompts]
        return unread(cleaned, [(tokenizer, self.options.text_length)] if tokenizer is not None else [])

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """(C, f, h, w) for a video of `frames` frames of this size in pixels.

        Both sides must be multiples of the autoencoder's factor times the patch size and of 16, and no larger than the
        position embeddings reach; else UserError names the nearest size that is.
        """
        config = self._transformer.config
        factor, reach = self._pipeline.vae_scale_factor_spatial, config.rope_max_seq_len
        nearest, rules = [], []
        for side, patch in zip((height, width), config.patch_size[1:], strict=True):
            step = math.lcm(factor * patch, PIPELINE_STEP)
            largest = factor * patch * reach // step * step
            nearest.append(min(max(step, round(side / step) * step), largest))
            rules.append(f"a multiple of {step} from {step} to {largest}")
        if nearest != [height, width]:
            rule = f"both sides must be {rules[0]}" if rules[0] == rules[1] else f"height {rules[0]}, width {rules[1]}"
            raise UserError(
                f"rollout.resolution: {height}x{width} (height x width) is not possible with this checkpoint: {rule}; "
                f"the nearest is {nearest[0]}x{nearest[1]}"
            )
        frames = 1 + (self.options.frames - 1) // COMPRESSION
        if frames > reach:
            raise UserError(
                f"backbone.options.frames: {self.options.frames} is more than this checkpoint's position embeddings "
                f"reach; the most is {1 + (reach - 1) * COMPRESSION}"
            )
        return config.in_channels, frames, height // factor, width // factor

    def schedule(self, height: int, width: int, steps: int) -> Schedule:
        """The grid of the pipelines' usual scheduler with the shift of the checkpoint's, whatever the size."""
        config = self._pipeline.scheduler.config
        return Schedule(shift=float(config.get("flow_shift", config.get("shift", 1.0))))

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's output: Wan was trained on v = noise - x0 at timestep 1000 * sigma, so nothing is converted.

        Computed in the weights' dtype, or autocast's; x_sigma [B, C, f, h, w], sigma [B], returns float32 of the same
        shape. With two experts a sample goes to the one that its sigma belongs to. Raises UserError where a gradient
        is wanted at times of the frozen one alone.
        """
        arguments = x_sigma, 1000 * sigma, conditioning.tensors["prompt_embeds"]
        if self._other is None:
            return self._run(self._transformer, *arguments)
        high = arguments[1] >= 1000 * self._pipeline.config.boundary_ratio
        mine = high if self.options.expert == "high" else ~high
        if bool(mine.all()):
            return self._run(self._transformer, *arguments)
        if not bool(mine.any()):
            if torch.is_grad_enabled():
                raise self._out_of_range(sigma)
            return self._run(self._other, *arguments)
        out = torch.empty_like(x_sigma, dtype=torch.float32)
        for expert, rows in ((self._transformer, mine), (self._other, ~mine)):
            out[rows] = self._run(expert, *(part[rows] for part in arguments))
        return out

    def _run(self, transformer: Any, x_sigma: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        # Wan 2.2 5B has a time for every patch (`expand_timesteps`); in text-to-video they are all the same.
        out: Tensor = transformer(
            hidden_states=x_sigma.to(self._dtype),
            timestep=timestep,
            encoder_hidden_states=prompt_embeds.to(self._dtype),
            return_dict=False,
        )[0]
        return out.float()

    def _out_of_range(self, sigma: Tensor) -> UserError:
        boundary, expert = self._pipeline.config.boundary_ratio, self.options.expert
        bound = "t_min: {} or more" if expert == "high" else "t_max: less than {}"
        return UserError(
            f"timesteps: sigma {float(sigma[0]):.4g} belongs to this checkpoint's other transformer, of which nothing "
            f"is trained (backbone.options.expert: {expert}); set timesteps.{bound.format(boundary)}"
        )

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Latents [B, C, f, h, w], x0 = (z - latents_mean) / latents_std, to videos [B, F, 3, H, W] in [0, 1].

        In float32 whatever the other weights' dtype: rewards look at details (small text, edges) that half precision
        smears. `decode_chunk` videos at a time; within one, the autoencoder goes through time by itself.
        """
        mean, std = (
            torch.tensor(numbers, device=x0.device).view(1, -1, 1, 1, 1)
            for numbers in (self._vae.config.latents_mean, self._vae.config.latents_std)
        )
        z: Tensor = x0.float() * std + mean
        with torch.autocast(self.device.type, enabled=False):
            videos = [
                self._vae.decode(part, return_dict=False)[0] for part in torch.split(z, self.options.decode_chunk)
            ]
        return (torch.cat(videos).transpose(1, 2) * 0.5 + 0.5).clamp(0, 1)

    def save_weights(self, directory: Path) -> None:
        """A directory for `WanTransformer3DModel.from_pretrained`, in float32."""
        self._transformer.save_pretrained(directory)
