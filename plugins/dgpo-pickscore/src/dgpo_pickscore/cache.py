"""Text embeddings, kept per prompt: a run asks for the same prompts again and again."""

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
    """A prompt as a CLIP reads it.

    embedding: float32 [D] of length 1; tokens: how many it has, with the two that mark start and end; truncated:
    whether they are more than the network reads.
    """

    embedding: Tensor
    tokens: int
    truncated: bool


class TextCache:
    """The last `size` prompts; any number of threads may ask at once."""

    def __init__(self, encode: Callable[[Sequence[str]], Sequence[Text]], size: int) -> None:
        """`encode` is asked for what is not there, each text once."""
        self._encode = encode
        self._size = size
        self._kept: OrderedDict[str, Text] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def __call__(self, texts: Sequence[str]) -> list[Text]:
        """One entry per text, in their order."""
        wanted = dict.fromkeys(texts)
        with self._lock:
            found = {text: self._kept[text] for text in wanted if text in self._kept}
        # Not under the lock: two threads may both encode a new prompt, but none waits for the other's network.
        new = [text for text in wanted if text not in found]
        found |= dict(zip(new, self._encode(new), strict=True)) if new else {}
        with self._lock:
            for text in wanted:
                self._kept[text] = found[text]
                self._kept.move_to_end(text)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return [found[text] for text in texts]
