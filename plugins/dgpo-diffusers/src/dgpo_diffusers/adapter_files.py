"""LoRA adapters of diffusers models in the formats of other programs.

As in `dgpo_core.lora`, all formats have the scale multiplied into B and alpha equal to the rank. (diffusers stores
alpha in its own metadata field, which other programs ignore.)

Sources: diffusers, `loaders/lora_pipeline.py`; kohya-ss, `networks/lora_sd3.py` of sd-scripts and
`networks/lora_wan.py` of musubi-tuner; ComfyUI, `model_lora_keys_unet` of `comfy/lora.py` and
`comfy/weight_adapter/lora.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import Tensor, nn

from dgpo_core.lora import AdapterFile, LoraAdapter, Pairs, Update, named
from dgpo_diffusers.adapter_reading import pipeline_updates
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
    """Export formats. An instance omits those for which its layout has no names, and those that cannot express its
    DoRA: ComfyUI's, and kohya's if that joins adapted layers with others."""

    def __init__(self, network: nn.Module, section: LoraSection, *, layout: Layout, base: str) -> None:
        self._layout = layout
        super().__init__(network, section, targets=layout.lora_targets, base=base)
        self._programs = {"kohya": layout.original, "comfyui": layout.comfyui}
        if section.dora:
            self._programs["comfyui"] = None  # it divides by the norms of the weights without the update
            ones = {name: torch.ones(layer.out_features) for name, layer in self.layers.items()}
            joined = {} if layout.original is None else self._scales(layout.original, ones)
            if not all(bool(scale.all()) for scale in joined.values()):  # a part of a layer would have no magnitude
                self._programs["kohya"] = None
        self.formats = tuple(format for format in self.formats if self._programs.get(format, True))

    def read(self, file: AdapterFile) -> dict[str, Update]:
        """Return the updates of a file in the format of peft, diffusers, or another program that diffusers reads."""
        return super().read(file) if file.is_peft else pipeline_updates(file, self._layout, self._network)

    def merged(self) -> AbstractContextManager[None] | None:
        """Like `LoraAdapter.merged`; None for quantized weights, to which an update cannot be added without loss."""
        return None if is_quantized(self._network) else super().merged()

    def write(self, directory: Path, format: str) -> None:
        """Write the adapter to a directory: `diffusers` for the pipeline's `load_lora_weights(directory)`, `peft`,
        `kohya` for the kohya-ss programs, or `comfyui`."""
        if format == "diffusers":
            layers = named(self.folded(), ".lora_A.weight", ".lora_B.weight")
            layers |= {f"{name}.lora_magnitude_vector": magnitude for name, magnitude in self.magnitudes().items()}
            given = {"lora_layers": layers, "lora_adapter_metadata": self.settings()}
            self._layout.kind.save_lora_weights(
                directory, **{f"{self._layout.denoiser}_{name}": value for name, value in given.items()}
            )
        elif names := self._programs.get(format):
            pairs, scales = names(self.folded()), self._scales(names, self.magnitudes())
            if format == "kohya":
                pairs, scales = (
                    {"lora_unet_" + name.replace(".", "_"): value for name, value in values.items()}
                    for values in (pairs, scales)
                )
            _write_with_alphas(pairs, scales, directory)
        else:
            super().write(directory, format)

    def _scales(self, names: Callable[[Pairs], Pairs], magnitudes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return magnitudes as [outputs, 1] by the names of another program, where a layer may be several of ours side
        by side; those of layers that are not adapted are zero."""
        columns = {name: (torch.zeros(1, self.layers[name].in_features), m[:, None]) for name, m in magnitudes.items()}
        return {name: up.sum(1, keepdim=True) for name, (_, up) in names(columns).items()}


def _write_with_alphas(pairs: Pairs, scales: Mapping[str, Tensor], directory: Path) -> None:
    """Write kohya's three tensors per layer, and `scales` as `dora_scale`.

    alpha is the rank; a fused layer has the sum of the ranks it combines.
    """
    tensors = named(pairs, ".lora_down.weight", ".lora_up.weight")
    tensors |= {f"{name}.alpha": torch.tensor(float(len(down))) for name, (down, _) in pairs.items()}
    tensors |= {f"{name}.dora_scale": scale for name, scale in scales.items()}
    ranks = {str(len(down)) for down, _ in pairs.values()}
    rank = ranks.pop() if len(ranks) == 1 else "Dynamic"  # kohya's value if the ranks differ
    safetensors.torch.save_file(
        tensors, directory / FILE, {"format": "pt", "ss_network_dim": rank, "ss_network_alpha": rank}
    )
