"""The reward `judge`: one or several questions about each sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.types import Example, Prompt, Scores
from dgpo_judge.answers import Answer
from dgpo_judge.examples import drawn_examples, written_examples
from dgpo_judge.forms import (
    Unscored,
    Verdict,
    expected_probability,
    rating,
    rubric,
    rubric_schema,
    said,
    transcript,
    vqascore,
)
from dgpo_judge.pictures import Picture, pictures_of
from dgpo_judge.questions import Judge, Question
from dgpo_judge.templating import read_template
from dgpo_judge.tifa import questions_of
from dgpo_judge.transcript import found_share, target_of

if TYPE_CHECKING:
    from dgpo_judge.options import JudgeOptions

__all__ = ["JudgeReward"]

Found = tuple[Verdict, dict[str, Any]]
"""A verdict, and further diagnostics."""
CONCURRENCY = 2
"""Micro-batches that are asked about at once, so that the servers never wait for the end of one."""


class JudgeReward(RewardModel):
    """A served vision-language model's answer about each sample (`forms`).

    The range is that of the form: [0, 1], or the scale of a rating.
    """

    media = frozenset({"image", "video"})
    concurrency = CONCURRENCY
    options: JudgeOptions

    def __init__(self, options: JudgeOptions, *, device: torch.device) -> None:
        """Connect to the servers. Raises UserError if they do not serve the model, or the template is invalid."""
        super().__init__(options, device=device)
        self.range = (0.0, 1.0)  # type: ignore[misc]
        if options.form == "rating":
            low, high = options.scale.split("-")
            self.range = (float(low), float(high))  # type: ignore[misc]
        lines = options.form == "rubric" and options.answers == "lines"
        template = read_template("rubric-lines" if lines else options.form, options.template)
        self.judge = Judge(options, template, "judge")

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raise UserError for the first prompt whose questions soft-tifa lacks, or whose target reading lacks."""
        for prompt in prompts:
            if self.options.form == "soft-tifa":
                questions_of(prompt)
            elif self.options.form == "reading":
                target_of(prompt)

    def provenance(self) -> Mapping[str, Any]:
        """Return the served model and the digest of the template."""
        return self.judge.provenance()

    def keep_in(self, directory: Path) -> None:
        """Keep a journal of the answers, from which a resumed run repeats itself."""
        self.judge.keep_in(directory)

    def costs(self) -> Mapping[str, float]:
        """Return requests, tokens and seconds (`costs.Costs`)."""
        return self.judge.client.costs.take()

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """Score images [B, 3, H, W] or videos [B, F, 3, H, W], float in [0, 1]. Returns float32 [B] on the CPU.

        A sample is missing, with a `reason`, unless each of its questions has a usable answer. Diagnostics: subscores,
        and for soft-tifa a clause for each question. Raises RewardUnusable if the servers refuse everything from the
        first batch on.
        """
        samples = [self._questions(sample, prompt) for sample, prompt in zip(media, prompts, strict=True)]
        flat = [question for asked in samples if not isinstance(asked, Unscored) for question in asked]
        answers = iter(self.judge.ask(flat))
        values: list[float] = []
        diagnostics: list[dict[str, Any]] = []
        for asked, prompt in zip(samples, prompts, strict=True):
            of_sample = [asked] if isinstance(asked, Unscored) else [next(answers) for _ in asked]
            try:
                verdict, more = self._verdict(of_sample, prompt)
            except Unscored as error:
                values.append(math.nan)
                diagnostics.append({"reason": str(error)})
            else:
                values.append(verdict.value)
                diagnostics.append({"subscores": dict(verdict.subscores), **more})
        found = torch.tensor(values, dtype=torch.float32)
        return Scores(found, found.isnan(), tuple(diagnostics))

    def examples(self) -> Sequence[Example]:
        """Return plain pictures of the right and of the wrong color, or with the right and a wrong text."""
        return written_examples() if self.options.form == "reading" else drawn_examples()

    def close(self) -> None:
        """Close the connections."""
        self.judge.close()

    # -- one sample ---------------------------------------------------------------------------------------------

    def _questions(self, sample: Tensor, prompt: Prompt) -> list[Question[Any]] | Unscored:
        """Return what is asked about a sample, or why nothing can be asked."""
        options = self.options
        try:
            pictures = pictures_of(
                sample, frames=options.frames, min_side=options.min_side, max_pixels=options.max_pixels
            )
            return list(self._asked(tuple(pictures), prompt, "video" if sample.dim() == 4 else "image"))
        except (ValueError, UserError) as error:
            return Unscored(str(error))

    def _asked(self, pictures: tuple[Picture, ...], prompt: Prompt, medium: str) -> Sequence[Question[Any]]:
        """Return the questions: of soft-tifa, they read (probability, whether it is said), of others what `_verdict`
        returns."""
        options, template = self.options, self.judge.template
        values = {"prompt": prompt.text, "medium": medium}
        if options.form == "soft-tifa":
            return [
                Question(pictures, template.filled({**values, "question": question}),
                         partial(_expected, question=question, expected=expected), logprobs=True)
                for question, expected in questions_of(prompt)
            ]  # fmt: skip
        if options.form == "rating":
            low, high = options.scale.split("-")
            text = template.filled({**values, "low": low, "high": high})
            longest = 1 if options.after is None else options.max_tokens
            return [Question(pictures, text, self._rating, longest, logprobs=True)]
        if options.form == "rubric":
            text = template.filled({**values, "aspects": self._aspects()})
            schema = ("rubric", rubric_schema(options.aspects)) if options.answers == "json" else None
            return [Question(pictures, text, self._rubric, options.max_tokens, schema=schema)]
        if options.form == "reading":
            read = partial(_reading, target=target_of(prompt))
            return [Question(pictures, template.filled({"medium": medium}), read, options.max_tokens)]
        return [Question(pictures, template.filled(values), self._vqascore, logprobs=True)]

    def _aspects(self) -> str:
        return "\n".join(
            f"- {one.name} ({one.low:g} to {one.high:g})" + (f": {one.description}" if one.description else "")
            for one in self.options.aspects
        )

    def _vqascore(self, answer: Answer) -> Found:
        return vqascore(answer, raw=self.options.raw), {}

    def _rating(self, answer: Answer) -> Found:
        return rating(answer, scale=self.options.scale, after=self.options.after), {}

    def _rubric(self, answer: Answer) -> Found:
        return rubric(answer, self.options.aspects, self.options.answers), {"answer": answer.text}

    def _verdict(self, read: Sequence[Any], prompt: Prompt) -> Found:
        """Return the verdict on what the questions read. Raises Unscored if one could not be."""
        for one in read:
            if isinstance(one, Unscored):
                raise one
        if self.options.form != "soft-tifa":
            found: Found = read[0]
            return found
        return self._tifa(read, prompt)

    def _tifa(self, read: Sequence[tuple[float, bool]], prompt: Prompt) -> Found:
        """Return the mean over a prompt's questions: arithmetic (AM) or geometric (GM)."""
        found = [p for p, _ in read]
        means = {
            "arithmetic": math.fsum(found) / len(found),
            "geometric": math.exp(math.fsum(map(math.log, found)) / len(found)) if min(found) > 0 else 0.0,
        }
        clauses = [
            {"text": f"{question} {expected}: probability {p:.3f}", "ok": ok}
            for (p, ok), (question, expected) in zip(read, questions_of(prompt), strict=True)
        ]
        return Verdict(min(1.0, means[self.options.mean]), means), {"clauses": clauses, "probabilities": found}


def _expected(answer: Answer, question: str, expected: str) -> tuple[float, bool]:
    probability = expected_probability(answer, question, expected)
    return probability, said(answer, expected, probability)


def _reading(answer: Answer, target: str) -> Found:
    read = transcript(answer)
    return Verdict(found_share(read, target)), {"text": read}
