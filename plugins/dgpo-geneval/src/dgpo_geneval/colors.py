"""The benchmark's color classifier: zero-shot open_clip on the pixels inside an object's mask.

After `color_classification` of djghosh13/geneval. Legend: B images of H x W pixels, N objects of one image, S
side of the image encoder's input, D embedding width, K = 10 colors.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from dgpo_core.errors import UserError
from dgpo_core.weights import check_file, file_digest
from dgpo_geneval.detector import Box, Detection
from dgpo_geneval.metadata import COLORS

if TYPE_CHECKING:
    from dgpo_geneval.options import ColorOptions

__all__ = ["TEMPLATES", "OpenClipColors", "cut_out", "described", "to_square"]

TEMPLATES = ("a photo of a {color} {label}", "a photo of a {color}-colored {label}", "a photo of a {color} object")
CACHED = 256
"""Number of classes whose text embeddings are cached."""
SLENDER = 8
"""Crops with a larger aspect ratio are shortened before resizing, because only their center is used."""


def pixel_box(box: Box, height: int, width: int) -> tuple[int, int, int, int]:
    """Round a box to integers, half to even as Pillow's crop does; clip it to the image, at least one pixel wide."""
    x0, y0, x1, y1 = (round(edge) for edge in box)
    x0, y0 = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
    return x0, y0, min(max(x1, x0 + 1), width), min(max(y1, y0 + 1), height)


def cut_out(image: Tensor, detection: Detection, background: Tensor | None, *, crop: bool) -> Tensor:
    """Cut an object [3, h, w] out of an image [3, H, W]: paint `background` [3, 1, 1] outside its mask (skipped if
    either is None) and crop to its box if `crop`."""
    x0, y0, x1, y1 = pixel_box(detection.box, *image.shape[-2:]) if crop else (0, 0, *image.shape[:0:-1])
    part = image[:, y0:y1, x0:x1]
    if detection.mask is None or background is None:
        return part
    return torch.where(torch.from_numpy(detection.mask[y0:y1, x0:x1]).to(image.device), part, background)


def to_square(image: Tensor, side: int, *, mode: str, squash: bool) -> Tensor:
    """Resize an image [3, h, w] in [0, 1] to [3, side, side] as CLIP's preprocessing does, with anti-aliasing: the
    shorter edge to `side`, followed by a center crop; with `squash` both edges to `side`."""
    height, width = image.shape[-2:]
    short, long = min(height, width), max(height, width)
    if not squash and long > SLENDER * short + 32:
        spare = (long - (SLENDER * short + 32)) // 2
        image = image[..., spare : height - spare, :] if height > width else image[..., spare : width - spare]
        height, width = image.shape[-2:]
        long = max(height, width)
    stretched = int(side * long / short)
    size = (side, side) if squash else (side, stretched) if height <= width else (stretched, side)
    # Rows first, then columns, as Pillow does (since 12.2 not for tall images): bicubic overshoots at the edge of a
    # mask, and 8-bit images cannot, not even between the two.
    for step in ((height, size[1]), size):
        image = functional.interpolate(image[None], step, mode=mode, align_corners=False, antialias=True)[0]
        image = image.clamp(0, 1)
    top, left = (round((edge - side) / 2) for edge in size)
    return image[:, top : top + side, left : left + side]


def rgb(text: str, device: torch.device) -> Tensor | None:
    """Convert `#999` or `#999999` to [3, 1, 1] in [0, 1]; return None for `original`."""
    if text == "original":
        return None
    digits = text[1:] if len(text) == 7 else "".join(2 * digit for digit in text[1:])
    values = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    return torch.tensor(values, device=device).view(3, 1, 1)


