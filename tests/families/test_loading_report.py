"""The report of loaded weights, against the tensors that the files of a checkpoint hold."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

from tests.families.proof import build, proofs

FLUX = proofs()["flux"]
MODELS = ("transformer", "vae", "text_encoder", "text_encoder_2")


def held(directory: Path, model: str) -> int:
    (file,) = (directory / model).glob("*.safetensors")
    return len(safetensors.torch.load_file(file))


def test_every_tensor_of_the_files_is_counted(checkpoint: Callable[[str], Path]) -> None:
    directory = checkpoint("flux")
    report = build(FLUX, directory).loaded_weights()
    assert set(report) == set(MODELS)
    for model in ("transformer", "vae"):
        assert report[model] == f"{held(directory, model)} tensors, none missing, 0 unused"


def test_a_tensor_that_no_layer_reads_is_named(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    directory = shutil.copytree(checkpoint("flux"), tmp_path / "copy")
    (file,) = (directory / "transformer").glob("*.safetensors")
    tensors = safetensors.torch.load_file(file)
    count = len(tensors)
    safetensors.torch.save_file(tensors | {"left.over": torch.zeros(1)}, file, {"format": "pt"})
    report = build(FLUX, directory).loaded_weights()
    assert report["transformer"] == f"{count} tensors, none missing, 1 unused (left.over)"
