"""torch.compile in a run: fixed numbers of rows, limits, the cache on disk, and what is reported."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo.config
from torch import Tensor
from torch.testing import assert_close

from dgpo_core.errors import UserError
from dgpo_core.flow.velocity import guided_velocity
from dgpo_core.training.compiling import CACHE, VARIANTS, CompileReport, FixedRows, prepare_compile
from dgpo_core.training.microbatches import Update, bundles
from dgpo_core.types import Conditioning


@pytest.fixture(autouse=True)
def _compiler_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch._dynamo.reset()
    dynamo = torch._dynamo.config
    before = dynamo.recompile_limit, dynamo.accumulated_recompile_limit
    monkeypatch.setenv(CACHE, os.environ.get(CACHE, ""))
    yield
    dynamo.recompile_limit, dynamo.accumulated_recompile_limit = before
    torch._dynamo.reset()


class Network:
    """velocity = W x + sigma + text, row by row; remembers the numbers of rows."""

    def __init__(self) -> None:
        self.weight = torch.linspace(-1, 1, 9).reshape(3, 3).requires_grad_()
        self.rows: list[int] = []

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        self.rows.append(len(x_sigma))
        text = conditioning.tensors["text"]
        assert len(x_sigma) == len(sigma) == len(text) == len(conditioning.lengths["text"])
        return x_sigma @ self.weight + sigma[:, None] + text.sum((1, 2))[:, None]

    def guide(self, conditional: Tensor, unconditional: Tensor, guidance: float, **_: Any) -> Tensor:
        return unconditional + guidance * (conditional - unconditional)


def some(rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Conditioning, Conditioning]:
    """x, sigma, and conditioning and unconditional rows of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    x, sigma = torch.randn(rows, 3, generator=generator), torch.rand(rows, generator=generator)
    texts = [torch.randn(1, 1 + i % 3, 2, generator=generator) for i in range(2 * rows)]
    made = [Conditioning({"text": text}, {"text": (text.shape[1],)}) for text in texts]
    return x, sigma, Conditioning.cat(made[:rows]), Conditioning.cat(made[rows:])


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("unconditional_rows", ["each", "one"])
def test_filled_rows_change_nothing(guidance: float, unconditional_rows: str) -> None:
    """Neither predictions nor gradients: copies of the last row have no effect."""
    for rows in range(1, 6):
        x, sigma, text, negative = some(rows)
        negative = negative if unconditional_rows == "each" else negative.rows(slice(0, 1))
        given = x, sigma, text, None if guidance == 1 else negative, guidance
        plain, filled, fixed = Network(), Network(), FixedRows(compiled=True)
        expected = guided_velocity(plain, *given)
        with fixed.of(3, 6):
            found = fixed.velocity(filled, *given)
        assert_close(found, expected, atol=1e-6, rtol=0)
        for out in (expected, found):
            out.square().sum().backward()  # type: ignore[no-untyped-call]
        assert plain.weight.grad is not None
        assert_close(filled.weight.grad, plain.weight.grad, atol=1e-5, rtol=1e-6)
        branches = 1 if guidance == 1 else 2
        assert filled.rows == [branches * (3 if rows <= 3 else 6)]


def test_rows_are_filled_only_within_the_context_and_only_if_compiled() -> None:
    x, sigma, text, _ = some(2)
    for compiled, expected in ((True, [2, 4, 2, 2]), (False, [2, 2, 2, 2])):
        network, fixed = Network(), FixedRows(compiled=compiled)
        fixed.velocity(network, x, sigma, text, None, 1.0)
        with fixed.of(4):
            fixed.velocity(network, x, sigma, text, None, 1.0)
            with fixed.of(1):  # more rows than expected stay as they are
                fixed.velocity(network, x, sigma, text, None, 1.0)
        fixed.velocity(network, x, sigma, text, None, 1.0)
        assert network.rows == expected


