"""The checks of an hnswlib file against slow references, on hostile and on intact files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_kit import build_index

from compatctl.errors import DamagedError, InputError
from compatctl.index import HnswIndex, HnswParams, read_header
from compatctl.index.hnswlib import checks, layout
from compatctl.index.hnswlib.checks import check_layout, upper_lists
from compatctl.index.hnswlib.layout import HnswHeader, StoredRows
from compatctl.index.rows import KeyLookup, first_duplicate

PARAMS = HnswParams(dim=8, M=4, ef_construction=20)
N = 500
PATH = Path("a.hnsw")


def unit(n: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, 8)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


ROWS = unit(N)
KEYS = np.random.default_rng(5).permutation(N).astype(np.uint64) * 3


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 500 rows with unordered keys, which tests do not change."""
    path = tmp_path_factory.mktemp("index") / "a.hnsw"
    build_index(ROWS, KEYS, PARAMS).save(path)
    return path


def header(count: int, m: int, max_level: int, entry: int) -> HnswHeader:
    return HnswHeader(
        dim=8, count=count, capacity=count, M=m, ef_construction=20, max_level=max_level,
        entry=entry, record_bytes=8 * m + 4 + 32 + 8, file_bytes=0,
    )  # fmt: skip


def reference_levels(tail: bytes, head: HnswHeader) -> tuple[list[int], list[int]] | str:
    """Row by row: the levels and where lists begin, or the reason for the refusal."""
    per_level = 4 * head.M + 4
    levels, begins, position = [0] * head.count, [], 0
    for row in range(head.count):
        if position + 4 > len(tail):
            return "it is cut short"
        (size,) = struct.unpack_from("<I", tail, position)
        if size:
            levels[row], rest = divmod(size, per_level)
            if rest or levels[row] > head.max_level:
                return f"row {row} has upper links of {size} bytes"
            begins.append(position + 4)
        position += 4 + size
    if position != len(tail):
        return f"its rows end {abs(len(tail) - position)} bytes from the file's end"
    if levels[head.entry] != head.max_level:
        return f"its entry {head.entry} is not on the highest level"
    return levels, begins


def agrees_with_reference(tail: bytes, head: HnswHeader) -> bool:
    """Assert that both agree; whether the tail is accepted."""
    expected = reference_levels(tail, head)
    try:
        result = upper_lists(memoryview(tail), head, PATH)
    except DamagedError as error:
        reason = error.message
    else:
        assert (result.level.tolist(), result.begins.tolist()) == expected
        return True
    assert reason.endswith(f": {expected}")
    return False


@st.composite
def tails(draw: st.DrawFn) -> tuple[bytes, HnswHeader]:
    """Intact tails of rows with random levels and link bytes, zeros among them."""
    m = draw(st.sampled_from([2, 3, 16]))
    levels = draw(st.lists(st.sampled_from([0, 0, 0, 0, 1, 2, 5]), min_size=1, max_size=40))
    fill = draw(st.sampled_from([b"\0", b"\1", b"\0\0\0\1", b"\xff", b"\1\0"]))
    tail = b""
    for level in levels:
        size = level * (4 * m + 4)
        tail += struct.pack("<I", size) + (fill * size)[:size]
    highest = max(levels)
    return tail, header(len(levels), m, highest, levels.index(highest))


@given(tails())
def test_levels_are_those_of_a_walk_row_by_row(case: tuple[bytes, HnswHeader]) -> None:
    """Intact tails, whatever their links, are accepted with the levels of the reference."""
    assert agrees_with_reference(*case)


