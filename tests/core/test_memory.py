"""A device that runs out of memory: halves give the same, are told of once, and one that is too small ends the run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.storage.checkpoint import load
from dgpo_core.system.device import ALLOCATOR, choose_device
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.memory import OutOfMemory, TooLittleMemoryError, decoded, halving, in_parts
from dgpo_core.training.reward_calls import Reward, checked_score
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_core.types import Conditioning, Prompt, Scores
from dgpo_kit.toy import ToyBackbone
from dgpo_schemas.run import RunConfig

Make = Callable[..., RunConfig]
DOUBLE = {"options": {"double": True}}


class Notes(Callback):
    def __init__(self) -> None:
        self.reported: list[str] = []

    def on_message(self, text: str) -> None:
        self.reported.append(text)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the toy model run out of memory beyond so many samples."""
    velocity, decode = ToyBackbone.velocity, ToyBackbone.decode

    def limit(forward: int = 100, backward: int = 100, images: int = 100) -> None:
        def tight(self: ToyBackbone, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
            if len(x) > (backward if torch.is_grad_enabled() else forward):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return velocity(self, x, sigma, conditioning)

        def small(self: ToyBackbone, x0: Tensor) -> Tensor:
            if len(x0) > images:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return decode(self, x0)

        monkeypatch.setattr(ToyBackbone, "velocity", tight)
        monkeypatch.setattr(ToyBackbone, "decode", small)

    return limit


def weights(config: RunConfig) -> dict[str, Tensor]:
    return load(sorted((run_path(config) / "checkpoints").iterdir())[-1]).weights


@pytest.mark.parametrize(
    ("limits", "reported"),
    [
        ({"forward": 5}, ["rollout.micro_batch: 4`", "optimizer.micro_batch: 4`"]),
        ({"backward": 3}, ["optimizer.micro_batch: 2`"]),
        ({"backward": 1}, ["optimizer.micro_batch: 4`", "optimizer.micro_batch: 2`", "optimizer.micro_batch: 1`"]),
        ({"images": 3}, []),
    ],
)
def test_the_same_result_in_halves(
    limits: dict[str, int], reported: list[str], make_config: Make, registry: Registry, room: Callable[..., None]
) -> None:
    sections = {"backbone": DOUBLE, "objective": {"kl": 0.02}, "optimizer": {"micro_batch": 8, "learning_rate": 0.01}}
    whole = make_config(run={"name": "whole"}, **sections)
    Trainer(whole, registry).train()
    halved, notes = make_config(run={"name": "halved"}, **sections), Notes()
    room(**limits)
    assert Trainer(halved, registry, callbacks=[notes]).train() == "finished"
    found, wanted = weights(halved), weights(whole)
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-12
    said = [line for line in notes.reported if "out of memory" in line]
    for word in reported:
        assert sum(word in line for line in said) == 1, said
    for name in ("metrics.jsonl",):
        lines = [(run_path(c) / name).read_text().count("\n") for c in (whole, halved)]
        assert lines[0] == lines[1]


def test_members_are_not_counted_twice(make_config: Make, registry: Registry, room: Callable[..., None]) -> None:
    """The means of the log are of the attempt that succeeded."""
    import json

    whole, halved = (make_config(run={"name": name}, backbone=DOUBLE) for name in ("whole", "halved"))
    Trainer(whole, registry).train()
    room(backward=2)
    Trainer(halved, registry).train()
    for a, b in zip(*((run_path(c) / "metrics.jsonl").read_text().splitlines() for c in (whole, halved)), strict=True):
        one, two = json.loads(a), json.loads(b)
        assert one["optimized_members"] == two["optimized_members"]
        assert one["dsm"] == pytest.approx(two["dsm"], rel=1e-12)
        assert one["kl"] == pytest.approx(two["kl"], rel=1e-9, abs=1e-15)


def test_a_sample_that_does_not_fit_ends_the_run_with_its_state_saved(
    make_config: Make, registry: Registry, room: Callable[..., None], tmp_path: Path
) -> None:
    config = make_config(checkpoints={"every": 100})
    trainer = Trainer(config, registry)
    trainer.train(max_iterations=2)
    room(backward=0)
    with pytest.raises(
        UserError, match=r"optimizer\.micro_batch: the device runs out of memory with a single sample"
    ) as e:
        Trainer(config, registry).train(resume=True)
    assert "the state after iteration 2 is saved" in str(e.value)


def test_decoding_a_single_latent_that_does_not_fit() -> None:
    def never(x0: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no")

    with pytest.raises(TooLittleMemoryError, match=r"decoding: .* with a single sample"):
        decoded(never, torch.zeros(4, 1))


SHORTAGES = [
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9",
    "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA driver error: out of memory",
    "HIP out of memory. Tried to allocate 2.00 GiB",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    "NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled cuda error, NCCL version 2.27.5\nncclUnhandledCudaError: Call "
    "to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'",
    "NCCL error: Failed to CUDA calloc async 608 bytes",
]
"""Messages of torch, as found in its issues and its source."""


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), OutOfMemory("elsewhere"),
     *map(RuntimeError, SHORTAGES), torch.AcceleratorError("CUDA error: out of memory")],
)  # fmt: skip
def test_every_kind_of_shortage_is_halved(error: Exception) -> None:
    tried: list[int] = []

    def tight(size: int) -> int:
        tried.append(size)
        if size > 2:
            raise error
        return size

    assert halving(tight, 9, "x", lambda text: None) == (2, 2)
    assert in_parts(lambda part: tight(part.stop - part.start), 0, 7, OutOfMemory.alone) == [2, 2, 2, 1]
    assert tried == [9, 4, 2, 7, 4, 2, 2, 3, 2, 1]
    with pytest.raises(OutOfMemory):
        in_parts(lambda part: tight(part.stop - part.start), 0, 7, OutOfMemory.alone, smallest=7)
    assert tried[10:] == [7]


