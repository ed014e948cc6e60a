"""Environment variables that say how to reach the network."""

from __future__ import annotations

__all__ = ["OF_PROXIES"]

OF_PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
"""Those that name a proxy."""
