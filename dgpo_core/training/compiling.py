"""torch.compile in a run (`backbone.compile`): few graphs, caches between runs, and a report of what became of it.

Graphs are compiled for fixed shapes. A pass of the network compiles new ones only where its number of rows, its model
(policy, base) or its mode (with or without gradient) is new. The number of rows is fixed by `FixedRows`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.flow.velocity import Guided, guided_velocity
from dgpo_core.system.caches import cache_directory
from dgpo_core.training.memory import is_out_of_memory
from dgpo_core.types import Conditioning
from dgpo_schemas.text import error_text

__all__ = ["CompileReport", "FixedRows", "prepare_compile"]

VARIANTS = 64
"""Graphs of one piece of code, such as of a kind of block. Dynamo's own limit of 8 is less than the models, modes and
row counts of a run, and beyond it, passes are eager."""
TOTAL = 1024
"""Graphs of one piece of code in all, with those that were freed."""
CACHE = "TORCHINDUCTOR_CACHE_DIR"


def prepare_compile() -> CompileReport:
    """Raise the limits of torch.compile in this process, and keep compiled graphs on disk for later runs.

    The cache is `compiled` in dgpo's cache directory, unless the environment names another one. Its files contain code,
    so it belongs to the user alone; torch's own default is a directory in /tmp.
    """
    import torch._dynamo.config
    import torch._functorch.config
    import torch._inductor.config

    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, VARIANTS)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, TOTAL)
    torch._inductor.config.fx_graph_cache = True
    torch._functorch.config.enable_autograd_cache = True
    if not os.environ.get(CACHE):
        directory = cache_directory("compiled", otherwise=f"backbone.compile: set {CACHE}")
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ[CACHE] = str(directory)
    return CompileReport()


class CompileReport:
    """What torch.compile has done in this process since the report was created."""

    def __init__(self) -> None:
        self._before = self._sent = _graphs()
        self._eager_before = _eager()
        self._reasons = set(self._eager_before)
        self._first = True

    def send(self, on_message: Callable[[str], None], on_warning: Callable[[str], None]) -> None:
        """Report new graphs as a message, and code that runs without compilation as a warning, each reason once."""
        new, self._sent = _graphs() - self._sent, _graphs()
        for reason in _eager():
            if reason not in self._reasons:
                self._reasons.add(reason)
                on_warning(f"backbone.compile: a part of the model runs without compilation: {reason}")
        if new:
            why = "" if self._first else f": {_last_reason()}"
            on_message(f"backbone.compile: torch.compile made {new} more graph{'s' * (new > 1)}{why}")
        self._first = False

    def counts(self) -> dict[str, int]:
        """Return the number of graphs, and how often code was found that runs without compilation."""
        return {"graphs": _graphs() - self._before, "eager": (_eager() - self._eager_before).total()}


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def _eager() -> Counter[str]:
    """Count graph breaks and code that Dynamo refuses to compile, by reason."""
    from torch._dynamo.utils import counters

    found: Counter[str] = Counter()
    for kind in ("graph_break", "unimplemented"):
        for reason, count in counters[kind].items():
            found[_short(reason)] += count
    return found


def _short(reason: str) -> str:
    lines = [line.strip() for line in reason.splitlines()]
    explanation = next((line for line in lines if line.startswith("Explanation: ")), "")
    return ": ".join(filter(None, [lines[0] if lines else "", explanation.removeprefix("Explanation: ")]))


def _last_reason() -> str:
    from torch._dynamo.utils import get_compilation_metrics

    found = [m.recompile_reason for m in get_compilation_metrics() if m.recompile_reason]
    return found[-1].splitlines()[0] if found else "code that did not run before"


class FixedRows:
    """Fills the rows of a compiled network's passes up to one of a few numbers.

    Within `of`, a pass with fewer rows is filled up with copies of its last row, of which nothing depends: predictions
    are dropped, and gradients through them are 0. Without `backbone.compile`, nothing is filled up.
    """

    def __init__(self, *, compiled: bool) -> None:
        self._compiled = compiled
        self._sizes: Sequence[int] = ()

    @contextmanager
    def of(self, *sizes: int) -> Iterator[None]:
        """Context in which a pass has one of these numbers of rows, in ascending order: the first that suffices."""
        before, self._sizes = self._sizes, sizes if self._compiled else ()
        try:
            yield
        finally:
            self._sizes = before

    def velocity(
        self,
        network: Guided,
        x_sigma: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        unconditional: Conditioning | None,
        guidance: float,
    ) -> Tensor:
        """See `guided_velocity`."""
        rows = len(x_sigma)
        missing = next((size for size in self._sizes if size >= rows), rows) - rows
        if not missing:
            return guided_velocity(network, x_sigma, sigma, conditioning, unconditional, guidance)
        if unconditional is not None and len(unconditional) > 1:
            unconditional = _filled_up(unconditional, missing)
        x, times = (torch.cat([t, t[-1:].expand(missing, *t.shape[1:])]) for t in (x_sigma, sigma.expand(rows)))
        filled_up = _filled_up(conditioning, missing)
        return guided_velocity(network, x, times, filled_up, unconditional, guidance)[:rows]

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Context of passes: raises UserError if torch.compile fails, for example because there is no compiler."""
        if not self._compiled:
            yield
            return
        from torch._dynamo.exc import TorchDynamoException

        try:
            yield
        except TorchDynamoException as error:
            inner = getattr(error, "inner_exception", None)  # of the backend
            if inner is not None and is_out_of_memory(inner):
                raise inner from error
            reason = " ".join(error_text(error).splitlines()[:2])  # the step that failed, and its own exception
            raise UserError(f"backbone.compile: torch.compile failed; set it to false. {reason}") from error


def _filled_up(conditioning: Conditioning, missing: int) -> Conditioning:
    last = conditioning.rows(slice(len(conditioning) - 1, None))
    return Conditioning.cat([conditioning, last.expand(missing)])
