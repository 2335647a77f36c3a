"""Pauses between the steps of work in the background."""

from __future__ import annotations

import threading
import time

from compatctl.pauses import LONGEST_S, TIMES, pause, with_pauses


def _seconds_of_pause() -> float:
    began = time.perf_counter()
    pause()
    return time.perf_counter() - began


def test_a_pause_is_a_multiple_of_the_step_before_it() -> None:
    """It is ``TIMES`` as long as what was done since the last one, and at most ``LONGEST_S``."""
    with with_pauses():
        assert _seconds_of_pause() < LONGEST_S / 2
        time.sleep(LONGEST_S / TIMES / 2)
        assert _seconds_of_pause() >= LONGEST_S / 2
        time.sleep(4 * LONGEST_S)
        assert LONGEST_S <= _seconds_of_pause() < 4 * LONGEST_S


def test_only_the_thread_that_asked_for_pauses_makes_them() -> None:
    """Outside the block, and in another thread, ``pause`` returns at once."""
    elsewhere: list[float] = []
    with with_pauses():
        time.sleep(LONGEST_S)
        other = threading.Thread(target=lambda: elsewhere.append(_seconds_of_pause()))
        other.start()
        other.join()
        assert elsewhere[0] < LONGEST_S / 2
        assert _seconds_of_pause() >= LONGEST_S
    time.sleep(LONGEST_S)
    assert _seconds_of_pause() < LONGEST_S / 2
