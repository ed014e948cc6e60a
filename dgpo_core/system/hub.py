"""Configure the HTTP client of huggingface_hub if environment variables name proxies."""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
from typing import Any

from dgpo_core.system.proxy_names import VARIABLES

__all__ = ["prepare_hub"]

_preparing = threading.Lock()
_prepared = False


def prepare_hub() -> None:
    """Make huggingface_hub use the proxies that `proxies.route` selects. Call it before the first request.

    By default, huggingface_hub creates a client for every proxy in the environment and fails if one is unusable, even
    if it makes no request: offline, with everything in its cache. After this call, only a request through such a proxy
    fails, with an error that says how to fix it. Does nothing if no proxy is set, or if huggingface_hub is missing or
    older than version 1.
    """
    global _prepared
    with _preparing:
        if _prepared or not any(os.environ.get(name) for name in VARIABLES):
            return
        _prepared = True
        if importlib.util.find_spec("huggingface_hub") is None:
            return
        hub = importlib.import_module("huggingface_hub")
        set_client_factory = getattr(hub, "set_client_factory", None)
        utils = importlib.import_module("huggingface_hub.utils")
        library = getattr(utils, "httpx", None)
        if set_client_factory is None or library is None:
            return
        set_client_factory(lambda: _client(library))


def _client(library: Any) -> Any:
    """Return a client like that of huggingface_hub's own factory, with another transport."""
    from dgpo_core.system.routed import Routed  # requires httpx, a dependency of this huggingface_hub

    http = importlib.import_module("huggingface_hub.utils._http")
    hook = getattr(http, "hf_request_event_hook", None)  # rejects requests when offline
    hooks = {} if hook is None else {"event_hooks": {"request": [hook]}}
    return library.Client(
        transport=Routed(library, on_message=True), trust_env=False, follow_redirects=True, timeout=None, **hooks
    )
