"""The reward `ocr`: an engine reads, the rule judges."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.types import Example, Prompt, Scores
from dgpo_ocr.alphabet import check_readable, readable
from dgpo_ocr.engine import Engine, Line, Readers
from dgpo_ocr.engines import make_engine
from dgpo_ocr.examples import drawn_examples
from dgpo_ocr.images import to_images
from dgpo_ocr.order import readings
from dgpo_ocr.rule import Rule, Verdict, judge, over_frames, plain
from dgpo_ocr.target import check_target, short, target_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from dgpo_ocr.options import OcrOptions

__all__ = ["OcrReward"]

log = logging.getLogger(__name__)
LONGEST = 200
"""Characters of a text in a clause."""


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
            make or (lambda: make_engine(options)), count=options.readers, min_side=options.min_side
        )
        self._letters: frozenset[str] | None = None

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raise UserError naming the first prompt without a text to look for, or, under the rule `normalized`, with
        a character that the engine has not (where it says which it has)."""
        rule = self.options.rule
        letters = self._readable() if rule == "normalized" else None
        for prompt in prompts:
            check_target(prompt, rule)
            if letters is None:
                continue
            try:
                check_readable(target_of(prompt, rule), letters, f"engine '{self.options.engine}' with its model")
            except ValueError as error:
                raise UserError(f"reward 'ocr': prompt {short(prompt.text)} {error}") from error

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """Images [B, 3, H, W] or videos [B, F, 3, H, W], float in [0, 1], to values float32 [B] on the CPU.

        Missing, with a `reason`: samples whose images are not finite, not in [0, 1] or of another shape, which the
        engine fails on, or whose prompt has no target. An image without text is read as such: its value is 0.
        Diagnostics of an image: target, text, distance, surplus; of a video: target and the same of each sampled frame
        in `frames`; of both: marks (the lines), clauses (one: whether the target was read). Under the rule `flowgrpo`
        an image that the engine fails on is worth 0, with a `reason`, and only pixels that are no number are missing.
        """
        if len(media) != len(prompts):
            raise ValueError(f"{len(media)} samples and {len(prompts)} prompts do not go together")
        video = media.dim() == 5
        try:
            # Flow-GRPO's and DGPO's code clamps, and hands RGB to a reader of BGR.
            published = self.options.rule == "flowgrpo"
            images, fit = to_images(media, self.options.every if video else 1, clamp=published, bgr=not published)
        except ValueError as error:
            return _gathered([_missing(prompt, error, self.options.rule) for prompt in prompts])
        # All are queued before the first is waited for, so that every reader has work until the end.
        queued = [
            [self._readers.submit(frame) for frame in sample] if is_fit else None
            for sample, is_fit in zip(images, fit, strict=True)
        ]
        return _gathered([self._judge(prompt, reading, video) for prompt, reading in zip(prompts, queued, strict=True)])

    def examples(self) -> Sequence[Example]:
        """Words drawn large, with the prompt that asks for them and with one that asks for others, and blanks."""
        return drawn_examples(one_line=not self.options.detection)

    def close(self) -> None:
        """End the readers. May be called again; `score` must not."""
        self._readers.close()

    def _readable(self) -> frozenset[str] | None:
        if self._letters is None:
            alphabet = self._readers.alphabet()
            self._letters = None if alphabet is None else readable(alphabet)
        return self._letters

    def _judge(self, prompt: Prompt, reading: list[Future[list[Line]]] | None, video: bool) -> _Judged:
        """Value and diagnostics of one sample from what is being read of its frames; None: it was not fit to be."""
        try:
            if reading is None:
                raise ValueError("the images have values that are not in [0, 1]")
            target = target_of(prompt, self.options.rule)
            strict = self.options.strict or (video and self.options.video == "flowgrpo")
            frames = [self._read(future, target, strict) for future in reading]
            verdicts = [frame.verdict for frame in frames]
            value = over_frames([v.value for v in verdicts], self.options.video) if video else verdicts[0].value
        except Exception as error:
            log.debug("prompt %r: the sample is missing", prompt.text, exc_info=True)
            return _missing(prompt, error, self.options.rule)
        marks = [_marks(target, frame.lines, strict, self.options.rule) for frame in frames]
        if not video:
            return value, {**_diagnosis(target, frames[0]), "marks": marks[0]}
        numbers = range(0, self.options.every * len(frames), self.options.every)
        marked = [{**mark, "frame": n} for n, found in zip(numbers, marks, strict=True) for mark in found]
        return value, {**_video_diagnosis(target, numbers, frames), "marks": marked}

    def _read(self, reading: Future[list[Line]], target: str, strict: bool) -> _Frame:
        """What is read in an image, and its verdict: of several ways to read it, the one nearest to the target. Raises
        what the engine raised; under `flowgrpo`, whose code goes on with a distance of all letters, it is worth 0."""
        rule = self.options.rule
        try:
            lines = [line for line in reading.result() if line.score >= self.options.min_score]
        except Exception as error:
            if rule != "flowgrpo":
                raise
            log.debug("the engine failed", exc_info=True)
            return _Frame([], judge("", target, rule=rule), _reason(error))
        if rule == "flowgrpo":
            lines = [line for line in lines if line.score > 0]  # in the engine's own order
            return _Frame(lines, judge(_joined(lines), target, strict=strict, rule=rule))
        ways = readings([line for line in lines if plain(line.text)])
        frames = [_Frame(way, judge(_joined(way), target, strict=strict)) for way in ways]
        return max(frames, key=lambda frame: frame.verdict.value)


