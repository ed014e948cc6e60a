"""Base class of the rewards: selects valid images, batches them and reports the missing ones.

Legend: N samples, F scored frames (1 of an image), D width of the embeddings.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.types import Prompt, Scores
from dgpo_pickscore.images import frames_of, unreadable

if TYPE_CHECKING:
    from dgpo_pickscore.encoders import Encoder
    from dgpo_pickscore.options import ClipOptions

__all__ = ["ImageReward"]


class ImageReward(RewardModel):
    """A reward on image embeddings; for videos, the mean over every `every`-th frame."""

    media = frozenset({"image", "video"})

    def __init__(self, options: ClipOptions, *, device: torch.device, encoder: Encoder) -> None:
        super().__init__(options, device=device)
        self.encoder = encoder

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
            judged, details = self._judge(self._embed(frames, sound), [prompts[i] for i in sound])
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

    def _embed(self, frames: Tensor, chosen: Sequence[int]) -> Tensor:
        """Embed frames [N, F, 3, H, W] of the chosen samples; returns unit vectors float32 [len(chosen), F, D]."""
        parts = torch.split(frames[list(chosen)].flatten(0, 1), self.options.batch)
        embeddings = torch.cat([self.encoder.images(part) for part in parts])
        return embeddings.reshape(len(chosen), frames.shape[1], -1)

    @abstractmethod
    def _judge(self, embeddings: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor, list[dict[str, Any]]]:
        """Return values float32 [N, F] and JSON-able diagnostics for unit vectors [N, F, D] and their prompts [N]."""
