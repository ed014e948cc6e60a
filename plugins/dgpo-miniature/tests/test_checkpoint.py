"""The bundled checkpoint: loading offline, size, score of the base model, and training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline

from dgpo_miniature import checkpoint_path
from dgpo_miniature.captions import TASKS
from dgpo_miniature.prompts import prompts
from dgpo_miniature.train import main
from dgpo_miniature.training.autoencoder import random_images
from dgpo_miniature.training.score import sample, score
from dgpo_miniature.training.text import TOKENS, build_tokenizer, words


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline.from_pretrained(
        checkpoint_path(), text_encoder_3=None, tokenizer_3=None, dtype=torch.float32, local_files_only=True
    )


def test_importing_the_plugin_imports_nothing_heavy() -> None:
    code = "import sys, dgpo_miniature, dgpo_miniature.plugin; print({'torch', 'diffusers', 'numpy'} & {*sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_the_checkpoint_is_small_and_safe() -> None:
    files = [path for path in checkpoint_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 15_000_000
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}


def test_score_of_the_base_model(pipeline: StableDiffusion3Pipeline) -> None:
    means = score(pipeline, prompts("heldout", 240))
    assert 0.32 <= means["overall"] <= 0.68


def test_own_sampler_agrees_with_the_pipeline(pipeline: StableDiffusion3Pipeline) -> None:
    """diffusers' pipeline call with the same noise and steps returns the same images."""
    texts = [entry["prompt"] for entry in prompts("heldout", 4)]
    ours = sample(pipeline, texts, steps=8, seed=3, guidance=3.0)
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    pipeline.set_progress_bar_config(disable=True)
    k = pipeline.scheduler.config.shift
    times = torch.linspace(1.0, 0.0, 9)[:-1]
    # The scheduler applies its shift to the given sigmas.
    theirs = pipeline(
        texts,
        height=64,
        width=64,
        latents=noise,
        sigmas=times.tolist(),
        num_inference_steps=8,
        guidance_scale=3.0,
        max_sequence_length=0,
        output_type="pt",
    ).images
    assert k > 0
    assert torch.allclose(ours, theirs, atol=2e-2)


def test_reconstructions_are_close(pipeline: StableDiffusion3Pipeline) -> None:
    images = random_images(32, np.random.default_rng(11))
    autoencoder: AutoencoderKL = pipeline.vae
    with torch.no_grad():
        latents = autoencoder.encode(images).latent_dist.mean
        error = (autoencoder.decode(latents).sample - images).abs().mean()
    scaled = (latents - autoencoder.config.shift_factor) * autoencoder.config.scaling_factor
    assert error < 0.06
    assert float(scaled.std()) == pytest.approx(1.0, abs=0.1)


def test_every_word_is_one_token() -> None:
    tokenizer = build_tokenizer()
    for entry in prompts("train", 600) + prompts("heldout", 600):
        ids = tokenizer(entry["prompt"]).input_ids
        assert len(ids) == len(entry["prompt"].split()) + 2 <= TOKENS
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == entry["prompt"]
    assert len(set(words())) == len(words())


def test_training_from_scratch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--out", str(tmp_path), "--tiny", "--threads", "1"])
    means = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(means) == {*TASKS, "overall"}
    again = StableDiffusion3Pipeline.from_pretrained(
        tmp_path, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32, local_files_only=True
    )
    assert sample(again, ["a photo of a circle"], steps=2).shape == (1, 3, 64, 64)
