"""What signals do to a run."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from dgpo_core.system.stopping import Interrupted, StopRequest

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    """A handler of the test's own, to which the context must return."""
    before = {number: signal.signal(number, _count) for number in SIGNALS}
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


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_for_a_stop(number: signal.Signals) -> None:
    stop = StopRequest()
    said: list[str] = []
    with stop.on_signals(said.append):
        signal.raise_signal(number)
    assert stop.requested
    assert (stop.signal, stop.from_keyboard) == (number, number == signal.SIGINT)
    assert len(said) == 1
    assert "press Ctrl-C again" in said[0]
    assert _seen == []


@pytest.mark.parametrize("first", SIGNALS)
def test_ctrl_c_after_a_request_stops_at_once(first: signal.Signals) -> None:
    stop = StopRequest()
    with stop.on_signals(lambda text: None):
        signal.raise_signal(first)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_second_sigterm_changes_nothing() -> None:
    """Schedulers send it more than once while the state is saved, and a closed terminal both."""
    stop = StopRequest()
    said: list[str] = []
    with stop.on_signals(said.append):
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
    assert stop.requested
    assert stop.signal == signal.SIGHUP
    assert len(said) == 1


def test_a_run_under_nohup_outlives_its_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopRequest()
    with stop.on_signals(lambda text: None):
        signal.raise_signal(signal.SIGHUP)
    assert not stop.requested
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_stop_that_cannot_be_announced_is_one() -> None:
    """The terminal is gone, or a write was under way when the signal came."""

    def fails(text: str) -> None:
        raise RuntimeError("reentrant call")

    stop = StopRequest()
    with stop.on_signals(fails):
        signal.raise_signal(signal.SIGHUP)
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
    for number in SIGNALS:
        signal.raise_signal(number)
    assert _seen == list(SIGNALS)
    assert not stop.requested
