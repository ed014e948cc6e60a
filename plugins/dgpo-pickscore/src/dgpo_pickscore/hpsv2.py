"""HPS v2.1: human preference, learned by an open_clip ViT-H-14."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dgpo_core.errors import UserError
from dgpo_core.weights import read_json
from dgpo_pickscore.base import CosineReward
from dgpo_pickscore.images import OPENAI_MEAN, OPENAI_STD, Preprocessing
from dgpo_pickscore.libraries import quiet
from dgpo_pickscore.loading import check_keys, commit, file_in, read_tensors, reason
from dgpo_pickscore.open_clip_encoder import OpenClipEncoder, import_open_clip

if TYPE_CHECKING:
    from dgpo_pickscore.options import HpsOptions

__all__ = ["HpsReward"]


class HpsReward(CosineReward):
    """Human Preference Score v2.1 (Wu et al., arXiv 2306.09341; github.com/tgxs002/HPSv2), cosine of text and image.

    The longer side of an image is resized to the network's input size (bicubic, antialiased, without rounding to 8
    bits, as torchvision has resized tensors since 0.17), and the shorter side is padded with black. Values of the
    published weights are about 0.2 to 0.4. Diagnostics: cosine, percent, tokens, truncated.
    """

    range = (-1.0, 1.0)

    def __init__(self, options: HpsOptions, *, device: torch.device) -> None:
        """Load the model. Raises UserError if open_clip is missing, or the weights are, or they do not match."""
        open_clip = import_open_clip("hpsv2")
        config = _architecture(open_clip, options.architecture)
        where = "reward hpsv2: option model"
        path = file_in(options.model, options.model_file, options.revision, where)
        model = _model(open_clip, config, options.architecture)
        tensors = read_tensors(path, where, inside="state_dict")
        what = f"{where}: the weights in {path}"
        check_keys(what, {name: value.shape for name, value in model.state_dict().items()}, tensors)
        model.load_state_dict(tensors)
        tokenizer = open_clip.SimpleTokenizer(context_length=config["text_cfg"].get("context_length", 77))
        side = model.visual.image_size[0]
        preprocessing = Preprocessing(side, (side, side), OPENAI_MEAN, OPENAI_STD, pads=True, keeps_fractions=True)
        dtype = getattr(torch, options.dtype)
        encoder = OpenClipEncoder(model, tokenizer, preprocessing, device=device, dtype=dtype)
        origin = {"model": options.model, "file": path.name, "revision": commit(path.parent, options.revision)}
        super().__init__(options, device=device, origin=origin, encoder=encoder)


def _architecture(open_clip: Any, name: str) -> dict[str, Any]:
    """Return the configuration of an open_clip architecture. Raises UserError for an unknown name."""
    where = "reward hpsv2: option architecture"
    if name.endswith(".json"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"{where}: no such file: {name}")
        config = read_json(path, where)
        config = config.get("model_cfg", config)
    else:
        config = open_clip.get_model_config(name)
        if config is None:
            nearest = ", ".join(get_close_matches(name, open_clip.list_models(), 3)) or "ViT-H-14"
            raise UserError(f"{where}: unknown open_clip model {name}; nearest: {nearest}")
    if not isinstance(config.get("text_cfg"), dict) or "hf_model_name" in config["text_cfg"]:
        raise UserError(f"{where}: {name} is not a CLIP model with a text tower of open_clip")
    return dict(config)


def _model(open_clip: Any, config: dict[str, Any], name: str) -> Any:
    try:
        with quiet():
            return open_clip.CLIP(**config)
    except (TypeError, ValueError, KeyError, AssertionError) as error:
        raise UserError(f"reward hpsv2: option architecture: {name} cannot be built: {reason(error)}") from error
