"""The bundled checkpoint of signs: loading, OCR of its images, and training."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from dgpo_core.plugins.registry import get_registry
from dgpo_kit.given import prompts_of
from dgpo_miniature import checkpoint_path
from dgpo_miniature.signs.data import random_images, random_words
from dgpo_miniature.signs.prompts import prompts
from dgpo_miniature.signs.score import read, sample_signs, score
from dgpo_miniature.signs.world import random_signs, render
from dgpo_miniature.train import main
from dgpo_schemas.sections.backbone import BackboneSection

pytest.importorskip("dgpo_ocr")
pytest.importorskip("rapidocr")

HELDOUT = prompts("heldout", 64)


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline.from_pretrained(
        checkpoint_path("signs"), text_encoder_3=None, tokenizer_3=None, dtype=torch.float32, local_files_only=True
    )


def test_the_checkpoint_is_small_and_safe() -> None:
    files = [path for path in checkpoint_path("signs").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10_000_000
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}


def test_true_images_and_their_reconstructions_are_read(pipeline: StableDiffusion3Pipeline) -> None:
    rng = np.random.default_rng(11)
    words = random_words(60, rng)
    asked = [{"prompt": f'a sign that says "{word}"', "target": word} for word in words]
    images = torch.from_numpy(render(random_signs(words, rng)))
    assert float(read(images, asked).mean()) >= 0.98
    with torch.no_grad():
        latents = pipeline.vae.encode(images * 2 - 1).latent_dist.mean
        again = (pipeline.vae.decode(latents).sample / 2 + 0.5).clamp(0.0, 1.0)
    assert float(read(again, asked).mean()) >= 0.97
    assert float((again - images).abs().mean()) < 0.03


def test_latents_have_unit_variance(pipeline: StableDiffusion3Pipeline) -> None:
    config = pipeline.vae.config
    with torch.no_grad():
        latents = pipeline.vae.encode(random_images(64, np.random.default_rng(3))).latent_dist.mean
    assert float(((latents - config.shift_factor) * config.scaling_factor).std()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_score_of_the_base_model(pipeline: StableDiffusion3Pipeline) -> None:
    """The score can increase, and the text depends on the prompt; with guidance it is correct."""
    images = sample_signs(pipeline, HELDOUT)
    plain, strangers = read(torch.cat([images, images]), [*HELDOUT, *HELDOUT[1:], *HELDOUT[:1]]).chunk(2)
    assert 0.35 <= float(plain.mean()) <= 0.7
    assert float(strangers.mean()) <= 0.25
    assert score(pipeline, HELDOUT, guidance=3.0)["ocr"] >= 0.85


def test_sd3_backbone_loads_it_and_samples() -> None:
    """Uses the backbone contract, like a run, not the sampler of this package."""
    section = BackboneSection(
        use="sd3", checkpoint="package:dgpo_miniature/checkpoint_signs", options={"text_length": 0, "decode_chunk": 64}
    )
    backbone = get_registry().create("backbone", section, device=torch.device("cpu"))
    conditioning = backbone.encode(prompts_of([entry["prompt"] for entry in HELDOUT]))
    x = torch.randn(len(HELDOUT), *backbone.latent_shape(32, 64), generator=torch.Generator().manual_seed(0))
    times = torch.linspace(1.0, 0.0, 9)
    with torch.no_grad():
        for sigma, following in pairwise(2 * times / (1 + times)):
            x = x + (following - sigma) * backbone.velocity(x, sigma.expand(len(x)), conditioning)
    images = backbone.decode(x)
    assert images.shape == (len(HELDOUT), 3, 32, 64)
    assert float(read(images, HELDOUT).mean()) >= 0.35


def test_training_from_scratch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--out", str(tmp_path), "--world", "signs", "--tiny", "--threads", "1"])
    means = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(means) == {"ocr", "exact"}
    again = StableDiffusion3Pipeline.from_pretrained(
        tmp_path, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32, local_files_only=True
    )
    assert sample_signs(again, HELDOUT[:1], steps=2).shape == (1, 3, 32, 64)
