"""Text from the data cannot control a terminal, a log or a page."""

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
from terminal_kit import printed

from compatctl.printable import printable

TITLE = "\x1b]0;owned\x07"
CONTROLS = {
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
    """A store of items whose ids and labels contain control sequences of a terminal."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("hostile")
    rng = np.random.default_rng(0)
    with (folder / "items.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "path", "label", "role", "split"])
        for i, text in enumerate(CONTROLS.values()):
            image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / f"{i}.png")
            writer.writerow([text, f"{i}.png", f"label {text}", "gallery", "test"])
    write_encoder(folder / "old.onnx", noise=0.3)
    (folder / "compatctl.yaml").write_text("format: 1\nstore: store\ndata: items.csv\n")
    result = run("init", "--project", folder / "compatctl.yaml", "--model", folder / "old.onnx")
    assert result.code == 0, result.stderr
    return Shop(folder)


def _assert_harmless(text: str) -> None:
    controls = FORBIDDEN & set(text)
    assert not controls, controls
    assert "\ncompatctl: all is well" not in text


def test_hits_are_printed_escaped(hostile: Shop) -> None:
    """Ids, labels and names of query files are escaped in tables; JSON has them unchanged."""
    query = hostile.path(f"q{TITLE}[red].png")
    shutil.copy(hostile.path("0.png"), query)
    table = run("search", *hostile.args, "-k", 8, query)
    assert table.code == 0, table.stderr
    _assert_harmless(table.stdout)
    assert r"\x1b]0;owned\x07" in table.stdout
    assert r"\u202e" in table.stdout
    assert "[bold red]x[/]" in table.stdout
    as_json = hostile.run("search", "-k", 8, query)
    _assert_harmless(as_json.stdout)
    ids = {hit["id"] for hit in as_json.json["queries"][0]["hits"]}
    assert ids == set(CONTROLS.values())


def test_errors_and_lists_of_ids_are_printed_escaped(hostile: Shop, tmp_path: Path) -> None:
    """Messages about changed items and missing files have no control characters."""
    folder = tmp_path / "copy"
    shutil.copytree(hostile.folder, folder)
    shop = Shop(folder)
    for i in range(len(CONTROLS)):
        shutil.copy(folder / f"{(i + 1) % len(CONTROLS)}.png", folder / f"x{i}.png")
    text = (folder / "items.csv").read_text(encoding="utf-8")
    for i in range(len(CONTROLS)):
        text = text.replace(f",{i}.png,", f",x{i}.png,")
    (folder / "items.csv").write_text(text, encoding="utf-8")
    refused = run("add", *shop.args)
    assert refused.code == 5
    assert "have other content" in refused.stderr
    _assert_harmless(refused.stderr)
    lines = refused.stderr.splitlines()
    assert len([line for line in lines if not line.startswith("compatctl: warning: ")]) == 2
    added = run("add", *shop.args, "--changed")
    assert added.code == 0, added.stderr
    _assert_harmless(added.stdout)
    for name in (f"no{TITLE}.png", "no\x9b2J.png", "no\ncompatctl: all is well.png"):
        missing = run("search", *shop.args, name)
        assert missing.code == 5
        _assert_harmless(missing.stdout + missing.stderr)


def test_a_real_terminal_gets_no_sequence_of_an_id(hostile: Shop) -> None:
    """A terminal gets the colours of rich and no control sequence of an id."""
    shutil.copy(hostile.path("0.png"), hostile.path("plain.png"))
    primary, secondary = pty.openpty()
    words = ("search", *hostile.args, "-k", "8", str(hostile.path("plain.png")))
    with subprocess.Popen([sys.executable, "-m", "compatctl", *words], stdout=secondary) as child:
        os.close(secondary)
        output = b"".join(printed(primary))
    assert child.returncode == 0
    text = output.decode(errors="replace")
    assert "\x1b]0;" not in text
    assert "\x1b[2J" not in text
    assert not set("\x9b\x85\u202e\u2066") & set(text)
    assert "owned" in text


@given(st.text())
def test_printable_escapes_control_characters_only(text: str) -> None:
    """Control characters are escaped, letters and emoji stay, and a second call changes nothing."""
    shown = printable(text)
    assert not FORBIDDEN & set(shown)
    assert "\n" not in shown
    assert printable(shown) == shown
    shown.encode()
    for word in ("naïve", "日本語", "👩‍🚀", "שלום", "a\\b"):
        assert printable(word) == word


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252:strict"])
def test_a_log_without_utf8_gets_escapes_and_the_command_ends_well(
    hostile: Shop, tmp_path: Path, encoding: str
) -> None:
    """cron and redirected output on other systems: hits, warnings and errors are all printed."""
    folder = tmp_path / "s"
    lines = ["id,path,label,role"]
    for number, label in enumerate(("\u65e5\u672c\u8a9e", "\u017c\u00f3\u0142w")):
        shutil.copy(hostile.path(f"{number}.png"), tmp_path / f"{number}.png")
        lines.append(f"{label}/{number},{number}.png,{label},gallery")
    (tmp_path / "d.csv").write_text("\n".join(lines), encoding="utf-8")
    model = hostile.path("old.onnx")
    made = run("init", "--model", model, "--data", tmp_path / "d.csv", "--store", folder)
    assert made.code == 0, made.stderr
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    words = [sys.executable, "-m", "compatctl", "search", "--store", str(folder), "-k", "2"]
    for name, code in (("0.png", 0), ("\u65e5.png", 5)):
        ended = subprocess.run(
            [*words, str(tmp_path / name)], capture_output=True, env=environment, check=False
        )
        assert ended.returncode == code, ended.stderr
        assert b"Traceback" not in ended.stderr
        assert b"\\u65e5" in ended.stdout + ended.stderr


def _search(shop: Shop, redirect: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A search in a shell, with this redirection."""
    command = f"{sys.executable} -m compatctl search --store store 0.png -k 2 {redirect}"
    return subprocess.run(
        ["sh", "-c", command],
        cwd=shop.folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("columns", ["0", "1", "abc", "-5"])
def test_a_width_that_says_nothing_hides_nothing(hostile: Shop, columns: str) -> None:
    """Every item is printed where COLUMNS is 0, tiny or no number."""
    done = _search(hostile, "", COLUMNS=columns)
    assert done.returncode == 0, done.stderr
    assert "item" in done.stdout
    assert "cosine" in done.stdout or columns == "1"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("as_json", ["", "--json"])
def test_output_that_cannot_be_written_is_said_without_a_traceback(
    hostile: Shop, as_json: str
) -> None:
    """A full disk under stdout or stderr, closed streams, an error with nowhere to go."""
    full = _search(hostile, f"{as_json} >/dev/full")
    assert (full.returncode, "cannot be printed: No space" in full.stderr) == (5, True)
    closed = _search(hostile, f"{as_json} >&-")
    assert (closed.returncode, closed.stderr) == (0, "")
    for redirect, code in (
        (f"{as_json} --store none >/dev/full", 5),
        (f"{as_json} --store none >/dev/full 2>/dev/full", 5),
        (f"{as_json} 2>/dev/full", 0),
    ):
        done = _search(hostile, redirect)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    silent = _search(hostile, f"{as_json} --store none 2>&-")
    assert silent.returncode == 5
    assert "next:" not in silent.stdout
