"""The low-rank adapter: switched off and on, and written for diffusers. dgpo-sd3 binds it, by the same rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict

from dgpo_sd3.lora import add_lora
from dgpo_wan.libraries import WanPipeline

__all__ = ["adapters_off", "add_lora", "save_lora"]


@contextmanager
def adapters_off(layers: Sequence[BaseTunerLayer]) -> Iterator[None]:
    """The base weights inside; afterwards everything is as it was, also after an error."""
    # Not peft's own enable_adapters: it also flips requires_grad, leaves it True for all, and walks every matrix.
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, disabled in zip(layers, before, strict=True):
            layer._disable_adapters = disabled


def save_lora(transformer: Any, directory: Path) -> None:
    """Write the adapter for `WanPipeline.load_lora_weights`; the metadata keeps alpha / rank."""
    (name,) = transformer.peft_config
    WanPipeline.save_lora_weights(
        directory,
        transformer_lora_layers=get_peft_model_state_dict(transformer, adapter_name=name),
        transformer_lora_adapter_metadata=transformer.peft_config[name].to_dict(),
    )
