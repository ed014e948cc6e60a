"""The detector `grounding-dino`: Grounding DINO (Liu et al., arXiv 2303.05499) of transformers, for an open vocabulary.

Legend: Q queries, T positions of text tokens (256), C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_geneval.checkpoints import read
from dgpo_geneval.detectors.boxes import Boxes, best_classes, corners
from dgpo_geneval.detectors.transformers_boxes import TransformersDetector, to_pixels

if TYPE_CHECKING:
    from dgpo_geneval.detectors.options import GroundingDinoOptions

__all__ = ["GroundingDinoDetector", "prompt_of", "span_logits", "token_spans"]

ARCHITECTURES = ("GroundingDinoForObjectDetection", "MMGroundingDinoForObjectDetection")
Span = tuple[int, int]


def prompt_of(classes: tuple[str, ...]) -> tuple[str, tuple[Span, ...]]:
    """Return the text "cat. dog." of some classes, and where each stands in it: characters [first, last + 1)."""
    text, spans = "", []
    for name in classes:
        spans.append((len(text), len(text) + len(name)))
        text += f"{name}. "
    return text.rstrip(), tuple(spans)


def token_spans(offsets: list[Span], spans: tuple[Span, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the positions of the tokens of each class, whose characters overlap the class's. offsets: characters
    [first, last + 1) of each token, equal for tokens that are no text."""
    return tuple(
        tuple(i for i, (a, b) in enumerate(offsets) if a < b and a < last and b > first) for first, last in spans
    )


def span_logits(logits: Tensor, tokens: tuple[tuple[int, ...], ...]) -> Tensor:
    """Return the logits [Q, C] of classes from those of tokens [Q, T]: the maximum over the tokens of a class."""
    return torch.stack([logits[:, list(span)].amax(-1) for span in tokens], -1)


class GroundingDinoDetector(TransformersDetector):
    """Grounding DINO with one text for all images. Each query is one object, of its best class."""

    NAME = "grounding-dino"
    options: GroundingDinoOptions

    def __init__(self, options: GroundingDinoOptions, *, device: torch.device) -> None:
        """Load the checkpoint. Raises UserError; see `TransformersDetector`; also if the classes exceed its text."""
        super().__init__(options, device=device)
        checkpoint = self._load(options.checkpoint, "AutoModelForZeroShotObjectDetection", ARCHITECTURES)
        from transformers import AutoTokenizer

        tokenizer: Any = read(checkpoint, AutoTokenizer.from_pretrained)
        self.names = self.labels = tuple(options.classes)
        text, spans = prompt_of(self.labels)
        encoded = tokenizer(text, return_offsets_mapping=True, return_token_type_ids=True, return_tensors="pt")
        self.tokens = token_spans(encoded.pop("offset_mapping")[0].tolist(), spans)
        self.text = {key: value.to(device) for key, value in encoded.items()}
        self._check_text(encoded["input_ids"], tokenizer.unk_token_id)

    def _check_text(self, ids: Tensor, unknown: int | None) -> None:
        """Raise UserError for classes that the network would not read completely."""
        length, limit = ids.shape[1], self.config.max_text_len
        if length > limit:
            raise UserError(
                f"detector {self.NAME}: classes: the {len(self.labels)} names are {length} tokens, and the network "
                f"reads {limit}; name fewer classes"
            )
        for name, span in zip(self.labels, self.tokens, strict=True):
            if not span or unknown in ids[0, list(span)].tolist():
                raise UserError(f"detector {self.NAME}: classes: the tokenizer of the checkpoint cannot read {name!r}")

    def find(self, image: Tensor) -> Boxes:
        """Return one box per query, with its best class."""
        output = self.network(**self.pixels(image), **self.text)
        boxes = corners(output.pred_boxes[0])
        scores = span_logits(output.logits[0], self.tokens)
        return best_classes(scores, to_pixels(boxes, image.shape[-2], image.shape[-1]), logits=True)
