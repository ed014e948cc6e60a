"""Draw samples, and hold them as tensors and images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.api.calls import path_of, positive
from dgpo_core.api.output import check_directory
from dgpo_core.data.notes import longer_than_read, notes, unheard
from dgpo_core.distributed.partitioning import exchange_tensors
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.media import clips
from dgpo_core.media.images import contact_sheet, to_image, write_images
from dgpo_core.system.spelling import in_python, option
from dgpo_core.training.memory import decoded_media

if TYPE_CHECKING:
    from PIL.Image import Image

    from dgpo_core.api.target import Target
    from dgpo_core.training.rollout import RolloutSampler
    from dgpo_core.types import Prompt

__all__ = ["Samples", "draw"]


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of a model on the CPU, ordered by prompt.

    media: each sample as decoded, [3, H, W], or [F, 3, H, W] for a video, in [0, 1]; prompts: the prompt of each
    sample; seed: seed of the noise; count: samples per prompt; label: a description of the model.
    """

    media: Sequence[Tensor]
    prompts: tuple[Prompt, ...]
    seed: int
    count: int
    label: str

    def __len__(self) -> int:
        return len(self.media)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.media[0].shape)) if self.media else "none"
        return f"Samples({len(self)} of {shape}, {self.label}, seed={self.seed})"

    @property
    def video(self) -> bool:
        """Whether the samples are videos."""
        return bool(self.media) and self.media[0].dim() == 4

    @cached_property
    def tensors(self) -> Tensor | list[Tensor]:
        """float32 in [0, 1], [N, 3, H, W], or [N, F, 3, H, W] for videos; a list of N tensors if sizes differ."""
        found = [one.float().clamp(0, 1) for one in self.media]
        return torch.stack(found) if len({one.shape for one in found}) == 1 else found

    @cached_property
    def images(self) -> list[Image] | list[list[Image]]:
        """PIL images; for videos, a list of frames each."""
        if self.video:
            return [[to_image(frame) for frame in one] for one in self.media]
        return [to_image(one) for one in self.media]

    def grid(self, columns: int | None = None) -> Image:
        """Return all samples as one PIL image; by default one row is one prompt. Videos are shown by their frames."""
        (columns,) = positive(columns=columns)
        if not self.media:
            raise UserError("there are no samples to show: the main process has them")
        return contact_sheet([to_image(one) for one in self.media], columns or self.count)

    def save(self, directory: str | PathLike[str], *, force: bool = False, fps: int | None = None) -> Path:
        """Write the files of `dgpo sample`: 00.png (and 00.mp4 for a video), grid.png and prompts.json.

        force: replace the contents of the directory. fps: frames per second of videos, by default 16, or fewer for a
        short video. Returns the directory. Raises UserError if it cannot be written, or is not empty.
        """
        with in_python():
            output = path_of(directory)
            check_directory(output, force=force)
            self.write(output, fps=fps)
        return output

    def write(self, directory: Path, *, fps: int | None = None) -> None:
        """Write the files of `save` without checking the directory."""
        write_images(directory, self.media, self.prompts, columns=self.count, fps=fps)


def draw(
    target: Target,
    prompts: Sequence[Prompt],
    *,
    count: int,
    seed: int,
    steps: int | None = None,
    guidance: float | None = None,
    sides: tuple[int, int] | None = None,
    micro_batch: int | None = None,
    limit: int = 8,
    look: bool = False,
    fps: int | None = None,
    on_message: Callable[[str], None],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Samples:
    """Draw `count` samples per prompt, by default of `limit` held-out prompts, or training prompts if there are none.

    sides: (height, width) for prompts without a size. look: whether to report keys of the prompts that may be
    misspelled. fps: frames per second of the videos to be written. on_message: called with notes; on_progress: with the
    number of samples that this process has drawn, and that it draws. Several processes share the work; the main process
    gets the samples. Raises UserError for prompts that cannot be drawn.
    """
    engine = target.engine
    chosen = list(prompts) or (target.prompts("heldout") or target.prompts("train"))[:limit]
    chosen = target.checked(chosen, guidance, sides)
    scale = engine.config.rollout.guidance if guidance is None else guidance
    target.report(notes(chosen) if look else (), on_message)
    reported = [
        longer_than_read(chosen, engine.backbone),
        unheard(chosen, engine.backbone.supports_guidance and scale != 1),
        _check_video(target, fps),
    ]
    target.report(reported, on_message)
    rollout_sampler = engine.rollout_sampler(steps=steps, guidance=guidance, micro_batch=micro_batch)
    media = _drawn(target, rollout_sampler, chosen, count, seed, on_message, on_progress)
    shown = tuple(prompt for prompt in chosen for _ in range(count)) if target.processes.main else ()
    return Samples(media, shown, seed, count, target.label)


def _check_video(target: Target, fps: int | None) -> str | None:
    """Return a note if videos cannot be written as mp4; checked before the work. Raises UserError for fps of images."""
    if target.engine.backbone.media == "video":
        reason = clips.why_not()
        return None if reason is None else f"videos are written as film strips only; {reason}"
    if fps is not None:
        use = target.engine.config.backbone.use
        raise UserError(f"{option('fps')}: the backbone {use} makes images, which have no frame rate")
    return None


def _drawn(
    target: Target,
    rollout_sampler: RolloutSampler,
    prompts: Sequence[Prompt],
    count: int,
    seed: int,
    on_message: Callable[[str], None],
    on_progress: Callable[[int, int], None],
) -> list[Tensor]:
    """Return the media of all samples in order, on the CPU, in the main process; an empty list in others."""
    split_samples, processes = target.share(rollout_sampler, prompts, count, on_message), target.processes
    held: dict[int, Tensor] = {}
    with processes.together(rollout_sampler.policy.finish):
        own = split_samples[processes.rank]
        on_progress(0, len(own))
        for one in rollout_sampler.sample_groups(prompts, count, Draws(seed).at("sample"), target.model, samples=own):
            held |= zip(one.samples, decoded_media(target.engine.backbone, one).cpu(), strict=True)
            on_progress(len(held), len(own))
    holders = {sample: rank for rank, share in enumerate(split_samples) for sample in share}
    return list(exchange_tensors(processes, held, holders, dict.fromkeys(holders, 0)).values())
