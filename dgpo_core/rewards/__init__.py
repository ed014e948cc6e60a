"""Create rewards in this process, in a worker process or behind a service, with bitwise identical scores."""

from __future__ import annotations

from dgpo_core.rewards.connecting import Connect, place

__all__ = ["Connect", "place"]
