"""The protocol with a real network behind it: a random Qwen3-VL of 100 k parameters, asked over HTTP and directly."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dgpo_core.types import Prompt
from dgpo_judge.demo_server import completion, send

from .conftest import Playing, pictures

IMAGE, START, END = 290, 292, 293
VOCABULARY = 300
SPELLINGS = ("Yes", " Yes", "yes", "\u2581YES", "No", " no", "NO", "\u0120No", "Maybe", "<think>")
SHARP = 200.0
"""Factor of the last layer, whose random logits are else nearly equal: the 20 most probable tokens would be too few."""


def spelled(token: int) -> str:
    """The text of a token: every spelling belongs to many tokens."""
    return SPELLINGS[token % len(SPELLINGS)]


class Network:
    """A random model with its image processor; the text is its UTF-8 bytes."""

    def __init__(self) -> None:
        from transformers import Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration

        text = {
            "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 4096,
            "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True},
        }  # fmt: skip
        vision = {
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32,
            "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        }  # fmt: skip
        config = Qwen3VLConfig(
            text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=IMAGE + 1,
            vision_start_token_id=START, vision_end_token_id=END,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = Qwen3VLForConditionalGeneration(config).eval()
        self.model.lm_head.weight.data.mul_(SHARP)
        size = {"shortest_edge": 64, "longest_edge": 65536}
        self.images = Qwen2VLImageProcessor(patch_size=4, merge_size=2, temporal_patch_size=2, size=size)
        self.lock = threading.Lock()

    @torch.no_grad()
    def logprobs(self, image: Image.Image, text: str) -> torch.Tensor:
        """Log-probabilities of the first token, float64 [VOCABULARY]."""
        seen = self.images(images=[image], return_tensors="pt")
        count = int(seen["image_grid_thw"].prod()) // 4
        ids = torch.tensor([[START, *[IMAGE] * count, END, *text.encode()]])
        with self.lock:
            logits = self.model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == IMAGE).long(),
                **seen,
            ).logits
        return logits[0, -1].double().log_softmax(0)

    def respond(self, handler: Any, request: Mapping[str, Any]) -> None:
        """Answer as a server does that generates one token."""
        picture, text = request["messages"][0]["content"]
        data = base64.b64decode(picture["image_url"]["url"].partition(",")[2])
        found = self.logprobs(Image.open(io.BytesIO(data)).convert("RGB"), text["text"])
        best = found.topk(request["top_logprobs"])
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        top = [{"token": spelled(token), "logprob": value, "bytes": None} for value, token in pairs]
        content = {"content": [{**top[0], "top_logprobs": top}]}
        answer = completion(request, top[0]["token"], content, finish="length")
        send(handler, 200, json.dumps(answer).encode())


@pytest.mark.slow
def test_a_network_behind_the_protocol(play: Callable[..., Playing], judge: Callable[..., Any]) -> None:
    """The score is that of the whole vocabulary, up to what is not among the 20 most probable tokens."""
    network = Network()
    media, prompts = pictures(6), [Prompt(f"a cat number {i}") for i in range(6)]
    scores = judge(play(network.respond), concurrency=2).score(media, prompts)
    words = [spelled(token).strip(" \u2581\u0120").lower() for token in range(VOCABULARY)]
    yes, no = (torch.tensor([word == form for word in words]) for form in ("yes", "no"))
    seen = 0
    for i in range(6):
        image = Image.fromarray((media[i] * 255).round().permute(1, 2, 0).numpy().astype(np.uint8))
        text = f'Does this image show "a cat number {i}"? Answer the question with Yes or No.'
        p = network.logprobs(image, text).exp()
        tail = float(1 - p.topk(20).values.sum())
        y, n = float(p[yes].sum()), float(p[no].sum())
        if y + n - tail < 0.5:
            assert y + n > 0.5 or scores.missing[i]
            continue
        seen += 1
        assert not scores.missing[i]
        assert abs(float(scores.values[i]) - y / (y + n)) <= tail / (y + n - tail) + 1e-6
    assert seen >= 3
    assert len({round(value, 3) for value in scores.values.tolist()}) >= 3, "it depends on the picture"
