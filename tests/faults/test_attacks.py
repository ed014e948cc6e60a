"""A few attacks on a reward service; `python -m tests.faults --service` makes all of them, longer, and measures."""

from __future__ import annotations

import signal

import pytest

from tests.faults.attacks import DRAIN, attack, attacks
from tests.faults.serving import served

ALL = [one.name for one in attacks()]


@pytest.mark.slow
@pytest.mark.parametrize(("names", "seconds"), [(ALL, 1.0)])
def test_others_are_answered_meanwhile_and_afterwards(names: list[str], seconds: float) -> None:
    with served(drain_seconds=DRAIN, readers=1) as service:
        for one in attacks():
            if one.name in names:
                seen = attack(service, one, seconds)
                assert seen.requests > 0
                assert seen.asked > 0, f"{one.name}: nobody has asked for /health"
                assert seen.health[0] < 10_000, f"{one.name}: /health was not answered"
                assert seen.sound is not None, f"{one.name}: a sound request was not scored"
                assert seen.notes == [], one.name
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) == 0
