"""Record of the base model's files, used to detect a different base model. It is written to run.json and to exported
adapters."""

from __future__ import annotations

from pydantic import Field

from dgpo_schemas.base import StrictModel

__all__ = ["BaseFile", "BaseRecord"]


class BaseFile(StrictModel):
    """A file of the base model."""

    bytes: int = Field(ge=0, description="Size of the file in bytes.")
    digest: str = Field(
        description="`sha256:` and the digest of the file; or, for a large safetensors file, `sampled-sha256:` and the "
        "digest of its size, its header, and the first, middle and last 4 KiB of each tensor."
    )


class BaseRecord(StrictModel):
    """Files of the base model at the start of a run."""

    directory: str = Field(description="Absolute path of the model's directory.")
    commit: str | None = Field(default=None, description="Commit of the snapshot, for a Hub repository.")
    files: dict[str, BaseFile] = Field(description="Files by their path below the directory, with `/` as separator.")
