"""Locate a model's files and check them before any weight is loaded.

Reads only file names, configuration files, safetensors headers and, for digests, samples of the tensors, which takes
milliseconds for models of any size.
Imports neither torch nor a model library, and runs no code from a checkpoint. Every problem is a one-line UserError
that begins with the setting (`where`), names the file and the key, and suggests a fix.
"""

from dgpo_core.weights.configurations import read_json, refuse_quantized
from dgpo_core.weights.digests import file_digest, is_sampled
from dgpo_core.weights.elsewhere import fetch_again, where_instead
from dgpo_core.weights.files import check_file, check_weights, shapes
from dgpo_core.weights.hub import unreachable
from dgpo_core.weights.places import locate, resolve_checkpoint

__all__ = [
    "check_file",
    "check_weights",
    "fetch_again",
    "file_digest",
    "is_sampled",
    "locate",
    "read_json",
    "refuse_quantized",
    "resolve_checkpoint",
    "shapes",
    "unreachable",
    "where_instead",
]
