"""These tests need open_clip, which wants a torchvision; without it they are not collected."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("open_clip") else ["test_*.py"]
