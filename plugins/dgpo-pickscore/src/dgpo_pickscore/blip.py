"""The network of ImageReward in the BLIP classes of transformers, from the published names of its weights.

Legend: B images, S side of the network's input, P patches with the class token, V width of the vision tower, L tokens,
W width of the text tower.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from dgpo_core.errors import UserError
from dgpo_core.weights import read_json
from dgpo_pickscore.head import head_of, linear
from dgpo_pickscore.libraries import quiet
from dgpo_pickscore.loading import check_keys, reason

__all__ = ["Blip", "load_blip", "published_name"]

VISION, TEXT, HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."
UNUSED = re.compile(r"blip\.(vision_proj|text_proj)\.(weight|bias)|blip\.text_encoder\.embeddings\.position_ids")
"""Parts of BLIP's pretraining in the published file, and a counter 0, 1, 2, ..., which no score depends on."""
HEAD_WIDTH = 64
"""Width of an attention head of BLIP's vision towers, base and large; it does not follow from the weights."""
TEXT_KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "max_position_embeddings", "hidden_act", "layer_norm_eps", "pad_token_id")  # fmt: skip
"""Keys of med_config.json that define the text tower, all required."""
NAMES = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding": "pos_embed",
    "embeddings.patch_embedding.": "patch_embed.proj.",
    "post_layernorm.": "norm.",
    "encoder.layers.": "blocks.",
    ".self_attn.qkv.": ".attn.qkv.",
    ".self_attn.projection.": ".attn.proj.",
    ".layer_norm": ".norm",
}
"""Parts of names of the vision tower in transformers, and in the published file; the text tower has the same names."""
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Mean and standard deviation of the raw values, from the published code (ImageReward/ImageReward.py)."""


def published_name(name: str) -> str:
    """Return the published name of a parameter of `BlipVisionModel`."""
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return VISION + name


class Blip:
    """Vision tower, text tower that reads the image by cross-attention, and the head as one linear function."""

    def __init__(self, vision: Any, text: Any, head: torch.nn.Sequential) -> None:
        self.side = int(vision.config.image_size)
        self.positions = int(text.config.max_position_embeddings)
        self._vision, self._text = (tower.eval().requires_grad_(False) for tower in (vision, text))
        weight, bias = linear(head)
        # (x - mean) / std is one more linear layer.
        self._weight, self._bias = weight / STD, (bias - MEAN) / STD
        self.range = _range(self._weight, self._bias, text.encoder.layer[-1].output.LayerNorm)
        self._weight = self._weight.float()

    def to(self, device: torch.device, dtype: torch.dtype) -> Blip:
        """Move the towers to a device and data type; the head stays in float32."""
        self._vision.to(device=device, dtype=dtype)
        self._text.to(device=device, dtype=dtype)
        self._weight = self._weight.to(device)
        return self

    def __call__(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Score normalized pixels [B, 3, S, S] for tokens [B, L] with their mask; returns float32 [B]."""
        seen = self._vision(pixel_values=pixels).last_hidden_state  # [B, P, V]
        read = self._text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
        first = read[:, 0].float()  # [B, W]
        values: Tensor = (first * self._weight).sum(-1) + self._bias  # not a matrix product, which may use TF32
        return values


