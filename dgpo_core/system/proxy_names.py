"""Names of the proxy environment variables, in a module that does not import httpx."""

from __future__ import annotations

__all__ = ["VARIABLES"]

VARIABLES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
"""Environment variables that name a proxy."""
