"""One reward, three places: in this process, in a worker process, behind a service. The scores are the same bits.

Importing this package imports nothing heavy: a worker process must be able to say which protocol it speaks before it
loads anything.
"""

from __future__ import annotations

from dgpo_core.rewards.place import Connect, place

__all__ = ["Connect", "place"]
