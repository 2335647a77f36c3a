"""What becomes of a command whose reader has gone, or that Ctrl-C ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from shop_kit import Shop

from compatctl.files import TEMPORARY
from compatctl.store import Store

PROGRAM = [sys.executable, "-m", "compatctl"]
INTERRUPTED = 130


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["-h"], 0),
        (["verify", "-h"], 0),
        (["--version"], 0),
        (["finetune", "--print-recipe"], 0),
        (["serch"], 2),
        (["history", "--store", "store"], 0),
        (["history", "--store", "store", "--json"], 0),
        (["search", "--store", "nowhere", "x.png"], 5),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_reader_that_has_gone_changes_no_exit_code(
    shop: Shop, words: list[str], code: int
) -> None:
    """Both streams go to a pipe that nobody reads: the code is the command's, and that is all."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*PROGRAM, *words], cwd=shop.folder, stdout=writing, stderr=writing, check=False
    )
    os.close(writing)
    assert done.returncode == code


def test_the_first_line_is_enough_for_head(shop: Shop) -> None:
    """``| head -c 10`` gets its bytes, and stderr stays empty."""
    command = f"{' '.join(PROGRAM)} history --store store --json | head -c 10"
    done = subprocess.run(
        ["sh", "-c", command], cwd=shop.folder, capture_output=True, text=True, check=True
    )
    assert (len(done.stdout), done.stderr) == (10, "")


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0, 4.0])
def test_ctrl_c_at_any_time_leaves_no_half_store(shop: Shop, seconds: float) -> None:
    """While Python starts, while libraries are imported, while items are embedded: exit code 130
    and one line; there is no store, or the whole of it."""
    child = subprocess.Popen(
        [*PROGRAM, "init", "--model", "old.onnx", "--store", "fresh"],
        cwd=shop.folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    time.sleep(seconds)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate()
    store = shop.path("fresh")
    if child.returncode == INTERRUPTED:
        assert "Traceback" not in stderr
        assert stderr.strip().splitlines()[-1].startswith("interrupted: ")
        assert not [*store.rglob(f"{TEMPORARY}*")]
    else:  # before Python takes signals, or after the end
        assert child.returncode in {0, -signal.SIGINT} or "compatctl" not in stderr, stderr
    if (store / "manifest.json").exists():
        assert Store.open(store).manifest.generation == 1
