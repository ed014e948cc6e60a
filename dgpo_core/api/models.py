"""Names of a run's models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from dgpo_core.errors import UserError
from dgpo_core.system.spelling import option
from dgpo_schemas.problems import nearest

if TYPE_CHECKING:
    from dgpo_core.training.policy import ModelName

__all__ = ["MODELS", "Model", "check_model"]

Model: TypeAlias = Literal["base", "policy", "ema_fast", "ema"]
MODELS: tuple[ModelName, ...] = get_args(Model)


def check_model(model: str) -> ModelName:
    """Return the name of a model. Raises UserError for an unknown one."""
    if model not in MODELS:
        raise UserError(f"{option('model', model)}: choose one of {', '.join(MODELS)}{nearest(str(model), MODELS)}")
    return model
