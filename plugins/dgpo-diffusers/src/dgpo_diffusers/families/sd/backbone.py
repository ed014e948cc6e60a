"""Stable Diffusion 1 and 2 (Rombach et al., arXiv 2112.10752) as a backbone.

It predicts noise (2.1 VP v) at places of a table of noise levels; `parameterization` makes a velocity of it. Shape
letters: B samples, C latent channels, H W height and width in pixels, T text tokens, D their width. sigma = 1 is noise,
0 is data.
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

__all__ = ["SDBackbone"]


class SDBackbone(UNetBackbone):
    """diffusers' UNet, autoencoder and CLIP of Stable Diffusion 1 and 2; trains a peft LoRA, or the whole UNet.

    Published checkpoints have a PNDMScheduler or a DDIMScheduler. Only its noise levels, its `timestep_spacing` and its
    `prediction_type` are used: samples are those of EulerDiscreteScheduler with the same settings.
    """

    options: DiffusersOptions
    layout = Layout(
        backbone="sd",
        family="Stable Diffusion 1 and 2; inpainting, depth and upscaling are other models",
        pipeline="StableDiffusionPipeline",
        models={"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"},
        denoiser="unet",
        vocabularies={"tokenizer": CLIP_VOCABULARY},
        unused=("safety_checker", "feature_extractor", "image_encoder"),
        alike="StableDiffusion(Img2Img|PAG)Pipeline",
        numbers={"unet": ("in_channels",), "vae": ("scaling_factor",)},
        lora_targets=ATTENTIONS,
        original=dict,  # kohya's programs read the first two generations with diffusers' names
        comfyui=NAMES.comfyui_pairs,
    )

    def settings(self, index: Index) -> Mapping[str, Any]:
        """Return that there is no safety checker, which would replace images by black ones."""
        return {"requires_safety_checker": False}

    def fitting(self, pipeline: Any) -> Mapping[str, Any]:
        """Return the settings that the UNet has with its autoencoder and its CLIP."""
        return {
            "in_channels": pipeline.vae.config.latent_channels,  # inpainting, depth and editing have more
            "layers_per_block": 2,  # by which other programs name layers
            "addition_embed_type": None,
            "class_embed_type": None,  # of unCLIP and upscaling
            "time_cond_proj_dim": None,  # of consistency models
            "cross_attention_dim": pipeline.text_encoder.config.hidden_size,
        }

    def embed(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Return {"prompt_embeds" [B, T, D]}: CLIP's last hidden states after its final norm, including padding."""
        prompt_embeds, _ = self.pipeline.encode_prompt(
            [prompt.text for prompt in prompts], self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return Conditioning({"prompt_embeds": prompt_embeds})

    def rows(self) -> Mapping[str, tuple[int, ...]]:
        """Return the row shape of CLIP's token embeddings."""
        config = self.pipeline.text_encoder.config
        return {"prompt_embeds": (config.max_position_embeddings, config.hidden_size)}

    def readers(self) -> Sequence[tuple[Any, int]]:
        """Return CLIP's tokenizer with its maximum length."""
        tokenizer = self.pipeline.tokenizer
        return [(tokenizer, tokenizer and tokenizer.model_max_length)]

    def predict(self, network: Any, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """Run the UNet on x_vp [B, C, H/8, W/8] at places [B] of the table, which need not be whole."""
        text = conditioning.tensors["prompt_embeds"]
        out: Tensor = network(sample=x, timestep=time, encoder_hidden_states=text, return_dict=False)[0]
        return out
