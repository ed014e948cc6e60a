"""Options of packed. Light: no torch."""

from pydantic import Field

from dgpo_schemas.base import Float, Options


class PackedOptions(Options):
    """What a run file may say under `options`."""

    embedded_guidance: Float = Field(default=3.5, ge=0, le=100, description="Guidance scale, an input of the model.")
