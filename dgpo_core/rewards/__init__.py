"""One reward, three places: in this process, in a worker process, behind a service. The scores are the same bits."""

from __future__ import annotations

from dgpo_core.rewards.connecting import Connect, place

__all__ = ["Connect", "place"]
