"""LoRA adapters of diffusers models in the formats of other programs.

As in `dgpo_core.lora`, all formats have the scale multiplied into B and alpha equal to the rank. (diffusers stores
alpha in its own metadata field, which other programs ignore.)

Sources: diffusers, `loaders/lora_pipeline.py`; kohya-ss, `networks/lora_sd3.py` of sd-scripts and
`networks/lora_wan.py` of musubi-tuner; ComfyUI, `model_lora_keys_unet` of `comfy/lora.py` and
`comfy/weight_adapter/lora.py`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import nn

from dgpo_core.lora import LoraAdapter, Pairs, named
from dgpo_diffusers.quantized import is_quantized

if TYPE_CHECKING:
    from dgpo_diffusers.layout import Layout
    from dgpo_schemas.sections.backbone import LoraSection

__all__ = ["DiffusersAdapter"]

FILE = "pytorch_lora_weights.safetensors"
"""File name that diffusers expects in a directory; kohya and ComfyUI accept any name."""


class DiffusersAdapter(LoraAdapter):
    """LoRA adapter of the denoiser of a diffusers pipeline, exported for that pipeline and for other programs."""

    formats: tuple[str, ...] = ("diffusers", "peft", "kohya", "comfyui")
    """Export formats. An instance omits those for which its layout has no names."""

    def __init__(self, network: nn.Module, section: LoraSection, *, layout: Layout, base: str) -> None:
        super().__init__(network, section, targets=layout.lora_targets, base=base)
        self._layout = layout
        self._programs = {"kohya": layout.original, "comfyui": layout.comfyui}
        self.formats = tuple(format for format in self.formats if self._programs.get(format, True))

    def merged(self) -> AbstractContextManager[None] | None:
        """Like `LoraAdapter.merged`; None for quantized weights, to which an update cannot be added without loss."""
        return None if is_quantized(self._network) else super().merged()

    def write(self, directory: Path, format: str) -> None:
        """Write the adapter to a directory: `diffusers` for the pipeline's `load_lora_weights(directory)`, `peft`,
        `kohya` for the kohya-ss programs, or `comfyui`."""
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
    """Write kohya's three tensors per layer. alpha is the rank; a fused layer has the sum of the ranks it combines."""
    tensors = named(pairs, ".lora_down.weight", ".lora_up.weight")
    tensors |= {f"{name}.alpha": torch.tensor(float(len(down))) for name, (down, _) in pairs.items()}
    ranks = {str(len(down)) for down, _ in pairs.values()}
    rank = ranks.pop() if len(ranks) == 1 else "Dynamic"  # kohya's value if the ranks differ
    safetensors.torch.save_file(
        tensors, directory / FILE, {"format": "pt", "ss_network_dim": rank, "ss_network_alpha": rank}
    )
