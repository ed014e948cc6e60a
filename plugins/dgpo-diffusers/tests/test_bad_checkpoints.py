"""What is wrong with a checkpoint is said in one sentence, before the model is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dgpo_core.errors import UserError
from dgpo_diffusers.families.flux.backbone import FluxBackbone
from dgpo_diffusers.families.flux.options import FluxOptions
from dgpo_diffusers.families.flux.tiny import make_tiny_flux
from dgpo_schemas.sections.backbone import BackboneSection


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_flux(tmp_path_factory.mktemp("tiny") / "flux")


def _config(part: str, **changes: Any) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        path = directory / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return write


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no scheduler": (
        lambda directory: shutil.rmtree(directory / "scheduler"),
        "scheduler: there is no directory DIRECTORY/scheduler; download it with hf download REPOSITORY --include "
        "'scheduler/*' --local-dir DIRECTORY",
    ),
    "axes of another head": (
        _config("transformer", axes_dims_rope=[4, 4]),
        "transformer: DIRECTORY/transformer/config.json: axes_dims_rope is [4, 4]; allowed are even numbers with the "
        "sum 16, the size of an attention head",
    ),
    "odd axes": (
        _config("transformer", axes_dims_rope=[5, 5, 6]),
        "transformer: DIRECTORY/transformer/config.json: axes_dims_rope is [5, 5, 6]; allowed are even numbers with "
        "the sum 16, the size of an attention head",
    ),
    "another shape": (
        _config("vae", latent_channels=3),
        "DIRECTORY/vae cannot be loaded as AutoencoderKL: Cannot load  because decoder.conv_in.weight expected shape "
        "torch.Size([8, 3, 3, 3]), but got torch.Size([8, 4, 3, 3]).",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_it_is_refused(case: str, checkpoint: Path, tmp_path: Path) -> None:
    change, message = BAD[case]
    directory = shutil.copytree(checkpoint, tmp_path / "flux")
    change(directory)
    section = BackboneSection(use="flux", checkpoint=str(directory))
    with pytest.raises(UserError) as caught:
        FluxBackbone(section, FluxOptions(text_length=16), device=torch.device("cpu"))
    assert str(caught.value) == f"backbone.checkpoint: {message.replace('DIRECTORY', str(directory))}"


def test_a_reason_of_two_lines_is_shown_whole(checkpoint: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(checkpoint, tmp_path / "flux")
    _config("text_encoder", hidden_size=3)(directory)
    section = BackboneSection(use="flux", checkpoint=str(directory))
    with pytest.raises(UserError) as caught:
        FluxBackbone(section, FluxOptions(text_length=16), device=torch.device("cpu"))
    assert not str(caught.value).endswith(":")
    assert "\n" not in str(caught.value)
