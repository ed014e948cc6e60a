"""ImageReward v1.0, a reward model of human preference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import BertTokenizer

from dgpo_core.types import Prompt
from dgpo_pickscore import loading
from dgpo_pickscore.base import PromptReward
from dgpo_pickscore.blip import load_blip
from dgpo_pickscore.images import OPENAI_MEAN, OPENAI_STD, Preprocessing

if TYPE_CHECKING:
    from dgpo_pickscore.options import ImageRewardOptions

__all__ = ["ImageRewardReward"]

TOKENS = 35
"""Maximum number of tokens of a prompt, including start and end."""
SPECIAL = {"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]}
"""Tokens that BLIP adds to BERT's vocabulary; no prompt is expected to contain them."""
CONFIG = "med_config.json"


class ImageRewardReward(PromptReward):
    """ImageReward v1.0 (Xu et al., arXiv 2304.05977; github.com/THUDM/ImageReward).

    BLIP's text tower reads the prompt, and the image by cross-attention; a linear head scores its first token. Values
    are about -2 to 2; their mean is 0 for images of Stable Diffusion 1.4. The range follows from the weights: the head
    is linear, and its input is a layer norm's output. Better as a monitor than as a training reward.

    Diagnostics: value, tokens, truncated (at 35 tokens).
    """

    range = (-float("inf"), float("inf"))

    def __init__(self, options: ImageRewardOptions, *, device: torch.device) -> None:
        """Load the model and BERT's tokenizer. Raises UserError if one is missing, damaged or does not match."""
        where = "reward imagereward: option model"
        directory = loading.fetch(options.model, options.revision, where, [options.model_file, CONFIG])
        path = loading.file_in(str(directory), options.model_file, None, where)
        config = loading.file_in(str(directory), CONFIG, None, where)
        self.network = load_blip(loading.read_tensors(path, where), config, where, f"{where}: the weights in {path}")
        where = "reward imagereward: option tokenizer"
        source = loading.fetch(options.tokenizer, options.tokenizer_revision, where, loading.PROCESSOR)
        self._tokenizer = loading.load_tokenizer(source, where, BertTokenizer, ("tokenizer.json", "vocab.txt"))
        self._tokenizer.add_special_tokens(SPECIAL)
        side = self.network.side
        self.preprocessing = Preprocessing(side, (side, side), OPENAI_MEAN, OPENAI_STD, rounds_offset=True)
        self.dtype = getattr(torch, options.dtype)
        self.network.to(device, self.dtype)
        revision = loading.commit(directory, options.revision)
        origin = {"model": options.model, "file": path.name, "revision": revision, "tokenizer": options.tokenizer}
        super().__init__(options, device=device, origin=origin)
        self.range = self.network.range  # type: ignore[misc]

    def _judge(self, frames: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor, list[dict[str, Any]]]:
        texts = [prompt.text for prompt in prompts]
        lengths = [len(ids) for ids in self._tokenizer(texts, verbose=False)["input_ids"]]
        tokens = self._tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        count, per_video = frames.shape[:2]
        ids, mask = (tokens[name].repeat_interleave(per_video, 0) for name in ("input_ids", "attention_mask"))
        batches = zip(*(torch.split(t, self.options.batch) for t in (frames.flatten(0, 1), ids, mask)), strict=True)
        values = torch.cat([self._values(*batch) for batch in batches]).reshape(count, per_video)
        diagnostics = [
            {"value": value, "tokens": length, "truncated": length > TOKENS}
            for value, length in zip(values.mean(1).tolist(), lengths, strict=True)
        ]
        return values, diagnostics

    def _values(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        pixels = self.preprocessing(images.to(self.device)).to(self.dtype)
        with torch.autocast(self.device.type, enabled=False):
            return self.network(pixels, ids.to(self.device), mask.to(self.device))
