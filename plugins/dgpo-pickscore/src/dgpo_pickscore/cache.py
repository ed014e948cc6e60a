"""Cache of text embeddings by prompt, because a run scores the same prompts repeatedly."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Text", "TextCache"]


@dataclass(frozen=True, slots=True)
class Text:
    """An encoded prompt.

    embedding: unit vector, float32 [D]; tokens: number of tokens before truncation, including start and end; truncated:
    whether that exceeds the network's maximum.
    """

    embedding: Tensor
    tokens: int
    truncated: bool


class TextCache:
    """LRU cache of `size` prompts; thread-safe."""

    def __init__(self, encode: Callable[[Sequence[str]], Sequence[Text]], size: int) -> None:
        """encode: called with the distinct texts that are not cached."""
        self._encode = encode
        self._size = size
        self._cached: OrderedDict[str, Text] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._cached)

    def __call__(self, texts: Sequence[str]) -> list[Text]:
        """Return one entry per text, in order."""
        distinct = dict.fromkeys(texts)
        with self._lock:
            found = {text: self._cached[text] for text in distinct if text in self._cached}
        # Not under the lock: two threads may both encode a new prompt, but no thread waits for another's network.
        new = [text for text in distinct if text not in found]
        found |= dict(zip(new, self._encode(new), strict=True)) if new else {}
        with self._lock:
            for text in distinct:
                self._cached[text] = found[text]
                self._cached.move_to_end(text)
            while len(self._cached) > self._size:
                self._cached.popitem(last=False)
        return [found[text] for text in texts]
