"""A LoRA in the formats that other programs read of a model that diffusers knows too.

One rule for all of them, that of `dgpo_core.lora`: the scale is in B, and alpha is the rank. (diffusers kept alpha in a
metadata field of its own, which nobody else reads.)

Sources: diffusers, `loaders/lora_pipeline.py`; kohya-ss, `networks/lora_sd3.py` of sd-scripts and
`networks/lora_wan.py` of musubi-tuner; ComfyUI, `model_lora_keys_unet` of `comfy/lora.py` and
`comfy/weight_adapter/lora.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import nn

from dgpo_core.lora import LoraAdapter, Pairs, named

if TYPE_CHECKING:
    from dgpo_diffusers.layout import Layout
    from dgpo_schemas.sections.backbone import LoraSection

__all__ = ["DiffusersAdapter"]

FILE = "pytorch_lora_weights.safetensors"
"""What diffusers looks for in a directory; kohya's and ComfyUI's files may have any name."""


class DiffusersAdapter(LoraAdapter):
    """A LoRA of a network that one of diffusers' pipelines holds, written for that pipeline and for other programs."""

    formats: tuple[str, ...] = ("diffusers", "peft", "kohya", "comfyui")
    """Of an object without those of programs whose names its layout does not have."""

    def __init__(self, network: nn.Module, section: LoraSection, *, layout: Layout, base: str) -> None:
        super().__init__(network, section, targets=layout.lora_targets, base=base)
        self._layout = layout
        self._programs = {"kohya": layout.original, "comfyui": layout.comfyui}
        self.formats = tuple(format for format in self.formats if self._programs.get(format, True))

    def write(self, directory: Path, format: str) -> None:
        """diffusers: for the pipeline's `load_lora_weights(directory)`; kohya: for kohya-ss's programs; comfyui."""
        if format == "diffusers":
            layers = named(self.folded(), ".lora_A.weight", ".lora_B.weight")
            given = {"lora_layers": layers, "lora_adapter_metadata": self.settings()}
            self._layout.kind.save_lora_weights(
                directory, **{f"{self._layout.denoiser}_{name}": value for name, value in given.items()}
            )
        elif names := self._programs.get(format):
            pairs = names(self.folded())
            if format == "kohya":
                pairs = {"lora_unet_" + name.replace(".", "_"): pair for name, pair in pairs.items()}
            _write_with_alphas(pairs, directory)
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
