"""What the machine is, and what its GPU sustains: matrix products, copies, convolutions, attention."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import conv2d, scaled_dot_product_attention

from benchmarks.session.steps import Row, Session

__all__ = ["PRODUCT", "rates", "seconds_of", "tf32", "versions"]

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "triton")
QUERY = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "temperature.gpu")
PRODUCT = "bf16 matrix product, sustained"
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
ATTENTION = {
    "sd3.5-m 512": (48, 24, 1229, 64),
    "sd3.5-m 1024": (16, 24, 4301, 64),
    "wan2.1 1.3b": (4, 12, 14040, 128),
}
"""[batch, heads, tokens, head size]: 24 samples with guidance and 205 text tokens; 8; 2 videos of 33 frames."""


def versions(session: Session) -> list[Row]:
    """Versions of the libraries and the driver; clocks as they are."""
    rows = [Row("Python", platform.python_version())]
    for name in LIBRARIES:
        try:
            rows.append(Row(name, version(name)))
        except PackageNotFoundError:
            rows.append(Row(name, "not installed"))
    if session.cuda:
        found = torch.cuda.get_device_properties(session.device)
        rows += [
            Row("GPU", found.name),
            Row("multiprocessors", found.multi_processor_count),
            Row("memory", found.total_memory / 2**30, "GiB"),
            Row("CUDA of torch", str(torch.version.cuda)),
        ]
    return rows + _asked()


def _asked() -> list[Row]:
    """What nvidia-smi says, if it is there."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    lines = told.strip().splitlines()
    return [Row(name, value.strip()) for name, value in zip(QUERY, lines[0].split(","), strict=False)] if lines else []


def rates(session: Session) -> list[Row]:
    """Rates that the roofline assumes: products for three seconds, copies, a convolution of the decoder, attention."""
    device, low = session.device, torch.bfloat16
    side = 512 if session.tiny else 8192
    a, b = (torch.randn(side, side, device=device, dtype=low) for _ in range(2))
    sustained = seconds_of(lambda: torch.mm(a, b), session, seconds=0.1 if session.tiny else 3.0)
    rows = [Row(PRODUCT, 2 * side**3 / sustained / 1e12, "TFLOP/s", ideal=_card(session, "gemm bfloat16"))]
    wide = [t.float() for t in (a, b)]
    for label, allowed in (("TF32", True), ("float32", False)):
        with tf32(allowed):
            taken = seconds_of(lambda: torch.mm(*wide), session)
        rows.append(
            Row(
                f"{label} matrix product",
                2 * side**3 / taken / 1e12,
                "TFLOP/s",
                _card(session, f"gemm {_precision(label)}"),
            )
        )
    rows += [*_copies(session), *_convolutions(session), *_attention(session)]
    return rows


def _copies(session: Session) -> list[Row]:
    size = 2**22 if session.tiny else 2**31
    source = torch.empty(size, dtype=torch.uint8, device=session.device)
    target = torch.empty_like(source)
    taken = seconds_of(lambda: target.copy_(source), session)
    rows = [Row("copy on the device, read and written", 2 * size / taken / 1e12, "TB/s", _card(session, "bandwidth"))]
    if session.cuda:
        host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
        part = target[: 2**28]
        for label, work in (
            ("pinned host to device", lambda: part.copy_(host, non_blocking=True)),
            ("device to pinned host", lambda: host.copy_(part, non_blocking=True)),
        ):
            rows.append(Row(label, 2**28 / seconds_of(work, session) / 1e9, "GB/s"))
    return rows


def _convolutions(session: Session) -> list[Row]:
    """The decoder's largest: 128 channels of 512 x 512, four samples at a time."""
    batch, channels, side = (1, 8, 32) if session.tiny else (4, 128, 512)
    x = torch.randn(batch, channels, side, side, device=session.device)
    weight = torch.randn(channels, channels, 3, 3, device=session.device)
    operations = 2 * 9 * batch * channels**2 * side**2
    rows = []
    for label, allowed, dtype in (
        ("TF32", True, torch.float32), ("float32", False, torch.float32), ("bf16", True, torch.bfloat16),
    ):  # fmt: skip
        given = x.to(dtype), weight.to(dtype)
        with tf32(allowed):
            taken = seconds_of(lambda: conv2d(*given, padding=1), session)  # noqa: B023
        rows.append(
            Row(
                f"{label} convolution of the decoder",
                operations / taken / 1e12,
                "TFLOP/s",
                _card(session, f"convolution {_precision(label)}"),
            )
        )
    return rows


def _attention(session: Session) -> list[Row]:
    rows = []
    for name, shape in ATTENTION.items():
        batch, heads, tokens, size = (2, 2, 64, 16) if session.tiny else shape
        q, k, v = (
            torch.randn(batch, heads, tokens, size, device=session.device, dtype=torch.bfloat16) for _ in range(3)
        )
        for label, kernel in KERNELS.items():
            if label == "math" and not session.tiny:
                continue  # its score matrices are of the size of the whole memory
            taken = _with_kernel(kernel, q, k, v, session)
            if taken is not None:
                reached = 4 * batch * heads * tokens**2 * size / taken / 1e12
                rows.append(
                    Row(f"attention of {name}, {label}", reached, "TFLOP/s", _card(session, "attention bfloat16"))
                )
    return rows


def _with_kernel(kernel: SDPBackend, q: Tensor, k: Tensor, v: Tensor, session: Session) -> float | None:
    """Return the seconds of attention with a kernel; None if it does not take these inputs."""
    try:
        with sdpa_kernel(kernel):
            return seconds_of(lambda: scaled_dot_product_attention(q, k, v), session)
    except RuntimeError:
        return None


def seconds_of(work: Callable[[], Any], session: Session, *, seconds: float = 0.2) -> float:
    """Return the median seconds of one call, of calls repeated for `seconds` after three to warm up; by CUDA events."""
    for _ in range(3):
        work()
    until, found = time.perf_counter() + (0.02 if session.tiny else seconds), list[float]()
    while not found or time.perf_counter() < until:
        if session.cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            work()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) / 1e3)
        else:
            started = time.perf_counter()
            work()
            found.append(time.perf_counter() - started)
    return statistics.median(found)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _precision(label: str) -> str:
    return {"TF32": "tf32", "bf16": "bfloat16"}.get(label, label)


def _card(session: Session, what: str) -> float | None:
    """Return the rate that the cost model assumes for the card that the counts are of."""
    found = session.counts.get("rates", {}).get(what)
    return None if found is None else float(found)
