"""These tests want open_clip, which wants torchvision: an environment of its own, where the main one has neither."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from dgpo_geneval.options import ColorOptions

collect_ignore_glob = [] if importlib.util.find_spec("open_clip") else ["*.py"]

TINY = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 56, "layers": 2, "width": 64, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> ColorOptions:
    """Options that name a tiny random CLIP of ViT-L-14's make, its weights in a file."""
    import open_clip
    import torch

    from dgpo_geneval.options import ColorOptions

    directory: Path = tmp_path_factory.mktemp("clip")
    (directory / "tiny-clip.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(directory / "tiny-clip.json")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = open_clip.create_model("tiny-clip")
    with torch.no_grad():  # at their usual size, random weights embed everything alike
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(100 if "embedding" in name else 6)
    torch.save(model.state_dict(), directory / "tiny.pt")
    return ColorOptions(model="tiny-clip", pretrained=str(directory / "tiny.pt"), batch=4)
