"""Base classes of the rewards: they select valid images, batch them and report the missing ones.

Legend: N samples, F scored frames (1 of an image), D width of the embeddings.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.types import Example, Prompt, Scores
from dgpo_pickscore.cache import TextCache
from dgpo_pickscore.examples import matches
from dgpo_pickscore.images import frames_of, unreadable
from dgpo_schemas.decoding import half_character

if TYPE_CHECKING:
    from dgpo_pickscore.encoders import Encoder
    from dgpo_pickscore.options import ClipOptions, TextOptions

__all__ = ["CosineReward", "FrameReward", "PromptReward"]


class FrameReward(RewardModel):
    """A reward on images; for videos, the mean over every `every`-th frame."""

    media = frozenset({"image", "video"})

    def __init__(self, options: ClipOptions, *, device: torch.device, origin: Mapping[str, str | None]) -> None:
        """origin: the model, its revision and other files that the scores depend on, for `provenance`."""
        super().__init__(options, device=device)
        self._origin = origin

    def provenance(self) -> Mapping[str, Any]:
        """Return the model and its revision: the commit, if it was fetched from the Hub."""
        return {name: value for name, value in self._origin.items() if value is not None}

    def _unfit(self, prompt: Prompt) -> str | None:
        """Return why a prompt is invalid; None if it is valid or unused."""
        return None

    @torch.no_grad()
    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """Score images [N, 3, H, W] or videos [N, F, 3, H, W], float in [0, 1]; returns values float32 [N] on the CPU.

        Samples are missing, with a `reason`, if the image has no pixels or has values that are not finite or outside
        [0, 1], if the network returns a non-finite value, or if the prompt is used and its text is invalid. Each
        reward documents its diagnostics; those of a video add `frames`, the value of each scored frame. Raises
        ValueError for media of another shape or dtype, or if the numbers of media and prompts differ.
        """
        if len(media) != len(prompts):
            raise ValueError(f"got {len(media)} media but {len(prompts)} prompts")
        frames = frames_of(media, self.options.every)
        reasons = [why or self._unfit(prompt) for why, prompt in zip(unreadable(frames), prompts, strict=True)]
        sound = [i for i, why in enumerate(reasons) if why is None]
        values = torch.full((len(frames),), torch.nan)
        diagnostics: list[dict[str, Any]] = [{"reason": why} for why in reasons]
        if sound:
            judged, details = self._judge(frames[sound], [prompts[i] for i in sound])
            judged = judged.cpu()
            for i, per_frame, extra in zip(sound, judged, details, strict=True):
                if not bool(per_frame.isfinite().all()):
                    diagnostics[i] = {
                        "reason": f"the network ({self.options.dtype}) returned a value that is not finite"
                    }
                    continue
                values[i] = per_frame.mean()
                diagnostics[i] = extra | ({"frames": per_frame.tolist()} if media.dim() == 5 else {})
        return Scores(values, values.isnan(), tuple(diagnostics))

    @abstractmethod
    def _judge(self, frames: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor, list[dict[str, Any]]]:
        """Return values float32 [N, F] and JSON-able diagnostics for frames [N, F, 3, H, W] and their prompts [N]."""

    def _embed(self, encoder: Encoder, frames: Tensor) -> Tensor:
        """Embed frames [N, F, 3, H, W]; returns unit vectors float32 [N, F, D]."""
        parts = torch.split(frames.flatten(0, 1), self.options.batch)
        embeddings = torch.cat([encoder.images(part) for part in parts])
        return embeddings.reshape(*frames.shape[:2], -1)


class PromptReward(FrameReward):
    """A reward that reads the prompt."""

    def examples(self) -> Sequence[Example]:
        """Return a photograph with its description, with wrong descriptions, and noise with the right one."""
        return matches()

    def _unfit(self, prompt: Prompt) -> str | None:
        reason = half_character(prompt.text)
        return f"the prompt {reason}" if reason else None

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raise UserError for a text that is not valid Unicode."""
        for prompt in prompts:
            if reason := self._unfit(prompt):
                raise UserError(reason)


class CosineReward(PromptReward):
    """Cosine similarity of image and prompt, on a configurable scale."""

    def __init__(
        self, options: TextOptions, *, device: torch.device, origin: Mapping[str, str | None], encoder: Encoder
    ) -> None:
        super().__init__(options, device=device, origin=origin)
        self.encoder = encoder
        self.texts = TextCache(self._encode, options.text_cache)
        # Set per instance: the range depends on the options and the weights.
        self.range = (self._scaled(-1.0), self._scaled(1.0))  # type: ignore[misc]

    def _scales(self, cosine: float) -> Mapping[str, float]:
        """Return a cosine on every scale of the diagnostics, including those of the option `scale`."""
        return {"cosine": cosine, "percent": 100 * cosine}

    def _scaled(self, cosine: float) -> float:
        return self._scales(cosine)[self.options.scale]

    def _encode(self, texts: Sequence[str]) -> list[Any]:
        batch = self.options.batch
        return [text for at in range(0, len(texts), batch) for text in self.encoder.texts(texts[at : at + batch])]

    def _judge(self, frames: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor, list[dict[str, Any]]]:
        embeddings, texts = self._embed(self.encoder, frames), self.texts([prompt.text for prompt in prompts])
        directions = torch.stack([text.embedding for text in texts])[:, None]  # [N, 1, D]
        # Not a matrix product, which may use TF32; clamped, because rounding could exceed the range.
        cosines = (embeddings * directions).sum(-1).clamp(-1, 1)
        scales = [[self._scales(cosine) for cosine in row] for row in cosines.tolist()]
        values = torch.tensor([[scale[self.options.scale] for scale in row] for row in scales])
        diagnostics = [
            {name: fmean(scale[name] for scale in row) for name in row[0]}
            | {"tokens": text.tokens, "truncated": text.truncated}
            for text, row in zip(texts, scales, strict=True)
        ]
        return values, diagnostics
