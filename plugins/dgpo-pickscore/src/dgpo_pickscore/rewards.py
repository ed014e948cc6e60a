"""The three rewards: PickScore, CLIPScore, and the LAION aesthetic predictor.

Legend: N samples, F scored frames, D width of the embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.types import Example, Prompt
from dgpo_pickscore import loading
from dgpo_pickscore.base import CosineReward, FrameReward
from dgpo_pickscore.encoders import TransformersEncoder
from dgpo_pickscore.examples import looks
from dgpo_pickscore.head import linear, load_head

if TYPE_CHECKING:
    from dgpo_pickscore.options import AestheticOptions, ClipScoreOptions, PickScoreOptions

__all__ = ["AestheticReward", "ClipScoreReward", "PickScoreReward"]

DIVISOR = 26
"""Flow-GRPO and DGPO divide PickScore by this, so that it is near 1 (`flow_grpo/pickscore_scorer.py`)."""


class PickScoreReward(CosineReward):
    """PickScore v1 (Kirstain et al., arXiv 2305.01569): exp(logit_scale) * cos(text, image), divided by 26.

    Diagnostics: cosine, `flowgrpo` and `paper` (the value on both scales), tokens, truncated. Its range follows from
    the logit scale of the weights, 100 in the published ones.
    """

    range = (-100 / DIVISOR, 100 / DIVISOR)

    def __init__(self, options: PickScoreOptions, *, device: torch.device) -> None:
        """Load model, tokenizer and preprocessing. Raises UserError if one is missing, damaged or does not match."""
        encoder, origin = _clip(options, device, "pickscore", with_text=True)
        super().__init__(options, device=device, origin=origin, encoder=encoder)

    def _scales(self, cosine: float) -> Mapping[str, float]:
        paper = self.encoder.logit_scale * cosine
        return {"cosine": cosine, "flowgrpo": paper / DIVISOR, "paper": paper}


class ClipScoreReward(CosineReward):
    """CLIPScore: the cosine of text and image.

    The default scale is that of DiffusionNFT (arXiv 2509.16117): its `clip_scorer.py` returns logits / 100, which is
    the cosine for CLIP's logit scale of 100. `flowgrpo` is that of Flow-GRPO's `clip_scorer.py`, logits / 30; `hessel`
    is the original metric (Hessel et al., arXiv 2104.08718, w = 2.5). DiffusionNFT and Flow-GRPO use OpenAI's ViT-L-14,
    also the default here, and resize tensors bilinearly. This reward resizes bicubically, as in the model's training,
    so values differ slightly.

    Diagnostics: cosine, the value on every scale, tokens, truncated.
    """

    range = (-1.0, 1.0)

    def __init__(self, options: ClipScoreOptions, *, device: torch.device) -> None:
        """Load the model. Raises UserError if open_clip is missing, the model is unknown or its weights mismatch."""
        from dgpo_pickscore.open_clip_encoder import OpenClipEncoder
        from dgpo_pickscore.open_clip_loading import load_open_clip

        loaded, origin = load_open_clip(options)
        encoder = OpenClipEncoder(*loaded, device=device, dtype=getattr(torch, options.dtype))
        super().__init__(options, device=device, origin=origin, encoder=encoder)

    def _scales(self, cosine: float) -> Mapping[str, float]:
        return {
            "cosine": cosine,
            "percent": 100 * cosine,
            "hessel": 2.5 * max(cosine, 0.0),
            "flowgrpo": self.encoder.logit_scale * cosine / 30,
        }


class AestheticReward(FrameReward):
    """LAION's improved aesthetic predictor (github.com/christophschuhmann/improved-aesthetic-predictor).

    A head of five linear layers on the unit embedding of a CLIP ViT-L-14; it does not use the prompt. The predictor
    uses OpenAI's original CLIP file, of which open_clip's `openai` and transformers' openai/clip-vit-large-patch14 are
    conversions. The head has no activations, so it is a linear function of a unit vector with an exact range: bias
    plus or minus the norm of its gradient. Values of the published head are about 1 to 10.

    Diagnostics: value.
    """

    range = (-math.inf, math.inf)

    def __init__(self, options: AestheticOptions, *, device: torch.device) -> None:
        """Load CLIP and head. Raises UserError if one is missing, damaged or does not match."""
        where = "reward aesthetic: option head"
        head = load_head(options.head, options.head_file, options.head_revision, where)
        self.encoder, origin = _clip(options, device, "aesthetic", with_text=False)
        width = head[0].in_features
        if width != self.encoder.width:
            raise UserError(
                f"{where}: {options.head} expects embeddings of width {width}, but {options.model} returns "
                f"{self.encoder.width}; use the CLIP model that the head was trained on"
            )
        super().__init__(options, device=device, origin=origin | {"head": options.head})
        weight, middle = linear(head)
        reach = float(weight.norm())
        slack = 1e-5 * (abs(middle) + reach)  # for rounding errors
        self.range = (middle - reach - slack, middle + reach + slack)  # type: ignore[misc]
        self.head = head.to(device)

    def examples(self) -> Sequence[Example]:
        """Return a photograph, noise, and a degraded copy of the photograph."""
        return looks()

    def _judge(self, frames: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor, list[dict[str, Any]]]:
        embeddings = self._embed(self.encoder, frames)
        with torch.autocast(self.device.type, enabled=False):
            values: Tensor = self.head(embeddings).squeeze(-1)
        return values, [{"value": float(row.mean())} for row in values]


def _clip(
    options: PickScoreOptions | AestheticOptions, device: torch.device, name: str, *, with_text: bool
) -> tuple[TransformersEncoder, dict[str, str | None]]:
    """Build the encoder of the options, and return it with its origin. Raises UserError if the crop does not match the
    network's input size."""
    where = f"reward {name}: option model"
    directory = loading.fetch(options.model, options.revision, where, loading.WEIGHTS)
    model = loading.load_clip(directory, where)
    source, revision = options.processor or options.model, options.processor_revision
    if options.processor is None and revision is None:
        revision = options.revision
    where = f"reward {name}: option processor"
    processor: Path = loading.fetch(source, revision, where, loading.PROCESSOR)
    preprocessing = loading.load_preprocessing(processor, where)
    side = model.config.vision_config.image_size
    if preprocessing.crop != (side, side):
        raise UserError(f"{where}: {source} crops to {preprocessing.crop}, but {options.model} requires {(side, side)}")
    tokenizer = loading.load_tokenizer(processor, where) if with_text else None
    dtype = getattr(torch, options.dtype)
    origin = {"model": options.model, "revision": loading.commit(directory, options.revision)}
    return TransformersEncoder(model, tokenizer, preprocessing, device=device, dtype=dtype), origin
