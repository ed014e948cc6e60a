"""For every test, those of the plugins included: real data, and how many examples property tests try."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# `make test` tries few examples, always the same; `make test-slow` asks for the others by --hypothesis-profile.
settings.register_profile("quick", max_examples=30, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=300, deadline=None, derandomize=True)
settings.load_profile("quick")

DATA = Path(os.environ["DGPO_TEST_DATA"]).absolute() if os.environ.get("DGPO_TEST_DATA") else None
NOT_RUN = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session", autouse=True)
def _no_disk_is_waited_for() -> Iterator[None]:
    """What the kernel has survives the end of a test; a test of flushes counts the calls all the same."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heeded() -> Iterator[None]:
    """Shells start what runs in the background with SIGINT ignored, and so would all that the tests start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The directory of real files that DGPO_TEST_DATA names. Without it, a test that asks for this does not run."""
    assert DATA is not None
    assert DATA.is_dir(), f"DGPO_TEST_DATA: there is no directory {DATA}"
    return DATA


@pytest.fixture(scope="session")
def not_run(pytestconfig: pytest.Config) -> list[str]:
    """The tests that were left out for want of real data."""
    return pytestconfig.stash[NOT_RUN]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports travel between processes as UTF-8, and what a test has logged may hold halves of characters."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_collection_finish() -> None:
    """What has been imported by now stays to the end: no collection of garbage need look through it again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files first, so that processes end together. What wants real data is left out where there is none;
    tests/test_data_present.py tells of it in one skip."""
    items.sort(key=lambda item: item.path.parent.name != "integration")
    left_out: list[pytest.Item] = []
    if DATA is None:
        left_out = [item for item in items if "test_data" in getattr(item, "fixturenames", ())]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    config.stash[NOT_RUN] = [item.nodeid for item in left_out]
