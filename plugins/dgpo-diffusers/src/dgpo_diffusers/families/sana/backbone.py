"""SANA (Xie et al., arXiv 2410.10629) as a backbone.

Shape letters: B samples, C latent channels, h w height and width of latents (pixels / 32), T text tokens, D their
width. sigma = 1 is noise, 0 is data.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.types import Conditioning, Prompt
from dgpo_diffusers.backbone import DiffusersBackbone
from dgpo_diffusers.layout import Layout
from dgpo_schemas.problems import show

if TYPE_CHECKING:
    from dgpo_diffusers.options import DiffusersOptions

__all__ = ["SanaBackbone", "instruction_of"]

TOKENS = 300
"""Number of text tokens that the transformer attends to, including padding, which is masked."""


class SanaBackbone(DiffusersBackbone):
    """diffusers' SANA transformer, AutoencoderDC and Gemma 2; trains a peft LoRA, or the whole transformer.

    The transformer receives 1000 * sigma * `timestep_scale` exactly. diffusers' SanaPipeline has a DPM-Solver++
    scheduler, which truncates 1000 * sigma to an integer.
    """

    options: DiffusersOptions
    layout = Layout(
        backbone="sana",
        family="SANA; SANA-Sprint is another model",
        pipeline="SanaPipeline",
        models={"transformer": "SanaTransformer2DModel", "vae": "AutoencoderDC", "text_encoder": "Gemma2Model"},
        vocabularies={"tokenizer": ("tokenizer.json", "tokenizer.model")},
        alike="SanaPAGPipeline",
        numbers={"transformer": ("in_channels",), "vae": ("scaling_factor",)},
        lora_targets=("to_q", "to_k", "to_v", "to_out.0"),  # of attn1 and attn2; the MLPs consist of convolutions
    )

    def check(self, pipeline: Any, directory: Path) -> None:
        """Raise UserError for components that do not match, or another kind of transformer."""
        config, channels = pipeline.transformer.config, pipeline.vae.config.latent_channels
        for name, allowed in {
            "in_channels": channels,
            "out_channels": channels,
            "caption_channels": pipeline.text_encoder.config.hidden_size,
            "guidance_embeds": False,  # of SANA-Sprint
        }.items():
            if config[name] != allowed:
                raise UserError(
                    f"backbone.checkpoint: {directory}/transformer/config.json: {name} is {show(config[name])}; "
                    f"allowed is {show(allowed)} in SANA's transformer for text-to-image with the models beside it"
                )

    def embed(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Return {"prompt_embeds" [B, T, D], "mask" [B, T]} as SanaPipeline does: Gemma's last hidden states of the
        pipeline's instruction and the prompt in lower case, of which the first and the last T - 1 tokens are used.

        `encode_prompt` itself has no instruction by default.
        """
        return self._embedded([prompt.text for prompt in prompts], instruction_of(type(self.pipeline)))

    def embed_unconditional(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Return the same for the negative prompt or "", without the instruction."""
        return self._embedded([prompt.negative or "" for prompt in prompts], None)

    def _embedded(self, texts: list[str], instruction: list[str] | None) -> Conditioning:
        embeds, mask, _, _ = self.pipeline.encode_prompt(
            texts,
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=TOKENS,
            complex_human_instruction=instruction,
        )
        return Conditioning({"prompt_embeds": embeds, "mask": mask.to(embeds.dtype)})

    def rows(self) -> Mapping[str, tuple[int, ...]]:
        """Return the row shapes of Gemma's hidden states and their mask."""
        return {"prompt_embeds": (TOKENS, self.network.config.caption_channels), "mask": (TOKENS,)}

    def readers(self) -> Sequence[tuple[Any, int]]:
        """Return the tokenizer with the maximum number of tokens of a prompt behind the instruction, of which one token
        remains."""
        return [(self.pipeline.tokenizer, TOKENS - 1)]

    def predict(self, network: Any, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict v = noise - x0 for x [B, C, h, w]."""
        out: Tensor = network(
            hidden_states=x,
            encoder_hidden_states=conditioning.tensors["prompt_embeds"],
            encoder_attention_mask=conditioning.tensors["mask"],
            timestep=1000 * time * network.config.timestep_scale,
            return_dict=False,
        )[0]
        return out


def instruction_of(pipeline: Any) -> list[str]:
    """Return the lines of the instruction that stands before prompts: the default of the call of a pipeline's class."""
    lines: list[str] = inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default
    return lines
