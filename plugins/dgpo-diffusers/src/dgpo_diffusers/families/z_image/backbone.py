"""Z-Image and Z-Image-Turbo (arXiv 2511.22699) as a backbone.

Shape letters: B samples, C latent channels, h w height and width of latents (pixels / 8), L tokens of a caption, D
their width. sigma = 1 is noise, 0 is data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dgpo_core.errors import UserError
from dgpo_core.types import Conditioning, Prompt
from dgpo_diffusers.backbone import DiffusersBackbone
from dgpo_diffusers.families.z_image.names import COMFYUI, kohya_pairs
from dgpo_diffusers.geometry import multiples, shift_of
from dgpo_diffusers.layout import Layout
from dgpo_schemas.problems import show

if TYPE_CHECKING:
    from dgpo_diffusers.families.z_image.options import ZImageOptions

__all__ = ["ZImageBackbone"]

PATCH = 2
"""Height and width of a token in latents."""
TOKENS = 512
"""Maximum number of tokens of a caption, including the chat template's."""
TURBO_SHIFT = 3.0
"""Shift of Z-Image-Turbo's scheduler; Z-Image has 6."""


class ZImageBackbone(DiffusersBackbone):
    """diffusers' Z-Image transformer, FLUX.1's autoencoder and Qwen3; trains a peft LoRA, or the whole transformer.

    The transformer counts time from noise: it receives 1 - sigma, and its output is x0 - noise. Captions keep their own
    lengths, because the transformer pads each to a multiple of 32 with a learned token, and the positions of the image
    follow the padded caption.

    Guidance scales are those of classifier-free guidance, where 1 is no guidance: one more than `guidance_scale` of
    diffusers' ZImagePipeline.
    """

    options: ZImageOptions
    ragged = True
    layout = Layout(
        backbone="z-image",
        family="Z-Image",
        pipeline="ZImagePipeline",
        models={"transformer": "ZImageTransformer2DModel", "vae": "AutoencoderKL", "text_encoder": "Qwen3Model"},
        vocabularies={"tokenizer": ("tokenizer.json", "vocab.json")},
        alike=r"ZImage(Img2Img|Inpaint)Pipeline",
        numbers={"transformer": ("in_channels",), "vae": ("scaling_factor", "shift_factor")},
        grid="even",
        lora_targets=("to_q", "to_k", "to_v", "to_out.0"),  # of all blocks, including those of image and text alone
        original=kohya_pairs,
        comfyui=COMFYUI.comfyui_pairs,
    )

    def check(self, pipeline: Any, directory: Path) -> None:
        """Raise UserError for components that do not match, another kind of transformer, or a missing template."""
        config, where = pipeline.transformer.config, f"backbone.checkpoint: {directory}/transformer/config.json"
        for name, allowed in {
            "in_channels": pipeline.vae.config.latent_channels,
            "cap_feat_dim": pipeline.text_encoder.config.hidden_size,
            "all_patch_size": [PATCH],
            "all_f_patch_size": [1],
            "siglip_feat_dim": None,  # of the omni models
        }.items():
            found = list(config[name]) if isinstance(config[name], list | tuple) else config[name]
            if found != allowed:
                raise UserError(
                    f"{where}: {name} is {show(found)}; allowed is {show(allowed)} in Z-Image's transformer for "
                    "text-to-image with the models beside it"
                )
        if config.axes_lens[0] < TOKENS + 2:
            raise UserError(
                f"{where}: axes_lens begins with {config.axes_lens[0]}; allowed is at least {TOKENS + 2}, the number "
                f"of positions of {TOKENS} text tokens and an image"
            )
        if not pipeline.tokenizer.chat_template:
            raise UserError(
                f"backbone.checkpoint: {directory}/tokenizer has no chat template, in which prompts are encoded: "
                "chat_template.jinja, or chat_template in tokenizer_config.json"
            )

    @property
    def supports_guidance(self) -> bool:
        """Whether the checkpoint is not distilled to be sampled without guidance; see `ZImageOptions.distilled`."""
        given = self.options.distilled
        return not (shift_of(self.pipeline.scheduler.config, 0) <= TURBO_SHIFT if given is None else given)

    def guide(
        self, conditional: Tensor, unconditional: Tensor, guidance: float, *, x_sigma: Tensor, sigma: Tensor
    ) -> Tensor:
        """Apply classifier-free guidance, with the norm of each sample limited to `cfg_normalization` times that of its
        conditional velocity."""
        guided = super().guide(conditional, unconditional, guidance, x_sigma=x_sigma, sigma=sigma)
        if not self.options.cfg_normalization:
            return guided
        given, largest = (torch.linalg.vector_norm(v, dim=(1, 2, 3), keepdim=True) for v in (guided, conditional))
        largest = self.options.cfg_normalization * largest
        return torch.where(given > largest, guided * (largest / given), guided)

    def embed(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Return {"prompt_embeds" [B, L, D]} with lengths: Qwen3's last but one hidden state of the chat that consists
        of the prompt, as ZImagePipeline does."""
        texts = [prompt.text for prompt in prompts]  # a new list: `encode_prompt` overwrites its argument
        captions, _ = self.pipeline.encode_prompt(
            texts, device=self.device, do_classifier_free_guidance=False, max_sequence_length=TOKENS
        )
        lengths = tuple(len(caption) for caption in captions)
        return Conditioning({"prompt_embeds": pad_sequence(captions, batch_first=True)}, {"prompt_embeds": lengths})

    def rows(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of the longest caption."""
        return {"prompt_embeds": (TOKENS, self.network.config.cap_feat_dim)}

    def readers(self) -> Sequence[tuple[Any, int]]:
        """Return the tokenizer with the maximum number of tokens of a prompt, inside its chat template."""
        tokenizer = self.pipeline.tokenizer
        if tokenizer is None:
            return [(None, TOKENS)]
        chat = [{"role": "user", "content": ""}]
        around = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=True)
        return [(tokenizer, TOKENS - len(tokenizer(around).input_ids))]

    def sides(self) -> tuple[range, range]:
        """Return multiples of twice the autoencoder's factor, up to the transformer's number of positions."""
        step = PATCH * self.pipeline.vae_scale_factor
        _, rows, columns = self.network.config.axes_lens
        return multiples(step, step * rows), multiples(step, step * columns)

    def predict(self, network: Any, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict v = noise - x0 for x [B, C, h, w]. The transformer multiplies its time by 1000."""
        captions = conditioning.tensors["prompt_embeds"]
        lengths = conditioning.lengths.get("prompt_embeds", (captions.shape[1],) * len(x))
        out = network(
            x=list(x.unsqueeze(2).unbind()),
            t=1 - time,
            cap_feats=[caption[:length] for caption, length in zip(captions, lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(out).squeeze(2)
