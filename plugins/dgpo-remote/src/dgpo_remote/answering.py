"""What is answered, in a worker and behind a service: the reward's own answers, and errors, which have one form and are
fit to be shown whatever went wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError
from torch import Tensor

from dgpo_core import __version__
from dgpo_core.contracts import AnyReward, GroupReward, RewardBase
from dgpo_core.errors import DgpoError, PluginError, UserError
from dgpo_core.plugins.process_state import ProcessState
from dgpo_core.training.memory import is_out_of_memory
from dgpo_core.training.scores import plain
from dgpo_core.types import Prompt, SampleKey, Scores
from dgpo_remote.refusal import Refusal
from dgpo_schemas.service import PROTOCOL, CheckAnswer, ErrorAnswer, ErrorDetail, RewardDescription, ServiceLimits
from dgpo_schemas.text import clean, error_text

__all__ = ["as_text", "checked", "describe", "error_message", "refusal_of", "said", "scored"]


def scored(
    reward: AnyReward,
    media: Tensor,
    prompts: Sequence[Prompt],
    keys: Sequence[SampleKey] | None,
    process_state: ProcessState,
) -> Scores:
    """What the reward gives for media [B, (F,) 3, H, W] on the CPU, not checked yet; keys: of the members, for a reward
    that compares. Raises whatever it raises."""
    with process_state.around("the reward"), torch.no_grad():
        media = media if reward.is_remote else media.to(reward.device)  # from the CPU it travels on
        if isinstance(reward, GroupReward):
            assert keys is not None, "whole groups are sent"
            return reward.score_group(media, prompts[0], keys)
        return reward.score(media, prompts)


def checked(reward: AnyReward, prompts: Sequence[Prompt]) -> CheckAnswer:
    """Whether the reward can score prompts. Raises what it raises but UserError."""
    try:
        reward.check_prompts(prompts)
    except UserError as error:
        return CheckAnswer(ok=False, message=clean(said(error), lines=True))
    return CheckAnswer(ok=True)


def describe(use: str, reward: RewardBase, limits: ServiceLimits | None = None) -> RewardDescription:
    """A reward that was built."""
    low, high = (float(bound) if math.isfinite(bound) else None for bound in reward.range)
    return RewardDescription(
        protocol=PROTOCOL,
        dgpo=__version__,
        use=use,
        options=_options(use, reward),
        range=(low, high),
        media=sorted(reward.media),
        compares="group" if isinstance(reward, GroupReward) else "sample",
        group_by=reward.group_by,
        concurrency=reward.concurrency,
        limits=limits,
    )


def _options(use: str, reward: RewardBase) -> Any:
    """As JSON can hold them. Raises PluginError for what has no end."""
    options = reward.options
    try:
        if not isinstance(options, BaseModel):
            return plain(options or {})
        try:
            return plain(options.model_dump(mode="json", warnings=False))
        except PydanticSerializationError:  # a field that pydantic cannot write, such as a dtype
            return plain(options.model_dump(warnings=False))
    except Exception as error:
        raise PluginError(f"reward {use}: its options cannot be written: {error_text(error)}") from error


def as_text(message: BaseModel) -> str:
    """A message as a line of JSON. Escaped: diagnostics may hold texts that are not valid Unicode."""
    return json.dumps(message.model_dump(mode="python"), separators=(",", ":"), default=list) + "\n"


def error_message(kind: str, text: str, *, lines: bool = False) -> ErrorAnswer:
    """An error of a kind of `ErrorDetail`; its text is bounded, in one line unless it may have `lines`, and moves no
    terminal's cursor."""
    return ErrorAnswer(error=ErrorDetail.model_validate({"kind": kind, "message": clean(text, lines=lines)}))


def refusal_of(error: BaseException) -> Refusal:
    """What a caller is told of an error that the reward has raised, or that was met for it."""
    if is_out_of_memory(error):  # 507: a caller may halve its batch. 503 would ask it to send the same again.
        return Refusal(507, "memory", said(error) if isinstance(error, DgpoError) else error_text(error))
    if not isinstance(error, DgpoError):
        return Refusal(500, "reward", error_text(error))
    kind = "plugin" if isinstance(error, PluginError) else "user" if isinstance(error, UserError) else "reward"
    return Refusal(500, kind, said(error))


def said(error: BaseException) -> str:
    """What an exception says, whatever its `__str__` does."""
    try:
        return str(error)
    except BaseException:  # a plugin's exception may raise anything when it is asked for its text
        return error_text(error)
