"""The adapter of any network, using peft."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from dgpo_core.contracts import Adapter
from dgpo_core.errors import UserError
from dgpo_core.lora.files import INIT, AdapterFile, Pair, Update, named, open_adapter, peft_updates
from dgpo_core.lora.layers import ADAPTER, copies_of, use_copies, use_exact
from dgpo_core.lora.starting import check_updates
from dgpo_core.lora.targets import select_targets
from dgpo_schemas.text import error_text

if TYPE_CHECKING:
    from dgpo_schemas.sections.backbone import LoraSection

__all__ = ["LoraAdapter"]


class LoraAdapter(Adapter):
    """A LoRA adapter: each target linear layer outputs W x + s B A x, with A and B in float32.

    s is alpha / rank, or alpha / sqrt(rank) with `rslora`. With `dora`, each row of W + s B A is also rescaled to a
    trained norm, its magnitude, in float32.

    A is initialized from a normal distribution with standard deviation 1 / rank (peft's "gaussian"), B with zeros. A is
    drawn on the CPU from a fixed seed; the global random state is not changed.
    """

    formats: tuple[str, ...] = ("peft",)
    supports = frozenset({"init", "rslora", "dora"})

    def __init__(self, network: nn.Module, section: LoraSection, *, targets: Sequence[str], base: str) -> None:
        """Freeze `network`, on any device and in any dtype, and inject the adapter. Call before `torch.compile`.

        section: rank, alpha and the user's targets (`backbone.lora` in the run file).
        targets: default targets, as suffixes of layer names; those without a match in the network are skipped (see
        `select_targets`).
        base: name of the checkpoint, written to the saved files.
        Raises UserError for invalid targets and if peft is not installed.
        """
        peft = _peft()
        self._network, self._base, self._rank, self._dora = network, base, section.rank, section.dora
        self.notes = []
        self._config: Any = peft.LoraConfig(
            r=section.rank,
            lora_alpha=int(section.alpha) if section.alpha.is_integer() else section.alpha,
            init_lora_weights="gaussian",
            use_rslora=section.rslora,
            use_dora=section.dora,
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
        if not section.dora:
            for layer in self.layers.values():
                use_exact(layer)
        self._with_copies: list[Any] = []
        """The layers that compute with copies of their matrices."""
        self._shared = any(uses[id(layer.get_base_layer().weight)] > 1 for layer in self.layers.values())
        self._names = [name for name, p in network.named_parameters() if p.requires_grad]
        for parameter in self.parameters().values():
            parameter.data = parameter.data.float()
        if any(p.is_meta for p in self.parameters().values()):
            return
        if section.dora:
            self._set_magnitudes()
        if section.init is not None:
            self._start_from(open_adapter(Path(section.init)))

    def read(self, file: AdapterFile) -> dict[str, Update]:
        """Return the updates of a file by layer name. Reads peft's format; subclasses override this to read more.

        Raises UserError for other formats.
        """
        if not file.is_peft:
            raise file.unreadable(
                next(iter(file.tensors)), "which is no tensor name of peft, the only format read here"
            )
        return peft_updates(file)

    @torch.no_grad()
    def _set_magnitudes(self) -> None:
        """Set the magnitudes (DoRA) to the row norms of the adapted weights, in float32, which changes nothing."""
        for name, layer in self.layers.items():
            norms = self._sum(layer).norm(dim=1)
            if not bool(norms.all()):
                raise UserError(
                    f"backbone.lora.dora: layer {name} has a row of zeros, which has no direction; leave this layer "
                    "out of backbone.lora.targets, or set dora: false"
                )
            _magnitude(layer).data = norms

    def check(self, file: AdapterFile) -> dict[str, Update]:
        """Return the updates of a file by layer name, and set `notes`. Raises UserError if it does not fit the layers
        that are adapted. The adapter may be without weights (meta device)."""
        updates = self.read(file)
        self.notes = check_updates(self._network, self.layers, updates, file, self._rank, dora=self._dora)
        return updates

    @torch.no_grad()
    def _start_from(self, file: AdapterFile) -> None:
        """Set the matrices so that the adapter computes what the file's does.

        A smaller rank is filled up: A keeps its further random rows, B its zeros, so that they train but add nothing.
        """
        updates = self.check(file)
        self.source = file.path
        for name, layer in self.layers.items():
            if (update := updates.get(name)) is None:
                continue
            rank = len(update.down)
            layer.lora_A[ADAPTER].weight[:rank] = update.down.to(layer.lora_A[ADAPTER].weight.device)
            up = update.up * (update.scale / layer.scaling[ADAPTER])
            if not bool(up.isfinite().all()):
                raise UserError(
                    f"{INIT}: {file.path}: the scale of layer {name}, {update.scale:g}, makes an update that is not "
                    "finite"
                )
            layer.lora_B[ADAPTER].weight[:, :rank] = up.to(layer.lora_B[ADAPTER].weight.device)
            if self._dora:  # by default those of the adapted weight, which make a LoRA of it
                norms = self._sum(layer).norm(dim=1) if update.magnitude is None else update.magnitude
                _magnitude(layer).copy_(norms)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return the matrices, named `LAYER.lora_A.default.weight` and `LAYER.lora_B.default.weight`, and with DoRA the
        magnitudes, `LAYER.lora_magnitude_vector.default.weight`."""
        return {name: self._network.get_parameter(name) for name in self._names}

    def speed_up(self, dtype: torch.dtype) -> None:
        """See `Adapter.speed_up`. Layers whose frozen weights are float32 are left as they are."""
        self._with_copies = [layer for layer in self.layers.values() if use_copies(layer, dtype)]
        self.weights_changed()

    @torch.no_grad()
    def weights_changed(self) -> None:
        """Renew the copies of `speed_up`, with one call for all of them."""
        pairs = [pair for layer in self._with_copies for pair in copies_of(layer)]
        if pairs:
            torch._foreach_copy_([copy for copy, _ in pairs], [master for _, master in pairs])

    @contextmanager
    def off(self) -> Iterator[None]:
        """Disable the adapter inside the context; restore the previous state on exit, including after an exception."""
        # peft's enable_adapters would also set requires_grad to True on every matrix. Module.__setattr__ looks for
        # parameters, buffers and modules first, for each of hundreds of layers around each pass.
        before = [layer._disable_adapters for layer in self.layers.values()]
        try:
            for layer in self.layers.values():
                object.__setattr__(layer, "_disable_adapters", True)
            yield
        finally:
            for layer, disabled in zip(self.layers.values(), before, strict=True):
                object.__setattr__(layer, "_disable_adapters", disabled)

    def merged(self) -> AbstractContextManager[None] | None:
        """Merge the current adapter, in float32, into a copy of the base weights inside the context.

        On exit the original weights are back, bit for bit. Returns None if two layers share one of the weights.

        A merged weight differs from the exact one, w, by at most u * |w| + (rank + 4) * 2^-23 * (|W| + s |B| |A|). u is
        the rounding to the type of the weights: 2^-8 for bfloat16, 2^-11 for float16, 0 for float32, where only the
        second term is left. (With DoRA the sum is rescaled, and 2 + inputs are added to the rank.) An output differs by
        at most that times |x|. In bfloat16, updates below half of the distance to the next number are lost.
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
                    weight.data = self.adapted(layer).to(weight.dtype)
            with self.off():
                yield
        finally:
            for weight, data in zip(weights, before, strict=True):
                weight.data = data

    def merged_weights(self) -> dict[str, Tensor]:
        """Return the weight of each adapted layer with the current adapter merged, float32 [outputs, inputs] on the
        CPU, by layer name. Raises UserError if another layer, which is not adapted, uses one of the base weights
        too."""
        if self._shared:
            raise UserError("--format merged: two layers of the model share a weight, and only one of them is adapted")
        return {name: self.adapted(layer).cpu() for name, layer in self.layers.items()}  # one at a time on the device

    @torch.no_grad()
    def adapted(self, layer: Any) -> Tensor:
        """Return the weight of one of `layers` with the current adapter merged, float32 [outputs, inputs]."""
        weight = self._sum(layer)
        if self._dora:
            weight *= (_magnitude(layer).data / weight.norm(dim=1))[:, None]
        return weight

    def _sum(self, layer: Any) -> Tensor:
        """Return the base weight plus the update, float32 [outputs, inputs]."""
        delta: Tensor = layer.get_delta_weight(ADAPTER)
        base: Tensor = layer.get_base_layer().weight.data
        return base.to(delta.dtype) + delta

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
        tensors |= {f"base_model.model.{name}.lora_magnitude_vector": m for name, m in self.magnitudes().items()}
        safetensors.torch.save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})
        more = {"peft_type": "LORA", "task_type": None, "inference_mode": True, "base_model_name_or_path": self._base}
        text = json.dumps(self.settings() | more, indent=2, sort_keys=True) + "\n"
        (directory / "adapter_config.json").write_text(text)

    def folded(self) -> dict[str, Pair]:
        """Return the current matrices by layer name, with the scale folded into B."""
        pairs = {}
        for name, layer in self.layers.items():
            down, up = (getattr(layer, m)[ADAPTER].weight.detach().float().cpu() for m in ("lora_A", "lora_B"))
            pairs[name] = (down.clone(), up * layer.scaling[ADAPTER])
        return pairs

    def magnitudes(self) -> dict[str, Tensor]:
        """Return the current magnitudes [outputs] by layer name; empty without DoRA."""
        layers = self.layers if self._dora else {}
        return {name: _magnitude(layer).detach().float().cpu().clone() for name, layer in layers.items()}

    def settings(self) -> dict[str, Any]:
        """Return peft's config of the folded matrices, limited to fields that all versions of peft know.

        Older versions reject a config file with unknown fields.
        """
        dora = {"use_dora": True} if self._dora else {}
        return {
            "r": self._rank, "lora_alpha": self._rank, "target_modules": sorted(self._config.target_modules), **dora,
        }  # fmt: skip


def _magnitude(layer: Any) -> nn.Parameter:
    magnitude: nn.Parameter = layer.lora_magnitude_vector[ADAPTER].weight
    return magnitude


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
