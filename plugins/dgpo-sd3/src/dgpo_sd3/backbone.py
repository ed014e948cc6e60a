"""Stable Diffusion 3 and 3.5 (Esser et al., arXiv 2403.03206) as a backbone.

Shape letters: B samples, C latent channels, H W height and width (of latents: pixels / vae factor), T text tokens,
D their width, P width of the pooled text embedding. sigma = 1 is noise, 0 is data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dgpo_core.contracts import Backbone
from dgpo_core.errors import UserError
from dgpo_core.types import Conditioning, Prompt, Schedule
from dgpo_diffusers.adapter_files import DiffusersAdapter
from dgpo_sd3.libraries import quiet, unread
from dgpo_sd3.loading import load_sd3
from dgpo_sd3.lora import ATTENTION_PROJECTIONS, NAMES

if TYPE_CHECKING:
    from dgpo_schemas.run import BackboneSection
    from dgpo_sd3.options import SD3Options

__all__ = ["SD3Backbone"]


class SD3Backbone(Backbone):
    """diffusers' SD3 transformer, autoencoder and text encoders; trains a peft LoRA, or the whole transformer."""

    options: SD3Options

    def __init__(self, section: BackboneSection, options: SD3Options, *, device: torch.device) -> None:
        super().__init__(section, options, device=device)
        self._pipeline = pipeline = self._load(section, options)
        self._transformer = pipeline.transformer
        self._dtype: torch.dtype = pipeline.transformer.dtype
        self._vae = pipeline.vae
        models = [pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3, self._vae, self._transformer]
        for model in models:
            if model is not None:
                model.eval().requires_grad_(False)
        if section.train == "lora":
            self.adapter = DiffusersAdapter(
                self._transformer, section.lora, targets=ATTENTION_PROJECTIONS, base=section.checkpoint, names=NAMES
            )
        else:
            self._transformer.requires_grad_(True)
        for model in models:
            if model is not None and not (options.offload_text and model in self._encoders()):
                model.to(device)
        if section.gradient_checkpointing:
            self._transformer.enable_gradient_checkpointing()
        if section.compile:
            self._transformer.compile()  # in place: parameters keep their names

    def _load(self, section: BackboneSection, options: SD3Options) -> Any:
        return load_sd3(section, options)

    def base_directory(self) -> Path | None:
        """The pipeline's directory; of a Hub repository the snapshot."""
        place = self._pipeline.name_or_path
        return Path(place) if place else None

    @classmethod
    def sketch(cls, section: BackboneSection, options: SD3Options) -> SD3Backbone:
        """The model without its weights; from a directory's configuration files, or a published model's name."""
        from dgpo_sd3.sketch import SD3Sketch

        return SD3Sketch(section, options)

    def parts(self) -> Mapping[str, nn.Module]:
        """The transformer, the autoencoder and the text encoders."""
        parts = {"transformer": self._transformer, "autoencoder": self._vae}
        return parts if self.options.offload_text else parts | self.visitors(all_of_them=True)

    def visitors(self, *, all_of_them: bool = False) -> Mapping[str, nn.Module]:
        """The text encoders, if they are offloaded."""
        return {"text encoders": nn.ModuleList(self._encoders())} if self.options.offload_text or all_of_them else {}

    def _encoders(self) -> list[nn.Module]:
        p = self._pipeline
        return [e for e in (p.text_encoder, p.text_encoder_2, p.text_encoder_3) if e is not None]

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """The text encoders are on the device inside, wherever they are kept."""
        if not self.options.offload_text:
            yield
            return
        try:
            for encoder in self._encoders():
                encoder.to(self.device)
            yield
        finally:
            for encoder in self._encoders():
                encoder.to("cpu")

    @property
    def module(self) -> nn.Module:
        """The transformer, adapter included."""
        module = self._transformer
        assert isinstance(module, nn.Module)
        return module

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        """{"prompt_embeds" [B, T, D], "pooled" [B, P]} in the frozen weights' dtype, as diffusers' pipeline makes them:
        the two CLIP encoders' tokens, then `text_length` T5 tokens (zeros without T5)."""
        # The libraries say of each prompt that is too long what is cut off; `unread` counts them, once.
        with torch.autocast(self.device.type, enabled=False), quiet():
            prompt_embeds, _, pooled, _ = self._pipeline.encode_prompt(
                [prompt.text for prompt in prompts],
                prompt_2=None,
                prompt_3=None,
                device=self.device,
                do_classifier_free_guidance=False,
                max_sequence_length=self.options.text_length,
            )
        return Conditioning({"prompt_embeds": prompt_embeds, "pooled": pooled})

    def unread(self, prompts: Sequence[Prompt]) -> tuple[Sequence[int], int]:
        """Prompts that neither CLIP nor T5, if there is one, reads to their end."""
        p = self._pipeline
        readers = [(tokenizer, p.tokenizer_max_length) for tokenizer in (p.tokenizer, p.tokenizer_2)]
        readers += [(p.tokenizer_3, self.options.text_length)] if p.text_encoder_3 is not None else []
        return unread([prompt.text for prompt in prompts], [reader for reader in readers if reader[0] is not None])

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """(C, H, W) for a picture of this size in pixels.

        Both sides must be multiples of the autoencoder's factor times the patch size, and no larger than the position
        embeddings reach; else UserError names the nearest size that is.
        """
        factor, patch = self._pipeline.vae_scale_factor, self._pipeline.patch_size
        step = factor * patch
        largest = step * self._transformer.config.pos_embed_max_size
        nearest = [min(max(step, round(side / step) * step), largest) for side in (height, width)]
        if nearest != [height, width]:
            raise UserError(
                f"rollout.resolution: {height}x{width} (height x width) is not possible with this checkpoint: both "
                f"sides must be multiples of {step} from {step} to {largest}; the nearest is {nearest[0]}x{nearest[1]}"
            )
        return self._transformer.config.in_channels, height // factor, width // factor

    def schedule(self, height: int, width: int, steps: int) -> Schedule:
        """The grid of the pipelines' usual scheduler with the shift of the checkpoint's, whatever the size."""
        config = self._pipeline.scheduler.config
        return Schedule(shift=float(config.get("flow_shift", config.get("shift", 1.0))))

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's output: SD3 was trained on v = noise - x0 at timestep 1000 * sigma, so nothing is converted.

        Computed in the weights' dtype, or autocast's; x_sigma [B, C, H, W], sigma [B], returns float32 [B, C, H, W].
        """
        out: Tensor = self._transformer(
            hidden_states=x_sigma.to(self._dtype),
            encoder_hidden_states=conditioning.tensors["prompt_embeds"].to(self._dtype),
            pooled_projections=conditioning.tensors["pooled"].to(self._dtype),
            timestep=1000 * sigma,
            return_dict=False,
        )[0]
        return out.float()

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Latents [B, C, H, W], x0 = (z - shift_factor) * scaling_factor, to images [B, 3, H', W'] in [0, 1].

        In float32 whatever the other weights' dtype: rewards look at details (small text, edges) that half precision
        smears, and the autoencoder is a small part of the cost. `decode_chunk` images at a time.
        """
        config = self._vae.config
        z = x0.float() / config.scaling_factor + config.shift_factor
        with torch.autocast(self.device.type, enabled=False):
            images = [self._vae.decode(part, return_dict=False)[0] for part in z.split(self.options.decode_chunk)]
        return (torch.cat(images) * 0.5 + 0.5).clamp(0, 1)

    def save_weights(self, directory: Path) -> None:
        """A directory for `SD3Transformer2DModel.from_pretrained`, in float32."""
        self._transformer.save_pretrained(directory)
