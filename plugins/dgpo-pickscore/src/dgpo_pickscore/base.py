"""What the rewards share: which images are scored, in what portions, and what is said of the others.

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
    """A reward that looks at embeddings of images; of a video, at every `every`-th frame, and takes the mean."""

    media = frozenset({"image", "video"})

    def __init__(self, options: ClipOptions, *, device: torch.device, encoder: Encoder) -> None:
        super().__init__(options, device=device)
        self.encoder = encoder

    def _unfit(self, prompt: Prompt) -> str | None:
        """Why a prompt cannot be read; None if it can, or is not read."""
        return None

    @torch.no_grad()
    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """Images [N, 3, H, W] or videos [N, F, 3, H, W], float in [0, 1], to values float32 [N] on the CPU.

        Missing, with a `reason`: images without pixels, with values that are no numbers or outside [0, 1], those of
        which the network makes no number, and those whose prompt is read and no valid text. Diagnostics are described
        with each reward; those of a video have `frames`, the value of each scored frame. Raises ValueError for media
        of another shape or type, or not as many as prompts.
        """
        if len(media) != len(prompts):
            raise ValueError(f"{len(media)} media have {len(prompts)} prompts")
        frames = frames_of(media, self.options.every)
        reasons = [why or self._unfit(prompt) for why, prompt in zip(unreadable(frames), prompts, strict=True)]
        sound = [i for i, why in enumerate(reasons) if why is None]
        values = torch.full((len(frames),), torch.nan)
        diagnostics: list[dict[str, Any]] = [{"reason": why} for why in reasons]
        if sound:
            judged, said = self._judge(self._embed(frames, sound), [prompts[i] for i in sound])
            judged = judged.cpu()
            for i, per_frame, extra in zip(sound, judged, said, strict=True):
                if not bool(per_frame.isfinite().all()):
                    diagnostics[i] = {"reason": f"the network ({self.options.dtype}) gave a value that is no number"}
                    continue
                values[i] = per_frame.mean()
                diagnostics[i] = extra | ({"frames": per_frame.tolist()} if media.dim() == 5 else {})
        return Scores(values, values.isnan(), tuple(diagnostics))

    def _embed(self, frames: Tensor, chosen: Sequence[int]) -> Tensor:
        """Frames [N, F, 3, H, W] of the chosen samples to unit vectors float32 [len(chosen), F, D]."""
        parts = torch.split(frames[list(chosen)].flatten(0, 1), self.options.batch)
        embeddings = torch.cat([self.encoder.images(part) for part in parts])
        return embeddings.reshape(len(chosen), frames.shape[1], -1)

    @abstractmethod
    def _judge(self, embeddings: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor, list[dict[str, Any]]]:
        """Unit vectors [N, F, D] and the prompt of each sample to values float32 [N, F] and JSON-able diagnostics."""
