"""The interface of OCR engines, and a pool of them that reads several images in parallel."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

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

        def engine_alphabet() -> frozenset[str] | None:
            alphabet = getattr(self._engine(), "alphabet", None)  # a custom engine may not have the method
            return None if alphabet is None else alphabet()

        return self._threads.submit(engine_alphabet).result()

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
