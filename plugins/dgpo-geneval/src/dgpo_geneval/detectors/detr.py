"""The detector `detr`: any object detector of transformers with a fixed list of classes.

Legend: Q queries, C classes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_geneval.checkpoints import check_names
from dgpo_geneval.detectors.boxes import Boxes, best_classes, corners
from dgpo_geneval.detectors.transformers_boxes import TransformersDetector, to_pixels

if TYPE_CHECKING:
    from dgpo_geneval.detectors.options import DetrOptions

__all__ = ["DetrDetector", "has_softmax"]

GAP = re.compile(r"n/a|none|background|__background__|label_\d+|")
"""Names of indices that are no class: COCO's 80 classes have numbers up to 90."""


def has_softmax(logits: int, classes: int) -> bool:
    """Return whether the logits of a query are those of a softmax, else each is that of a sigmoid.

    DETR, YOLOS and Table Transformer have one logit more than classes, for "no object". All others have one per class.
    Raises ValueError for another number.
    """
    if logits not in (classes, classes + 1):
        raise ValueError(f"the network has {logits} logits per query, its configuration {classes} classes")
    return logits > classes


class DetrDetector(TransformersDetector):
    """DETR and its relatives. Each query is one object, of its best class."""

    NAME = "detr"
    options: DetrOptions

    def __init__(self, options: DetrOptions, *, device: torch.device) -> None:
        """Load the checkpoint. Raises UserError; see `TransformersDetector`; also if it lacks GenEval's classes."""
        super().__init__(options, device=device)
        checkpoint = self._load(options.checkpoint, "AutoModelForObjectDetection", _architectures())
        names = check_names(checkpoint, self.config.id2label, subset=options.subset)
        self.names = tuple(None if GAP.fullmatch(name) else name for name in names)
        self.labels = tuple(dict.fromkeys(name for name in self.names if name is not None))

    def find(self, image: Tensor) -> Boxes:
        """Return one box per query, with its best class."""
        output = self.network(**self.pixels(image))
        scores = output.logits[0].float()
        softmax = has_softmax(scores.shape[-1], len(self.names))
        if softmax:
            scores = scores.softmax(-1)[..., :-1]
        boxes = to_pixels(corners(output.pred_boxes[0]), image.shape[-2], image.shape[-1])
        return best_classes(scores, boxes, logits=not softmax)


def _architectures() -> tuple[str, ...]:
    """Return the names of all object detectors of the installed transformers, none if there is no transformers."""
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES as NAMES
    except ImportError:
        return ()
    return tuple(name for name in NAMES.values() if not name.startswith("PP"))
