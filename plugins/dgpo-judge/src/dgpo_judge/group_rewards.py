"""The rewards `judge-pairs` and `judge-list`: a judge that compares the samples of a prompt."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo_core.contracts import GroupReward
from dgpo_core.types import Example, Prompt, SampleKey, Scores
from dgpo_judge.answers import Answer, as_json
from dgpo_judge.comparing import (
    bradley_terry,
    kendall_distance,
    order_of,
    pairs_of,
    rank_values,
    win_rates,
    with_ties,
)
from dgpo_judge.examples import drawn_examples
from dgpo_judge.forms import Unscored, Verdict, preference
from dgpo_judge.pictures import Picture, pictures_of
from dgpo_judge.questions import Judge, Question
from dgpo_judge.templating import read_template

if TYPE_CHECKING:
    from dgpo_judge.options import ListOptions, PairsOptions

__all__ = ["ListReward", "PairsReward"]

ALONE = "nothing to compare with"
NO_PIXELS = "the media have values that are not in [0, 1]"
MOST_LETTERS = len(string.ascii_uppercase)


class _Comparing(GroupReward):
    """What judges of groups have in common."""

    media = frozenset({"image", "video"})
    range = (0.0, 1.0)
    form = ""

    def __init__(self, options: PairsOptions | ListOptions, *, device: torch.device) -> None:
        """Connect to the servers. Raises UserError if they do not serve the model, or the template is invalid."""
        super().__init__(options, device=device)
        self.judge = Judge(options, read_template(self.form, options.template), f"judge-{self.form}")

    def provenance(self) -> Mapping[str, Any]:
        """Return the served model and the digest of the template."""
        return self.judge.provenance()

    def keep_in(self, directory: Path) -> None:
        """Keep a journal of the answers, from which a resumed run repeats itself."""
        self.judge.keep_in(directory)

    def costs(self) -> Mapping[str, float]:
        """Return requests, tokens and seconds (`costs.Costs`)."""
        return self.judge.client.costs.take()

    def examples(self) -> Sequence[Example]:
        """Return plain pictures of the right and of the wrong color, as one group."""
        return drawn_examples()

    def close(self) -> None:
        """Close the connections."""
        self.judge.close()

    def _pictures(self, sample: Tensor) -> tuple[Picture, ...] | None:
        """Return the pictures of a member; None if its values are invalid."""
        o = self.options
        try:
            return tuple(pictures_of(sample, frames=o.frames, min_side=o.min_side, max_pixels=o.max_pixels))
        except ValueError:
            return None

    def _members(self, media: Tensor) -> list[tuple[Picture, ...] | None]:
        return [self._pictures(sample) for sample in media]


class PairsReward(_Comparing):
    """Win rate within the group: pairs are judged in both orders, and P(1) / (P(1) + P(2)) is averaged."""

    form = "pairs"
    options: PairsOptions

    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        """Score the members [G, ...] of a prompt: float32 [G] on the CPU, whose mean is 1/2 if none is missing.

        A member is missing if fewer than half of the answers about it are usable, or no comparison has both orders.
        Subscores: `answered`, the share of usable answers, and `bias`, the mean preference for the first place.
        """
        pictures = self._members(media)
        shown = {i for i, of_member in enumerate(pictures) if of_member is not None}
        pairs = [pair for pair in pairs_of(keys, self.options.opponents) if shown.issuperset(pair)]
        text = self.judge.template.filled({"prompt": prompt.text, "medium": _medium(media)})
        orders = [order for i, j in pairs for order in ((i, j), (j, i))]
        answers = self.judge.ask([self._question(pictures, order, text) for order in orders])
        firsts: dict[tuple[int, int], float] = {}
        reasons = {i: NO_PIXELS for i in range(len(media)) if i not in shown}
        for (i, j), answer in zip(orders, answers, strict=True):
            if isinstance(answer, Unscored):
                reasons.setdefault(i, str(answer))
                reasons.setdefault(j, str(answer))
            else:
                firsts[i, j] = answer.value
        margin = self.options.tie_band
        preferences = {
            (i, j): with_ties((firsts[i, j] + 1 - firsts[j, i]) / 2, margin)
            for i, j in pairs
            if (i, j) in firsts and (j, i) in firsts
        }
        values = self._combined(order_of(keys), preferences)
        return _pair_scores(values, orders, firsts, reasons)

    def _question(
        self, pictures: Sequence[tuple[Picture, ...] | None], order: tuple[int, int], text: str
    ) -> Question[Verdict]:
        first, second = (pictures[i] for i in order)
        assert first is not None
        assert second is not None
        return Question(first + second, text, preference, logprobs=True)

    def _combined(self, order: Sequence[int], preferences: Mapping[tuple[int, int], float]) -> list[float]:
        """Return the values of the members, computed in the order of their keys: bitwise the same in any other."""
        place = {member: rank for rank, member in enumerate(order)}
        ranked = {(place[i], place[j]): p for (i, j), p in preferences.items()}
        default = "win-rate" if self.options.opponents is None else "bradley-terry"
        combine = win_rates if (self.options.combine or default) == "win-rate" else bradley_terry
        values = combine(len(order), ranked)
        return [values[place[member]] for member in range(len(order))]


def _pair_scores(
    values: Sequence[float],
    orders: Sequence[tuple[int, int]],
    firsts: Mapping[tuple[int, int], float],
    reasons: Mapping[int, str],
) -> Scores:
    bias = math.fsum(firsts.values()) / len(firsts) if firsts else math.nan
    diagnostics: list[dict[str, Any]] = []
    missing = []
    for member, value in enumerate(values):
        asked = [order for order in orders if member in order]
        answered = sum(order in firsts for order in asked)
        lost = math.isnan(value) or 2 * answered < len(asked)
        missing.append(lost)
        if lost:
            diagnostics.append({"reason": reasons.get(member, ALONE)})
        else:
            diagnostics.append({"subscores": {"answered": answered / len(asked), "bias": bias}})
    found = torch.tensor([0.0 if lost else v for v, lost in zip(values, missing, strict=True)], dtype=torch.float32)
    return Scores(found, torch.tensor(missing, dtype=torch.bool), tuple(diagnostics))


class ListReward(_Comparing):
    """Mean rank within the group: the judge sees all members as letters, in several orders, and ranks them."""

    form = "list"
    options: ListOptions

    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        """Score the members [G, ...] of a prompt: float32 [G] on the CPU.

        All are missing if fewer than half of the answers are permutations, or with more than 26 members. Subscore:
        `disagreement`, the mean share of pairs that two orders of the group ranked differently.
        """
        pictures = self._members(media)
        members = [i for i, of_member in enumerate(pictures) if of_member is not None]
        if len(members) < 2 or len(members) > MOST_LETTERS:
            many = f"a group of {len(members)} has more members than the {MOST_LETTERS} letters; use judge-pairs"
            return _all_missing(len(media), ALONE if len(members) < 2 else many)
        orders = [order_of([keys[i] for i in members], number) for number in range(self.options.shuffles)]
        values = {"prompt": prompt.text, "medium": _medium(media), "count": str(len(members))}
        letters = string.ascii_uppercase[: len(members)]
        text = self.judge.template.filled({**values, "letters": ", ".join(letters)})
        schema = ("ranking", _schema(letters))
        questions = [
            Question(
                tuple(one for place in order for one in pictures[members[place]] or ()),
                text, partial(_permutation, letters=letters), self.options.max_tokens, schema=schema,
            )
            for order in orders
        ]  # fmt: skip
        answers = self.judge.ask(questions)
        rankings, reason = [], ""
        for order, answer in zip(orders, answers, strict=True):
            if isinstance(answer, Unscored):
                reason = reason or str(answer)
            else:
                rankings.append([order[place] for place in answer])
        if 2 * len(rankings) < len(orders):
            return _all_missing(len(media), reason)
        return _list_scores(len(media), members, rankings)


def _list_scores(count: int, members: Sequence[int], rankings: Sequence[Sequence[int]]) -> Scores:
    compared = [kendall_distance(one, other) for one, other in combinations(rankings, 2)]
    disagreement = {"disagreement": math.fsum(compared) / len(compared)} if compared else {}
    values, missing = torch.zeros(count), torch.ones(count, dtype=torch.bool)
    diagnostics: list[dict[str, Any]] = [{"reason": NO_PIXELS}] * count
    for member, value in zip(members, rank_values(len(members), rankings), strict=True):
        values[member], missing[member] = value, False
        diagnostics[member] = {"subscores": disagreement}
    return Scores(values, missing, tuple(diagnostics))


def _permutation(answer: Answer, letters: str) -> list[int]:
    """Return the places of the letters in a ranking, best first. Raises Unscored."""
    if answer.finish != "stop":
        raise Unscored("the answer was cut at max_tokens (finish_reason 'length')")
    try:
        data = as_json(answer.text)
    except ValueError as error:
        raise Unscored("the answer is not the JSON that was asked for") from error
    ranking = data.get("ranking") if isinstance(data, dict) and set(data) == {"ranking"} else None
    if not isinstance(ranking, list) or sorted(map(str, ranking)) != list(letters):
        raise Unscored(f"the answer does not rank each of {letters[0]} to {letters[-1]} exactly once")
    return [letters.index(letter) for letter in ranking]


def _schema(letters: str) -> dict[str, Any]:
    items = {"type": "string", "enum": list(letters)}
    ranking = {"type": "array", "items": items, "minItems": len(letters), "maxItems": len(letters)}
    return {
        "type": "object",
        "properties": {"ranking": ranking},
        "required": ["ranking"],
        "additionalProperties": False,
    }


def _all_missing(count: int, reason: str) -> Scores:
    return Scores(torch.zeros(count), torch.ones(count, dtype=torch.bool), ({"reason": reason},) * count)


def _medium(media: Tensor) -> str:
    return "video" if media.dim() == 5 else "image"
