"""The low-rank adapter: bound, switched off and merged as dgpo-sd3 does it, and written for diffusers' Wan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft.utils import get_peft_model_state_dict

from dgpo_sd3.lora import adapters_merged, adapters_off, add_lora
from dgpo_wan.libraries import WanPipeline

__all__ = ["adapters_merged", "adapters_off", "add_lora", "save_lora"]


def save_lora(transformer: Any, directory: Path) -> None:
    """Write the adapter for `WanPipeline.load_lora_weights`; the metadata keeps alpha / rank."""
    (name,) = transformer.peft_config
    WanPipeline.save_lora_weights(
        directory,
        transformer_lora_layers=get_peft_model_state_dict(transformer, adapter_name=name),
        transformer_lora_adapter_metadata=transformer.peft_config[name].to_dict(),
    )