@pytest.mark.parametrize(
    "message",
    [
        "mat1 and mat2 shapes cannot be multiplied",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
        "CUDA error: an illegal memory access was encountered",
        "NCCL error: unhandled system error",
    ],
)
def test_other_errors_are_not_caught(message: str) -> None:
    def broken(size: int) -> int:
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match=message[:20]):
        halving(broken, 8, "x", lambda text: None)


@pytest.mark.parametrize("message", SHORTAGES)
def test_a_reward_of_this_process_scores_in_halves(message: str) -> None:
    sizes: list[int] = []

    class Tight(RewardModel):
        range = (0.0, 1.0)

        def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
            sizes.append(len(media))
            if len(media) > 2:
                raise RuntimeError(message)
            return Scores(media.flatten(1).mean(1), torch.zeros(len(media), dtype=torch.bool))

    media = torch.rand(5, 3, 2, 2, generator=Draws(0).generator())
    reward, failures = Reward("a", 1.0, Tight(None, device=torch.device("cpu"))), list[str]()
    scores = checked_score(reward, media, [Prompt("")] * 5, failures)
    assert torch.equal(scores.values, media.flatten(1).mean(1))
    assert not scores.missing.any()
    assert not failures
    assert sizes == [5, 3, 2, 1, 2]


SET_BEFORE = """
import os, torch
from dgpo_core.system import device
torch.cuda.is_available, torch.cuda.current_device = lambda: True, lambda: 0
assert str(device.choose_device("auto")) == "cuda:0"
print(torch._C._accelerator_getAllocatorSettings())
"""


@pytest.mark.parametrize("name", [None, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_segments_expand_unless_the_user_configured_the_allocator(name: str | None) -> None:
    """torch itself reports what it has read, in a process of its own, because it reads it once."""
    environment = {key: value for key, value in os.environ.items() if "ALLOC_CONF" not in key}
    if name is not None:
        environment[name] = "max_split_size_mb:64"
    done = subprocess.run(
        [sys.executable, "-c", SET_BEFORE], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ("expandable_segments:True" if name is None else "max_split_size_mb:64")


def test_the_allocator_is_left_alone_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    choose_device("cpu")
    assert not any(name in os.environ for name in ALLOCATOR)
