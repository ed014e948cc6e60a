"""The names that the API gives to a run's models, and those that the engine has for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

from dgpo_core.errors import UserError
from dgpo_core.system.spelling import option
from dgpo_schemas.problems import nearest

if TYPE_CHECKING:
    from dgpo_core.training.policy import ModelName

__all__ = ["MODELS", "Model", "check_view", "named", "view_of"]

Model: TypeAlias = Literal["base", "policy", "ema_fast", "ema"]
_VIEW_OF: Mapping[str, ModelName] = {"base": "base", "policy": "policy", "ema_fast": "old", "ema": "slow"}
MODELS: tuple[ModelName, ...] = tuple(_VIEW_OF.values())


def view_of(model: str) -> ModelName:
    """The engine's name. Raises UserError for a name that no model has."""
    if model not in _VIEW_OF:
        raise UserError(f"{option('model', model)}: choose one of {', '.join(_VIEW_OF)}{nearest(str(model), _VIEW_OF)}")
    return _VIEW_OF[model]


def check_view(model: str) -> None:
    """Raise UserError for a name that no model has."""
    if model not in MODELS:
        raise UserError(f"{named(model)}: choose one of {', '.join(MODELS)}")


def named(model: str) -> str:
    """The argument that chose a model, as the caller wrote it."""
    in_python = next((model for model, known in _VIEW_OF.items() if known == model), model)
    flag = option("model", model)
    return flag if flag.startswith("--") else option("model", in_python)
