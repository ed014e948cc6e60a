"""Score images and videos with any installed reward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from dgpo_core.api.calls import from_python, path_of, positive
from dgpo_core.errors import UserError
from dgpo_core.types import Scores

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from dgpo_core.api.samples import Samples
    from dgpo_core.data.prompts import Prompts
    from dgpo_core.media.files import Medium
    from dgpo_core.plugins.registry import Registry
    from dgpo_schemas.sections.rewards import RewardBlock

    MediumLike: TypeAlias = Tensor | Image | str | PathLike[str]
    Media: TypeAlias = MediumLike | Sequence[MediumLike] | Samples

__all__ = ["score"]

IMAGE, VIDEO = 3, 4
"""Numbers of dimensions of one image and one video."""


@from_python
def score(
    name: str,
    media: Media,
    prompts: Prompts | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    batch: int = 8,
) -> Scores:
    """Score images or videos.

    Args:
        name: name of the reward, as in `dgpo plugins list --kind reward`.
        media: a tensor [N, 3, H, W] or [3, H, W] of images, [N, F, 3, H, W] of videos, float in [0, 1]; a PIL image; a
            path of an image or a video file; a list of these (a tensor in a list is one image or video); or `Samples`.
        prompts: one per sample, or one for all: strings, `Prompt` objects, or dicts with the keys of a prompt file; by
            default the prompts of `Samples`.
        options: options of the reward, as in a run file.
        device: "auto", "cpu", "cuda" or "mps".
        batch: maximum number of media of one size that are scored together.

    Returns:
        `Scores`: values float32 [N] (higher is better, nan where missing), missing bool [N], and a dict of diagnostics
        per sample. Media that cannot be read or scored are missing, never 0; the diagnostics give the reason.

    Raises:
        UserError: for an unknown reward, options or prompts that it does not support, and media of another kind.
    """
    import torch

    from dgpo_core.data.checks import check_prompts
    from dgpo_core.media.kinds import check_range
    from dgpo_core.plugins.process_state import ProcessState
    from dgpo_core.plugins.registry import get_registry
    from dgpo_core.rewards import place
    from dgpo_core.system.device import choose_device
    from dgpo_core.training.reward_calls import Reward
    from dgpo_core.training.score_samples import Sample, score_samples

    (batch,) = positive(batch=batch)
    if options is not None and not isinstance(options, Mapping):
        raise UserError(f"options: must be a dict of the reward's options, got {type(options).__name__}")
    registry, where = get_registry(), choose_device(device, "device")
    block = _block(name, options or {}, registry)
    named = _named(media)
    given = _prompts(media, prompts, len(named))
    samples = [Sample(one, prompt, load) for (one, load), prompt in zip(named, given, strict=True)]
    with ProcessState().around(f"reward {block.label}, when it was made,"):
        model = place(block, registry, device=where)
    try:
        check_range(model, block.use, f"reward {block.label}")
        check_prompts(model, given)
        results = score_samples(Reward(block.label, 1.0, model), samples, batch=batch, device=where).results
    finally:
        model.close()
    return Scores(
        torch.tensor([torch.nan if result.value is None else result.value for result in results]),
        torch.tensor([result.value is None for result in results], dtype=torch.bool),
        tuple(dict(result.diagnostics) for result in results),
    )


def _block(name: str, options: Mapping[str, Any], registry: Registry) -> RewardBlock:
    from dgpo_core.config.pipeline import reward_block_of
    from dgpo_schemas.loading import Document

    return reward_block_of(Document(f"reward {name}", {"use": name, "options": dict(options)}), registry)


def _named(media: Media) -> list[tuple[str, Callable[[], Medium]]]:
    """Return (name, function that loads it) of each image or video."""
    import torch

    from dgpo_core.api.samples import Samples

    if isinstance(media, Samples):
        return [(f"media[{i}]", partial(_of_tensor, one.float())) for i, one in enumerate(media.media)]
    if isinstance(media, torch.Tensor):
        if media.dim() == IMAGE:
            media = [media]
        elif media.dim() not in (4, 5):
            shape = tuple(media.shape)
            raise UserError(f"media: must be [N, 3, H, W], [3, H, W], or [N, F, 3, H, W] of videos, not {shape}")
        several: Sequence[Any] = list(media)
    else:
        several = media if isinstance(media, Sequence) and not isinstance(media, str) else [media]
    found: list[tuple[str, Callable[[], Medium]]] = []
    for i, one in enumerate(several):
        if isinstance(one, str | PathLike):
            path = path_of(one)
            if not path.exists():
                raise UserError(f"media[{i}]: {path}: no such file")
            found.append((str(path), partial(_of_file, path)))
        else:
            name = f"media[{i}]"
            found.append((name, partial(_of_tensor, _tensor(one, name))))
    if not found:
        raise UserError("media: is empty; there is nothing to score")
    return found


def _of_file(path: Path) -> Medium:
    from dgpo_core.media.files import read_media

    return read_media(path)


def _of_tensor(one: Tensor) -> Medium:
    from dgpo_core.media.files import Medium

    return Medium(one)


def _tensor(one: Any, name: str) -> Tensor:
    """Convert a tensor or PIL image to float32 [3, H, W] or [F, 3, H, W] on the CPU. Raises UserError otherwise."""
    import numpy as np
    import torch
    from PIL.Image import Image

    if isinstance(one, Image):
        pixels = np.asarray(one.convert("RGB"), dtype=np.float32) / 255
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    if not isinstance(one, torch.Tensor):
        raise UserError(f"{name}: must be a tensor, a PIL image or a path, not {type(one).__name__}")
    if one.dim() not in (IMAGE, VIDEO) or one.shape[-3] != 3:
        raise UserError(f"{name}: must be [3, H, W], or [F, 3, H, W] of a video, not {tuple(one.shape)}")
    if not one.dtype.is_floating_point:
        raise UserError(f"{name}: must be float in [0, 1], not {str(one.dtype).removeprefix('torch.')}")
    return one.detach().cpu().float()


def _prompts(media: Media, prompts: Prompts | None, count: int) -> list[Any]:
    from dgpo_core.api.samples import Samples
    from dgpo_core.data.prompts import given_prompts

    if prompts is None:
        if not isinstance(media, Samples):
            raise UserError("prompts: required; give one for each of the media, or one for all")
        return list(media.prompts)
    found = given_prompts(prompts)
    if len(found) == 1:
        return found * count
    if len(found) != count:
        raise UserError(f"prompts: {len(found)} for {count} media; give one for each, or one for all")
    return found
