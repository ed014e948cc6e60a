"""Help for tests: tiny, random, complete image-to-video checkpoints, made offline in about a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from dgpo_diffusers.libraries import library_class
from dgpo_diffusers.testing import save_seeded
from dgpo_wan.options import COMPRESSION
from dgpo_wan.testing import CHANNELS, WIDTH, tiny_parts, tiny_transformer

__all__ = ["make_tiny_i2v"]

SIDE = 32
"""Of the image that the tiny image encoder reads."""
IMAGE_WIDTH = 16
"""Of its embedding."""


def make_tiny_i2v(
    directory: str | Path,
    *,
    model: Literal["2.1", "2.2-A14B", "2.2-5B"] = "2.1",
    boundary: float = 0.9,
    layers: int = 2,
    seed: int = 0,
) -> Path:
    """Write a random Wan pipeline with the parts of the image-to-video model `model`.

    boundary: sigma at which the two transformers of 2.2-A14B meet. The rest is as in
    `dgpo_wan.testing.make_tiny_checkpoint`. Returns the directory as a Path.
    """
    channels: dict[str, Any] = {} if model == "2.2-5B" else {"in_channels": 2 * CHANNELS + COMPRESSION}
    image: dict[str, Any] = {"image_dim": IMAGE_WIDTH, "added_kv_proj_dim": WIDTH} if model == "2.1" else {}
    two = model == "2.2-A14B"

    def make() -> Any:
        return library_class("WanImageToVideoPipeline")(
            transformer=tiny_transformer(layers, **channels, **image),
            **tiny_parts(),
            **(image_reader() if image else {}),
            transformer_2=tiny_transformer(layers, **channels) if two else None,
            boundary_ratio=boundary if two else None,
            expand_timesteps=model == "2.2-5B",
        )

    return save_seeded(directory, seed, make)


def image_reader() -> dict[str, Any]:
    """Return an image encoder and its processor as parts of a pipeline."""
    config = CLIPVisionConfig(
        hidden_size=IMAGE_WIDTH,
        intermediate_size=2 * IMAGE_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=SIDE // 4,
        initializer_factor=5.0,  # random weights of the usual size hardly tell images apart
    )
    processor = CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, do_convert_rgb=True
    )
    return {"image_encoder": CLIPVisionModel(config).eval(), "image_processor": processor}
