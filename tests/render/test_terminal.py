"""Names from the data give no orders to a terminal, a log or a page."""

from __future__ import annotations

import csv
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shop_kit import Shop, run, write_encoder

from compatctl.printable import printable

TITLE = "\x1b]0;owned\x07"
ORDERS = {
    "title": f"a{TITLE}",
    "colour": "b\x1b[31mred\x1b[2J",
    "c1": "c\x9b31m\x85",
    "bidi": "d\u202egnp.exe\u2066",
    "line": "e\ncompatctl: all is well\r",
    "back": "f\x08\x08\x7f",
    "tag": "g\U000e0041\u200b\ufeff\u2028",
    "markup": "h[bold red]x[/]",
}
FORBIDDEN = set("\x07\x08\x0b\x0c\r\x1b\x7f\x85\x9b\u202e\u2066\u2028\u200b\ufeff\U000e0041")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A store of items whose ids and labels are orders to a terminal."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("hostile")
    rng = np.random.default_rng(0)
    with (folder / "items.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "path", "label", "role", "split"])
        for at, text in enumerate(ORDERS.values()):
            image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / f"{at}.png")
            writer.writerow([text, f"{at}.png", f"label {text}", "gallery", "test"])
    write_encoder(folder / "old.onnx", noise=0.3)
    (folder / "compatctl.yaml").write_text("format: 1\nstore: store\ndata: items.csv\n")
    done = run("init", "--project", folder / "compatctl.yaml", "--model", folder / "old.onnx")
    assert done.code == 0, done.stderr
    return Shop(folder)


def _harmless(text: str) -> None:
    found = FORBIDDEN & set(text)
    assert not found, found
    assert "\ncompatctl: all is well" not in text


def test_found_items_give_no_orders(hostile: Shop) -> None:
    """Ids, labels and the names of query files are written out; JSON has them as they are."""
    query = hostile.path(f"q{TITLE}[red].png")
    shutil.copy(hostile.path("0.png"), query)
    found = run("search", *hostile.args, "-k", 8, query)
    assert found.code == 0, found.stderr
    _harmless(found.stdout)
    assert r"\x1b]0;owned\x07" in found.stdout
    assert r"\u202e" in found.stdout
    assert "[bold red]x[/]" in found.stdout
    whole = hostile.run("search", "-k", 8, query)
    _harmless(whole.stdout)
    ids = {hit["id"] for hit in whole.json["queries"][0]["hits"]}
    assert ids == set(ORDERS.values())


def test_errors_and_lists_of_ids_give_no_orders(hostile: Shop, tmp_path: Path) -> None:
    """An image that is gone, an item that changed, a file that is not there: on one line each."""
    folder = tmp_path / "copy"
    shutil.copytree(hostile.folder, folder)
    shop = Shop(folder)
    for at in range(len(ORDERS)):
        shutil.copy(folder / f"{(at + 1) % len(ORDERS)}.png", folder / f"x{at}.png")
    text = (folder / "items.csv").read_text(encoding="utf-8")
    for at in range(len(ORDERS)):
        text = text.replace(f",{at}.png,", f",x{at}.png,")
    (folder / "items.csv").write_text(text, encoding="utf-8")
    done = run("add", *shop.args)
    assert done.code == 5
    assert "have another image" in done.stderr
    _harmless(done.stderr)
    assert len(done.stderr.splitlines()) == 2
    shown = run("add", *shop.args, "--changed")
    assert shown.code == 0, shown.stderr
    _harmless(shown.stdout)
    for name in (f"no{TITLE}.png", "no\x9b2J.png", "no\ncompatctl: all is well.png"):
        gone = run("search", *shop.args, name)
        assert gone.code == 5
        _harmless(gone.stdout + gone.stderr)


def test_a_real_terminal_gets_none_either(hostile: Shop) -> None:
    """On a terminal, where colours are rich's own, no sequence of an id arrives."""
    shutil.copy(hostile.path("0.png"), hostile.path("plain.png"))
    primary, secondary = pty.openpty()
    words = ("search", *hostile.args, "-k", "8", str(hostile.path("plain.png")))
    with subprocess.Popen([sys.executable, "-m", "compatctl", *words], stdout=secondary) as child:
        os.close(secondary)
        seen = bytearray()
        while True:
            try:
                part = os.read(primary, 65536)
            except OSError:
                break
            if not part:
                break
            seen += part
    os.close(primary)
    assert child.returncode == 0
    text = seen.decode(errors="replace")
    assert "\x1b]0;" not in text
    assert "\x1b[2J" not in text
    assert not set("\x9b\x85\u202e\u2066") & set(text)
    assert "owned" in text


@given(st.text())
def test_what_is_printable_stays_and_the_rest_is_ascii(text: str) -> None:
    """Nothing that acts is left, letters of every script and emoji stay, twice changes nothing."""
    shown = printable(text)
    assert not FORBIDDEN & set(shown)
    assert "\n" not in shown
    assert printable(shown) == shown
    shown.encode()
    for word in ("naïve", "日本語", "👩‍🚀", "שלום", "a\\b"):
        assert printable(word) == word
