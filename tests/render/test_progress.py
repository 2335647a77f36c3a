"""What a command shows while it works: on a terminal one line that stays alive, in a log little."""

from __future__ import annotations

import fcntl
import io
import itertools
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from rich.cells import cell_len
from shop_kit import Shop
from terminal_kit import printed

from compatctl import progress, render
from compatctl.progress import close_stages, counted, report_progress, stage
from compatctl.render import progress_line
from compatctl.render.progress_line import ProgressLine

SLOW_S = 4.0
SILENCE_S = 2.0


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        """It is."""
        return True


@pytest.fixture(autouse=True)
def _no_stages() -> Iterator[None]:
    close_stages()
    yield
    close_stages()


def _in(seconds: float) -> float:
    """The clock of stages, so many seconds from now."""
    return time.monotonic() + seconds


def _line(width: int, seconds: float = 10.0) -> str:
    """What is shown after a line has seen the stages now, and they went on for so long."""
    line = ProgressLine("verify", Terminal())
    line.text(_in(0.0), width)
    for part in progress.open_stages():
        part.done += 1000
    return line.text(_in(seconds), width)


def test_a_line_has_share_amount_rate_and_time_left() -> None:
    """Of 5,000 items 1,000 took ten seconds: the rest takes forty."""
    with stage("images embedded", 5000):
        assert _line(76) == "images embedded  [##..........]  20%  1,000/5,000  100/s  40 s left"


def test_without_a_total_a_line_has_the_time_that_went_by() -> None:
    """A table of unknown length: rows, rate, seconds."""
    with stage("reading items.csv"):
        assert _line(76) == "reading items.csv  1,000  100/s  10 s"


def test_bytes_and_long_times_are_shown_in_units_that_can_be_read() -> None:
    """MB of MB, and hours."""
    with stage("fetching index", 10_000_000_000, "bytes") as part:
        part(40_000_000)
        line = ProgressLine("init", Terminal())
        line.text(_in(0.0), 80)
        part(50_000_000)
        shown = line.text(_in(10.0), 80)
    assert "50 MB/10,000 MB  1.0 MB/s  2 h 45 min left" in shown


def test_a_digest_is_shown_by_its_first_twelve_digits() -> None:
    """A model of the store is a file that is called by its digest."""
    with stage(f"loading {'0123456789abcdef' * 4}.onnx"):
        assert _line(76).startswith("loading 0123456789ab.onnx  ")


@pytest.mark.parametrize("width", [30, 57, 77])
def test_a_line_fits_and_its_numbers_stay(width: int) -> None:
    """Where it is narrow the bar goes, then the middle of the name."""
    with stage("reading a table with quite a long name of its file.csv", 5000):
        shown = _line(width)
    assert len(shown) <= width
    assert width < 57 or shown.endswith("1,000/5,000  100/s  40 s left")


@pytest.mark.parametrize("width", [30, 57, 77])
def test_a_line_of_wide_characters_fits(width: int) -> None:
    """A character of Japanese takes two columns of a terminal, and an accent of its own none."""
    with stage("reading " + "商品一覧データベース" * 4 + "e\u0301" * 20 + ".csv", 5000):
        shown = _line(width)
    assert cell_len(shown) <= width
    assert cell_len(shown) >= width - 1
    assert width < 57 or shown.endswith("e\u0301.csv  1,000/5,000  100/s  40 s left")


def test_a_terminal_without_unicode_gets_a_line_that_fits() -> None:
    """What its encoding lacks is shown by escapes, which count."""
    line = ProgressLine("verify", io.TextIOWrapper(io.BytesIO(), "ascii", "backslashreplace"))
    with stage("reading " + "商品一覧" * 5 + ".csv", 5000):
        line.text(_in(0.0), 57)
        shown = line.text(_in(10.0), 57)
    assert shown.isascii()
    assert len(shown) <= 57
    assert shown.startswith("reading \\u5546")


