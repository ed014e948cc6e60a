"""The bundled checkpoint: loading offline, size, score of the base model, and training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import WanPipeline

from dgpo_kit.contracts import check_backbone
from dgpo_miniature.moving.autoencoder import random_videos
from dgpo_miniature.moving.data import normalized
from dgpo_miniature.moving.detector import find_motion
from dgpo_miniature.moving.prompts import prompts
from dgpo_miniature.moving.score import sample, score
from dgpo_miniature.moving.text import TOKENS, build_tokenizer, words
from dgpo_miniature.moving.world import FRAMES, SIZE
from dgpo_miniature.train import main
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.backbone import BackboneSection
from dgpo_video import checkpoint_path
from dgpo_wan.backbone import WanBackbone
from dgpo_wan.options import WanOptions

EXAMPLE = Path(__file__).parents[3] / "examples" / "miniature-video.yaml"


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return WanPipeline.from_pretrained(checkpoint_path(), dtype=torch.float32, local_files_only=True)


def test_the_checkpoint_is_small_and_safe() -> None:
    files = [path for path in checkpoint_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10_000_000
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}


@pytest.mark.slow
def test_score_of_the_base_model(pipeline: Any) -> None:
    assert 0.25 <= score(pipeline, prompts("heldout", 240))["strict"] <= 0.55


def test_detector_on_reconstructions(pipeline: Any) -> None:
    videos = random_videos(192, np.random.default_rng(11))
    with torch.no_grad():
        latents = pipeline.vae.encode(videos).latent_dist.mean
        again = pipeline.vae.decode(latents).sample

    def read(batch: torch.Tensor) -> list[tuple[str | None, ...]]:
        seen = [find_motion(one) for one in (batch.transpose(1, 2) / 2 + 0.5).clamp(0, 1).numpy()]
        return [(one.shape, one.color, one.direction) for one in seen]

    same = [before == after for before, after in zip(read(videos), read(again), strict=True)]
    assert np.mean(same) >= 0.88
    scaled = normalized(pipeline.vae, latents).transpose(0, 1).flatten(1)
    assert torch.allclose(scaled.std(1), torch.ones(len(scaled)), atol=0.15)


def test_backbone_loads_the_checkpoint() -> None:
    def make() -> WanBackbone:
        section = BackboneSection(
            use="wan",
            checkpoint="package:dgpo_video/checkpoint",
            lora={"rank": 2, "alpha": 4},  # type: ignore[arg-type]
        )
        return WanBackbone(section, WanOptions(frames=FRAMES, text_length=TOKENS), device=torch.device("cpu"))

    check_backbone(make, (SIZE, SIZE), impossible=(SIZE, 45), tolerance=1e-3)


def test_the_example_fits_the_checkpoint(pipeline: Any) -> None:
    config = RunConfig.model_validate(yaml.safe_load(EXAMPLE.read_text()))
    options = WanOptions.model_validate(config.backbone.options)
    assert (options.frames, options.text_length, config.rollout.height_width) == (FRAMES, TOKENS, (SIZE, SIZE))
    assert config.rollout.shift == pipeline.scheduler.config.shift
    assert EXAMPLE.read_text().splitlines()[0] == "# yaml-language-server: $schema=../schemas/json/run.schema.json"


def test_every_word_is_one_token() -> None:
    tokenizer = build_tokenizer()
    for prompt in [*prompts("train", 72), *prompts("heldout", 24)]:
        ids = tokenizer(prompt.text).input_ids
        assert len(ids) == len(prompt.text.split()) + 1 <= TOKENS
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == prompt.text
    assert len(set(words())) == len(words())
    assert tokenizer.unk_token_id not in tokenizer("a purple hexagon").input_ids


@pytest.mark.slow
def test_training_from_scratch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--world", "moving", "--out", str(tmp_path), "--tiny", "--threads", "1"])
    split_samples = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(split_samples) == {"shape", "color", "direction", "strict"}
    again = WanPipeline.from_pretrained(tmp_path, dtype=torch.float32, local_files_only=True)
    assert sample(again, ["a red circle moving left"], steps=2).shape == (1, FRAMES, 3, SIZE, SIZE)
