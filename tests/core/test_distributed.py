"""The device and the arithmetic of a process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dgpo_core.distributed.runtime import KERNELS, Runtime
from dgpo_core.errors import UserError
from dgpo_core.system.device import choose_device
from dgpo_schemas.run import RunConfig

Make = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def _settings_as_before() -> Iterator[None]:
    """A runtime sets torch's global switches."""
    threads, matmul, cudnn = (
        torch.get_num_threads(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )
    yield
    for enable in KERNELS.values():
        enable(True)
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


@pytest.mark.parametrize(
    ("name", "there", "expected"),
    [("auto", False, "cpu"), ("cpu", False, "cpu"), ("cpu", True, "cpu"), ("auto", True, "cuda:1"),
     ("cuda", True, "cuda:1")],
)  # fmt: skip
def test_devices(name: str, there: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert choose_device(name) == torch.device(expected)


def test_cuda_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"run\.device: cuda is not available: .* \(torch .*\); use auto or cpu"):
        choose_device("cuda")


def test_several_processes_are_refused_unless_asked_for(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"only `dgpo train`, .* and `export` work with several processes"):
        Runtime(make_config())
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Runtime(make_config()).processes.count == 1


def test_a_process_without_a_card(make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in (("WORLD_SIZE", "3"), ("RANK", "2"), ("LOCAL_RANK", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="process 2 of this machine has no GPU of its own: torch sees 2; start at"):
        Runtime(make_config(run={"device": "auto"}), tmp_path)


@pytest.mark.parametrize("words", [["--num_processes", "2"], ["--num_processes=2"], ["--cpu", "--num-processes", "2"]])
def test_a_launcher_that_started_one_process_instead_of_two(
    words: list[str], make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(psutil.Process, "cmdline", lambda self: ["accelerate", "launch", *words, "-m", "dgpo_cli"])
    with pytest.raises(
        UserError, match=r"was asked for 2 processes but started only one.* --processes 2` or `torchrun"
    ):
        Runtime(make_config(), tmp_path)
    monkeypatch.setattr(psutil.Process, "cmdline", lambda self: ["accelerate", "launch", "--num_processes", "1"])
    assert Runtime(make_config(), tmp_path).processes.count == 1


@pytest.mark.parametrize("tf32", [True, False])
def test_settings_reach_torch(make_config: Make, tf32: bool) -> None:
    torch.set_num_threads(1)
    Runtime(make_config(run={"threads": 2}, precision={"tf32": tf32}))
    assert torch.get_num_threads() == 2
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.allow_tf32 is tf32
    Runtime(make_config(run={"threads": None}))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("setting", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_mixed_precision(make_config: Make, setting: str, dtype: torch.dtype) -> None:
    runtime = Runtime(make_config(precision={"autocast": setting}))
    with runtime.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_peak_memory_is_at_least_what_is_in_use_and_never_falls(make_config: Make) -> None:
    runtime = Runtime(make_config())
    in_use = psutil.Process().memory_info().rss
    before = runtime.peak_memory()
    assert before >= 0.9 * in_use
    block = torch.ones(1 << 24, dtype=torch.float32)  # 64 MiB
    assert runtime.peak_memory() >= 0.9 * (in_use + block.numel() * 4)
    del block
    assert runtime.peak_memory() >= before


KERNEL_OF = {"flash": "_scaled_dot_product_flash_attention_for_cpu", "math": "_safe_softmax"}


class _Calls(TorchDispatchMode):
    """Names of the operations that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "kernel"), [("auto", "flash"), ("flash", "flash"), ("math", "math")])
def test_the_attention_kernel_that_was_asked_for(make_config: Make, name: str, kernel: str) -> None:
    Runtime(make_config(precision={"attention": name}))
    x = torch.randn(1, 2, 8, 64)
    with _Calls() as calls:
        torch.nn.functional.scaled_dot_product_attention(x, x, x)
    assert KERNEL_OF[kernel] in calls.names
    with _Calls() as calls:  # a mask that the quick kernel cannot take goes to the general one
        torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=torch.randn(1, 2, 8, 8), dropout_p=0.1)
    assert KERNEL_OF["math"] in calls.names


def test_an_attention_kernel_that_does_not_work_here(make_config: Make) -> None:
    with pytest.raises(UserError, match=r"precision\.attention: cudnn does not work on this cpu with float32"):
        Runtime(make_config(precision={"attention": "cudnn"}))
    x = torch.randn(1, 2, 8, 64)
    torch.nn.functional.scaled_dot_product_attention(x, x, x)
