"""What a reward elsewhere and its caller say to each other: media, prompts and scores as single blobs."""

from __future__ import annotations

from dgpo_remote.messages.blobs import HEADER, LENGTH, Blob, Malformed, OtherProtocol, Unfit, check_protocol, pack
from dgpo_remote.messages.prompts import LARGEST, prompts_as_json, prompts_of, stretches
from dgpo_remote.messages.scores import (
    MEDIA_DTYPES,
    ScoreRequest,
    example_blob,
    media_shape,
    read_examples,
    read_score_answer,
    read_score_header,
    read_score_request,
    score_answer,
    score_request,
)

__all__ = [
    "HEADER",
    "LARGEST",
    "LENGTH",
    "MEDIA_DTYPES",
    "Blob",
    "Malformed",
    "OtherProtocol",
    "ScoreRequest",
    "Unfit",
    "check_protocol",
    "example_blob",
    "media_shape",
    "pack",
    "prompts_as_json",
    "prompts_of",
    "read_examples",
    "read_score_answer",
    "read_score_header",
    "read_score_request",
    "score_answer",
    "score_request",
    "stretches",
]
