"""Responses of workers and services: scores, prompt checks, the reward's description, and errors.

Errors have one format, and their text is always safe to print.
"""

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

__all__ = ["as_text", "checked", "describe", "error_message", "message_of", "refusal_of", "scored"]


def scored(
    reward: AnyReward,
    media: Tensor,
    prompts: Sequence[Prompt],
    keys: Sequence[SampleKey] | None,
    process_state: ProcessState,
) -> Scores:
    """Return the reward's unvalidated scores for media [B, (F,) 3, H, W] on the CPU.

    keys: sample keys of the group's members, for a group reward. Raises whatever the reward raises.
    """
    with process_state.around("the reward"), torch.no_grad():
        media = media if reward.is_remote else media.to(reward.device)
        if isinstance(reward, GroupReward):
            assert keys is not None, "a group reward receives whole groups"
            return reward.score_group(media, prompts[0], keys)
        return reward.score(media, prompts)


def checked(reward: AnyReward, prompts: Sequence[Prompt]) -> CheckAnswer:
    """Check whether the reward can score the prompts. A UserError becomes part of the response; others propagate."""
    try:
        reward.check_prompts(prompts)
    except UserError as error:
        return CheckAnswer(ok=False, message=clean(message_of(error), lines=True))
    return CheckAnswer(ok=True)


def describe(use: str, reward: RewardBase, limits: ServiceLimits | None = None) -> RewardDescription:
    """Return the description of a reward, as sent to its clients."""
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
        provenance=_provenance(use, reward),
    )


def _options(use: str, reward: RewardBase) -> Any:
    """Return the options as JSON values. Raises PluginError if they cannot be serialized, such as a cycle."""
    options = reward.options
    try:
        if not isinstance(options, BaseModel):
            return plain(options or {})
        try:
            return plain(options.model_dump(mode="json", warnings=False))
        except PydanticSerializationError:  # a field that pydantic cannot serialize, such as a dtype
            return plain(options.model_dump(warnings=False))
    except Exception as error:
        raise PluginError(f"reward {use}: its options cannot be serialized: {error_text(error)}") from error


def _provenance(use: str, reward: RewardBase) -> Any:
    """Return the provenance as JSON values. Raises PluginError if there is none."""
    try:
        return plain(dict(reward.provenance()))
    except Exception as error:
        raise PluginError(f"reward {use}: its provenance failed: {error_text(error)}") from error


def as_text(message: BaseModel) -> str:
    """Serialize a message as one line of ASCII JSON: diagnostics may contain strings that are not valid Unicode."""
    return json.dumps(message.model_dump(mode="python"), separators=(",", ":"), default=list) + "\n"


def error_message(kind: str, text: str, *, lines: bool = False) -> ErrorAnswer:
    """Return an error response of one of the kinds of `ErrorDetail`.

    The text is limited in length, contains no terminal control characters, and is a single line unless `lines` is set.
    """
    return ErrorAnswer(error=ErrorDetail.model_validate({"kind": kind, "message": clean(text, lines=lines)}))


def refusal_of(error: BaseException) -> Refusal:
    """Return the response for an error that the reward, or the code that calls it, has raised."""
    if is_out_of_memory(error):  # 507: the client may halve its batch. 503 would make it send the same request again.
        return Refusal(507, "memory", message_of(error) if isinstance(error, DgpoError) else error_text(error))
    if not isinstance(error, DgpoError):
        return Refusal(500, "reward", error_text(error))
    kind = "plugin" if isinstance(error, PluginError) else "user" if isinstance(error, UserError) else "reward"
    return Refusal(500, kind, message_of(error))


def message_of(error: BaseException) -> str:
    """Return an exception's message, even if its `__str__` raises."""
    try:
        return str(error)
    except BaseException:  # the `__str__` of a plugin's exception may raise anything
        return error_text(error)
