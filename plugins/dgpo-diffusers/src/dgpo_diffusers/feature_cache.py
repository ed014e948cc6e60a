"""diffusers' feature caches in rollouts: layers whose outputs are predicted from those of earlier steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diffusers import TaylorSeerCacheConfig

from dgpo_core.errors import UserError

if TYPE_CHECKING:
    import torch

    from dgpo_diffusers.layout import Layout
    from dgpo_diffusers.options import RolloutCache

__all__ = ["FeatureCache"]

KEY = "backbone.options.rollout_cache"
ATTENTION = r"(\w+_)?blocks\.\d+\.attn\d?"
"""Names of the layers that are cached: `attn`, or of videos `attn1`, to themselves, and `attn2`, to texts. diffusers'
own patterns find no layer of Wan and LTX-Video."""


class FeatureCache:
    """The cache of a denoiser. Its decisions depend only on the number of the step, so that samples do not depend on
    their micro-batch. Layers are cached only inside of `active`; without it the network is unchanged."""

    def __init__(self, network: Any, settings: RolloutCache, layout: Layout, dtype: torch.dtype) -> None:
        """dtype: of the kept outputs and their differences.

        Raises UserError for a model of which no layer is cached, about which diffusers says nothing.
        """
        self._network = network
        self._config = TaylorSeerCacheConfig(
            cache_interval=settings.interval,
            disable_cache_before_step=settings.full_steps,
            max_order=settings.order,
            taylor_factors_dtype=dtype,
            cache_identifiers=[ATTENTION],
        )
        self._rows: int | None = None
        with self.active():
            found = self.layers()
        if not found:
            raise UserError(
                f"{KEY}: {settings.use} is not possible with {layout.backbone}: no layer of this "
                f"{type(network).__name__} matches; leave it out"
            )

    def layers(self) -> list[str]:
        """Return the names of the layers that are cached now."""
        hook = "taylorseer_cache"
        return [
            name
            for name, module in self._network.named_modules()
            if (registry := getattr(module, "_diffusers_hook", None)) is not None and registry.get_hook(hook)
        ]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Cache layers in the passes of one micro-batch, from its first step on."""
        self._network.enable_cache(self._config)
        self._rows = None
        try:
            self._network._reset_stateful_cache()
            yield
        finally:
            self._network.disable_cache()

    @contextmanager
    def passing(self, rows: int) -> Iterator[None]:
        """Context of each pass of `rows` rows, cached or not. If their number changes, because guidance begins or ends,
        the kept outputs are of other rows: caching begins anew."""
        if not self._network.is_cache_enabled:
            yield
            return
        if self._rows not in (None, rows):
            self._network._reset_stateful_cache()
        self._rows = rows
        with self._network.cache_context("rollout"):
            yield
