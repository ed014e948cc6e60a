"""The interface of OCR engines, and a pool of them that reads several images in parallel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dgpo_ocr.images import enlarge

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Engine", "Line", "Point", "Readers"]

Point = tuple[float, float]
"""(x, y) in pixels, x to the right, y down."""


@dataclass(frozen=True, slots=True)
class Line:
    """A recognized line. score: the engine's confidence in [0, 1]; polygon: its corners in the given image."""

    text: str
    score: float
    polygon: tuple[Point, ...]


class Engine(Protocol):
    """Reads one image at a time, in the thread that created it."""

    def read(self, image: NDArray[np.uint8]) -> list[Line]:
        """Recognize the lines of an image, uint8 [H, W, 3] in BGR.

        Returns them in the engine's own order, or an empty list if there is no text. May raise any exception.
        """
        ...

    def alphabet(self) -> frozenset[str] | None:
        """Return all characters that the engine can recognize, or None if unknown."""
        ...

    def provenance(self) -> Mapping[str, str]:
        """Return what was loaded, for the records of suites: `engine` with its version, and the models."""
        ...


class Readers:
    """A thread pool with one engine per thread: engines keep state between calls and are not thread-safe."""

    def __init__(self, make: Callable[[], Engine], *, count: int, min_side: int) -> None:
        """make: builds an engine. The first is built here, so that errors surface early; the others when needed."""
        self._make, self._min_side = make, min_side
        self._own = threading.local()
        self._building = threading.Lock()
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="ocr")
        try:
            self._threads.submit(self._engine).result()
        except BaseException:
            self.close()
            raise

    def submit(self, image: NDArray[np.uint8]) -> Future[list[Line]]:
        """Queue an image, uint8 [H, W, 3] in BGR. The future holds its lines in the engine's own order."""
        return self._threads.submit(self._read, image)

    def alphabet(self) -> frozenset[str] | None:
        """Return all characters that the engine can recognize, or None if unknown."""
        found: frozenset[str] | None = self._asked("alphabet")
        return found

    def provenance(self) -> Mapping[str, str]:
        """Return what the engine loaded; nothing if it does not say so."""
        found: Mapping[str, str] | None = self._asked("provenance")
        return found or {}

    def _asked(self, name: str) -> Any:
        """Call a method of an engine, in its thread. Returns None if it has none, such as a custom engine."""

        def ask() -> Any:
            method = getattr(self._engine(), name, None)
            return None if method is None else method()

        return self._threads.submit(ask).result()

    def close(self) -> None:
        """Drop queued images and stop the threads with their engines. Idempotent."""
        self._threads.shutdown(cancel_futures=True)

    def _engine(self) -> Engine:
        engine: Engine | None = getattr(self._own, "engine", None)
        if engine is None:
            with self._building:  # the libraries change shared configuration while they build an engine
                engine = self._own.engine = self._make()
        return engine

    def _read(self, image: NDArray[np.uint8]) -> list[Line]:
        enlarged, factor = enlarge(image, self._min_side)
        return [
            Line(line.text, line.score, tuple((x / factor, y / factor) for x, y in line.polygon))
            for line in self._engine().read(enlarged)
        ]
