"""The share of an update that merged weights lose."""

from __future__ import annotations

import pytest
import torch

from experiments.merging import lost_share
from tests.core.test_merge_bound import adapter_of


def test_nothing_is_lost_in_float32() -> None:
    assert lost_share(adapter_of(torch.float32, 1e-2)) == 0.0


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-6])
def test_it_grows_as_the_update_shrinks(size: float) -> None:
    """Rounding errors of a number are at most 1/256 of it, and of an update that is lost the update itself."""
    adapter = adapter_of(torch.bfloat16, size)
    (layer,) = adapter.layers.values()
    weight, exact = layer.get_base_layer().weight.detach().float(), adapter.adapted(layer)
    error = float((exact.bfloat16().float() - exact).norm() / (exact - weight).norm())
    assert lost_share(adapter) == pytest.approx(error, rel=1e-4)
    assert lost_share(adapter) <= 2.0**-8 * float(exact.norm() / (exact - weight).norm())
    assert size > 1e-6 or lost_share(adapter) == pytest.approx(1.0, abs=0.1)
