"""The Hub's client, where the environment names proxies."""

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
    """Have huggingface_hub ask through the proxies that `proxies` decides on, from before its first request.

    By itself it makes a client of every proxy that the environment names, and fails at one that it cannot use even
    where nothing is asked for: offline, with everything in its cache. With this such a proxy is an error, which says
    what can be done, of the request that would go through it. Does nothing where no proxy is named, or where
    huggingface_hub is absent or older than version 1.
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
    """What huggingface_hub's own factory makes, with another transport."""
    from dgpo_core.system.routed import Routed  # it needs httpx, which this huggingface_hub has brought

    http = importlib.import_module("huggingface_hub.utils._http")
    hook = getattr(http, "hf_request_event_hook", None)  # it refuses requests when offline
    hooks = {} if hook is None else {"event_hooks": {"request": [hook]}}
    return library.Client(
        transport=Routed(library, on_message=True), trust_env=False, follow_redirects=True, timeout=None, **hooks
    )
