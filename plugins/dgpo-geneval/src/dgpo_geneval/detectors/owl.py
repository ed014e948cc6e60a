"""The detector `owlv2`: OWLv2 (Minderer et al., arXiv 2306.09683) of transformers, for an open vocabulary.

Legend: Q patches, each of which predicts a box, C classes, D embedding width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from dgpo_core.errors import UserError
from dgpo_geneval.checkpoints import read
from dgpo_geneval.detectors.boxes import Boxes, best_classes, corners
from dgpo_geneval.detectors.transformers_boxes import TransformersDetector, to_pixels

if TYPE_CHECKING:
    from dgpo_geneval.detectors.options import OwlOptions

__all__ = ["OwlDetector"]


class OwlDetector(TransformersDetector):
    """OWLv2 with one list of queries for all images. Each patch has one object, of its best class; patches of one
    object are duplicates, which `overlap` removes."""

    NAME = "owlv2"
    options: OwlOptions

    def __init__(self, options: OwlOptions, *, device: torch.device) -> None:
        """Load the checkpoint. Raises UserError; see `TransformersDetector`; also if a query is too long."""
        super().__init__(options, device=device)
        checkpoint = self._load(options.checkpoint, "Owlv2ForObjectDetection", ("Owlv2ForObjectDetection",))
        from transformers import AutoTokenizer

        tokenizer: Any = read(checkpoint, AutoTokenizer.from_pretrained)
        self.names = self.labels = tuple(options.classes)
        self.queries = self._embed(tokenizer)

    @torch.inference_mode()
    def _embed(self, tokenizer: Any) -> Tensor:
        """Return the normalized embeddings [1, C, D] of the queries, computed once."""
        texts = [self.options.template.format(name) for name in self.labels]
        limit = self.config.text_config.max_position_embeddings
        for name, tokens in zip(self.labels, tokenizer(texts)["input_ids"], strict=True):
            if len(tokens) > limit:
                raise UserError(
                    f"detector {self.NAME}: classes: the query of {name!r} is {len(tokens)} tokens, and the network "
                    f"reads {limit}"
                )
        encoded = tokenizer(texts, padding="max_length", max_length=limit, return_tensors="pt")
        ids, mask = (encoded[key].to(self.device) for key in ("input_ids", "attention_mask"))
        pooled = self.network.owlv2.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
        return functional.normalize(pooled, dim=-1)[None]

    def find(self, image: Tensor) -> Boxes:
        """Return one box per patch, with its best class, in pixels of the image. The processor pads images to squares
        at the bottom and the right, so that boxes are fractions of the longer side."""
        features, _ = self.network.image_embedder(**self.pixels(image))
        flat = features.flatten(1, 2)
        logits, _ = self.network.class_predictor(flat, self.queries)
        boxes = corners(self.network.box_predictor(flat, features)[0])
        longer = max(image.shape[-2:])
        return best_classes(logits[0], to_pixels(boxes, longer, longer), logits=True)
