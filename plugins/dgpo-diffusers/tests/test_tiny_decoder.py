"""Tiny decoders against diffusers' AutoencoderTiny, with random weights and with the real ones of SD3's latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.cbook
import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_diffusers.families.flux.backbone import FluxBackbone
from dgpo_diffusers.families.flux.options import FluxOptions
from dgpo_diffusers.families.flux.tiny import make_tiny_flux
from dgpo_diffusers.tiny_decoder import TinyDecoder, _of_file
from dgpo_kit.contracts import check_backbone
from dgpo_schemas.sections.backbone import BackboneSection
from tests.families.proof import among

SIZES = {
    "encoder_block_out_channels": (8, 8, 8), "num_encoder_blocks": (1, 1, 1),
    "decoder_block_out_channels": (8, 8, 8), "num_decoder_blocks": (2, 1, 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_flux(tmp_path_factory.mktemp("flux") / "tiny")


@pytest.fixture(scope="module")
def tiny() -> Any:
    """For latents of 4 channels, 4 pixels each."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return AutoencoderTiny(latent_channels=4, **SIZES).eval()


@pytest.fixture(scope="module")
def directory(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("tiny decoder")
    tiny.save_pretrained(found)
    return found


def raw(tiny: Any, part: str = "decoder", first: int = 1) -> dict[str, Tensor]:
    """The names of the project's own files: `nn.Sequential`, the decoder's with a clamp in the first place."""
    found = {}
    for name, tensor in getattr(tiny, part).layers.state_dict().items():
        place, _, rest = name.partition(".")
        found[f"{int(place) + first}.{rest}"] = tensor.clone()
    return found


def build(checkpoint: Path, **options: Any) -> FluxBackbone:
    section = BackboneSection(use="flux", checkpoint=str(checkpoint), lora={"rank": 2, "alpha": 2})
    return FluxBackbone(section, FluxOptions.model_validate(options), device=torch.device("cpu"))


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def images(tiny: Any, x0: Tensor) -> Tensor:
    with torch.no_grad():
        pixels: Tensor = tiny.decode(x0).sample
    return (pixels / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("prefix", among(["directory", "", "decoder."], quick=["directory"]))
def test_rollouts_are_decoded_as_by_diffusers(
    checkpoint: Path, directory: Path, tiny: Any, prefix: str, tmp_path: Path
) -> None:
    chosen = directory
    if prefix != "directory":
        chosen = tmp_path / "tiny.safetensors"
        safetensors.torch.save_file({prefix + name: tensor for name, tensor in raw(tiny).items()}, chosen)
    backbone, plain = build(checkpoint, tiny_decoder=str(chosen)), build(checkpoint)
    x0 = 2 * normal(3, *backbone.latent_shape(32, 48))
    assert torch.equal(backbone.decode_rollouts(x0), images(tiny, x0))
    assert torch.equal(backbone.decode(x0), plain.decode(x0))
    assert torch.equal(plain.decode_rollouts(x0), plain.decode(x0))
    assert not torch.equal(backbone.decode_rollouts(x0), backbone.decode(x0))
    assert set(backbone.components()) - set(plain.components()) == {"tiny decoder"}
    everywhere = build(checkpoint, tiny_decoder={"checkpoint": str(chosen), "evaluation": True})
    assert torch.equal(everywhere.decode(x0), images(tiny, x0))


@pytest.mark.slow
def test_the_contract(checkpoint: Path, directory: Path) -> None:
    options = {"tiny_decoder": {"checkpoint": str(directory), "evaluation": True}}
    check_backbone(lambda: build(checkpoint, **options), (32, 32))


def test_without_weights_it_has_the_same_shapes(checkpoint: Path, directory: Path, tiny: Any, tmp_path: Path) -> None:
    file = tmp_path / "tiny.safetensors"
    safetensors.torch.save_file(raw(tiny), file)
    for chosen in (directory, file):
        real = build(checkpoint, tiny_decoder=str(chosen))
        meta = FluxBackbone.meta_model(real.section, real.options)
        found, wanted = (b.components()["tiny decoder"].state_dict() for b in (meta, real))
        assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in wanted.items()}
        assert all(t.is_meta for t in found.values())
        meta.device = torch.device("cpu")  # autocast knows no meta device
        assert meta.decode_rollouts(torch.empty(2, 4, 8, 8, device="meta")).shape == (2, 3, 32, 32)


def test_one_of_another_model_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    AutoencoderTiny(latent_channels=16, **SIZES).save_pretrained(tmp_path)
    expected = r"tiny_decoder: .* decodes latents of 16 channels to 4 pixels .* has 4 channels and 4 pixels: it is made"
    with pytest.raises(UserError, match=expected):
        build(checkpoint, tiny_decoder=str(tmp_path))


def test_files_of_another_kind_are_refused(checkpoint: Path, tiny: Any, tmp_path: Path) -> None:
    file = tmp_path / "tiny.safetensors"

    def refused(text: str, chosen: Path | str = file) -> None:
        with pytest.raises(UserError, match=rf"^backbone\.options\.tiny_decoder: .*{text}") as caught:
            build(checkpoint, tiny_decoder=str(chosen))
        assert "\n" not in str(caught.value)

    refused("does not exist; allowed is a directory in diffusers' format")
    safetensors.torch.save_file(raw(tiny, "encoder", 0), file)
    refused("holds the encoder; the decoder is another file")
    safetensors.torch.save_file({"model.weight": torch.zeros(1)}, file)
    refused(r"holds other weights \(model.weight\); allowed is a directory")
    safetensors.torch.save_file({n: t for n, t in raw(tiny).items() if n != "3.conv.2.bias"}, file)
    refused("is not a decoder of the TAESD project")
    file.with_suffix(".pth").write_bytes(b"PK")
    refused("is a pickle, which is not read", file.with_suffix(".pth"))
    refused("has no config.json", tmp_path)
    refused("is the config of AutoencoderKL, not of AutoencoderTiny", checkpoint / "vae")
    refused("is not a local directory, and as a Hub repository", "nobody/no-such-decoder")


@pytest.mark.slow
def test_photographs_survive_the_real_weights(test_data: Path) -> None:
    """The project's encoder, read by diffusers, gives latents; 25 dB are what the decoder's author shows."""
    encoder = AutoencoderTiny(latent_channels=16).eval()
    weights = safetensors.torch.load_file(test_data / "taesd3_encoder.safetensors")
    encoder.encoder.layers.load_state_dict(weights)
    decoder = _of_file(test_data / "taesd3_decoder.safetensors", False)
    assert isinstance(decoder, TinyDecoder)
    assert (decoder.channels, decoder.factor) == (16, 8)
    file: Any = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    photograph = Image.open(file).convert("RGB")
    cut = np.asarray(photograph.crop((0, 40, 512, 552)).resize((256, 256), Image.Resampling.LANCZOS))
    image = torch.from_numpy(cut.copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        again = (decoder(encoder.encode(image * 2 - 1).latents) / 2 + 0.5).clamp(0, 1)
    assert -10 * float((again - image).square().mean().log10()) > 25
