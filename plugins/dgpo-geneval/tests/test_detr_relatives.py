"""The detector `detr` with five more architectures of transformers, on tiny random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from dgpo_geneval.detectors.detr import DetrDetector, has_softmax
from dgpo_geneval.detectors.options import DetrOptions
from dgpo_geneval.testing import COCO

NAMES: dict[str, Any] = {"id2label": dict(enumerate(COCO)), "label2id": {name: i for i, name in enumerate(COCO)}}
STAGES: dict[str, Any] = {
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}
LAYERS: dict[str, Any] = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
HEADS: dict[str, Any] = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
PLAIN: dict[str, Any] = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}


def real_time(config: Any) -> Any:
    return config(
        backbone_config=transformers.RTDetrResNetConfig(**STAGES),
        encoder_in_channels=[8, 16, 16],
        decoder_in_channels=[16, 16, 16],
        feat_strides=[8, 16, 32],
        num_feature_levels=3,
        encoder_hidden_dim=16,
        d_model=16,
        num_queries=9,
        num_denoising=0,
        hidden_expansion=0.5,
        **LAYERS,
        **HEADS,
        **NAMES,
    )


def with_resnet(config: Any, stages: list[str], **more: Any) -> Any:
    backbone = transformers.ResNetConfig(**{**STAGES, "out_features": stages})
    return config(backbone_config=backbone, d_model=32, num_queries=9, **PLAIN, **LAYERS, **HEADS, **NAMES, **more)


def yolos() -> Any:
    return transformers.YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[64, 64],
        num_detection_tokens=9,
        **NAMES,
    )


RELATIVES: dict[str, tuple[Callable[[], Any], str, bool]] = {
    "Yolos": (yolos, "Yolos", True),
    "RTDetrV2": (lambda: real_time(transformers.RTDetrV2Config), "RTDetr", False),
    "DFine": (lambda: real_time(transformers.DFineConfig), "RTDetr", False),
    "ConditionalDetr": (
        lambda: with_resnet(transformers.ConditionalDetrConfig, ["stage4"]),
        "ConditionalDetr",
        False,
    ),
    "DeformableDetr": (
        lambda: with_resnet(
            transformers.DeformableDetrConfig, ["stage2", "stage3", "stage4"], disable_custom_kernels=True
        ),
        "DeformableDetr",
        False,
    ),
}
"""Class of transformers: its configuration, its image processor, whether it has a softmax by its publication."""


@pytest.mark.parametrize("name", RELATIVES)
def test_relatives(name: str, tmp_path: Path) -> None:
    config, processor, softmax = RELATIVES[name]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        getattr(transformers, f"{name}ForObjectDetection")(config()).save_pretrained(tmp_path)
    size = {"height": 64, "width": 64} if processor == "RTDetr" else {"shortest_edge": 64, "longest_edge": 128}
    preprocessing = {"image_processor_type": f"{processor}ImageProcessor", "size": size}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    seen = DetrDetector(DetrOptions(checkpoint=str(tmp_path), score=0, counting=0), device=torch.device("cpu"))
    image = torch.rand(3, 60, 88, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = seen.network(**seen.pixels(image)).logits[0]
    assert has_softmax(logits.shape[-1], len(COCO)) == softmax
    found = seen.find(image)
    expected = logits.softmax(-1)[:, :-1] if softmax else logits.sigmoid()
    torch.testing.assert_close(torch.from_numpy(found.score), expected.amax(-1))
    assert found.label.tolist() == logits[:, :80].argmax(-1).tolist()
