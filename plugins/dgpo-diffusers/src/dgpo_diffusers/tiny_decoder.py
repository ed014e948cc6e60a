"""Tiny decoders: the TAESD project's (github.com/madebyollin/taesd), diffusers' AutoencoderTiny.

They decode latents as the denoiser has them, without the autoencoder's scaling and shift, with a thousandth of its
operations. Each is made for the latents of one autoencoder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from huggingface_hub import hf_hub_download
from torch import Tensor, nn

from dgpo_core.errors import UserError
from dgpo_core.weights import check_file, check_weights, locate, read_json, unreachable
from dgpo_diffusers.libraries import library_class, quiet
from dgpo_schemas.text import clean, error_text

if TYPE_CHECKING:
    from dgpo_diffusers.family import Family

__all__ = ["TinyDecoder", "load_tiny_decoder"]

WHERE = "backbone.options.tiny_decoder"
STEM = "diffusion_pytorch_model"
SUFFIX = ".safetensors"
FORMS = "a directory in diffusers' format (AutoencoderTiny), a .safetensors file of the TAESD project, or a repository"
RAW = re.compile(r"(?:decoder\.)?(\d+)\.(.+)")
"""Name of a tensor in the project's own files, of which a few hold the encoder too."""
NAMED = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
"""Name of a tensor in diffusers' files."""


class TinyDecoder(nn.Module):
    """The decoder of an AutoencoderTiny in float32; its encoder is dropped.

    Attributes:
        channels: Channels of the latents.
        factor: Pixels per latent in each direction.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        config = model.config
        self.decoder = model.decoder.float().eval().requires_grad_(False)
        self.channels: int = config.latent_channels
        self.factor: int = config.upsampling_scaling_factor ** (len(config.num_decoder_blocks) - 1)
        self._scale, self._shift = float(config.scaling_factor or 1), float(config.shift_factor or 0)

    def forward(self, x0: Tensor) -> Tensor:
        """Decode latents [B, C, h, w], as the denoiser has them, to images [B, 3, H, W], roughly in [-1, 1]."""
        pixels: Tensor = self.decoder(x0 / self._scale + self._shift)
        return pixels


def load_tiny_decoder(family: Family, *, without_weights: bool = False) -> TinyDecoder | None:
    """Return the decoder that the options name, on the CPU; None if they name none.

    without_weights: on torch's meta device, and of the usual size for a repository, for nothing is downloaded.
    Raises UserError for a file that is missing, damaged or of another kind, and if it does not fit the model's latents.
    """
    chosen = family.options.tiny_decoder
    if chosen is None:
        return None
    height, width = (side.start for side in family.sides())
    channels, rows, _ = family.latents(height, width)
    found = _opened(chosen.checkpoint, channels, without_weights)
    if (found.channels, found.factor) != (channels, height // rows):
        raise UserError(
            f"{WHERE}: {chosen.checkpoint} decodes latents of {found.channels} channels to {found.factor} pixels in "
            f"each direction, but {family.section.checkpoint} has {channels} channels and {height // rows} pixels: it "
            "is made for another autoencoder"
        )
    return found


def _opened(text: str, channels: int, without_weights: bool) -> TinyDecoder:
    path = Path(text)
    if path.is_file() or text.endswith((SUFFIX, ".pth", ".pt", ".bin")):
        return _of_file(path, without_weights)
    directory = locate(text, WHERE, forms=FORMS)
    if directory is None:
        if without_weights:
            with torch.device("meta"):
                return TinyDecoder(_blank(latent_channels=channels))
        directory = _fetched(text)
    config = directory / "config.json"
    if not config.is_file():
        raise UserError(f"{WHERE}: {directory} has no config.json; allowed is {FORMS}")
    data = read_json(config, WHERE)
    if (found := data.get("_class_name")) != "AutoencoderTiny":
        raise UserError(f"{WHERE}: {config} is the config of {clean(str(found), 100)}, not of AutoencoderTiny")
    check_weights(directory, STEM, WHERE)
    try:
        if without_weights:
            with torch.device("meta"), quiet():
                return TinyDecoder(_kind().from_config(data))
        with quiet(), torch.random.fork_rng(devices=[]):
            model, info = _kind().from_pretrained(
                directory, torch_dtype=torch.float32, use_safetensors=True, local_files_only=True,
                output_loading_info=True,
            )  # fmt: skip
    except Exception as error:  # the library may raise anything for an unexpected value
        raise UserError(f"{WHERE}: {directory} cannot be loaded: {_line(error)}") from error
    if missing := sorted(key for key in info["missing_keys"] if key.startswith("decoder.")):
        raise UserError(f"{WHERE}: {directory} lacks {len(missing)} of the decoder's weights, among them {missing[0]}")
    return TinyDecoder(model)


def _fetched(name: str) -> Path:
    try:
        return [Path(hf_hub_download(name, file)).parent for file in ("config.json", f"{STEM}{SUFFIX}")][-1]
    except Exception as error:  # of the Hub's client and its network library
        raise unreachable(WHERE, name, None, error) from error


def _of_file(path: Path, without_weights: bool) -> TinyDecoder:
    if path.suffix != SUFFIX:
        raise UserError(f"{WHERE}: {path} is a pickle, which is not read; use the {SUFFIX} file of the same name")
    if not os.path.lexists(path):
        raise UserError(f"{WHERE}: {path} does not exist; allowed is {FORMS}")
    check_file(path, WHERE)
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{WHERE}: {path} cannot be read: {_line(error)}") from error
    layers = _layers(tensors, path)
    try:
        with torch.device("meta" if without_weights else "cpu"):
            model = _blank(**_sizes(layers))
            assert isinstance(model, nn.Module)
            if not without_weights:
                model.get_submodule("decoder.layers").load_state_dict(layers)
    except (RuntimeError, KeyError, ValueError) as error:
        raise UserError(f"{WHERE}: {path} is not a decoder of the TAESD project: {_line(error)}") from error
    return TinyDecoder(model)


def _layers(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the decoder's tensors by their names in `DecoderTiny.layers`.

    The project's decoder starts with its clamp, which diffusers applies outside the layers: places are one less there.
    """
    named = {f"{found[1]}.{found[2]}": t for name, t in tensors.items() if (found := NAMED.fullmatch(name))}
    raw = {f"{int(found[1]) - 1}.{found[2]}": t for name, t in tensors.items() if (found := RAW.fullmatch(name))}
    layers = named or raw
    if "-1.weight" in layers:
        raise UserError(f"{WHERE}: {path} holds the encoder; the decoder is another file of the same project")
    if not layers:
        first = clean(next(iter(tensors), "nothing"), 100)
        raise UserError(f"{WHERE}: {path} holds other weights ({first}); allowed is {FORMS}")
    return layers


