"""The bundled checkpoint of blocks: loading, the score of its images, and training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from dgpo_miniature import checkpoint_path
from dgpo_miniature.blocks.data import random_images
from dgpo_miniature.blocks.prompts import prompts
from dgpo_miniature.blocks.reading import evidence
from dgpo_miniature.blocks.score import judge, sample_blocks, score
from dgpo_miniature.blocks.world import ARRANGEMENTS, random_blocks
from dgpo_miniature.train import main

HELDOUT = prompts("heldout", 400)


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline.from_pretrained(
        checkpoint_path("blocks"), text_encoder_3=None, tokenizer_3=None, dtype=torch.float32, local_files_only=True
    )


def test_the_checkpoint_is_small_and_safe() -> None:
    files = [path for path in checkpoint_path("blocks").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 3_000_000
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}


def test_reconstructions_are_read(pipeline: StableDiffusion3Pipeline) -> None:
    images = torch.from_numpy(random_blocks(ARRANGEMENTS, np.random.default_rng(11)))
    with torch.no_grad():
        latents = pipeline.vae.encode(images * 2 - 1).latent_dist.mean
        again = (pipeline.vae.decode(latents).sample / 2 + 0.5).clamp(0.0, 1.0)
    assert (evidence(again.numpy()).argmax(axis=2) == ARRANGEMENTS).all(axis=1).mean() >= 0.99
    assert float((again - images).abs().mean()) < 0.03


def test_latents_have_unit_variance(pipeline: StableDiffusion3Pipeline) -> None:
    config = pipeline.vae.config
    with torch.no_grad():
        latents = pipeline.vae.encode(random_images(256, np.random.default_rng(3))).latent_dist.mean
    assert float(((latents - config.shift_factor) * config.scaling_factor).std()) == pytest.approx(1.0, abs=0.1)


def test_score_of_the_base_model(pipeline: StableDiffusion3Pipeline) -> None:
    """The score can increase, and the image depends on the prompt; with guidance it is better."""
    images = sample_blocks(pipeline, HELDOUT)
    plain, strangers = judge(images, HELDOUT), judge(images, [*HELDOUT[5:], *HELDOUT[:5]])
    assert 0.2 <= float(plain.mean()) <= 0.35
    assert float(strangers.mean()) <= 0.1
    assert score(pipeline, HELDOUT, guidance=3.0)["overall"] >= float(plain.mean()) + 0.1


def test_training_from_scratch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--out", str(tmp_path), "--world", "blocks", "--tiny", "--threads", "1"])
    means = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(means) == {"one", "two", "count", "position", "overall", "nearly"}
    again = StableDiffusion3Pipeline.from_pretrained(
        tmp_path, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32, local_files_only=True
    )
    assert sample_blocks(again, HELDOUT[:1], steps=2).shape == (1, 3, 16, 16)