def test_a_wide_line_is_wiped_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many blanks as the columns that it took."""
    monkeypatch.setattr(progress_line, "FIRST_S", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    line = ProgressLine("verify", terminal)
    with stage("商品一覧データベース") as part:
        part.opened_at = _in(-10.0)
        line.start()
        deadline = time.monotonic() + 10
        while "商品" not in terminal.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        line.stop()
    *_, drawn, blanks, after = terminal.getvalue().split("\r")
    assert (len(blanks), blanks.strip(), after) == (cell_len(drawn.rstrip()), "", "")


def test_the_innermost_stage_that_lasts_is_shown() -> None:
    """A stage that has just begun does not replace the one around it, one that lasts does."""
    line = ProgressLine("plan", Terminal())
    with stage("outer"):
        line.text(_in(0.0), 80)
        with stage("inner") as inner:
            inner.opened_at = _in(10.0)
            assert line.text(_in(10.0), 80).startswith("outer")
            assert line.text(_in(11.0), 80).startswith("inner")
        assert line.text(_in(12.0), 80).startswith("outer")
    assert line.text(_in(13.0), 80) == "plan  13 s" or line.text(_in(13.0), 80).startswith("plan  ")


def test_a_reported_stage_that_never_ends_hides_nothing() -> None:
    """Work that stopped before its total is forgotten with the stage around it, or when stale."""
    line = ProgressLine("plan", Terminal())
    report_progress("old model", 1, 10)
    report_progress("new model", 1, 10)
    line.text(_in(0.0), 80)
    report_progress("old model", 2, 10)
    assert line.text(_in(10.0), 80).startswith("old model")
    with stage("around"):
        report_progress("within", 1, 2)
    assert [part.name for part in progress.open_stages()] == ["old model", "new model"]
    report_progress("old model", 10, 10)
    assert [part.name for part in progress.open_stages()] == ["new model"]


def test_counted_items_are_counted_and_closed() -> None:
    """Also where the loop is left early."""
    for item in (items := counted("abc", "letters", 3)):
        if item == "b":
            assert [part.done for part in progress.open_stages()] == [1]
            break
    del items, item
    assert progress.open_stages() == ()


def test_a_log_gets_whole_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stderr is no terminal: no carriage return, each line says which program it is."""
    monkeypatch.setattr(progress_line, "LOG_S", 0.05)
    log = io.StringIO()
    line = ProgressLine("verify", log)
    line.start()
    time.sleep(0.5)
    line.stop()
    lines = log.getvalue().splitlines()
    assert len(lines) > 2
    assert all(text.startswith("compatctl: verify  ") for text in lines)
    assert "\r" not in log.getvalue()


def test_a_log_names_what_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the stage that began since the line before, which a look every half minute has not seen
    yet."""
    monkeypatch.setattr(progress_line, "LOG_S", 1.5)
    log = io.StringIO()
    line = ProgressLine("finetune", log)
    line.start()
    time.sleep(0.5)
    with stage("training", 40) as part:
        part(3)
        time.sleep(1.5)
    line.stop()
    assert re.match(r"compatctl: training  \[.*3/40  1 s", log.getvalue()), log.getvalue()


def test_a_terminal_that_is_called_dumb_gets_no_control_character(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a log, but more often."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(progress_line, "DUMB_S", 0.05)
    terminal = Terminal()
    line = ProgressLine("verify", terminal)
    line.start()
    time.sleep(0.3)
    line.stop()
    assert terminal.getvalue().startswith("compatctl: verify  ")
    assert "\r" not in terminal.getvalue()


def test_a_message_wipes_the_line_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command announces does not stand behind a half-written line of progress."""
    monkeypatch.setattr(progress_line, "FIRST_S", 0.0)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with render.watching("backfill"):
        deadline = time.monotonic() + 10
        while "backfill" not in terminal.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        render.announce("step 1")
    before, _, _ = terminal.getvalue().partition("compatctl: step 1\n")
    assert before.rpartition("\r")[2] == ""
    assert before.rpartition("\r")[0].endswith("  ")
    assert terminal.getvalue().endswith(("\n", "\r"))


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A run in a terminal: when something was shown, in seconds; what; and the exit code."""

    times: list[float]
    text: str
    code: int


def _in_terminal(words: list[str], folder: str, *, then: bytes) -> Shown:
    """Run a command that reads stdin under a pty, and write to it after ``SLOW_S``."""
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    began = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "compatctl", *words],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=secondary,
        env={**environment, "TERM": "xterm"},
    )
    os.close(secondary)

    def end() -> None:
        assert child.stdin is not None
        if then == b"\x03":
            child.send_signal(signal.SIGINT)
        else:
            child.stdin.write(then)
        child.stdin.close()

    timer = threading.Timer(SLOW_S, end)
    timer.start()
    times, output = [], bytearray()
    for chunk in printed(primary):
        times.append(time.monotonic() - began)
        output += chunk
    timer.join()
    return Shown(times=times, text=output.decode(), code=child.wait())


def test_a_command_that_waits_shows_that_it_lives(shop: Shop) -> None:
    """A real command on a real terminal: never silent for two seconds, and nothing is left."""
    shown = _in_terminal(["remove", *shop.args, "--ids", "-"], str(shop.folder), then=b"none\n")
    assert shown.code == 5
    ends = [0.0, *(at for at in shown.times if at < SLOW_S), SLOW_S]
    gaps = [later - earlier for earlier, later in itertools.pairwise(ends)]
    # the first gap has the start of Python in it, which a busy machine makes long
    assert max(gaps[1:]) < SILENCE_S, gaps
    assert "remove" in shown.text
    assert "\x1b" not in shown.text
    last = shown.text.split("compatctl: ")[0]
    assert last.endswith("\r")


def test_ctrl_c_wipes_the_line_and_says_how_to_go_on(shop: Shop) -> None:
    """Exit code 130, one line, no traceback."""
    shown = _in_terminal(["remove", *shop.args, "--ids", "-"], str(shop.folder), then=b"\x03")
    assert shown.code == 130
    assert "Traceback" not in shown.text
    assert shown.text.rpartition("\r")[0].rpartition("\r")[2].startswith("interrupted: ")