@dataclass(frozen=True, slots=True)
class _Frame:
    """The lines of an image in the order in which they are read, the verdict on them, and why the engine failed."""

    lines: list[Line]
    verdict: Verdict
    reason: str | None = None


_Judged = tuple[float, dict[str, Any]]


def _gathered(judged: Sequence[_Judged]) -> Scores:
    values = torch.tensor([value for value, _ in judged], dtype=torch.float32)
    return Scores(values, values.isnan(), tuple(diagnosis for _, diagnosis in judged))


def _missing(prompt: Prompt, error: Exception, rule: Rule) -> _Judged:
    try:
        target = target_of(prompt, rule)
    except ValueError:
        target = None
    return float("nan"), {"target": target, "reason": _reason(error)}


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _joined(lines: Sequence[Line]) -> str:
    return " ".join(line.text for line in lines)


def _marks(target: str, lines: Sequence[Line], strict: bool, rule: Rule) -> list[dict[str, Any]]:
    """Where the lines are, and whether each is part of what was asked for; or has all of it, where more is free."""
    t = plain(target, rule)
    return [
        {
            "text": line.text,
            "polygon": [list(point) for point in line.polygon],
            "ok": (read := plain(line.text, rule)) in t or (not strict and t in read),
        }
        for line in lines
    ]


def _shown(text: str) -> str:
    """A text in one line, cut short."""
    line = " ".join(text.split())
    return f'"{line}"' if len(line) <= LONGEST else f'"{line[:LONGEST]}..." ({len(line)} characters)'


def _reported(frame: _Frame) -> dict[str, Any]:
    """JSON-able account of what is read in an image."""
    verdict = frame.verdict
    reported = {"text": _joined(frame.lines), "distance": verdict.distance, "surplus": verdict.surplus}
    return reported if frame.reason is None else {**reported, "reason": frame.reason}


def _diagnosis(target: str, frame: _Frame) -> dict[str, Any]:
    """JSON-able account of an image, but for its marks."""
    reported = _reported(frame)
    found = _shown(reported["text"]) if reported["text"] else "nothing"
    clause = {"text": f"{_shown(target)} asked for, {found} read", "ok": frame.verdict.distance == 0}
    return {"target": target, **reported, "clauses": [clause]}


def _video_diagnosis(target: str, numbers: Sequence[int], frames: Sequence[_Frame]) -> dict[str, Any]:
    """JSON-able account of a video, but for its marks; frames are numbered as in the media."""
    right = sum(frame.verdict.distance == 0 for frame in frames)
    return {
        "target": target,
        "frames": [
            {"frame": n, "value": frame.verdict.value, **_reported(frame)}
            for n, frame in zip(numbers, frames, strict=True)
        ],
        "clauses": [
            {"text": f"{_shown(target)} asked for, read in {right} of {len(frames)} frames", "ok": right == len(frames)}
        ],
    }
