"""Prompt embeddings on disk: every family gives the same rows, and loads its text encoders only for a new prompt."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import dgpo_diffusers.identity
from dgpo_core.errors import UserError
from dgpo_core.types import Conditioning
from dgpo_core.weights import digests
from dgpo_diffusers.identity import encoder_identity
from dgpo_schemas.sections.backbone import EmbeddingCacheSection
from tests.families.proof import TEXTS, among, build, proofs

FAMILIES = proofs()
QUICK = ("flux", "sdxl")
CACHE = EmbeddingCacheSection()


@pytest.fixture(scope="module")
def sdxl(checkpoint: Callable[[str], Path]) -> Any:
    """A backbone whose encoders are not loaded."""
    return build(FAMILIES["sdxl"], checkpoint("sdxl"), cache=CACHE)


@pytest.fixture
def copy(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """SDXL's checkpoint, to be changed."""
    return shutil.copytree(checkpoint("sdxl"), tmp_path / "copy")


def same(one: Conditioning, other: Conditioning) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )


def equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)


@pytest.mark.parametrize("name", among(FAMILIES, quick=QUICK))
def test_encoders_are_loaded_for_the_first_prompt(checkpoint: Callable[[str], Path], name: str) -> None:
    family, directory = FAMILIES[name], checkpoint(name)
    plain, later = build(family, directory, family.quick), build(family, directory, family.quick, cache=CACHE)
    assert isinstance(later.encoder_identity(), str)
    assert not list(later.components()["text encoders"].parameters())
    assert {n: p.device.type for n, p in later.module.named_parameters() if p.device.type != "cpu"} == {}
    assert later.latent_shape(*family.sizes[0]) == plain.latent_shape(*family.sizes[0])
    prompts = [replace(plain.example(family.sizes[0]), text=text) for text in TEXTS]
    assert later.truncated_prompts(prompts) == plain.truncated_prompts(prompts)
    assert later.rows() == plain.rows()
    with later.encoding():
        assert list(later.components()["text encoders"].parameters())
    for prompt in prompts:
        assert same(later.encode([prompt]), plain.encode([prompt]))
        if plain.supports_guidance:
            assert same(later.unconditional([prompt]), plain.unconditional([prompt]))


def test_encoders_that_wait_in_host_memory(checkpoint: Callable[[str], Path]) -> None:
    family, directory = FAMILIES["sdxl"], checkpoint("sdxl")
    later = build(family, directory, {"offload_text": True}, cache=CACHE)
    assert not list(later.offloaded_modules()["text encoders"].parameters())
    with later.encoding():
        assert list(later.offloaded_modules()["text encoders"].parameters())
    assert same(*(b.encode([b.example(family.sizes[0])]) for b in (later, build(family, directory))))


def test_what_rows_do_not_depend_on(checkpoint: Callable[[str], Path], sdxl: Any, copy: Path) -> None:
    before = sdxl.encoder_identity()
    settings = {"train": "full", "gradient_checkpointing": True, "lora": {"rank": 2, "alpha": 1}}
    other = build(
        FAMILIES["sdxl"], checkpoint("sdxl"), {"offload_text": True, "decode_chunk": 2}, cache=CACHE, **settings
    )
    assert other.encoder_identity() == before
    assert encoder_identity(sdxl, copy) == before, "another copy of the same files"
    path = next(copy.glob("unet/*.safetensors"))
    safetensors.torch.save_file({n: 2 * t for n, t in safetensors.torch.load_file(path).items()}, path)
    (copy / "README.md").write_text("words")
    assert encoder_identity(sdxl, copy) == before


@pytest.mark.parametrize(
    "file", ["text_encoder/model.safetensors", "text_encoder_2/model.safetensors", "vae/*.safetensors"]
)
def test_other_weights(sdxl: Any, copy: Path, file: str) -> None:
    (path,) = copy.glob(file)
    weights = safetensors.torch.load_file(path)
    max(weights.values(), key=torch.numel).view(-1)[-1] += 1
    safetensors.torch.save_file(weights, path, {"format": "pt"})
    assert encoder_identity(sdxl, copy) != sdxl.encoder_identity()


@pytest.mark.parametrize(
    "file",
    [
        "tokenizer/tokenizer_config.json", "tokenizer_2/tokenizer.json", "tokenizer/chat_template.jinja",
        "text_encoder/config.json", "model_index.json", "unet/config.json",
    ],
)  # fmt: skip
def test_other_settings(sdxl: Any, copy: Path, file: str) -> None:
    with (copy / file).open("a") as handle:
        handle.write("\n")
    assert encoder_identity(sdxl, copy) != sdxl.encoder_identity()


def test_another_dtype_option_or_class(checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    family, directory = FAMILIES["flux"], checkpoint("flux")
    found = [
        build(family, directory, options, cache=CACHE, **section).encoder_identity()
        for options, section in (
            ({}, {}),
            ({}, {"dtype": "bfloat16"}),
            ({}, {"dtype": "bfloat16", "train": "full"}),
            ({"text_length": 9}, {}),
        )
    ]
    other = type("Other", (family.kind,), {"__module__": __name__})
    found.append(build(replace(family, kind=other), directory, cache=CACHE).encoder_identity())
    monkeypatch.setattr(dgpo_diffusers.identity, "version", lambda name: "0.0.1")
    found.append(build(family, directory, cache=CACHE).encoder_identity())
    assert len(set(found)) == 6


def test_large_files_count_by_their_time_or_by_the_hubs_name(
    sdxl: Any, copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The samples of a large file leave out most of it."""
    monkeypatch.setattr(digests, "WHOLE", 0)
    path = copy / "text_encoder" / "model.safetensors"
    before = encoder_identity(sdxl, copy)
    os.utime(path, (1, 1))
    touched = encoder_identity(sdxl, copy)
    assert touched != before
    blob = tmp_path / "blobs" / "0123abcd"
    blob.parent.mkdir()
    path.rename(blob)
    path.symlink_to(blob)
    fetched = encoder_identity(sdxl, copy)
    os.utime(blob, (2, 2))
    assert encoder_identity(sdxl, copy) == fetched != touched


def test_a_checkpoint_that_changes_before_its_encoders_are_loaded(copy: Path) -> None:
    later = build(FAMILIES["sdxl"], copy, cache=CACHE)
    later.encoder_identity()
    with (copy / "tokenizer" / "tokenizer_config.json").open("a") as file:
        file.write("\n")
    for _ in range(2):  # nor at the second try: rows on disk are kept under the files of the first
        with pytest.raises(UserError, match=r"^backbone\.checkpoint: files of .*copy have changed"), later.encoding():
            pass


def test_a_model_without_weights_has_no_rows_to_keep(sdxl: Any) -> None:
    meta = type(sdxl).meta_model(sdxl.section, sdxl.options)
    assert meta.encoder_identity() is None
    assert list(meta.components()["text encoders"].parameters()), "a plan counts them"
