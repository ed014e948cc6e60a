"""Messages between two ranks, from any thread, beside the collectives of the run."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Channel"]

IDLE = timedelta(days=365)
"""Timeout of a message that need not come, such as a request; the end of the other rank is noticed at once."""


class Channel:
    """Bytes between ranks, through a gloo group of its own, so that they do not mix with collectives.

    All ranks must create it together. Messages with the same `tag` between two ranks arrive in order; one thread of a
    rank may use a tag at a time. Methods raise RuntimeError if the other rank is gone.
    """

    def __init__(self) -> None:
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=IDLE))
        self._lock = threading.Lock()
        self._tags = 0

    def new_tag(self) -> int:
        """Return a tag that was not used yet; ranks that call this in the same order get the same tags."""
        with self._lock:
            self._tags += 1
            return self._tags

    def send(self, data: bytes, rank: int, tag: int) -> None:
        """Send a message."""
        body = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        dist.send(torch.tensor([len(data)]), rank, group=self._group, tag=tag)
        if data:
            dist.send(body, rank, group=self._group, tag=tag)

    def receive(self, rank: int, tag: int, within: float | None = None) -> bytes:
        """Return the next message. within: seconds to wait for it; None: as long as it takes."""
        size = torch.zeros(1, dtype=torch.int64)
        self._receive(size, rank, tag, within)
        body = torch.empty(int(size), dtype=torch.uint8)
        if len(body):
            self._receive(body, rank, tag, within)
        return body.numpy().tobytes()

    def _receive(self, tensor: Tensor, rank: int, tag: int, within: float | None) -> None:
        work = dist.irecv(tensor, rank, group=self._group, tag=tag)
        assert work is not None
        work.wait(IDLE if within is None else timedelta(seconds=within))
