"""What a run's base model was read from, so that another one is noticed: in run.json and beside exported adapters."""

from __future__ import annotations

from pydantic import Field

from dgpo_schemas.base import StrictModel

__all__ = ["BaseFile", "BaseRecord"]


class BaseFile(StrictModel):
    """A file of the base model."""

    bytes: int = Field(ge=0, description="Its size.")
    digest: str = Field(
        description="`sha256:` and that of the whole file; or `sampled-sha256:` and that of a large safetensors file's "
        "size, its header, and the first, middle and last 4 KiB of each tensor in it."
    )


class BaseRecord(StrictModel):
    """The files of the base model that a run began with."""

    directory: str = Field(description="Where they were, absolute.")
    commit: str | None = Field(default=None, description="The commit, for a snapshot of a Hub repository.")
    files: dict[str, BaseFile] = Field(description="Path below the directory, with `/`, to what was there.")
