"""The published head of the aesthetic predictor, `sac+logos+ava1-l14-linearMSE.pth`."""

from __future__ import annotations

from pathlib import Path

import torch

from dgpo_pickscore.head import load_head


def test_the_published_head_loads_and_computes_what_its_file_says(test_data: Path) -> None:
    """Every tensor of the file is used, and its linear layers in float64 give the same scores."""
    file = test_data / "sac+logos+ava1-l14-linearMSE.pth"
    head = load_head(str(file), "unused", None, "option head")
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    assert sum(p.numel() for p in head.parameters()) == sum(t.numel() for t in tensors.values())
    draws = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(64, 768, generator=draws), dim=-1)
    expected = x.double()
    for layer in (0, 2, 4, 6, 7):
        expected = expected @ tensors[f"layers.{layer}.weight"].double().T + tensors[f"layers.{layer}.bias"].double()
    torch.testing.assert_close(head(x).double(), expected, atol=1e-4, rtol=1e-5)
    assert expected.std() > 0.1, "directions differ in score"
