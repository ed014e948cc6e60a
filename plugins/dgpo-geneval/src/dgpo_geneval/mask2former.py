"""The detector `mask2former`: Mask2Former of transformers, on the device of the run.

Legend: B images of H x W pixels, Q queries, C classes, masks of h x w pixels, N instances in all images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from dgpo_core.transfers import in_float64
from dgpo_geneval.detector import Detection, Detector, Thresholds
from dgpo_geneval.loading import load
from dgpo_geneval.photograph import photograph_examples

if TYPE_CHECKING:
    from dgpo_core.types import Example
    from dgpo_geneval.options import Mask2FormerOptions

__all__ = ["Instances", "Mask2FormerDetector", "boxes_of", "find_instances", "network_size"]

DIVISOR = 32
"""The sides of the network's input are multiples of this, as Swin requires."""
MASK_SIZE = 384
"""Side of the square to which transformers resizes every mask before scoring it."""


def network_size(height: int, width: int, side: int, longest: int) -> tuple[int, int]:
    """Return the size (height, width) to resize an image to, as transformers' processor does.

    The shorter side becomes `side`, or less if the longer one would exceed `longest`; both are then rounded up to
    multiples of 32, which stretches the image slightly and may exceed `longest` by up to 31.
    """
    short, long = min(height, width), max(height, width)
    exact: float = side
    if long / short * side > longest:
        exact = longest * short / long
    sides = (max(round(exact), 1), int(exact * long / short))
    new_height, new_width = sides if height <= width else sides[::-1]
    return -(-new_height // DIVISOR) * DIVISOR, -(-new_width // DIVISOR) * DIVISOR


@dataclass(frozen=True, slots=True)
class Instances:
    """Objects of a batch: image, query and label int64 [N], score float32 [N], mask bool [N, H, W] at image size."""

    image: Tensor
    query: Tensor
    label: Tensor
    score: Tensor
    mask: Tensor


def find_instances(
    class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int], *, score: float, mask: float = 0.5
) -> Instances:
    """Convert the network's output [B, Q, C + 1] and [B, Q, h, w] to instances with a score of at least `score`.

    Equivalent to transformers' `post_process_instance_segmentation` (v5) with binary maps and a mask threshold of
    `mask` instead of 0.5: takes the Q most probable pairs of query and class; resizes masks to 384 x 384; the score is
    the class probability times the mean mask probability inside the mask; resizes masks to the image size (nearest).
    Overlapping instances are kept. Runs on the device of the logits.
    """
    queries, classes = class_logits.shape[1], class_logits.shape[2] - 1
    chance, pair = class_logits.float().softmax(-1)[..., :-1].flatten(1).topk(queries)
    # A score is at most its class probability, so only few masks must be computed.
    image, place = torch.nonzero(chance >= score, as_tuple=True)
    chance, pair = chance[image, place], pair[image, place]
    if not len(image):
        return Instances(image, pair, pair, chance, torch.zeros((0, *size), dtype=torch.bool, device=image.device))
    query = torch.div(pair, classes, rounding_mode="floor")
    chosen = mask_logits[image, query].float()
    logits = functional.interpolate(chosen[None], (MASK_SIZE, MASK_SIZE), mode="bilinear", align_corners=False)[0]
    inside = (logits > math.log(mask / (1 - mask))).float()
    mean = (logits.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    inside = functional.interpolate(inside[None], size, mode="nearest")[0] > 0.5
    scores = chance * mean
    seen = (scores >= score) & inside.flatten(1).any(1)
    return Instances(image[seen], query[seen], (pair % classes)[seen], scores[seen], inside[seen])


def boxes_of(masks: Tensor) -> Tensor:
    """Return the boxes, float32 [N, 4], of nonempty masks, bool [N, H, W]: (first column, first row, last column + 1,
    last row + 1), as in mmdet."""
    edges = []
    for line in (masks.any(1), masks.any(2)):
        place = torch.arange(line.shape[1], device=masks.device)
        edges.append((torch.where(line, place, line.shape[1]).amin(1), torch.where(line, place, -1).amax(1) + 1))
    (x0, x1), (y0, y1) = edges
    return torch.stack([x0, y0, x1, y1], 1).float()


class Mask2FormerDetector(Detector):
    """Mask2Former of transformers. The default checkpoint is Facebook's; the benchmark uses mmdet's weights of the same
    architecture, whose scores have another scale, so call results "GenEval with Mask2Former (HF)"."""

    def __init__(self, options: Mask2FormerOptions, *, device: torch.device) -> None:
        """Load the checkpoint. Raises UserError; see `loading.load`."""
        super().__init__(options, device=device)
        loaded = load(options)
        self.network = loaded.network.to(device)
        self.dtype: torch.dtype = getattr(torch, options.dtype)
        self.names = loaded.names
        self.labels = tuple(dict.fromkeys(loaded.names))
        self.thresholds = Thresholds(options.score, options.counting, options.per_class)
        self.origin = loaded.origin
        shape = (3, 1, 1)
        self.gain = loaded.scale / torch.tensor(loaded.std, device=device).view(shape)
        self.offset = (torch.tensor(loaded.mean) / torch.tensor(loaded.std)).to(device).view(shape)

    @torch.inference_mode()
    def detect(self, images: Tensor) -> list[list[Detection]]:
        """Return the detections of each image, with masks, sorted by descending score, then by label, box and query.

        images: [B, 3, H, W], float in [0, 1], any device. Scores are float32, not rounded. Detections below both
        thresholds are omitted. Each image has its own forward pass, because the last bits of the network's output
        depend on the batch size; so its detections do not depend on the other images, bit for bit.
        """
        starts = range(0, len(images), self.options.batch)
        return [found for i in starts for found in self._detect(images[i : i + self.options.batch])]

    def _detect(self, images: Tensor) -> list[list[Detection]]:
        """Queue all forward passes on the device before waiting for the first result."""
        outputs = [self.network(pixel_values=self.pixels(image[None])) for image in images]
        answers = [(output.class_queries_logits, output.masks_queries_logits) for output in outputs]
        return [self._read(*answer, (images.shape[-2], images.shape[-1])) for answer in answers]

    def _read(self, class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int]) -> list[Detection]:
        """Convert the network's output for one image of `size` to detections."""
        lowest = min(self.thresholds.score, self.thresholds.counting)
        found = find_instances(class_logits, mask_logits, size, score=lowest, mask=self.options.mask)
        # One table and the masks are copied from the device, to avoid many small transfers.
        columns = (*(column[:, None] for column in (found.query, found.label, found.score)), boxes_of(found.mask))
        table = torch.cat([in_float64(column) for column in columns], 1).cpu().tolist()
        masks = found.mask.cpu().numpy()
        seen = [
            (query, Detection(self.names[int(label)], score, (x0, y0, x1, y1), mask=mask))
            for (query, label, score, x0, y0, x1, y1), mask in zip(table, masks, strict=True)
        ]
        seen.sort(key=lambda pair: (-pair[1].score, pair[1].label, pair[1].box, pair[0]))
        return [detection for _, detection in seen]

    def pixels(self, images: Tensor) -> Tensor:
        """Preprocess images [B, 3, H, W] in [0, 1] for the network: swap red and blue if `channels` is bgr, resize
        (bilinear, anti-aliased), normalize as the checkpoint's processor does, convert to the network's dtype."""
        if self.options.channels == "bgr":
            images = images.flip(1)
        size = network_size(images.shape[-2], images.shape[-1], self.options.side, self.options.longest)
        resized = functional.interpolate(
            images.to(self.device, torch.float32), size, mode="bilinear", align_corners=False, antialias=True
        )
        return (resized * self.gain - self.offset).to(self.dtype)

    def provenance(self) -> Mapping[str, Any]:
        """Return the thresholds, and what was loaded."""
        return {**super().provenance(), **self.origin}

    def examples(self) -> Sequence[Example]:
        """Return a photograph of a person with a right and a wrong prompt, and noise."""
        return photograph_examples()
