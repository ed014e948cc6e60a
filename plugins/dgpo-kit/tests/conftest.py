"""The command line on a known registry, as the tests of dgpo have it, and what every broken promise must do."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.conftest import dgpo, known, registry

__all__ = ["assert_found", "dgpo", "known", "registry"]


@pytest.fixture
def assert_found() -> Callable[[str, Callable[[], None]], None]:
    """A check must fail, and say what was promised."""

    def run(promise: str, check: Callable[[], None]) -> None:
        with pytest.raises((AssertionError, TypeError, ValueError)) as caught:
            check()
        assert re.search(promise, str(caught.value), re.DOTALL), str(caught.value)

    return run