def load_blip(tensors: Mapping[str, Tensor], config: Path, where: str, what: str) -> Blip:
    """Build the network of tensors with the published names, float32 on the CPU.

    config: med_config.json of the text tower; the vision tower follows from the shapes of the tensors. Raises
    UserError, beginning with `what`, for missing and unexpected names and for wrong shapes, and with `where` for an
    invalid configuration.
    """
    used = {name: tensor for name, tensor in tensors.items() if not UNUSED.fullmatch(name)}
    vision_config = _vision_config(used, what)
    text_config = _text_config(read_json(config, where), vision_config.hidden_size, f"{where}: {config}")
    try:
        with quiet():
            vision = BlipVisionModel(vision_config)
            text = BlipTextModel(text_config, add_pooling_layer=False)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise UserError(f"{where}: {config}: {reason(error)}") from error
    towers = ((vision, {n: published_name(n) for n in vision.state_dict()}),
              (text, {n: TEXT + n for n in text.state_dict()}))  # fmt: skip
    expected = {names[n]: value.shape for tower, names in towers for n, value in tower.state_dict().items()}
    layers = {name: tensor for name, tensor in used.items() if name.startswith(HEAD)}
    check_keys(what, expected, {name: tensor for name, tensor in used.items() if name not in layers})
    head = head_of(layers, what, HEAD)
    if head[0].in_features != text_config.hidden_size:
        raise UserError(f"{what} do not match the model; wrong shape: {HEAD}0.weight")
    for tower, names in towers:
        tower.load_state_dict({ours: used[theirs].float() for ours, theirs in names.items()})
    return Blip(vision, text, head)


def _vision_config(tensors: Mapping[str, Tensor], what: str) -> BlipVisionConfig:
    patches, positions = tensors.get(f"{VISION}patch_embed.proj.weight"), tensors.get(f"{VISION}pos_embed")
    hidden = tensors.get(f"{VISION}blocks.0.mlp.fc1.weight")
    wanted = {f"{VISION}patch_embed.proj.weight": (patches, 4), f"{VISION}pos_embed": (positions, 3),
              f"{VISION}blocks.0.mlp.fc1.weight": (hidden, 2)}  # fmt: skip
    for name, (tensor, dimensions) in wanted.items():
        if tensor is None:
            raise UserError(f"{what} do not match the model; missing: {name}")
        if tensor.dim() != dimensions:
            raise UserError(f"{what} do not match the model; wrong shape: {name}")
    assert patches is not None
    assert positions is not None
    assert hidden is not None
    blocks = [int(found[1]) for name in tensors if (found := re.match(rf"{re.escape(VISION)}blocks\.(\d+)\.", name))]
    return BlipVisionConfig(
        hidden_size=patches.shape[0],
        intermediate_size=hidden.shape[0],
        num_hidden_layers=max(blocks) + 1,
        num_attention_heads=max(patches.shape[0] // HEAD_WIDTH, 1),
        image_size=math.isqrt(max(positions.shape[1] - 1, 0)) * patches.shape[-1],
        patch_size=patches.shape[-1],
        layer_norm_eps=1e-6,  # of the published code; the default of the class is 1e-5
    )


def _text_config(config: Mapping[str, Any], width: int, where: str) -> BlipTextConfig:
    missing = [name for name in TEXT_KEYS if name not in config]
    if missing:
        raise UserError(f"{where}: {missing[0]} is missing")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(f"{where}: position_embedding_type is {config['position_embedding_type']}; expected absolute")
    try:
        return BlipTextConfig(
            **{name: config[name] for name in TEXT_KEYS},
            bos_token_id=None,
            eos_token_id=None,
            sep_token_id=None,
            encoder_hidden_size=width,
            attention_probs_dropout_prob=0.0,
            hidden_dropout_prob=0.0,
            is_decoder=True,  # for the layers of cross-attention; calls are bidirectional
        )
    except Exception as error:  # transformers validates with errors of several kinds
        raise UserError(f"{where}: {reason(error)}") from error


def _range(weight: Tensor, bias: float, norm: torch.nn.LayerNorm) -> tuple[float, float]:
    """Return the smallest and largest value of a linear function [W] of a layer norm's output.

    A layer norm returns scale * z + shift for a vector z of mean 0 and at most the norm sqrt(W).
    """
    scaled = weight * norm.weight.detach().double()
    middle = bias + float(weight @ norm.bias.detach().double())
    reach = float((scaled - scaled.mean()).norm()) * math.sqrt(len(weight))
    slack = 1e-3 * (abs(middle) + reach)  # for rounding errors, of half precision too
    return middle - reach - slack, middle + reach + slack