class OpenClipColors:
    """A `detector.ColorClassifier` based on open_clip."""

    def __init__(self, options: ColorOptions, *, device: torch.device) -> None:
        """Load model, weights and tokenizer. Raises UserError if open_clip is missing, if the model or the weights are
        unknown, or if the weights cannot be downloaded or do not match the model."""
        self.options = options
        self.device = device
        self.model, self.tokenizer, seen = _load(options, device)
        self.side, self.mode, self.squash = seen["size"], seen["interpolation"], seen["resize_mode"] == "squash"
        self.mean = torch.tensor(seen["mean"], device=device).view(3, 1, 1)
        self.std = torch.tensor(seen["std"], device=device).view(3, 1, 1)
        self.background = rgb(options.background, device)
        self._weights: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    @torch.inference_mode()
    def __call__(self, images: Tensor, detections: Sequence[Sequence[Detection]]) -> list[list[str]]:
        """Name the color of each detection, one of the ten of `COLORS`. images: [B, 3, H, W], float in [0, 1], any
        device; detections: some detections of each image.

        As in the benchmark's program, the objects of an image share a forward pass, at most `batch` at a time, but
        objects of different images never do: the last bits of the embeddings depend on the batch size, so the color of
        an object must not depend on the other images."""
        chosen = [
            self._choose(self._crops(image, one[i : i + self.options.batch]), one[i : i + self.options.batch])
            for image, one in zip(images, detections, strict=True)
            for i in range(0, len(one), self.options.batch)
        ]
        names = iter([COLORS[index] for index in torch.cat(chosen).tolist()] if chosen else [])
        return [[next(names) for _ in one] for one in detections]

    def _crops(self, image: Tensor, objects: Sequence[Detection]) -> Tensor:
        """Return the encoder's input for some objects of an image [3, H, W]: [N, 3, S, S], normalized."""
        pixels = image.to(self.device, torch.float32)
        crops = []
        for detection in objects:
            part = cut_out(pixels, detection, self.background, crop=self.options.crop)
            crops.append(to_square(part, self.side, mode=self.mode, squash=self.squash))
        return (torch.stack(crops) - self.mean) / self.std

    def _choose(self, crops: Tensor, objects: Sequence[Detection]) -> Tensor:
        """Return the index of the most likely color of each object, int64 [N]."""
        labels = list(dict.fromkeys(detection.label for detection in objects))
        weights = torch.stack([self.weights(label) for label in labels])
        which = torch.tensor([labels.index(detection.label) for detection in objects], device=self.device)
        features = self.model.encode_image(crops, normalize=True)
        chosen: Tensor = (features[:, None, :] @ weights[which]).squeeze(1).argmax(1)
        return chosen

    def weights(self, label: str) -> Tensor:
        """Return the text embeddings [D, K] of the colors of a class: the normalized mean of the templates' normalized
        embeddings. The most recently used classes are cached; thread-safe."""
        with self._lock:
            known = self._weights.get(label)
            if known is None:
                texts = [template.format(color=color, label=label) for color in COLORS for template in TEMPLATES]
                embeddings = self.model.encode_text(self.tokenizer(texts).to(self.device), normalize=True)
                mean = embeddings.unflatten(0, (len(COLORS), len(TEMPLATES))).mean(1)
                known = functional.normalize(mean, dim=-1).T
                self._weights[label] = known
            self._weights.move_to_end(label)
            while len(self._weights) > CACHED:
                self._weights.popitem(last=False)
            return known


def described(options: ColorOptions) -> str:
    """Return in words what the classifier of these options is, without loading it: the model, the tag or the digest of
    the file of its weights, and the version of open_clip if that is installed."""
    file = Path(options.pretrained).expanduser()
    weights = f"{file.name} {file_digest(file).digest}" if file.is_file() else options.pretrained
    try:
        library = f"open_clip {metadata.version('open_clip_torch')}"
    except metadata.PackageNotFoundError:
        library = "open_clip"
    return f"{options.model} {weights}, {library}"


def _load(options: ColorOptions, device: torch.device) -> tuple[Any, Any, dict[str, Any]]:
    """Return model, tokenizer and preprocessing config."""
    try:
        open_clip: Any = importlib.import_module("open_clip")
    except Exception as error:  # absent, or beside a torchvision that does not fit its torch
        hint = "pip install 'dgpo-geneval[color]'"
        raise UserError(
            f"the detector does not name colors, and the color classifier requires open_clip: {hint} ({error})"
        ) from error
    name = options.model
    if name not in open_clip.list_models():
        raise UserError(f"colors.model: unknown open_clip model {name!r}; see `open_clip.list_models()`")
    what = f"colors.pretrained: {options.pretrained} for {name}"
    tags = open_clip.list_pretrained_tags_by_model(name)
    tagged = options.pretrained in tags
    file = Path(options.pretrained).expanduser()
    if not tagged and not file.is_file():
        raise UserError(f"{what}: no such file or open_clip tag; tags of this model: {', '.join(tags) or 'none'}")
    if not tagged:
        check_file(file, what)
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):  # weights are drawn before they are loaded
            model = open_clip.create_model(
                name,
                pretrained=options.pretrained if tagged else str(file),
                device=device,
                # open_clip 3 only warns that OpenAI's weights were trained with another activation, and uses its own.
                force_quick_gelu=tagged
                and bool(open_clip.get_pretrained_cfg(name, options.pretrained).get("quick_gelu")),
                require_pretrained=True,
            )
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:
        raise UserError(f"{what} cannot be loaded: {_first_lines(str(error).splitlines() or [repr(error)])}") from error
    seen = dict(open_clip.get_model_preprocess_cfg(model))
    sides = seen["size"] if isinstance(seen["size"], (tuple, list)) else (seen["size"],) * 2
    if sides[0] != sides[1] or seen["resize_mode"] not in ("shortest", "squash"):
        raise UserError(f"colors.model: {name} requires images of {sides}, {seen['resize_mode']}: not supported")
    seen["size"] = sides[0]
    seen["interpolation"] = "bilinear" if seen["interpolation"] == "bilinear" else "bicubic"
    return model.eval().requires_grad_(False), tokenizer, seen


def _first_lines(lines: Iterable[str]) -> str:
    """Return the beginning of a library's message, without its list of hundreds of keys."""
    return " ".join(line.strip() for line in list(lines)[:3] if line.strip())[:400]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence open_clip, which logs every step of loading to the root logger; its errors are raised."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        root.setLevel(level)
