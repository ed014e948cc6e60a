"""Call a reward model: check its scores, undo its changes to process-wide state, and turn errors into missing
scores."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from dgpo_core.contracts import AnyReward, GroupReward, RewardModel
from dgpo_core.distributed.comparing import compared
from dgpo_core.errors import DgpoError, RewardUnusable
from dgpo_core.flow.groups import LARGEST
from dgpo_core.plugins.isolation import ctrl_c, no_exit
from dgpo_core.plugins.process_state import ProcessState
from dgpo_core.system.operators import refused_operator
from dgpo_core.training.memory import OutOfMemory, free, in_halves, is_out_of_memory
from dgpo_core.training.scores import check_scores, valid_subscores
from dgpo_core.types import Prompt, SampleKey, Scores
from dgpo_schemas.text import error_text

__all__ = ["Reward", "checked_group", "checked_score"]

log = logging.getLogger(__name__)
ROUNDING = 1e-4
"""Relative tolerance at the bounds of the declared range, for rounding errors."""
_REPORTING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward model with its label and weight in the run file. A monitor is reported but never trained on."""

    label: str
    weight: float
    model: AnyReward
    monitor: bool = False
    sources: frozenset[str] | None = None
    """Names of the prompt sources whose samples it scores; None: all sources."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """The weight in each prompt source where it is not `weight`."""
    transform: Literal["rank"] | None = None
    """Applied to its values within each group before rewards are combined."""
    halved: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)
    """Set once the warning about scoring in halves was logged."""

    @property
    def name(self) -> str:
        """The name in messages about its side effects."""
        return f"reward {self.label}"

    def asks(self, prompt: Prompt) -> bool:
        """Return whether it scores samples of this prompt; prompts without a source are always scored."""
        return self.sources is None or not prompt.source or prompt.source in self.sources

    def weight_in(self, source: str) -> float:
        """Return the weight for samples of a prompt source."""
        return self.weights.get(source, self.weight)

    @property
    def counts(self) -> bool:
        """Whether any sample's reward depends on it."""
        return bool(self.weight) or any(self.weights.values())

    @property
    def compares(self) -> bool:
        """Whether it scores whole groups."""
        return isinstance(self.model, GroupReward)


def checked_score(
    reward: Reward,
    media: Tensor,
    prompts: Sequence[Prompt],
    failures: list[str] | None = None,
    process_state: ProcessState | None = None,
) -> Scores:
    """Score a batch with a reward and check the result; never raises, except for Ctrl-C and RewardUnusable.

    Returns values float32 [B] and missing bool [B] on the CPU, and one JSON-serializable mapping of diagnostics per
    sample. All samples are missing if the reward raised or returned scores of the wrong shape; a sample is missing if
    its value is not finite or outside the declared range. If memory runs out, the batch is scored in halves; a sample
    that does not fit alone is missing. The reason is in the diagnostics; new reasons are logged and appended to
    `failures`. process_state: undoes the reward's changes to process-wide state.
    """
    failures = [] if failures is None else failures
    model = reward.model
    assert isinstance(model, RewardModel)

    def score(part: Tensor, part_prompts: Sequence[Prompt]) -> Scores:
        try:
            return model.score(part, part_prompts)
        except Exception as error:
            if len(part_prompts) != 1 or not is_out_of_memory(error):
                raise
            alone = OutOfMemory.alone(error)  # only this sample is missing
            _record_failure(failures, reward.label, str(alone), 1, error)
        free()
        return _missing(1, str(alone))

    def call() -> Scores:
        return in_halves(score, media, prompts, partial(_report_halving, reward))

    return _checked(reward, call, len(prompts), failures, process_state)


def checked_group(
    reward: Reward,
    media: Tensor,
    prompt: Prompt,
    keys: Sequence[SampleKey],
    failures: list[str] | None = None,
    process_state: ProcessState | None = None,
) -> Scores:
    """Score a whole group with a reward that compares samples, with the guarantees of `checked_score`.

    Only members with finite media are passed to the reward; the others are missing, and all members are if fewer than
    two are finite. Groups are not halved: a group that does not fit into memory is missing.
    """
    model = reward.model
    assert isinstance(model, GroupReward)

    def call(finite: Tensor, finite_keys: Sequence[SampleKey]) -> Scores:
        try:
            return check_scores(model.score_group(finite, prompt, finite_keys), len(finite_keys))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            out_of_memory = OutOfMemory(f"out of memory, with a group of {len(finite_keys)}: {_reason(error)}")
        free()  # outside of the `except` block, whose traceback keeps the group's tensors alive
        raise out_of_memory

    def score(finite: Tensor, finite_keys: Sequence[SampleKey]) -> Scores:
        known = [] if failures is None else failures
        return _checked(reward, partial(call, finite, finite_keys), len(finite_keys), known, process_state)

    return compared(media, keys, score)


