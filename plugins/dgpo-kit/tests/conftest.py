"""The command line on a known registry, as the tests of dgpo have it, and what every broken requirement must do."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.conftest import dgpo, known, registry

__all__ = ["assert_found", "dgpo", "known", "registry"]


@pytest.fixture
def assert_found() -> Callable[[str, Callable[[], None]], None]:
    """Require that a check fails and states the requirement."""

    def run(requirement: str, check: Callable[[], None]) -> None:
        with pytest.raises((AssertionError, TypeError, ValueError)) as caught:
            check()
        assert re.search(requirement, str(caught.value), re.DOTALL), str(caught.value)

    return run
