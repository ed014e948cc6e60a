"""The reward `ocr`: an engine reads, the rule judges."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.types import Example, Prompt, Scores
from dgpo_ocr.engine import Engine, Line, Readers, make_engine
from dgpo_ocr.examples import drawn_examples
from dgpo_ocr.pictures import to_pictures
from dgpo_ocr.rule import Verdict, judge, over_frames, plain
from dgpo_ocr.target import check_target, target_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from dgpo_ocr.options import OcrOptions

__all__ = ["OcrReward"]

log = logging.getLogger(__name__)


class OcrReward(RewardModel):
    """How nearly the quoted text of the prompt is read, in [0, 1] (`rule`)."""

    media = frozenset({"image", "video"})
    range = (0.0, 1.0)

    def __init__(self, options: OcrOptions, *, device: torch.device, make: Callable[[], Engine] | None = None) -> None:
        """`make`, which builds an engine, stands in for the one that the options name; it is called once a reader.

        Raises UserError if the engine is not installed or a model file is missing.
        """
        super().__init__(options, device=device)
        self.concurrency = options.readers
        self._readers = Readers(
            make or (lambda: make_engine(options)),
            count=options.readers,
            min_side=options.min_side,
            min_score=options.min_score,
        )

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raise UserError naming the first prompt without a text to look for."""
        for prompt in prompts:
            check_target(prompt)

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """Images [B, 3, H, W] or videos [B, F, 3, H, W], float in [0, 1], to values float32 [B] on the CPU.

        Missing, with a `reason`: samples whose pictures are not finite, not in [0, 1] or of another shape, which the
        engine fails on, or whose prompt has no target. A picture without text is read as such: its value is 0.
        Diagnostics of an image: target, text, distance, surplus; of a video: target and the same of each sampled frame
        in `frames`; of both: marks (the lines), clauses (one: whether the target was read).
        """
        if len(media) != len(prompts):
            raise ValueError(f"{len(media)} samples and {len(prompts)} prompts do not go together")
        video = media.dim() == 5
        try:
            pictures, fit = to_pictures(media, self.options.every if video else 1)
        except ValueError as error:
            return _gathered([_missing(prompt, error) for prompt in prompts])
        # All are queued before the first is waited for, so that every reader has work until the end.
        queued = [
            [self._readers.submit(frame) for frame in sample] if is_fit else None
            for sample, is_fit in zip(pictures, fit, strict=True)
        ]
        return _gathered([self._judge(prompt, reading, video) for prompt, reading in zip(prompts, queued, strict=True)])

    def examples(self) -> Sequence[Example]:
        """Words drawn large, with the prompt that asks for them and with one that asks for others, and blanks."""
        return drawn_examples(one_line=not self.options.detection)

    def close(self) -> None:
        """End the readers. May be called again; `score` must not."""
        self._readers.close()

    def _judge(self, prompt: Prompt, reading: list[Future[list[Line]]] | None, video: bool) -> _Judged:
        """Value and diagnostics of one sample from what is being read of its frames; None: it was not fit to be."""
        try:
            if reading is None:
                raise ValueError("the pictures have values that are not in [0, 1]")
            target = target_of(prompt)
            frames = [future.result() for future in reading]
            rule = self.options.video
            strict = self.options.strict or (video and rule == "flowgrpo")
            verdicts = [judge(_joined(lines), target, strict=strict) for lines in frames]
            value = over_frames([v.value for v in verdicts], rule) if video else verdicts[0].value
        except Exception as error:
            log.debug("prompt %r: the sample is missing", prompt.text, exc_info=True)
            return _missing(prompt, error)
        marks = [_marks(target, lines, strict) for lines in frames]
        if not video:
            return value, {**_diagnosis(target, frames[0], verdicts[0]), "marks": marks[0]}
        numbers = range(0, self.options.every * len(frames), self.options.every)
        marked = [{**mark, "frame": n} for n, found in zip(numbers, marks, strict=True) for mark in found]
        return value, {**_video_diagnosis(target, numbers, frames, verdicts), "marks": marked}


_Judged = tuple[float, dict[str, Any]]


def _gathered(judged: Sequence[_Judged]) -> Scores:
    values = torch.tensor([value for value, _ in judged], dtype=torch.float32)
    return Scores(values, values.isnan(), tuple(diagnosis for _, diagnosis in judged))


def _missing(prompt: Prompt, error: Exception) -> _Judged:
    try:
        target = target_of(prompt)
    except ValueError:
        target = None
    return float("nan"), {"target": target, "reason": f"{type(error).__name__}: {error}"}


def _joined(lines: Sequence[Line]) -> str:
    return " ".join(line.text for line in lines)


def _marks(target: str, lines: Sequence[Line], strict: bool) -> list[dict[str, Any]]:
    """Where the lines are, and whether each is part of what was asked for; or has all of it, where more is free."""
    t = plain(target)
    return [
        {
            "text": line.text,
            "polygon": [list(point) for point in line.polygon],
            "ok": plain(line.text) in t or (not strict and t in plain(line.text)),
        }
        for line in lines
    ]


def _diagnosis(target: str, lines: Sequence[Line], verdict: Verdict) -> dict[str, Any]:
    """JSON-able account of an image, but for its marks."""
    text = _joined(lines)
    found = f'"{text}"' if text else "nothing"
    return {
        "target": target,
        "text": text,
        "distance": verdict.distance,
        "surplus": verdict.surplus,
        "clauses": [{"text": f'"{target}" asked for, {found} read', "ok": verdict.distance == 0}],
    }


def _video_diagnosis(
    target: str, numbers: Sequence[int], frames: Sequence[Sequence[Line]], verdicts: Sequence[Verdict]
) -> dict[str, Any]:
    """JSON-able account of a video, but for its marks; frames are numbered as in the media."""
    right = sum(verdict.distance == 0 for verdict in verdicts)
    return {
        "target": target,
        "frames": [
            {"frame": n, "value": v.value, "text": _joined(lines), "distance": v.distance, "surplus": v.surplus}
            for n, lines, v in zip(numbers, frames, verdicts, strict=True)
        ],
        "clauses": [
            {"text": f'"{target}" asked for, read in {right} of {len(frames)} frames', "ok": right == len(frames)}
        ],
    }