def _checked(
    reward: Reward, call: Callable[[], Scores], count: int, failures: list[str], process_state: ProcessState | None
) -> Scores:
    """Return the checked result of `call`, or `count` missing samples if it failed."""
    with ctrl_c() as pressed:
        try:
            with _protected(reward, process_state), no_exit(), torch.no_grad():
                return _with_valid_subscores(reward, _in_range(reward, call(), failures), failures)
        except BaseException as error:  # some libraries raise SystemExit
            if pressed() or isinstance(error, RewardUnusable):
                raise
            reason = _reason(error)
            _record_failure(failures, reward.label, reason, count, error)
    return _missing(count, reason)


def _missing(count: int, reason: str) -> Scores:
    return Scores(
        torch.zeros(count), torch.ones(count, dtype=torch.bool), tuple({"reason": reason} for _ in range(count))
    )


def _reason(error: BaseException) -> str:
    """Return the text of a reward's error, the same for local and remote rewards; DgpoErrors are complete messages."""
    if (refused := refused_operator(error)) is not None:
        return f"{refused}, or use a service for this reward"
    text = error_text(error)
    return text.removeprefix(f"{type(error).__name__}: ") if isinstance(error, DgpoError) else text


def _report_halving(reward: Reward, error: BaseException) -> None:
    with _REPORTING:
        if reward.halved.is_set():
            return
        reward.halved.set()
    log.warning(
        "reward %s: out of memory; such batches are scored in halves, and the last bits of their scores may differ; "
        "lower rollout.micro_batch to avoid the failed attempts (%s)",
        reward.label, _reason(error),
    )  # fmt: skip


def _protected(reward: Reward, process_state: ProcessState | None) -> AbstractContextManager[None]:
    return nullcontext() if process_state is None or reward.model.is_remote else process_state.around(reward.name)


def _in_range(reward: Reward, scores: Scores, failures: list[str]) -> Scores:
    """Mark values that are not finite or outside the declared range as missing."""
    low, high = max(reward.model.range[0], -LARGEST), min(reward.model.range[1], LARGEST)
    values = scores.values.double()
    below = values < low - ROUNDING * max(1.0, abs(low))
    above = values > high + ROUNDING * max(1.0, abs(high))
    wrong = (~values.isfinite() | below | above) & ~scores.missing
    if not bool(wrong.any()):
        return scores
    diagnostics = list(scores.diagnostics)
    for i in wrong.nonzero().flatten().tolist():
        reason = f"the value {float(values[i])} is not in the declared range [{low}, {high}]"
        diagnostics[i] = {**diagnostics[i], "reason": reason}
    outside = bool(((below | above) & wrong).any())
    kind = f"values outside its declared range [{low}, {high}]" if outside else "values that are not finite"
    _record_failure(failures, reward.label, f"it returned {kind}", int(wrong.sum()), None)
    return Scores(scores.values, scores.missing | wrong, tuple(diagnostics))


def _with_valid_subscores(reward: Reward, scores: Scores, failures: list[str]) -> Scores:
    """Drop invalid subscores; the score itself is kept."""
    scores, problem = valid_subscores(scores)
    if problem is not None:
        _record_failure(failures, reward.label, problem, 0, None)
    return scores


def _record_failure(failures: list[str], label: str, problem: str, count: int, error: BaseException | None) -> None:
    """Log a failure and append it to `failures`, unless it is known."""
    reason = f"{label}: {problem}"
    with _REPORTING:  # several threads may fail at the same time
        if reason in failures:
            return
        failures.append(reason)
    if count:
        log.warning("reward failed, %d samples are missing: %s", count, reason, exc_info=_printable(error))
    else:
        log.warning("reward %s; they are ignored", reason)


def _printable(error: BaseException | None) -> BaseException | None:
    """Return the exception, or None if its __str__ raises, because logging its traceback would fail too."""
    try:
        str(error)
    except BaseException:
        return None
    return error
