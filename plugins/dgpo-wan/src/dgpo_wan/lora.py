"""The low-rank adapter: written as dgpo-sd3 does it, under Wan's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dgpo_core.lora import ADAPTER
from dgpo_sd3.adapter_files import AdapterNames, write_adapter
from dgpo_wan.libraries import WanPipeline
from dgpo_wan.original import comfyui_pairs, original_pairs

__all__ = ["save_lora"]

NAMES = AdapterNames(WanPipeline, original_pairs, comfyui_pairs)


def save_lora(transformer: Any, directory: Path, format: str, base: str) -> None:
    """Write the adapter in a format of `adapter_files.FORMATS`, its scale in B. base: the checkpoint's name."""
    write_adapter(transformer, ADAPTER, directory, format=format, names=NAMES, base=base)
