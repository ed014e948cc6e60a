"""Conditioning rows on disk (`backbone.cache`): which rows a run may share with others, reading and writing them."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dgpo_core.plugins import contract_checks
from dgpo_core.storage.embeddings import EmbeddingFiles, default_directory
from dgpo_core.storage.rows import DamagedRow, dump_row, load_row
from dgpo_core.system.device import device_name
from dgpo_core.system.version import __version__

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone
    from dgpo_core.types import Conditioning
    from dgpo_schemas.run import RunConfig

__all__ = ["StoredRows", "open_stored_rows"]


class StoredRows:
    """Rows of one encoder, by the keys of `ConditioningCache`, which must be JSON data."""

    def __init__(self, files: EmbeddingFiles, device: torch.device) -> None:
        self._files = files
        self._device = device

    @property
    def directory(self) -> Path:
        """The directory of the cache."""
        return self._files.directory

    @property
    def limit(self) -> int:
        """Maximum size of the directory in bytes."""
        return self._files.limit

    def size(self, key: object) -> int | None:
        """Return the bytes that a row occupies on disk; None if it is not there."""
        return self._files.size(self._files.name(key))

    def read(self, key: object) -> Conditioning | None:
        """Return a row on the device; None if it is not there or damaged."""
        name = self._files.name(key)
        content = self._files.read(name)
        if content is None:
            return None
        try:
            return load_row(content, name, self._device)
        except DamagedRow as error:
            self._files.discard(name, str(error))
            return None

    def write(self, key: object, row: Conditioning) -> None:
        """Keep a row, if its tensors can be stored."""
        name = self._files.name(key)
        content = dump_row(row, name)
        if content is not None:
            self._files.write(name, content)


def open_stored_rows(config: RunConfig, backbone: Backbone, device: torch.device) -> StoredRows | None:
    """Return the rows on disk that this run may use; None without `backbone.cache`. Reads and writes nothing yet."""
    section = config.backbone.cache
    if section is None:
        return None
    identity: Any = backbone.encoder_identity()
    if not isinstance(identity, str) or not identity:
        raise contract_checks.broken(backbone, "`encoder_identity` must return a text for a run with `backbone.cache`")
    directory = default_directory() if section.directory is None else Path(section.directory).absolute()
    identity = json.dumps({"encoder": identity, "computed": _computation(config, device)}, sort_keys=True)
    info = {
        "backbone": config.backbone.use,
        "checkpoint": config.backbone.checkpoint,
        "dtype": config.backbone.dtype,
        "device": device_name(device),
        "identity": identity,
    }
    return StoredRows(EmbeddingFiles(directory, int(section.max_gb * 1e9), identity, info), device)


def _computation(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """Everything outside of the backbone that the last bits of a row may depend on."""
    cpu = device.type == "cpu"
    return {
        "dgpo": __version__,
        "torch": torch.__version__,
        "cuda": None if cpu else torch.version.cuda,
        "device": device_name(device),
        # Matrix products on the CPU are split by threads, and computed with the instructions of the processor.
        "threads": torch.get_num_threads() if cpu else None,
        "cpu": [platform.machine(), torch.backends.cpu.get_cpu_capability()] if cpu else None,
        "precision": config.precision.model_dump(mode="json", exclude={"adapter", "norms"}),  # of the denoiser alone
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
