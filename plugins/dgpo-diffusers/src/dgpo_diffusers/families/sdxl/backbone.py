"""Stable Diffusion XL (Podell et al., arXiv 2307.01952) as a backbone.

It predicts noise (or VP v) at places of a table of noise levels; `parameterization` makes a velocity of it. Shape
letters: B samples, C latent channels, H W height and width in pixels, T text tokens, D their width, P width of the
pooled text embedding. sigma = 1 is noise, 0 is data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dgpo_core.types import Conditioning, Prompt
from dgpo_diffusers.layout import CLIP_VOCABULARY, Layout
from dgpo_diffusers.unet import ATTENTIONS, NAMES, UNetBackbone

if TYPE_CHECKING:
    from dgpo_diffusers.checkpoint_check import Index
    from dgpo_diffusers.options import DiffusersOptions

__all__ = ["SDXLBackbone"]

TIME_IDS = 6
"""Numbers of the size conditioning: the original size, the crop's corner, the target size."""


class SDXLBackbone(UNetBackbone):
    """diffusers' UNet, autoencoder and two CLIPs of Stable Diffusion XL; trains a peft LoRA, or the whole UNet."""

    options: DiffusersOptions
    layout = Layout(
        backbone="sdxl",
        family="Stable Diffusion XL; the refiner and inpainting are other models",
        pipeline="StableDiffusionXLPipeline",
        models={
            "unet": "UNet2DConditionModel",
            "vae": "AutoencoderKL",
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": "CLIPTextModelWithProjection",
        },
        denoiser="unet",
        vocabularies={"tokenizer": CLIP_VOCABULARY, "tokenizer_2": CLIP_VOCABULARY},
        alike="StableDiffusionXLPAGPipeline",
        numbers={"unet": ("in_channels",), "vae": ("scaling_factor",)},
        lora_targets=ATTENTIONS,
        original=NAMES.original_pairs,
        comfyui=NAMES.comfyui_pairs,
    )

    def settings(self, index: Index) -> Mapping[str, Any]:
        """Whether no negative prompt is zeros; and no watermark, which diffusers adds if its package is installed."""
        zeros = index.flag("force_zeros_for_empty_prompt", default=True)
        return {"force_zeros_for_empty_prompt": zeros, "add_watermarker": False}

    def fitting(self, pipeline: Any) -> Mapping[str, Any]:
        """Return the settings that SDXL's UNet has with its autoencoder and its CLIPs."""
        unet, first, second = (getattr(pipeline, n).config for n in ("unet", "text_encoder", "text_encoder_2"))
        return {
            "in_channels": pipeline.vae.config.latent_channels,  # inpainting and editing have more
            "layers_per_block": 2,  # by which other programs name layers
            "addition_embed_type": "text_time",
            "time_cond_proj_dim": None,
            "cross_attention_dim": first.hidden_size + second.hidden_size,
            "projection_class_embeddings_input_dim": second.projection_dim + TIME_IDS * unet.addition_time_embed_dim,
        }

    def embed(self, prompts: Sequence[Prompt]) -> Conditioning:
        """{"prompt_embeds" [B, T, D], "pooled" [B, P], "time_ids" [B, 6]}, as diffusers' pipeline makes them: both
        CLIPs' last states but one side by side, the second one's projection, and (H, W, 0, 0, H, W)."""
        prompt_embeds, _, pooled, _ = self.pipeline.encode_prompt(
            [prompt.text for prompt in prompts], device=self.device, do_classifier_free_guidance=False
        )
        time_ids = pooled.new_tensor([prompt.size for prompt in prompts]).repeat(1, TIME_IDS // 2)
        time_ids[:, 2:4] = 0
        return Conditioning({"prompt_embeds": prompt_embeds, "pooled": pooled, "time_ids": time_ids})

    def embed_unconditional(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Zeros for the text where there is no negative one and the checkpoint has `force_zeros_for_empty_prompt`, as
        SDXL's has; a negative "" is another thing."""
        found = super().embed_unconditional(prompts)
        if self.pipeline.config.force_zeros_for_empty_prompt:
            absent = [i for i, prompt in enumerate(prompts) if prompt.negative is None]
            for name in ("prompt_embeds", "pooled"):
                found.tensors[name][absent] = 0
        return found

    def rows(self) -> Mapping[str, tuple[int, ...]]:
        """CLIP's tokens, the pooled text, the size."""
        first, second = self.pipeline.text_encoder.config, self.pipeline.text_encoder_2.config
        tokens = (first.max_position_embeddings, first.hidden_size + second.hidden_size)
        return {"prompt_embeds": tokens, "pooled": (second.projection_dim,), "time_ids": (TIME_IDS,)}

    def readers(self) -> Sequence[tuple[Any, int]]:
        """Both CLIPs' tokenizers."""
        p = self.pipeline
        return [(one, one.model_max_length) for one in (p.tokenizer, p.tokenizer_2) if one is not None]

    def predict(self, network: Any, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """What the UNet gives for x_vp [B, C, H/8, W/8] at places [B] of the table, which need not be whole."""
        rows = conditioning.tensors
        added = {"text_embeds": rows["pooled"], "time_ids": rows["time_ids"]}
        out: Tensor = network(
            x, time, encoder_hidden_states=rows["prompt_embeds"], added_cond_kwargs=added, return_dict=False
        )[0]
        return out
