"""A low-rank adapter (LoRA, Hu et al., arXiv 2106.09685) for the linear layers of any network, through peft.

peft is an extra, `pip install 'dgpo[lora]'`, and imported when an adapter is made. In files of every format the scale,
alpha / rank, is multiplied into B, and alpha is written as the rank wherever there is a place for it: a program that
reads alpha and one that does not then apply the same strength.
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
"""Its name in peft."""
FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules of torch that take the weights out of their linear layers and do not call these."""

Pairs: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]
"""Layer to (A [rank, inputs], B [outputs, rank]), float32 on the CPU; what is added to its weight is B A."""


class LoraAdapter(Adapter):
    """Two float32 matrices beside each bound linear layer: its output is W x + alpha / rank * B A x.

    A is normal with standard deviation 1 / rank (peft's "gaussian"), B = 0, so that nothing changes yet; always the
    same A, drawn on the CPU whatever the global random state, which is left alone.
    """

    formats: tuple[str, ...] = ("peft",)

    def __init__(self, network: nn.Module, section: LoraSection, *, targets: Sequence[str], base: str) -> None:
        """Freeze `network`, on any device and of any dtype, and put the adapter into it, before it is compiled.

        section: rank, alpha and the user's targets (`backbone.lora` of the run file); targets: endings of names of
        layers that are bound if the user names none, those of them that the network has (see `select_targets`); base:
        the checkpoint's name, written into files for people. Raises UserError for targets that cannot be bound, and
        where peft is not installed.
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
        """The bound layers by their names in the network, each a layer of peft around the one that was there."""
        uses = Counter(id(p) for _, p in network.named_parameters(remove_duplicate=False))
        self._shared = any(uses[id(layer.get_base_layer().weight)] > 1 for layer in self.layers.values())
        self._names = [name for name, p in network.named_parameters() if p.requires_grad]
        for parameter in self.parameters().values():
            parameter.data = parameter.data.float()

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The matrices by their names in the network, `LAYER.lora_A.default.weight` and `lora_B`."""
        return {name: self._network.get_parameter(name) for name in self._names}

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base weights inside; afterwards everything is as it was, also after an error."""
        # Not peft's own enable_adapters: it also flips requires_grad, leaves it True for all, and walks every matrix.
        before = [layer._disable_adapters for layer in self.layers.values()]
        try:
            for layer in self.layers.values():
                layer._disable_adapters = True
            yield
        finally:
            for layer, disabled in zip(self.layers.values(), before, strict=True):
                layer._disable_adapters = disabled

    def merged(self) -> AbstractContextManager[None] | None:
        """The adapter's weights as they are now, added in float32 into a copy of the base weights, inside; afterwards
        these are bit for bit what they were. None if another layer has one of these weights too."""
        return None if self._shared else self._merged()

    @contextmanager
    def _merged(self) -> Iterator[None]:  # peft's own unmerge subtracts, which rounds
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
        """peft: `adapter_model.safetensors` and `adapter_config.json` for `PeftModel.from_pretrained(network, ...)`."""
        if format not in self.formats:
            raise ValueError(f"{format}: the formats are {', '.join(self.formats)}")
        directory.mkdir(parents=True, exist_ok=True)
        self.write(directory, format)

    def write(self, directory: Path, format: str) -> None:
        """What `save` does in a directory that is there. Subclasses with more formats write these here."""
        below = {f"base_model.model.{name}": pair for name, pair in self.folded().items()}
        tensors = named(below, ".lora_A.weight", ".lora_B.weight")
        safetensors.torch.save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})
        more = {"peft_type": "LORA", "task_type": None, "inference_mode": True, "base_model_name_or_path": self._base}
        text = json.dumps(self.settings() | more, indent=2, sort_keys=True) + "\n"
        (directory / "adapter_config.json").write_text(text)

    def folded(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The matrices as they are now, by the names of layers, each layer's scale in its B."""
        found = {}
        for name, layer in self.layers.items():
            down, up = (getattr(layer, m)[ADAPTER].weight.detach().float().cpu() for m in ("lora_A", "lora_B"))
            found[name] = (down.clone(), up * layer.scaling[ADAPTER])
        return found

    def settings(self) -> dict[str, Any]:
        """peft's configuration of the folded matrices: the fields that any version of it knows, because a file with
        all of this version's is refused by older ones."""
        return {"r": self._rank, "lora_alpha": self._rank, "target_modules": sorted(self._config.target_modules)}


