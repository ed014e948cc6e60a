"""How the environment names proxies. Light: whoever only has to know whether it names one needs no httpx."""

from __future__ import annotations

__all__ = ["VARIABLES"]

VARIABLES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
"""Those that name a proxy."""
