"""Our side with the adapter merged into the weights while samples are drawn: the same work in fewer products."""

from __future__ import annotations

from functools import partial

from benchmarks.peers import ours

__all__ = ["drive"]

drive = partial(ours.drive, merge_adapter=True)
