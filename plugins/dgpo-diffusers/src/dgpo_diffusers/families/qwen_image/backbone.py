"""Qwen-Image (Qwen team, https://github.com/QwenLM/Qwen-Image, arXiv 2508.02324) as a backbone.

Shape letters: B samples, C latent channels, h w height and width of latents (pixels / 8), T text tokens, D their width.
sigma = 1 is noise, 0 is data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from dgpo_core.errors import UserError
from dgpo_core.transfers import to_device
from dgpo_core.types import Conditioning, Prompt
from dgpo_diffusers.backbone import DiffusersBackbone
from dgpo_diffusers.families.qwen_image.names import NAMES
from dgpo_diffusers.layout import JOINT_ATTENTION, Layout
from dgpo_diffusers.packing import packed, unpacked

if TYPE_CHECKING:
    from dgpo_diffusers.families.qwen_image.options import QwenImageOptions

__all__ = ["QwenImageBackbone"]

OTHER_INPUTS = ("guidance_embeds", "use_additional_t_cond", "use_layer3d_rope")
"""Settings of transformers with inputs that text-to-image models do not have."""


class QwenImageBackbone(DiffusersBackbone):
    """diffusers' Qwen-Image transformer, autoencoder and Qwen2.5-VL; trains a peft LoRA, or the whole transformer.

    Latents have shape [C, h, w] outside the transformer, which receives patches of 2x2 latents as tokens. Prompts keep
    their lengths: the transformer does not attend to padding.

    In bfloat16, or under bfloat16 autocast, the transformer rounds its timestep input to eight bits, as in diffusers'
    pipeline: 0.901 and 0.903 are the same to it. The latents themselves are at their exact times.
    """

    options: QwenImageOptions
    ragged = True
    layout = Layout(
        backbone="qwen-image",
        family="Qwen-Image",
        pipeline="QwenImagePipeline",
        models={
            "transformer": "QwenImageTransformer2DModel",
            "vae": "AutoencoderKLQwenImage",
            "text_encoder": "Qwen2_5_VLForConditionalGeneration",
        },
        vocabularies={"tokenizer": ("tokenizer.json", "vocab.json")},
        alike=r"QwenImage(Img2Img|Inpaint)Pipeline",
        numbers={"transformer": ("in_channels",), "vae": ("z_dim",)},
        grid="even",
        lora_targets=JOINT_ATTENTION,
        original=NAMES.original_pairs,
        comfyui=NAMES.comfyui_pairs,
    )

    def check(self, pipeline: Any, directory: Path) -> None:
        """Raise UserError if transformer and autoencoder do not match, or for a transformer with other inputs."""
        config, vae = pipeline.transformer.config, pipeline.vae.config
        if config.in_channels != 4 * vae.z_dim:
            raise UserError(
                f"backbone.checkpoint: {directory}/transformer has {config.in_channels} input channels, which must be "
                f"four times the autoencoder's {vae.z_dim}: it is not a text-to-image model"
            )
        for name in OTHER_INPUTS:
            if getattr(config, name, False):
                raise UserError(
                    f"backbone.checkpoint: {directory}/transformer/config.json: {name} is true; allowed is false, as "
                    "in text-to-image models"
                )
        means, deviations = len(vae.latents_mean), len(vae.latents_std)
        if not means == deviations == vae.z_dim:
            raise UserError(
                f"backbone.checkpoint: {directory}/vae/config.json has {means} latents_mean and {deviations} "
                f"latents_std for {vae.z_dim} channels"
            )

    def embed(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Return {"prompt_embeds" [B, T, D]} with lengths: the last hidden states of Qwen2.5-VL without those of the
        chat template's first 34 tokens, as in QwenImagePipeline."""
        embeds, mask = self.pipeline.encode_prompt(
            [prompt.text for prompt in prompts], device=self.device, max_sequence_length=self.options.text_length
        )
        lengths = [embeds.shape[1]] * len(embeds) if mask is None else mask.sum(1).tolist()
        return Conditioning({"prompt_embeds": embeds}, {"prompt_embeds": tuple(map(int, lengths))})

    def embed_unconditional(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Encode the negative prompt, or a space, the model's own text for guidance. (diffusers' pipeline has no
        guidance unless it is given a negative prompt.)"""
        return self.embed([replace(p, text=" " if p.negative is None else p.negative) for p in prompts])

    def rows(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of the longest possible row."""
        return {"prompt_embeds": (self.options.text_length, self.network.config.joint_attention_dim)}

    def readers(self) -> Sequence[tuple[Any, int]]:
        """Return the tokenizer with the number of tokens that are left beside those that end the template."""
        tokenizer, template = self.pipeline.tokenizer, self.pipeline.prompt_template_encode
        if tokenizer is None:
            return ()
        added = len(tokenizer(template.format("")).input_ids) - self.pipeline.prompt_template_encode_start_idx
        return [(tokenizer, self.options.text_length - added)]

    def latents(self, height: int, width: int) -> tuple[int, ...]:
        """Return (C, h, w) of the autoencoder."""
        return self.vae.config.z_dim, *(side // self.pipeline.vae_scale_factor for side in (height, width))

    def to_pixels(self, x0: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to images: a video autoencoder with a single frame."""
        return super().to_pixels(x0[:, :, None])[:, :, 0]

    def guide(
        self, conditional: Tensor, unconditional: Tensor, guidance: float, *, x_sigma: Tensor, sigma: Tensor
    ) -> Tensor:
        """Classifier-free guidance, rescaled to the conditional velocity's norm in each token (2x2 latents of all
        channels), as in QwenImagePipeline."""
        guided = super().guide(conditional, unconditional, guidance, x_sigma=x_sigma, sigma=sigma)
        wanted, found = (vector_norm(packed(v), dim=-1, keepdim=True) for v in (conditional, guided))
        rescaled = packed(guided) * (wanted / found.clamp_min(torch.finfo(found.dtype).tiny))
        return unpacked(rescaled, *guided.shape[2:])

    def predict(self, network: Any, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict v = noise - x0 for x [B, C, h, w]. The transformer multiplies sigma by 1000."""
        text, mask = conditioning.tensors["prompt_embeds"], None
        lengths = conditioning.lengths.get("prompt_embeds", ())
        if any(length < text.shape[1] for length in lengths):
            ends = to_device(lengths, x.device)
            mask = torch.arange(text.shape[1], device=x.device) < ends[:, None]
        height, width = x.shape[2:]
        out: Tensor = network(
            hidden_states=packed(x),
            encoder_hidden_states=text,
            encoder_hidden_states_mask=mask,
            timestep=time,
            img_shapes=[[(1, height // 2, width // 2)]] * len(x),
            return_dict=False,
        )[0]
        return unpacked(out, height, width)
