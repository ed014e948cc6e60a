"""Where a model's files are, and whether they are what they should be: looked at before any weight is read.

No torch, no library of models, no code of a checkpoint: names, configurations and the headers of safetensors files,
a few milliseconds whatever the size. Everything that is wrong is a UserError of one line, which begins with what the
caller calls the setting (`where`), names file and key, and says the way on.
"""

from dgpo_core.weights.configurations import read_json, refuse_quantized
from dgpo_core.weights.elsewhere import fetch_again, where_instead
from dgpo_core.weights.files import check_file, check_weights, shapes
from dgpo_core.weights.hub import unreachable
from dgpo_core.weights.places import locate, resolve_checkpoint

__all__ = [
    "check_file",
    "check_weights",
    "fetch_again",
    "locate",
    "read_json",
    "refuse_quantized",
    "resolve_checkpoint",
    "shapes",
    "unreachable",
    "where_instead",
]
