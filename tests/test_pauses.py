"""Pauses between the steps of work in the background."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import pytest

from compatctl import pauses
from compatctl.pauses import LONGEST_S, TIMES, pause, with_pauses


@dataclass
class Clock:
    """A clock that only work and pauses move."""

    now: float = 0.0
    pauses: list[float] = field(default_factory=list)

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pauses, "time", clock)
    return clock


def test_a_pause_is_a_multiple_of_the_step_before_it(clock: Clock) -> None:
    """It is ``TIMES`` as long as what was done since the last one, and at most ``LONGEST_S``."""
    short = LONGEST_S / TIMES / 2
    with with_pauses():
        for step in (0.0, short, 4 * LONGEST_S, short):
            clock.now += step
            pause()
    assert clock.pauses == pytest.approx([0.0, LONGEST_S / 2, LONGEST_S, LONGEST_S / 2])


def test_only_the_thread_that_asked_for_pauses_makes_them(clock: Clock) -> None:
    """Outside the block, and in another thread, ``pause`` returns at once."""
    with with_pauses():
        clock.now += LONGEST_S
        other = threading.Thread(target=pause)
        other.start()
        other.join()
        assert not clock.pauses
        pause()
        assert clock.pauses == [LONGEST_S]
    clock.now += LONGEST_S
    pause()
    assert clock.pauses == [LONGEST_S]


def test_a_pause_takes_the_time_that_it_says() -> None:
    """By the real clock, a step is followed by a pause of at least its length."""
    with with_pauses():
        time.sleep(LONGEST_S)
        began = time.perf_counter()
        pause()
        assert time.perf_counter() - began >= LONGEST_S
