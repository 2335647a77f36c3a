"""Tables on narrow terminals: what decides is never hidden."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from shop_kit import Shop, run

from compatctl.printable import quantity
from compatctl.render.console import fields_table, print_table

HISTORY = ("passed", "generation", "operation", "at", "query model", "rows", "note")
GENERATIONS = (
    ("unknown", 1, "init", "2026-11-29 15:30", "0123456789ab", 12345, ""),
    ("12.3%", 2, "deploy", "2026-11-29 15:30", "ba9876543210", 12345, "forced: because we can"),
    ("3% + 5%", 12, "backfill", "2026-11-29 15:30", "0123456789ab", 12345, ""),
)
WORDS = st.lists(st.text("abc019%.+", min_size=1, max_size=13), max_size=4).map(" ".join)


def _shown(width: int, columns: tuple[str, ...], rows: list[tuple[object, ...]], keys: int) -> str:
    console = Console(file=io.StringIO(), width=width, emoji=False, highlight=False)
    print_table(console, columns, rows, keys=keys)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@given(st.data(), st.integers(34, 130), st.integers(1, 7))
def test_a_narrow_table_shows_every_word(data: st.DataObject, width: int, columns: int) -> None:
    """No line is wider than the terminal, and each word of each cell is whole somewhere."""
    names = tuple(f"column {i}" for i in range(columns))
    cells = st.tuples(*[WORDS] * columns)
    rows = data.draw(st.lists(cells, max_size=4))
    shown = _shown(width, names, [*rows], keys=1)
    assert all(cell_len(line) <= width for line in shown.splitlines())
    words = shown.split()
    for row in rows:
        for text in row:
            assert set(text.split()) <= set(words)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_table_that_is_split_repeats_its_keys(width: int) -> None:
    """Each part begins with the share passed and the generation, whole; a cell is in one part."""
    shown = _shown(width, HISTORY, [*GENERATIONS], keys=2)
    heads = [line for line in shown.splitlines() if "passed" in line]
    assert heads
    for values in (("unknown", "1"), ("12.3%", "2"), ("3% + 5%", "12")):
        lines = [line for line in shown.splitlines() if line.strip().startswith(values[0])]
        assert len(lines) == len(heads)
        assert all(line.split(values[0])[1].split()[0] == values[1] for line in lines)
    assert shown.count("ba9876543210") == 1
    assert len(heads) == 1 or width < 120


def test_what_was_not_measured_is_no_number() -> None:
    """NaN is shown as None is, and an empty list as none."""
    assert _shown(60, ("a", "b"), [(float("nan"), None)], keys=1).split()[-2:] == ["-", "-"]
    console = Console(file=io.StringIO(), width=60)
    fields_table(console, {"skipped": ()})
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().split() == ["skipped", "none"]


def test_a_field_of_several_values_is_in_words() -> None:
    """Names with their values, digests short, and a dash for an empty text: no Python."""
    digest = "0123456789abcdef" * 4
    fields = {
        "pairs": {"gallery": 40, "model": digest},
        "setting": "",
        "none": {},
        "heads": [digest],
    }
    console = Console(file=io.StringIO(), width=60)
    fields_table(console, fields)
    assert isinstance(console.file, io.StringIO)
    assert [line.split(maxsplit=1) for line in console.file.getvalue().splitlines()] == [
        ["pairs", f"gallery: 40, model: {digest[:12]}"],
        ["setting", "-"],
        ["none", "none"],
        ["heads", digest[:12]],
    ]


def test_fields_stand_below_each_other() -> None:
    """Also where a name is longer than the column usually is."""
    console = Console(file=io.StringIO(), width=60)
    fields_table(console, {"rows": 155, "to_embed_with_the_old_model": 2428})
    assert isinstance(console.file, io.StringIO)
    first, second = console.file.getvalue().splitlines()
    assert first.index("155") == second.index("2428")


def test_one_of_something_is_singular() -> None:
    """One step, two steps; and a plural of its own."""
    assert quantity(1, "step") == "1 step"
    assert quantity(2, "step") == "2 steps"
    assert quantity(0, "query", "queries") == "0 queries"


def test_a_gallery_of_one_row_is_one_row(shop: Shop) -> None:
    """Of a store, of its status and of a comparison."""
    lines = shop.data().read_text(encoding="utf-8").splitlines()
    alone = next(line for line in lines if ",gallery," in line)
    table = shop.data().parent / f"{shop.folder.parent.name}-one.csv"
    table.write_text(f"{lines[0]}\n{alone}\n", encoding="utf-8")
    words = ("--store", shop.path("one"), "--data", table)
    assert run("init", *words, "--model", shop.path("old.onnx")).code == 0
    assert "gallery         1 row of 32 dimensions\n" in run("status", *words[:2]).stdout
    shown = run("verify", *words, "--report", shop.path("r.json"), shop.path("new.onnx"))
    assert "searched: 1 row, 1 of the store" in shown.stdout


def test_an_id_of_any_length_is_folded() -> None:
    """A long id takes several lines and hides no cosine; markup in it is text."""
    item = "photos[1]/" * 30
    shown = _shown(60, ("item", "label", "cosine"), [(item, ":smile:", 0.98765)], keys=1)
    lines = [line.rstrip() for line in shown.splitlines()]
    assert "0.9877" in shown
    assert ":smile:" in shown
    assert "".join(line.split("  ")[0].strip() for line in lines[3:]) == item


@pytest.mark.parametrize("columns", [60, 80])
def test_history_shows_the_share_passed_on_a_narrow_terminal(
    shop: Shop, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share passed stands beside each generation, and so does the whole digest's beginning."""
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = run("history", *shop.args)
    assert shown.code == 0, shown.stderr
    assert all(len(line) <= columns for line in shown.stdout.splitlines())
    generations = shop.run("history").json["generations"]
    for entry in generations:
        assert entry["query_model"][:12] in shown.stdout
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["100.00%", "1", "init"] in [words[:3] for words in lines]


def test_a_digest_is_shown_by_its_first_twelve_digits() -> None:
    """A value that is one; in a path it is a part of a name, which stays whole."""
    digest = "0123456789abcdef" * 4
    console = Console(file=io.StringIO(), width=200)
    fields_table(console, {"head": digest, "file": f"models/{digest}.onnx"})
    assert isinstance(console.file, io.StringIO)
    shown = [line.split()[-1] for line in console.file.getvalue().splitlines()]
    assert shown == [digest[:12], f"models/{digest}.onnx"]
