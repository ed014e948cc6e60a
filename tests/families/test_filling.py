"""Embeddings filled ahead: without the denoiser, the same rows, and a run that loads and uses no encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from dgpo_core.api.filling import fill_cache
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.trainer import Trainer
from dgpo_core.types import Conditioning
from dgpo_diffusers.checkpoints import load_model
from dgpo_kit.toy import run_data
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.backbone import BackboneSection, EmbeddingCacheSection
from tests.families.proof import build, proofs

FAMILIES = proofs()
QUICK = ("flux",)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's tiny checkpoint, made once."""
    return cache(lambda name: FAMILIES[name].make(tmp_path_factory.mktemp("family") / "tiny"))


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`refuse("encoders")`: from now on, loading one of these models of a layout raises."""

    def refuse(kind: str) -> None:
        def load(opened: Any, name: str, dtype: torch.dtype, **more: Any) -> torch.nn.Module:
            assert name not in getattr(opened.layout, kind), f"{name} is loaded"
            return load_model(opened, name, dtype, **more)

        monkeypatch.setattr("dgpo_diffusers.loading.load_model", load)

    return refuse


def same(one: Conditioning, other: Conditioning) -> bool:
    return one.lengths == other.lengths and {n: bits(t) for n, t in one.tensors.items()} == {
        n: bits(t) for n, t in other.tensors.items()
    }


def bits(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_encoders_alone_have_the_rows_of_the_model(
    checkpoint: Callable[[str], Path], refuse: Callable[[str], None], name: str
) -> None:
    family, directory = FAMILIES[name], checkpoint(name)
    section: dict[str, Any] = {"cache": EmbeddingCacheSection(), "dtype": "bfloat16", "gradient_checkpointing": True}
    whole = build(family, directory, family.quick, **section)
    refuse("networks")
    alone = family.kind.encoder_model(
        BackboneSection(use=family.kind.layout.backbone, checkpoint=str(directory), **section),
        family.options(**{**family.values, **family.quick}),
        device=torch.device("cpu"),
    )
    assert alone.encoder_identity() == whole.encoder_identity()
    assert all(
        p.device.type == "meta" for network in (alone.network, *alone.others.values()) for p in network.parameters()
    )
    assert (alone.supports_guidance, alone.fps) == (whole.supports_guidance, whole.fps)
    prompt = replace(whole.example(family.sizes[0]), text="two blue squares, left")
    assert alone.truncated_prompts([prompt]) == whole.truncated_prompts([prompt])
    assert alone.latent_shape(*family.sizes[0]) == whole.latent_shape(*family.sizes[0])
    for encode in ("encode", "unconditional") if whole.supports_guidance else ("encode",):
        rows = []
        for backbone in (alone, whole):
            with backbone.encoding():
                rows.append(getattr(backbone, encode)([prompt]))
        assert same(*rows)


def test_condition_images_are_kept_with_their_latents(
    checkpoint: Callable[[str], Path], tmp_path: Path, registry: Registry, refuse: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A run of a filled cache loads neither the text encoder nor the image encoder, and encodes with no autoencoder."""
    for color in ("red", "blue"):
        Image.new("RGB", (40, 30), color).save(tmp_path / f"{color}.png")
        (tmp_path / f"{color}.jsonl").write_text(json.dumps({"prompt": color, "media": f"{color}.png"}))
    data = run_data(
        tmp_path, run={"name": "filled", "iterations": 1},
        prompts={"train": str(tmp_path / "red.jsonl"), "heldout": str(tmp_path / "blue.jsonl")},
        timesteps={"count": 1},
        rollout={"steps": 1, "group_size": 2, "groups": 1, "resolution": [16, 32], "guidance": 2.0},
        evaluation={"prompts": 1, "samples_per_prompt": 1, "many_step": None, "at_start": False, "every": 1},
    )  # fmt: skip
    data["rewards"] = [{"use": "motion"}]
    data["backbone"] = {
        "use": "wan-i2v", "checkpoint": str(checkpoint("wan-i2v")), "options": {"frames": 5},
        "cache": {"directory": str(tmp_path / "cache")},
    }  # fmt: skip
    config = RunConfig.model_validate(data)
    refuse("networks")
    found = fill_cache(config, registry)
    assert (found.rows, found.new) == (4, 4), "each image once with its prompt, and once with the empty negative prompt"
    kept = [safetensors.torch.load_file(path) for path in tmp_path.glob("cache/*/*.safetensors")]
    assert {tuple(sorted(row)) for row in kept} == {("condition", "image_embeds", "prompt_embeds")}
    assert len({bits(row["condition"]) for row in kept}) == 2
    refuse("encoders")
    monkeypatch.setattr("diffusers.AutoencoderKLWan.encode", lambda *given, **more: pytest.fail("an image is encoded"))
    assert Trainer(config, registry).train() == "finished"
