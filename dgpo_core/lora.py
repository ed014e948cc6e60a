"""The low-rank adapter: which modules it binds, how it starts, is switched off or merged, and written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import safetensors.torch
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from dgpo_core.errors import UserError

if TYPE_CHECKING:
    from dgpo_schemas.run import LoraSection

__all__ = [
    "ADAPTER",
    "Pairs",
    "adapters_merged",
    "adapters_off",
    "add_lora",
    "folded_pairs",
    "named",
    "select_targets",
    "write_peft",
]

ADAPTER = "default"
"""Its name in peft."""

Pairs: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]
"""Layer to (A [rank, inputs], B [outputs, rank]), float32 on the CPU; what is added to its weight is B A."""


def select_targets(transformer: nn.Module, wanted: list[str] | None, default: Sequence[str]) -> list[str]:
    """The endings of module names to adapt, each of which binds one linear layer or more.

    By default the attention projections that the model has (one with a single block lacks `to_add_out`). Raises
    UserError for an ending that matches nothing, or something that is not linear, naming the nearest that would do.
    """
    modules = {name: module for name, module in transformer.named_modules() if name}
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    if wanted is None:
        return [target for target in default if any(_matches(name, target) for name in linear)]
    for target in wanted:
        bound = [name for name in modules if _matches(name, target)]
        strange = [name for name in bound if name not in linear]
        if bound and not strange:
            continue
        what = f"matches {strange[0]}, which is not a linear layer" if bound else "matches no module"
        nearest = get_close_matches(target, _endings(linear), n=5, cutoff=0.0)
        raise UserError(
            f"backbone.lora.targets: {target!r} {what} of the transformer; nearest endings of linear layers: "
            f"{', '.join(nearest)}"
        )
    return wanted


def _matches(name: str, target: str) -> bool:
    """peft's rule for a list of targets: whole parts between dots, so that `attn.to_q` is not found in `attn2.to_q`."""
    return name == target or name.endswith(f".{target}")


def _endings(names: list[str]) -> list[str]:
    """Names without their block's number, and their last parts (`attn.to_out.0` and `to_out.0`), each once."""
    endings: dict[str, None] = {}
    for name in names:
        inner = re.sub(r"^transformer_blocks\.\d+\.", "", name)
        last = re.search(r"[^.]+(\.\d+)?$", inner)
        assert last is not None
        endings |= {last.group(): None, inner: None}
    return list(endings)


def add_lora(transformer: Any, section: LoraSection, default: Sequence[str]) -> list[BaseTunerLayer]:
    """Give a frozen transformer on the CPU a float32 adapter that changes nothing yet; returns its layers.

    A is normal with standard deviation 1 / rank, as the published code starts it (peft's "gaussian"), B = 0; always the
    same A, whatever the global random state, which is left alone.
    """
    alpha = int(section.alpha) if section.alpha.is_integer() else section.alpha
    config = LoraConfig(
        r=section.rank,
        lora_alpha=alpha,
        init_lora_weights="gaussian",
        target_modules=select_targets(transformer, section.targets, default),
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would also reseed the accelerators
        transformer.add_adapter(config, ADAPTER)
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return [module for module in transformer.modules() if isinstance(module, BaseTunerLayer)]


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


@contextmanager
def adapters_merged(layers: Sequence[BaseTunerLayer]) -> Iterator[None]:
    """The adapter's weights as they are now, added in float32 into a copy of the base weights, inside; afterwards these
    are bit for bit what they were, also after an error. (peft's own unmerge subtracts, which rounds.)"""
    weights = [layer.get_base_layer().weight for layer in layers]
    before = [weight.data for weight in weights]
    try:
        with torch.no_grad():
            for layer, weight in zip(layers, weights, strict=True):
                delta = layer.get_delta_weight(ADAPTER)
                weight.data = (weight.data.to(delta.dtype) + delta).to(weight.dtype)
        with adapters_off(layers):
            yield
    finally:
        for weight, data in zip(weights, before, strict=True):
            weight.data = data


def folded_pairs(transformer: nn.Module, adapter: str) -> dict[str, tuple[Tensor, Tensor]]:
    """The adapter's matrices as they are now, each layer's scale in its B; by the names of layers in `transformer`."""
    found = {}
    for name, layer in transformer.named_modules():
        if isinstance(layer, BaseTunerLayer):
            matrices: Any = layer
            down, up = (getattr(matrices, m)[adapter].weight.detach().float().cpu() for m in ("lora_A", "lora_B"))
            found[name] = (down.clone(), up * matrices.scaling[adapter])
    return found


def write_peft(pairs: Pairs, settings: Mapping[str, Any], directory: Path, base: str) -> None:
    """Files for `PeftModel.from_pretrained`. base: the checkpoint's name, for people."""
    below = {f"base_model.model.{name}": pair for name, pair in pairs.items()}
    tensors = named(below, ".lora_A.weight", ".lora_B.weight")
    safetensors.torch.save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})
    more = {"peft_type": "LORA", "task_type": None, "inference_mode": True, "base_model_name_or_path": base}
    text = json.dumps({**settings, **more}, indent=2, sort_keys=True) + "\n"
    (directory / "adapter_config.json").write_text(text)


def named(pairs: Pairs, down: str, up: str) -> dict[str, Tensor]:
    """Each layer's two matrices under its name and these endings."""
    return {name + end: m for name, pair in pairs.items() for end, m in zip((down, up), pair, strict=True)}
