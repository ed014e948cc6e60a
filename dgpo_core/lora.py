"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) for the linear layers of any network, using peft.

peft is an optional dependency, `pip install 'dgpo[lora]'`, imported when an adapter is created. Saved files of every
format have the scale alpha / rank folded into B, and store alpha = rank if the format has a field for it, so that
programs apply the same strength whether or not they read alpha.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import safetensors.torch
import torch
from torch import Tensor, nn

from dgpo_core.contracts import Adapter
from dgpo_core.errors import UserError
from dgpo_schemas.text import error_text

if TYPE_CHECKING:
    from dgpo_schemas.sections.backbone import LoraSection

__all__ = ["LoraAdapter", "Pairs", "named", "select_targets"]

ADAPTER = "default"
"""Adapter name in peft."""
FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""torch modules that read the weights of their linear layers directly, without calling the layers."""

Pairs: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]
"""Layer name to (A [rank, inputs], B [outputs, rank]), float32 on the CPU. The weight update is B A."""


class LoraAdapter(Adapter):
    """A LoRA adapter: each target linear layer outputs W x + alpha / rank * B A x, with A and B in float32.

    A is initialized from a normal distribution with standard deviation 1 / rank (peft's "gaussian"), B with zeros. A is
    drawn on the CPU from a fixed seed; the global random state is not changed.
    """

    formats: tuple[str, ...] = ("peft",)

    def __init__(self, network: nn.Module, section: LoraSection, *, targets: Sequence[str], base: str) -> None:
        """Freeze `network`, on any device and in any dtype, and inject the adapter. Call before `torch.compile`.

        section: rank, alpha and the user's targets (`backbone.lora` in the run file).
        targets: default targets, as suffixes of layer names; those without a match in the network are skipped (see
        `select_targets`).
        base: name of the checkpoint, written to the saved files.
        Raises UserError for invalid targets and if peft is not installed.
        """
        peft = _peft()
        self._network, self._base, self._rank = network, base, section.rank
        self._config: Any = peft.LoraConfig(
            r=section.rank,
            lora_alpha=int(section.alpha) if section.alpha.is_integer() else section.alpha,
            init_lora_weights="gaussian",
            target_modules=select_targets(network, section.targets, targets),
        )
        network.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # torch.manual_seed would also reseed the accelerators
            peft.inject_adapter_in_model(self._config, network, ADAPTER)
        layer_type = peft.tuners.tuners_utils.BaseTunerLayer
        self.layers: Mapping[str, Any] = {n: m for n, m in network.named_modules() if isinstance(m, layer_type)}
        """The adapted layers by name: peft layers that wrap the original ones."""
        uses = Counter(id(p) for _, p in network.named_parameters(remove_duplicate=False))
        self._shared = any(uses[id(layer.get_base_layer().weight)] > 1 for layer in self.layers.values())
        self._names = [name for name, p in network.named_parameters() if p.requires_grad]
        for parameter in self.parameters().values():
            parameter.data = parameter.data.float()

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return the matrices, named `LAYER.lora_A.default.weight` and `LAYER.lora_B.default.weight`."""
        return {name: self._network.get_parameter(name) for name in self._names}

    @contextmanager
    def off(self) -> Iterator[None]:
        """Disable the adapter inside the context; restore the previous state on exit, including after an exception."""
        # peft's enable_adapters would also set requires_grad to True on every matrix.
        before = [layer._disable_adapters for layer in self.layers.values()]
        try:
            for layer in self.layers.values():
                layer._disable_adapters = True
            yield
        finally:
            for layer, disabled in zip(self.layers.values(), before, strict=True):
                layer._disable_adapters = disabled

    def merged(self) -> AbstractContextManager[None] | None:
        """Merge the current adapter, in float32, into a copy of the base weights inside the context.

        On exit the original weights are back, bit for bit. Returns None if two layers share one of the weights.
        """
        return None if self._shared else self._merged()

    @contextmanager
    def _merged(self) -> Iterator[None]:  # peft's unmerge subtracts the update, which leaves rounding errors
        layers = list(self.layers.values())
        weights = [layer.get_base_layer().weight for layer in layers]
        before = [weight.data for weight in weights]
        try:
            with torch.no_grad():
                for layer, weight in zip(layers, weights, strict=True):
                    delta = layer.get_delta_weight(ADAPTER)
                    weight.data = (weight.data.to(delta.dtype) + delta).to(weight.dtype)
            with self.off():
                yield
        finally:
            for weight, data in zip(weights, before, strict=True):
                weight.data = data

    def save(self, directory: Path, format: str) -> None:
        """Write the adapter. Format `peft`: `adapter_model.safetensors` and `adapter_config.json`, which
        `PeftModel.from_pretrained(network, ...)` loads."""
        if format not in self.formats:
            raise ValueError(f"{format}: the formats are {', '.join(self.formats)}")
        directory.mkdir(parents=True, exist_ok=True)
        self.write(directory, format)

    def write(self, directory: Path, format: str) -> None:
        """Write the adapter to an existing directory. Subclasses override this to support more formats."""
        prefixed = {f"base_model.model.{name}": pair for name, pair in self.folded().items()}
        tensors = named(prefixed, ".lora_A.weight", ".lora_B.weight")
        safetensors.torch.save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})
        more = {"peft_type": "LORA", "task_type": None, "inference_mode": True, "base_model_name_or_path": self._base}
        text = json.dumps(self.settings() | more, indent=2, sort_keys=True) + "\n"
        (directory / "adapter_config.json").write_text(text)

    def folded(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the current matrices by layer name, with the scale folded into B."""
        pairs = {}
        for name, layer in self.layers.items():
            down, up = (getattr(layer, m)[ADAPTER].weight.detach().float().cpu() for m in ("lora_A", "lora_B"))
            pairs[name] = (down.clone(), up * layer.scaling[ADAPTER])
        return pairs

    def settings(self) -> dict[str, Any]:
        """Return peft's config of the folded matrices, limited to fields that all versions of peft know.

        Older versions reject a config file with unknown fields.
        """
        return {"r": self._rank, "lora_alpha": self._rank, "target_modules": sorted(self._config.target_modules)}


def _peft() -> Any:
    """Import peft. Raises UserError if it is not installed."""
    # peft imports bitsandbytes, if installed, which on some processors warns about kernels that dgpo does not use.
    log = logging.getLogger("bitsandbytes")
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        import peft
    except ImportError as error:
        raise UserError(
            f"backbone.train: lora requires peft: pip install 'dgpo[lora]', or set `train: full` to train every "
            f"weight; importing peft failed: {error_text(error)}"
        ) from error
    finally:
        log.setLevel(level)
    return peft


def named(pairs: Pairs, down: str, up: str) -> dict[str, Tensor]:
    """Return each layer's matrices as a flat dict, with the suffixes `down` for A and `up` for B."""
    return {name + suffix: m for name, pair in pairs.items() for suffix, m in zip((down, up), pair, strict=True)}


def select_targets(network: nn.Module, wanted: Sequence[str] | None, default: Sequence[str]) -> list[str]:
    """Return the suffixes of module names to adapt, without duplicates; each matches at least one linear layer.

    wanted: the user's targets; None selects the entries of `default` that match a linear layer of this network.
    Raises UserError, listing the nearest valid suffixes, if a target matches nothing, a module that is not linear or
    one that is never called, and if no default target matches.
    """
    unfit = _unfit(network)
    fit = [name for name, reason in unfit.items() if reason is None]
    chosen = list(dict.fromkeys(default if wanted is None else wanted))
    if wanted is None:
        matching = [target for target in chosen if any(_matches(name, target) for name in fit)]
        if not matching:
            _refuse(f"none of the default {', '.join(chosen)} matches a linear layer", " ".join(chosen), network, unfit)
        chosen = matching
    for target in chosen:
        bound = [name for name in unfit if _matches(name, target)]
        invalid = [name for name in bound if unfit[name] is not None]
        if invalid or not bound:
            what = f"matches {invalid[0]}, {unfit[invalid[0]]}" if bound else "matches no module of the network"
            _refuse(f"{target!r} {what}", target, network, unfit)
    return chosen


def _refuse(problem: str, target: str, network: nn.Module, unfit: Mapping[str, str | None]) -> None:
    valid = [
        suffix
        for suffix in _suffixes(network, [name for name, reason in unfit.items() if reason is None])
        if all(reason is None for name, reason in unfit.items() if _matches(name, suffix))
    ]
    nearest = ", ".join(get_close_matches(target, valid, n=5, cutoff=0.0)) or "none"
    raise UserError(f"backbone.lora.targets: {problem}; nearest suffixes of linear layers: {nearest}")


def _unfit(network: nn.Module) -> dict[str, str | None]:
    """Map every module name to the reason why the module cannot be adapted, or None if it can."""
    modules = dict(network.named_modules(remove_duplicate=False))
    aliases: dict[int, list[str]] = {}
    for name, module in modules.items():
        aliases.setdefault(id(module), []).append(name)
    fused = {id(child): type(m).__name__ for m in modules.values() if isinstance(m, FUSED) for child in m.modules()}
    reasons: dict[str, str | None] = {}
    for name, module in modules.items():
        if not name:
            continue
        others = [alias for alias in aliases[id(module)] if alias != name]
        if not isinstance(module, nn.Linear):
            reasons[name] = "which is not a linear layer of the network"
        elif id(module) in fused:
            reasons[name] = f"whose weight {fused[id(module)]} reads without calling it: an adapter has no effect"
        elif others:
            reasons[name] = f"which is the same module as {others[0]}: an adapter would apply to only one of the two"
        else:
            reasons[name] = None
    return reasons


def _matches(name: str, target: str) -> bool:
    """Match full path components, as peft does for a list of targets: `attn.to_q` does not match `self_attn.to_q`."""
    return name == target or name.endswith(f".{target}")


def _suffixes(network: nn.Module, names: Sequence[str]) -> list[str]:
    """Return names without their block prefix, and their last components (`attn.to_out.0` and `to_out.0`), unique."""
    suffixes: dict[str, None] = {}
    for name in names:
        inner = name.removeprefix(_block(network, name))
        components = inner.split(".")
        last = components[-2:] if components[-1].isdigit() else components[-1:]
        suffixes |= {".".join(last): None, inner: None}
    return list(suffixes)


def _block(network: nn.Module, name: str) -> str:
    """Return the innermost repeated block that contains a layer, such as `transformer_blocks.7.`, or ""."""
    prefix, module, components = "", network, name.split(".")
    for i, component in enumerate(components[:-1]):
        outer, module = module, module.get_submodule(component)
        uniform = len({type(child) for child in outer.children()}) == 1
        if uniform and isinstance(outer, nn.ModuleList | nn.Sequential):
            prefix = ".".join(components[: i + 1]) + "."
    return prefix