@pytest.mark.parametrize("members", [1, 3, 4, 5, 8, 24])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 8, 24, 100])
def test_whole_groups_have_one_number_of_rows(members: int, micro_batch: int) -> None:
    """All micro-batches of whole groups but those of the last groups have the first number, and none has more rows
    than the last."""
    groups = 6
    batch: Any = SimpleNamespace(scored=torch.ones(groups, members))
    update = Update(batch, range(groups), [], [], [], [], None, None, None, True, 0)  # type: ignore[arg-type]
    counts = update.row_counts(micro_batch)
    sizes = [len(part) for bundle in bundles([list(range(members))] * groups, micro_batch) for part in bundle]
    assert counts == sorted(set(counts))
    assert max(sizes) == counts[0] <= counts[-1] == micro_batch or groups * members < micro_batch
    assert counts[0] == max(sizes)


# -- limits, cache, report --------------------------------------------------------------------------------------------


def test_limits_are_raised_and_a_cache_of_the_users_own_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, "")
    monkeypatch.setenv("DGPO_CACHE", str(tmp_path / "caches"))
    prepare_compile()
    assert torch._dynamo.config.recompile_limit >= VARIANTS
    directory = tmp_path / "caches" / "compiled"
    assert os.environ[CACHE] == str(directory)
    assert directory.stat().st_mode & 0o077 == 0
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    assert cache_dir() == str(directory)


def test_a_cache_of_the_environment_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "mine"))
    monkeypatch.setenv("DGPO_CACHE", str(tmp_path / "caches"))
    prepare_compile()
    assert os.environ[CACHE] == str(tmp_path / "mine")
    assert not (tmp_path / "caches").exists()


class Sent:
    def __init__(self, report: CompileReport) -> None:
        self.report = report

    def __call__(self) -> tuple[list[str], list[str]]:
        messages, warnings = list[str](), list[str]()
        self.report.send(messages.append, warnings.append)
        return messages, warnings


def compiled(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    made: Callable[[Tensor], Tensor] = torch.compile(function, backend="eager", dynamic=False)
    return made


def test_new_graphs_are_reported_with_their_reason() -> None:
    sent = Sent(CompileReport())
    function = compiled(lambda x: x.sin() + 1)
    function(torch.ones(2))
    assert sent() == (["backbone.compile: torch.compile made 1 more graph"], [])
    function(torch.ones(2))
    assert sent() == ([], [])
    function(torch.ones(3))
    messages, warnings = sent()
    assert "made 1 more graph: " in messages[0]
    assert "size mismatch at index 0. expected 2, actual 3" in messages[0]
    assert warnings == []
    assert sent.report.counts() == {"graphs": 2, "eager": 0}


def test_a_limit_is_reported_once() -> None:
    sent = Sent(CompileReport())
    torch._dynamo.config.recompile_limit = 2
    function = compiled(lambda x: x.cos() + 1)
    for size in range(2, 8):
        assert_close(function(torch.ones(size)), torch.ones(size).cos() + 1)
    _, warnings = sent()
    assert len(warnings) == 1
    assert "a part of the model runs without compilation: Dynamo recompile limit exceeded" in warnings[0]
    assert sent()[1] == []
    assert sent.report.counts()["eager"] >= 1


def test_a_graph_break_is_reported() -> None:
    sent = Sent(CompileReport())

    def breaking(x: Tensor) -> Tensor:
        y = x.sin()
        torch._dynamo.graph_break()
        return y.cos()

    compiled(breaking)(torch.ones(2))
    _, warnings = sent()
    assert len(warnings) == 1
    assert "runs without compilation" in warnings[0]


def test_what_was_before_is_not_reported() -> None:
    function = compiled(lambda x: x.tan())
    function(torch.ones(2))
    report = CompileReport()
    assert Sent(report)() == ([], [])
    assert report.counts() == {"graphs": 0, "eager": 0}


def test_a_compiler_that_fails_is_one_sentence() -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("g++ is not installed")

    function = torch.compile(lambda x: x.sin(), backend=broken)
    with (
        pytest.raises(UserError, match=r"backbone\.compile: torch\.compile failed; set it to false\..*g\+\+ is not"),
        FixedRows(compiled=True).failing(),
    ):
        function(torch.ones(2))


def test_running_out_of_memory_while_compiling_stays_what_it_is() -> None:
    def large(graph: Any, inputs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    function = torch.compile(lambda x: x.exp(), backend=large)
    with pytest.raises(torch.OutOfMemoryError), FixedRows(compiled=True).failing():
        function(torch.ones(2))