@settings(max_examples=500)
@given(tails(), st.data())
def test_malformed_tails_are_refused_for_the_same_reason(
    case: tuple[bytes, HnswHeader], data: st.DataObject
) -> None:
    """Truncated, extended or overwritten tails and wrong headers give the reference's message."""
    tail, head = case
    cut = data.draw(st.integers(0, len(tail)))
    more = data.draw(st.binary(max_size=9))
    position = data.draw(st.integers(0, len(tail) // 4)) * 4
    value = data.draw(
        st.sampled_from([0, 1, 3, 4 * head.M + 4, 8 * head.M + 8, 2**31, 2**32 - 1])
        | st.integers(0, 2**32 - 1)
    )
    word = struct.pack("<I", value)
    agrees_with_reference(tail[:cut], head)
    agrees_with_reference(tail + more, head)
    agrees_with_reference(tail[:cut] + more, head)
    agrees_with_reference(tail[:position] + word + tail[position + 4 :], head)
    count = data.draw(st.integers(1, 45))
    level, entry = data.draw(st.integers(0, 6)), data.draw(st.integers(0, count - 1))
    agrees_with_reference(tail, header(count, head.M, level, entry))


@settings(max_examples=300)
@given(st.binary(max_size=80), st.integers(1, 20), st.integers(0, 3))
def test_any_bytes_give_the_result_of_the_reference(tail: bytes, count: int, level: int) -> None:
    """Arbitrary bytes of any length."""
    agrees_with_reference(tail, header(count, 2, level, count - 1))


def test_a_real_file_has_the_levels_of_the_reference(saved: Path) -> None:
    """A file of hnswlib with rows on several levels."""
    head, stored = read_header(saved), StoredRows.open(saved)
    assert head.max_level >= 2
    assert agrees_with_reference(saved.read_bytes()[stored.end :], head)


def test_every_kind_of_wrong_value_is_refused(saved: Path, tmp_path: Path) -> None:
    """``check_layout`` accepts a file of hnswlib and refuses a wrong link, flag, row or key."""
    whole, stored = saved.read_bytes(), StoredRows.open(saved)
    check_layout(stored)
    with pytest.raises(InputError, match="missing"):
        StoredRows.open(tmp_path / "missing")
    size = stored.header.record_bytes
    record = 96 + 400 * size
    upper = int(upper_lists(memoryview(whole)[stored.end :], stored.header, saved).begins[-1])
    far = struct.pack("<I", N)
    second_key = whole[96 + size - 8 : 96 + size]
    for position, new, why in [
        (record, b"\xff\0", "255 links where 8"),
        (record + 2, b"\1", r"deleted \(row 400\)"),
        (record + 2, b"\2", "a flag"),
        (record + 4, far, "leads to no row"),
        (record + 36, struct.pack("<f", 7.0), "stored row 400 has the norm"),
        (record + 36, struct.pack("<f", np.nan), "stored row 400 is not finite"),
        (record + size - 8, second_key, "is there twice"),
        (stored.end + upper, b"\x05\0", "5 links where 4"),
        (stored.end + upper, b"\1\0\0\0" + far, "leads to no row of that level"),
    ]:
        path = tmp_path / "b.hnsw"
        path.write_bytes(whole[:position] + new + whole[position + len(new) :])
        with pytest.raises(DamagedError, match=why):
            check_layout(StoredRows.open(path))


def test_blocks_of_any_size_check_and_read_the_same(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, keys and refusals do not depend on the size of blocks, nor on the release of pages."""
    for most, advice in ((100, None), (2**12, layout._DONTNEED), (2**22, None)):
        for module in (layout, checks):
            monkeypatch.setattr(module, "BLOCK_BYTES", most)
        monkeypatch.setattr(layout, "_DONTNEED", advice)
        check_layout(StoredRows.open(saved))
        index = HnswIndex.load(saved, PARAMS)
        np.testing.assert_array_equal(index.vectors(), ROWS)
        np.testing.assert_array_equal(index.keys(), KEYS)


def test_rows_at_any_positions_are_read(saved: Path) -> None:
    """Rows in any order and repeated, more than are read at once; missing keys have row -1."""
    stored = StoredRows.open(saved)
    position = np.random.default_rng(1).integers(0, N, 3000)
    np.testing.assert_array_equal(stored.rows(position), ROWS[position])
    assert stored.rows(position[:0]).shape == (0, 8)
    np.testing.assert_array_equal(stored.find(KEYS), np.arange(N))
    assert stored.find(np.array([1, 3, 2**63], np.uint64)).tolist() == [
        -1, int(np.argmax(KEYS == 3)), -1,
    ]  # fmt: skip


@given(st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=30), st.data())
def test_key_lookup_gives_the_position_of_each_key(keys: list[int], data: st.DataObject) -> None:
    """Ordered, unordered or no keys, also where float64 cannot tell them apart."""
    requested = data.draw(st.lists(st.sampled_from([*keys, 0, 2**63, 2**64 - 1]), max_size=20))
    positions = KeyLookup(np.array(keys, np.uint64)).find(np.array(requested, np.uint64))
    assert positions.tolist() == [keys.index(key) if key in keys else -1 for key in requested]
    duplicates = [key for key in sorted(set(requested)) if requested.count(key) > 1]
    assert first_duplicate(np.array(requested, np.uint64)) == (
        duplicates[0] if duplicates else None
    )
