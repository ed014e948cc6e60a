"""In which precision an imitated GPU decodes samples, as `precision.tf32` says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from dgpo_core.contracts import Backbone
from dgpo_core.distributed.runtime import Runtime
from dgpo_core.plugins.registry import Registry
from dgpo_lab.planning.meter import Meter
from dgpo_lab.planning.shapes import CUDA, META
from dgpo_schemas.run import RunConfig

SD3 = {"use": "sd3", "checkpoint": "package:dgpo_miniature/checkpoint", "options": {"text_length": 0},
       "dtype": "bfloat16"}  # fmt: skip


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    yield
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.parametrize(("tf32", "expected"), [(True, "tf32"), (False, "float32")])
def test_decoding(tf32: bool, expected: str, make_config: Callable[..., RunConfig], registry: Registry) -> None:
    data = make_config(precision={"tf32": tf32, "autocast": "bf16"}).model_dump(mode="json", exclude_unset=True)
    config = RunConfig.model_validate(data | {"backbone": SD3})
    backbone: Any = registry.create("backbone", config.backbone, device=META)
    assert isinstance(backbone, Backbone)
    Runtime(config)
    with Meter("here", *backbone.components().values()) as meter, torch.autocast("cuda", torch.bfloat16):
        backbone.device = CUDA
        x0 = torch.empty(2, *backbone.latent_shape(64, 64), device=CUDA, dtype=torch.bfloat16)
        with meter.lap() as lap:
            media = backbone.decode(x0)
    assert media.dtype == torch.float32
    found = {kernel.precision for kernel in lap.kernels if kernel.kind in ("convolution", "gemm")}
    assert found == {expected}
