"""Select the linear layers that an adapter binds, by suffixes of their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from torch import nn

from dgpo_core.errors import UserError

__all__ = ["select_targets"]

FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""torch modules that read the weights of their linear layers directly, without calling the layers."""


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
