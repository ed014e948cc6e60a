"""Quantized frozen weights under a float32 adapter: torchao and bitsandbytes through the libraries' configurations.

The linear layers of repeated blocks are quantized while the checkpoint is read; embedders, the last projection, norms
and the autoencoder keep `backbone.dtype`. Weights are dequantized layer by layer as they are used.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import diffusers
import torch
import transformers
from torch import nn

from dgpo_core.errors import UserError
from dgpo_diffusers.libraries import quiet
from dgpo_diffusers.options import QUANTIZED_ON_MPS, WITHOUT_CUDA
from dgpo_diffusers.quantized import is_quantized, layers_to_quantize

if TYPE_CHECKING:
    from dgpo_diffusers.checkpoints import Opened
    from dgpo_diffusers.family import Family

__all__ = ["QuantizedLoading", "check", "chosen"]

WHERE = "backbone.options.quantize"
LIBRARIES = {"torchao": "torchao", "bnb": "bitsandbytes"}


def chosen(family: Family) -> dict[str, str]:
    """Return the method by subdirectory of each model to quantize; none without the option."""
    section = family.options.quantize
    if section is None:
        return {}
    layout = family.layout
    kinds = {"denoiser": layout.networks, "text_encoders": layout.encoders}
    return {name: section.method for kind in section.components for name in kinds[kind] if name not in layout.exact}


def check(family: Family) -> None:
    """Raise UserError, before anything is read, for a method that cannot work here."""
    section = family.options.quantize
    if section is None or family.device.type == "meta":
        return
    if family.device.type == "mps":
        raise UserError(f"{WHERE}: {QUANTIZED_ON_MPS}")
    method: str = section.method
    library = LIBRARIES[method.partition("-")[0]]
    if find_spec(library) is None:
        raise UserError(
            f"{WHERE}: {method} requires {library}, which is not installed: pip install 'dgpo-diffusers[quantize]'"
        )
    if library == "bitsandbytes" and family.device.type != "cuda":
        raise UserError(f"{WHERE}: {WITHOUT_CUDA.format(method=method, device=family.device.type)}")


class QuantizedLoading:
    """Arguments of `from_pretrained` for each model of a checkpoint, and a check of what it returned."""

    def __init__(self, family: Family, opened: Opened) -> None:
        self._family, self._opened, self._methods = family, opened, chosen(family)

    def arguments(self, name: str) -> dict[str, Any]:
        """Return the quantization configuration of a model; nothing for models that are not to be quantized."""
        method = self._methods.get(name)
        if method is None:
            return {}
        kind, directory = self._opened.layout.kind_of(name), self._opened.directory
        with quiet(), torch.device("meta"):
            blank = (
                kind(kind.config_class.from_pretrained(directory, subfolder=name))
                if hasattr(kind, "config_class")
                else kind.from_config(kind.load_config(directory, subfolder=name))
            )
        inside = layers_to_quantize(blank)
        outside = [n for n, m in blank.named_modules() if isinstance(m, nn.Linear) and n not in inside]
        library: Any = transformers if hasattr(kind, "config_class") else diffusers
        with quiet():
            if method.startswith("torchao"):
                return {"quantization_config": _torchao(method, library, inside, outside)}
            config = _bitsandbytes(method, library, inside, outside, getattr(torch, self._family.section.dtype))
        return {"quantization_config": config, "device_map": {"": self._family.device}}

    def check(self, name: str, model: nn.Module) -> nn.Module:
        """Return the model. Raises UserError if a configuration had no effect, of which libraries say nothing."""
        if name in self._methods and not is_quantized(model):
            raise UserError(f"{WHERE}: {self._methods[name]} changed no layer of {self._opened.directory / name}")
        return model


def _torchao(method: str, library: Any, inside: Sequence[str], outside: Sequence[str]) -> Any:
    ao: Any = importlib.import_module("torchao.quantization")
    kind = ao.Int8WeightOnlyConfig if method == "torchao-int8" else ao.Float8WeightOnlyConfig
    config = kind(version=2)
    if library is transformers:
        return library.TorchAoConfig(config, modules_to_not_convert=list(outside))
    # Whole names: diffusers' list of modules to spare also matches parts of names, FLUX's proj_out in every block.
    return library.TorchAoConfig(ao.FqnToConfig(dict.fromkeys(inside, config)))


def _bitsandbytes(method: str, library: Any, inside: Sequence[str], outside: Sequence[str], dtype: torch.dtype) -> Any:
    """Layers outside of blocks are spared where their name is not a part of the name of a layer inside."""
    spared = [
        name for name in outside if not any(f"{name}." in f"{n}." or name == n.rpartition(".")[2] for n in inside)
    ]
    if method == "bnb-int8":
        return library.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=spared or None)
    return library.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=spared or None,
    )  # fmt: skip
