"""One call of a reward model: asked, checked, and what it leaves changed put back. It never raises."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from dgpo_core.contracts import AnyReward, GroupReward, RewardModel
from dgpo_core.distributed.comparing import compared
from dgpo_core.errors import DgpoError
from dgpo_core.flow.groups import LARGEST
from dgpo_core.plugins.isolation import ctrl_c, no_exit
from dgpo_core.plugins.process_state import ProcessState
from dgpo_core.training.memory import OutOfMemory, free, in_halves, is_out_of_memory
from dgpo_core.training.scores import check_scores, valid_subscores
from dgpo_core.types import Prompt, SampleKey, Scores
from dgpo_schemas.text import error_text

__all__ = ["Reward", "checked_group", "checked_score"]

log = logging.getLogger(__name__)
ROUNDING = 1e-4
"""Share of a bound's size by which a value may pass its declared range: rounding, not a mistake."""
_TELLING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward model under the label of the run file, with its weight. A monitor is measured and never trained on."""

    label: str
    weight: float
    model: AnyReward
    monitor: bool = False
    sources: frozenset[str] | None = None
    """Names of the sources whose samples it is asked to score; None: of all."""
    halved: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)
    """Set once it has been told that its batches are scored in halves."""

    @property
    def name(self) -> str:
        """For messages about what it does besides scoring."""
        return f"reward {self.label}"

    def asks(self, prompt: Prompt) -> bool:
        """Whether it is asked to score samples of this prompt; those of no source it always is."""
        return self.sources is None or not prompt.source or prompt.source in self.sources

    @property
    def compares(self) -> bool:
        """Whether it is shown whole groups."""
        return isinstance(self.model, GroupReward)


def checked_score(
    reward: Reward,
    media: Tensor,
    prompts: Sequence[Prompt],
    failures: list[str] | None = None,
    process_state: ProcessState | None = None,
) -> Scores:
    """Ask a reward and check what it says; never raises. What it leaves changed in the process is put back.

    Returns values float32 [B] and missing bool [B] on the CPU, one mapping of diagnostics per sample, which JSON can
    hold. All samples are missing where the reward raised (whatever it was; a Ctrl-C alone is passed on) or answered in
    another shape; those whose value is no number or lies outside the declared range are missing too. Where memory runs
    out the batch is scored in halves, and a sample that does not even fit alone is missing. The reason stands in the
    diagnostics; a reason that is new is logged and appended to `failures`.
    """
    failures = [] if failures is None else failures
    model = reward.model
    assert isinstance(model, RewardModel)

    def score(part: Tensor, shown: Sequence[Prompt]) -> Scores:
        try:
            return model.score(part, shown)
        except Exception as error:
            if len(shown) != 1 or not is_out_of_memory(error):
                raise
            alone = OutOfMemory.alone(error)  # costs this sample alone
            _remember(failures, reward.label, str(alone), 1, error)
        free()
        return _missing(1, str(alone))

    def ask() -> Scores:
        return in_halves(score, media, prompts, partial(_report_halving, reward))

    return _asked(reward, ask, len(prompts), failures, process_state)


def checked_group(
    reward: Reward,
    media: Tensor,
    prompt: Prompt,
    keys: Sequence[SampleKey],
    failures: list[str] | None = None,
    process_state: ProcessState | None = None,
) -> Scores:
    """Ask a reward that compares about a whole group, with the promises of `checked_score`.

    It is shown the members whose media are finite; the others are missing, and all are if fewer than two are left.
    There is no halving: a group that does not fit into memory is missing.
    """
    model = reward.model
    assert isinstance(model, GroupReward)

    def call(shown: Tensor, named: Sequence[SampleKey]) -> Scores:
        try:
            return check_scores(model.score_group(shown, prompt, named), len(named))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            why = OutOfMemory(f"out of memory, with a group of {len(named)}: {_reason(error)}")
        free()  # outside of the `except`, which keeps the group's tensors alive
        raise why

    def ask(shown: Tensor, named: Sequence[SampleKey]) -> Scores:
        return _asked(
            reward, partial(call, shown, named), len(named), [] if failures is None else failures, process_state
        )

    return compared(media, keys, ask)


def _asked(
    reward: Reward, ask: Callable[[], Scores], count: int, failures: list[str], process_state: ProcessState | None
) -> Scores:
    """What `ask` gives, checked, or `count` samples that are missing because it failed."""
    with ctrl_c() as pressed:
        try:
            with _protected(reward, process_state), no_exit(), torch.no_grad():
                return _with_valid_subscores(reward, _in_range(reward, ask(), failures), failures)
        except BaseException as error:  # some libraries exit where others raise
            if pressed():
                raise
            reason = _reason(error)
            _remember(failures, reward.label, reason, count, error)
    return _missing(count, reason)


def _missing(count: int, reason: str) -> Scores:
    return Scores(
        torch.zeros(count), torch.ones(count, dtype=torch.bool), tuple({"reason": reason} for _ in range(count))
    )


def _reason(error: BaseException) -> str:
    """What a reward failed with, in the same words wherever it runs: errors of our own are messages already."""
    text = error_text(error)
    return text.removeprefix(f"{type(error).__name__}: ") if isinstance(error, DgpoError) else text


def _report_halving(reward: Reward, error: BaseException) -> None:
    with _TELLING:
        if reward.halved.is_set():
            return
        reward.halved.set()
    log.warning(
        "reward %s: out of memory; such batches are scored in halves, whose last bits may differ from those of the "
        "whole: a smaller rollout.micro_batch would save the attempts (%s)",
        reward.label, _reason(error),
    )  # fmt: skip


def _protected(reward: Reward, process_state: ProcessState | None) -> AbstractContextManager[None]:
    return nullcontext() if process_state is None or reward.model.is_remote else process_state.around(reward.name)


def _in_range(reward: Reward, scores: Scores, failures: list[str]) -> Scores:
    """Values that are no number, or lie outside the declared range, as missing."""
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
    kind = f"values outside its declared range [{low}, {high}]" if outside else "values that are no numbers"
    _remember(failures, reward.label, f"it returned {kind}", int(wrong.sum()), None)
    return Scores(scores.values, scores.missing | wrong, tuple(diagnostics))


def _with_valid_subscores(reward: Reward, scores: Scores, failures: list[str]) -> Scores:
    """The scores without invalid subscores, which are reported; the values stay."""
    scores, wrong = valid_subscores(scores)
    if wrong is not None:
        _remember(failures, reward.label, wrong, 0, None)
    return scores


def _remember(failures: list[str], label: str, what: str, count: int, error: BaseException | None) -> None:
    reason = f"{label}: {what}"
    with _TELLING:  # several threads may fail at the same time
        if reason in failures:
            return
        failures.append(reason)
    if count:
        log.warning("reward failed, %d samples are missing: %s", count, reason, exc_info=_shown(error))
    else:
        log.warning("reward %s; they are left out", reason)


def _shown(error: BaseException | None) -> BaseException | None:
    """The exception, if its traceback can be written: one whose text cannot be had cannot."""
    try:
        str(error)
    except BaseException:
        return None
    return error
