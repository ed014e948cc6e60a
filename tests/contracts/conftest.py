from __future__ import annotations

import re
from collections.abc import Callable

import pytest


@pytest.fixture
def assert_found() -> Callable[[str, Callable[[], None]], None]:
    """A check must fail, and say what was promised."""

    def run(promise: str, check: Callable[[], None]) -> None:
        with pytest.raises((AssertionError, TypeError, ValueError)) as caught:
            check()
        assert re.search(promise, str(caught.value), re.DOTALL), str(caught.value)

    return run
