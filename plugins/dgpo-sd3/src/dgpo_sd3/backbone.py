"""Stable Diffusion 3 and 3.5 (Esser et al., arXiv 2403.03206) as a backbone.

Shape letters: B samples, C latent channels, H W height and width (of latents: pixels / vae factor), T text tokens,
D their width, P width of the pooled text embedding. sigma = 1 is noise, 0 is data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dgpo_core.types import Conditioning, Prompt
from dgpo_diffusers.backbone import DiffusersBackbone
from dgpo_diffusers.layout import CLIP_VOCABULARY, JOINT_ATTENTION, T5_VOCABULARY, Layout
from dgpo_diffusers.original import Names

if TYPE_CHECKING:
    from dgpo_diffusers.checkpoint_check import Index
    from dgpo_sd3.options import SD3Options

__all__ = ["SD3Backbone"]

WITHOUT_T5 = (
    "run without T5, the third text encoder: set backbone.options.text_length: 0, or backbone.options.drop_t5: true to "
    "replace its embeddings with zeros"
)


NAMES = Names(
    comfyui="transformer",
    # The text stream ends in the last block, so its norm has only a scale and a shift, like norm_out.
    swapped=("norm_out.linear", "norm1_context.linear"),
    blocks={
        "transformer_blocks.*": (
            "joint_blocks.*",
            {
                "attn.to_q attn.to_k attn.to_v": "x_block.attn.qkv",
                "attn.add_q_proj attn.add_k_proj attn.add_v_proj": "context_block.attn.qkv",
                "attn2.to_q attn2.to_k attn2.to_v": "x_block.attn2.qkv",
                "attn.to_out.0": "x_block.attn.proj",
                "attn.to_add_out": "context_block.attn.proj",
                "attn2.to_out.0": "x_block.attn2.proj",
                "norm1.linear": "x_block.adaLN_modulation.1",
                "norm1_context.linear": "context_block.adaLN_modulation.1",
                "ff.net.0.proj": "x_block.mlp.fc1",
                "ff.net.2": "x_block.mlp.fc2",
                "ff_context.net.0.proj": "context_block.mlp.fc1",
                "ff_context.net.2": "context_block.mlp.fc2",
            },
        ),
    },
    outside={
        "context_embedder": "context_embedder",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        "proj_out": "final_layer.linear",
    },
)
"""Original layer names (`MMDiT`): the inverse of diffusers' `convert_sd3_transformer_checkpoint_to_diffusers`."""


class SD3Backbone(DiffusersBackbone):
    """diffusers' SD3 transformer, autoencoder and text encoders; trains a peft LoRA, or the whole transformer."""

    options: SD3Options
    layout = Layout(
        backbone="sd3",
        family="Stable Diffusion 3 and 3.5",
        pipeline="StableDiffusion3Pipeline",
        models={
            "transformer": "SD3Transformer2DModel",
            "vae": "AutoencoderKL",
            "text_encoder": "CLIPTextModelWithProjection",
            "text_encoder_2": "CLIPTextModelWithProjection",
            "text_encoder_3": "T5EncoderModel",
        },
        vocabularies={"tokenizer": CLIP_VOCABULARY, "tokenizer_2": CLIP_VOCABULARY, "tokenizer_3": T5_VOCABULARY},
        optional={"text_encoder_3": WITHOUT_T5, "tokenizer_3": WITHOUT_T5},
        alike=r"StableDiffusion3(Img2Img|Inpaint|PAG|PAGImg2Img)Pipeline",
        numbers={
            "transformer": ("pos_embed_max_size", "patch_size", "in_channels"),
            "vae": ("scaling_factor", "shift_factor"),
        },
        # These endings also match the second attention of SD3.5's blocks (`attn2`), which has only an image stream.
        # DGPO's authors adapt fewer layers: the same endings after `attn.`.
        lora_targets=JOINT_ATTENTION,
        original=NAMES.original_pairs,
        comfyui=NAMES.comfyui_pairs,
    )

    def components_to_load(self, index: Index) -> Sequence[str]:
        """Return all components, without T5 if it is absent, dropped, or has a text length of 0."""
        t5 = self.options.text_length > 0 and not self.options.drop_t5 and index.part("text_encoder_3") is not None
        return [name for name in self.layout.models if t5 or name != "text_encoder_3"]

    def embed(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Return {"prompt_embeds": [B, T, D], "pooled": [B, P]}, computed by diffusers' pipeline.

        The tokens of the two CLIP encoders are followed by `text_length` T5 tokens (zeros without T5).
        """
        prompt_embeds, _, pooled, _ = self.pipeline.encode_prompt(
            [prompt.text for prompt in prompts],
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.options.text_length,
        )
        return Conditioning({"prompt_embeds": prompt_embeds, "pooled": pooled})

    def rows(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of one prompt's embeddings: CLIP and T5 tokens, and the pooled embedding."""
        config = self.network.config
        tokens = self.pipeline.text_encoder.config.max_position_embeddings + self.options.text_length
        return {"prompt_embeds": (tokens, config.joint_attention_dim), "pooled": (config.pooled_projection_dim,)}

    def readers(self) -> Sequence[tuple[Any, int]]:
        """Return the CLIP and T5 tokenizers with their maximum lengths."""
        p, clip = self.pipeline, self.pipeline.tokenizer_max_length
        return [(p.tokenizer, clip), (p.tokenizer_2, clip), (p.tokenizer_3, self.options.text_length)]

    def predict(self, network: Any, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity of x [B, C, H, W]. SD3 predicts v = noise - x0 at timestep 1000 * sigma."""
        out: Tensor = network(
            hidden_states=x,
            encoder_hidden_states=conditioning.tensors["prompt_embeds"],
            pooled_projections=conditioning.tensors["pooled"],
            timestep=1000 * time,
            return_dict=False,
        )[0]
        return out