def _peft() -> Any:
    """The library. Raises UserError if it is not there."""
    # It imports bitsandbytes, if that is there, which warns on some processors of kernels that nothing here uses.
    log = logging.getLogger("bitsandbytes")
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        import peft
    except ImportError as error:
        raise UserError(
            f"backbone.train: a LoRA needs peft: pip install 'dgpo[lora]', or write `train: full` (every weight); "
            f"importing it says {error_text(error)}"
        ) from error
    finally:
        log.setLevel(level)
    return peft


def named(pairs: Pairs, down: str, up: str) -> dict[str, Tensor]:
    """Each layer's two matrices under its name and these endings."""
    return {name + end: m for name, pair in pairs.items() for end, m in zip((down, up), pair, strict=True)}


def select_targets(network: nn.Module, wanted: Sequence[str] | None, default: Sequence[str]) -> list[str]:
    """The endings of module names to adapt, each once, each of which binds one linear layer or more.

    wanted: the user's; None takes those of `default` that match a linear layer (a model may lack some of its family's).
    Raises UserError for an ending that matches nothing, or something that is not linear or would not be called, and for
    a default that matches nothing at all, naming the nearest that would do.
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
        strange = [name for name in bound if unfit[name] is not None]
        if strange or not bound:
            what = f"matches {strange[0]}, {unfit[strange[0]]}" if bound else "matches no module of the network"
            _refuse(f"{target!r} {what}", target, network, unfit)
    return chosen


def _refuse(problem: str, target: str, network: nn.Module, unfit: Mapping[str, str | None]) -> None:
    offered = [
        ending
        for ending in _endings(network, [name for name, reason in unfit.items() if reason is None])
        if all(reason is None for name, reason in unfit.items() if _matches(name, ending))
    ]
    nearest = ", ".join(get_close_matches(target, offered, n=5, cutoff=0.0)) or "there are none"
    raise UserError(f"backbone.lora.targets: {problem}; nearest endings of linear layers: {nearest}")


def _unfit(network: nn.Module) -> dict[str, str | None]:
    """Why a module cannot be adapted, or None, by the names of all modules."""
    modules = dict(network.named_modules(remove_duplicate=False))
    places: dict[int, list[str]] = {}
    for name, module in modules.items():
        places.setdefault(id(module), []).append(name)
    fused = {id(part): type(m).__name__ for m in modules.values() if isinstance(m, FUSED) for part in m.modules()}
    found: dict[str, str | None] = {}
    for name, module in modules.items():
        if not name:
            continue
        others = [place for place in places[id(module)] if place != name]
        if not isinstance(module, nn.Linear):
            found[name] = "which is not a linear layer of the network"
        elif id(module) in fused:
            found[name] = f"whose weight {fused[id(module)]} takes without calling it: an adapter would do nothing"
        elif others:
            found[name] = f"which is {others[0]} too: an adapter would be in one of the two places alone"
        else:
            found[name] = None
    return found


def _matches(name: str, target: str) -> bool:
    """peft's rule for a list of targets: whole parts between dots, so that `attn.to_q` is not found in `attn2.to_q`."""
    return name == target or name.endswith(f".{target}")


def _endings(network: nn.Module, names: Sequence[str]) -> list[str]:
    """Names without the block that they are in, and their last parts (`attn.to_out.0` and `to_out.0`), each once."""
    endings: dict[str, None] = {}
    for name in names:
        inner = name.removeprefix(_block(network, name))
        parts = inner.split(".")
        last = parts[-2:] if parts[-1].isdigit() else parts[-1:]
        endings |= {".".join(last): None, inner: None}
    return list(endings)


def _block(network: nn.Module, name: str) -> str:
    """`transformer_blocks.7.`: the innermost of repeated modules that a layer is within, or ""."""
    found, module, parts = "", network, name.split(".")
    for i, part in enumerate(parts[:-1]):
        outer, module = module, module.get_submodule(part)
        alike = len({type(member) for member in outer.children()}) == 1
        if alike and isinstance(outer, nn.ModuleList | nn.Sequential):
            found = ".".join(parts[: i + 1]) + "."
    return found
