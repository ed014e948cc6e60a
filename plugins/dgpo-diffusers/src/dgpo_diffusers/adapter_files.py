"""A LoRA in the formats that other programs read of a model that diffusers knows too.

One rule for all of them, that of `dgpo_core.lora`: the scale is in B, and alpha is the rank. (diffusers kept alpha in a
metadata field of its own, which nobody else reads.)

Sources: diffusers, `loaders/lora_pipeline.py`; kohya-ss, `networks/lora_sd3.py` of sd-scripts and
`networks/lora_wan.py` of musubi-tuner; ComfyUI, `model_lora_keys_unet` of `comfy/lora.py` and
`comfy/weight_adapter/lora.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import nn

from dgpo_core.lora import LoraAdapter, Pairs, named

if TYPE_CHECKING:
    from dgpo_schemas.run import LoraSection

__all__ = ["AdapterNames", "DiffusersAdapter"]

FILE = "pytorch_lora_weights.safetensors"
"""What diffusers looks for in a directory; kohya's and ComfyUI's files may have any name."""


@dataclass(frozen=True)
class AdapterNames:
    """Under which names the programs know a model's layers.

    pipeline: diffusers' class, for its `save_lora_weights`; original: pairs by diffusers' names to pairs by those of
    the model's first publication; comfyui: pairs by diffusers' names to pairs by the keys that ComfyUI looks up.
    """

    pipeline: Any
    original: Callable[[Pairs], Pairs]
    comfyui: Callable[[Pairs], Pairs]


class DiffusersAdapter(LoraAdapter):
    """A LoRA of a network that one of diffusers' pipelines holds, written for that pipeline and for other programs."""

    formats = ("diffusers", "peft", "kohya", "comfyui")

    def __init__(
        self, network: nn.Module, section: LoraSection, *, targets: Sequence[str], base: str, names: AdapterNames
    ) -> None:
        super().__init__(network, section, targets=targets, base=base)
        self._programs = names

    def write(self, directory: Path, format: str) -> None:
        """diffusers: for the pipeline's `load_lora_weights(directory)`; kohya: for kohya-ss's programs; comfyui."""
        names = self._programs
        if format == "diffusers":
            names.pipeline.save_lora_weights(
                directory,
                transformer_lora_layers=named(self.folded(), ".lora_A.weight", ".lora_B.weight"),
                transformer_lora_adapter_metadata=self.settings(),
            )
        elif format == "kohya":
            pairs = names.original(self.folded())
            _write_with_alphas({"lora_unet_" + n.replace(".", "_"): pair for n, pair in pairs.items()}, directory)
        elif format == "comfyui":
            _write_with_alphas(names.comfyui(self.folded()), directory)
        else:
            super().write(directory, format)


def _write_with_alphas(pairs: Pairs, directory: Path) -> None:
    """kohya's three tensors a layer; alpha is the rank, which is that of three for a layer that holds three."""
    tensors = named(pairs, ".lora_down.weight", ".lora_up.weight")
    tensors |= {f"{name}.alpha": torch.tensor(float(len(down))) for name, (down, _) in pairs.items()}
    ranks = {str(len(down)) for down, _ in pairs.values()}
    rank = ranks.pop() if len(ranks) == 1 else "Dynamic"  # kohya's word for ranks that differ
    safetensors.torch.save_file(
        tensors, directory / FILE, {"format": "pt", "ss_network_dim": rank, "ss_network_alpha": rank}
    )
