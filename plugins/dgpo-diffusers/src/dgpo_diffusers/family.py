"""What loading asks of a family of models; `DiffusersBackbone` answers it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from dgpo_diffusers.checkpoint_check import Index
from dgpo_diffusers.layout import Layout
from dgpo_schemas.sections.backbone import BackboneSection

if TYPE_CHECKING:
    import torch

__all__ = ["Family"]


class Family(Protocol):
    """See the methods of `DiffusersBackbone` of these names."""

    layout: ClassVar[Layout]
    section: BackboneSection
    options: Any

    @property
    def device(self) -> torch.device: ...

    def components(self, index: Index) -> Sequence[str]: ...

    def trained(self, components: Collection[str]) -> str: ...

    def settings(self, index: Index) -> Mapping[str, Any]: ...

    def check(self, pipeline: Any, directory: Path) -> None: ...