def _sizes(layers: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the settings of AutoencoderTiny from the shapes of the decoder's tensors.

    A stage is blocks and a plain convolution, with an upsampling between them that has no tensors, except in the last.
    """
    blocks, widths, count, last = [], [], 0, max(int(name.partition(".")[0]) for name in layers)
    for place in range(2, last + 1):
        if f"{place}.conv.0.weight" in layers:
            count += 1
        elif f"{place}.weight" in layers:
            blocks.append(count)
            widths.append(layers[f"{place}.weight"].shape[1])
            count = 0
    return {
        "latent_channels": layers["0.weight"].shape[1],
        "num_decoder_blocks": tuple(blocks),
        "decoder_block_out_channels": tuple(widths),
        "out_channels": layers[f"{last}.weight"].shape[0],
    }


def _blank(**sizes: Any) -> Any:
    """Return an AutoencoderTiny with random weights; the global random state is left alone."""
    stages = len(sizes.get("num_decoder_blocks", (3, 3, 3, 1)))
    encoder = {"num_encoder_blocks": (0,) * stages, "encoder_block_out_channels": (8,) * stages}
    with torch.random.fork_rng(devices=[]), quiet():
        return _kind()(**encoder, **sizes)


def _kind() -> Any:
    return library_class("AutoencoderTiny")


def _line(error: BaseException) -> str:
    return clean(error_text(error).replace("\n", " "), 300)
