"""What signals do to a run."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from dgpo_core.stopping import Interrupted, StopRequest


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    """A handler of the test's own, to which the context must return."""
    before = {number: signal.signal(number, _count) for number in (signal.SIGINT, signal.SIGTERM)}
    _seen.clear()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


_seen: list[int] = []


def _count(number: int, frame: object) -> None:
    _seen.append(number)


def test_a_request_is_noticed_at_the_next_check() -> None:
    stop = StopRequest()
    stop.check()
    stop.request()
    for _ in range(2):
        with pytest.raises(Interrupted):
            stop.check()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_for_a_stop(number: signal.Signals) -> None:
    stop = StopRequest()
    said: list[str] = []
    with stop.on_signals(said.append):
        signal.raise_signal(number)
    assert stop.requested
    assert len(said) == 1
    assert "press Ctrl-C again" in said[0]
    assert _seen == []


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_after_a_request_stops_at_once(first: signal.Signals) -> None:
    stop = StopRequest()
    with stop.on_signals(lambda text: None):
        signal.raise_signal(first)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_second_sigterm_changes_nothing() -> None:
    """Schedulers send it more than once while the state is saved."""
    stop = StopRequest()
    with stop.on_signals(lambda text: None):
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
    assert stop.requested


@pytest.mark.parametrize("fails", [False, True])
def test_signals_are_as_before_afterwards(fails: bool) -> None:
    stop = StopRequest()
    try:
        with stop.on_signals(lambda text: None):
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.raise_signal(number)
    assert _seen == [signal.SIGINT, signal.SIGTERM]
    assert not stop.requested
