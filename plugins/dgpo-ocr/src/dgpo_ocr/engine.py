"""What an OCR engine is, and a pool of them that reads several images at once."""

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
"""x to the right, y downwards, in pixels."""


@dataclass(frozen=True, slots=True)
class Line:
    """A recognized line: its text, the engine's confidence in [0, 1], its corners in the image that was given."""

    text: str
    score: float
    polygon: tuple[Point, ...]


class Engine(Protocol):
    """Reads one image after the other, on the thread that made it."""

    def read(self, image: NDArray[np.uint8]) -> list[Line]:
        """Image uint8 [H, W, 3] in OpenCV's order BGR, to its lines in the engine's own order; none where no text is
        seen. Raises whatever it likes where it cannot read."""
        ...

    def alphabet(self) -> frozenset[str] | None:
        """Every character that it can give back; None where that is not known."""
        ...


class Readers:
    """Threads with an engine each: engines keep state between calls, and none promises to be safe from two threads."""

    def __init__(self, make: Callable[[], Engine], *, count: int, min_side: int) -> None:
        """`make` builds an engine. The first is built here, so that what it lacks is said at once; the others when
        there is work for them."""
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
        """Queue an image, uint8 [H, W, 3] in BGR; its lines come as the engine gives them."""
        return self._threads.submit(self._read, image)

    def alphabet(self) -> frozenset[str] | None:
        """Every character that the engine can give back; None where that is not known."""

        def asked() -> frozenset[str] | None:
            on_message = getattr(self._engine(), "alphabet", None)  # one that is given to the reward need not say
            return None if on_message is None else on_message()

        return self._threads.submit(asked).result()

    def close(self) -> None:
        """Drop what waits, end the threads and the engines with them. May be called again."""
        self._threads.shutdown(cancel_futures=True)

    def _engine(self) -> Engine:
        engine: Engine | None = getattr(self._own, "engine", None)
        if engine is None:
            with self._building:  # their libraries set up shared configuration while they build
                engine = self._own.engine = self._make()
        return engine

    def _read(self, image: NDArray[np.uint8]) -> list[Line]:
        enlarged, factor = enlarge(image, self._min_side)
        return [
            Line(line.text, line.score, tuple((x / factor, y / factor) for x, y in line.polygon))
            for line in self._engine().read(enlarged)
        ]
