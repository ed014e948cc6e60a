"""The reward `ocr`: an OCR engine reads the image, and a rule scores the text."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
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
"""Most characters of a text in a clause."""


class OcrReward(RewardModel):
    """How closely the recognized text matches the quoted text of the prompt, in [0, 1] (see `rule`)."""

    media = frozenset({"image", "video"})
    range = (0.0, 1.0)

    def __init__(self, options: OcrOptions, *, device: torch.device, make: Callable[[], Engine] | None = None) -> None:
        """make: builds an engine in place of the one that the options name; called once per reader.

        Raises UserError if the engine is not installed or a model file is missing.
        """
        super().__init__(options, device=device)
        self.concurrency = options.readers
        self._readers = Readers(
            make or (lambda: make_engine(options)), count=options.readers, min_side=options.min_side
        )
        self._letters: frozenset[str] | None = None

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raise UserError for the first prompt without a target.

        With the rule `normalized`, also for one with characters that the engine cannot recognize, if they are known.
        """
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
        """Score images [B, 3, H, W] or videos [B, F, 3, H, W], float in [0, 1]. Returns float32 [B] on the CPU.

        Samples are missing, with a `reason`, if their values are not finite or not in [0, 1], if their shape is wrong,
        if the engine fails on them, or if their prompt has no target. An image without text scores 0.

        Diagnostics of an image: target, text, distance, surplus; of a video: target, and the others for each sampled
        frame in `frames`; of both: marks (the lines) and clauses (one: whether the target was read). With the rule
        `flowgrpo` an image that the engine fails on scores 0, with a `reason`, and only NaN pixels make it missing.
        """
        if len(media) != len(prompts):
            raise ValueError(f"got {len(media)} samples and {len(prompts)} prompts; the numbers must be equal")
        video = media.dim() == 5
        try:
            # The code of Flow-GRPO and DGPO clamps the values, and passes RGB to an engine that expects BGR.
            published = self.options.rule == "flowgrpo"
            images, fit = to_images(media, self.options.every if video else 1, clamp=published, bgr=not published)
        except ValueError as error:
            return _gathered([_missing(prompt, error, self.options.rule) for prompt in prompts])
        # Queue all images before waiting for the first, so that every reader is busy until the end.
        queued = [
            [self._readers.submit(frame) for frame in sample] if is_fit else None
            for sample, is_fit in zip(images, fit, strict=True)
        ]
        return _gathered([self._judge(prompt, reading, video) for prompt, reading in zip(prompts, queued, strict=True)])

    def provenance(self) -> Mapping[str, Any]:
        """Return the engine with its version, and its models with the digests of their files."""
        return self._readers.provenance()

    def examples(self) -> Sequence[Example]:
        """Return images of words, with matching and other prompts, and blank images."""
        return drawn_examples(one_line=not self.options.detection)

    def close(self) -> None:
        """Stop the readers. Idempotent. `score` must not be called afterwards."""
        self._readers.close()

    def _readable(self) -> frozenset[str] | None:
        if self._letters is None:
            alphabet = self._readers.alphabet()
            self._letters = None if alphabet is None else readable(alphabet)
        return self._letters

    def _judge(self, prompt: Prompt, reading: list[Future[list[Line]]] | None, video: bool) -> _Judged:
        """Return the value and diagnostics of a sample. reading: futures of its frames' lines, or None if its values
        were invalid."""
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
        """Wait for an image's lines and score them in the reading order that is closest to the target.

        Raises the engine's exception. With `flowgrpo`, whose code continues with the maximum distance, it scores 0.
        """
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
    """The lines of an image in reading order, their verdict, and why the engine failed."""

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
    """Return the positions of the lines, and whether each is part of the target, or contains it unless `strict`."""
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
    """Format a text in one line, truncated."""
    line = " ".join(text.split())
    return f'"{line}"' if len(line) <= LONGEST else f'"{line[:LONGEST]}..." ({len(line)} characters)'


def _reported(frame: _Frame) -> dict[str, Any]:
    """Return the text and verdict of an image as JSON values."""
    verdict = frame.verdict
    result = {"text": _joined(frame.lines), "distance": verdict.distance, "surplus": verdict.surplus}
    return result if frame.reason is None else {**result, "reason": frame.reason}


def _diagnosis(target: str, frame: _Frame) -> dict[str, Any]:
    """Return the diagnostics of an image, without its marks, as JSON values."""
    reported = _reported(frame)
    found = _shown(reported["text"]) if reported["text"] else "nothing"
    clause = {"text": f"{_shown(target)} asked for, {found} read", "ok": frame.verdict.distance == 0}
    return {"target": target, **reported, "clauses": [clause]}


def _video_diagnosis(target: str, numbers: Sequence[int], frames: Sequence[_Frame]) -> dict[str, Any]:
    """Return the diagnostics of a video, without its marks, as JSON values. numbers: indices of the frames."""
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
