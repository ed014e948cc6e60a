"""One skip in the place of every test on real data, so that what was not run is not taken for what has passed."""

from __future__ import annotations

import pytest


def test_the_tests_on_real_data_were_run(not_run: list[str]) -> None:
    if not_run:
        pytest.skip(f"DGPO_TEST_DATA is not set: {len(not_run)} tests on real data were not run: {', '.join(not_run)}")
