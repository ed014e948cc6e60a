"""Write a denoiser with its adapter merged, as a model of diffusers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_diffusers.quantized import is_quantized

__all__ = ["write_merged"]

BASE, ADDED = ".base_layer.", ".lora_"
"""Parts of the names of weights in peft's wrappers: of the wrapped layer, and of the adapter."""


def write_merged(
    network: Any, merged: Callable[[], Mapping[str, Tensor]], directory: Path, dtype: torch.dtype | None
) -> None:
    """Write the network's configuration and weights for `from_pretrained`.

    merged: returns the merged weight of each adapted layer, float32, by layer name. dtype: of all weights; None keeps
    that of each. Raises UserError if the base weights are quantized.
    """
    if is_quantized(network) or getattr(network, "hf_quantizer", None) is not None:
        raise UserError(
            "--format merged: the base weights are quantized, and rounding would lose the adapter's update; export the "
            "adapter (diffusers), or set backbone.checkpoint to the original weights"
        )
    weights = merged()
    state = {name.replace(BASE, "."): t for name, t in network.state_dict().items() if ADDED not in name}
    state |= {f"{name}.weight": weight.to(state[f"{name}.weight"].dtype) for name, weight in weights.items()}
    if dtype is not None:
        state |= {name: t.to(dtype) for name, t in state.items() if t.is_floating_point()}
        state |= {f"{name}.weight": weight.to(dtype) for name, weight in weights.items()}
    with torch.device("meta"):
        model = type(network).from_config(network.config)
    model.load_state_dict({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, assign=True)
    model.save_pretrained(directory)
