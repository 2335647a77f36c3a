"""The checks of a file, against slow references, on hostile bytes as on hnswlib's own."""

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
    """An index of 500 rows whose keys do not ascend, not to be changed."""
    path = tmp_path_factory.mktemp("index") / "a.hnsw"
    build_index(ROWS, KEYS, PARAMS).save(path)
    return path


def header(count: int, m: int, max_level: int, entry: int) -> HnswHeader:
    return HnswHeader(
        dim=8, count=count, capacity=count, M=m, ef_construction=20, max_level=max_level,
        entry=entry, record_bytes=8 * m + 4 + 32 + 8, file_bytes=0,
    )  # fmt: skip


def walked(tail: bytes, head: HnswHeader) -> tuple[list[int], list[int]] | str:
    """Row by row: the levels and where lists begin, or the reason of the refusal."""
    per_level = 4 * head.M + 4
    levels, begins, at = [0] * head.count, [], 0
    for row in range(head.count):
        if at + 4 > len(tail):
            return "it is cut short"
        (size,) = struct.unpack_from("<I", tail, at)
        if size:
            levels[row], rest = divmod(size, per_level)
            if rest or levels[row] > head.max_level:
                return f"row {row} has upper links of {size} bytes"
            begins.append(at + 4)
        at += 4 + size
    if at != len(tail):
        return f"its rows end {abs(len(tail) - at)} bytes from the file's end"
    if levels[head.entry] != head.max_level:
        return f"its entry {head.entry} is not on the highest level"
    return levels, begins


def same_as_walked(tail: bytes, head: HnswHeader) -> bool:
    """Both agree; whether the tail was accepted."""
    expected = walked(tail, head)
    try:
        found = upper_lists(memoryview(tail), head, PATH)
    except DamagedError as error:
        reason = error.message
    else:
        assert (found.level.tolist(), found.begins.tolist()) == expected
        return True
    assert reason.endswith(f": {expected}")
    return False


@st.composite
def tails(draw: st.DrawFn) -> tuple[bytes, HnswHeader]:
    """Tails of rows with random levels and link bytes (zeros among them), intact."""
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
    """Intact tails, whatever is in their links, are accepted with the reference's levels."""
    assert same_as_walked(*case)


@settings(max_examples=500)
@given(tails(), st.data())
def test_malformed_tails_are_refused_for_the_same_reason(
    case: tuple[bytes, HnswHeader], data: st.DataObject
) -> None:
    """Cut, grown, overwritten tails and wrong headers: the walk's answer, to the word."""
    tail, head = case
    cut = data.draw(st.integers(0, len(tail)))
    more = data.draw(st.binary(max_size=9))
    at = data.draw(st.integers(0, len(tail) // 4)) * 4
    value = data.draw(
        st.sampled_from([0, 1, 3, 4 * head.M + 4, 8 * head.M + 8, 2**31, 2**32 - 1])
        | st.integers(0, 2**32 - 1)
    )
    word = struct.pack("<I", value)
    same_as_walked(tail[:cut], head)
    same_as_walked(tail + more, head)
    same_as_walked(tail[:cut] + more, head)
    same_as_walked(tail[:at] + word + tail[at + 4 :], head)
    count = data.draw(st.integers(1, 45))
    level, entry = data.draw(st.integers(0, 6)), data.draw(st.integers(0, count - 1))
    same_as_walked(tail, header(count, head.M, level, entry))


@settings(max_examples=300)
@given(st.binary(max_size=80), st.integers(1, 20), st.integers(0, 3))
def test_any_bytes_are_judged_as_by_the_walk(tail: bytes, count: int, level: int) -> None:
    """Bytes of no structure at all, of every length."""
    same_as_walked(tail, header(count, 2, level, count - 1))


def test_a_real_file_has_the_levels_of_the_walk(saved: Path) -> None:
    """hnswlib's own tail, with rows on several levels."""
    head, stored = read_header(saved), StoredRows.open(saved)
    assert head.max_level >= 2
    assert same_as_walked(saved.read_bytes()[stored.end :], head)


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
    for at, new, why in [
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
        path.write_bytes(whole[:at] + new + whole[at + len(new) :])
        with pytest.raises(DamagedError, match=why):
            check_layout(StoredRows.open(path))


def test_blocks_of_any_size_check_and_read_the_same(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, keys and refusals by number do not depend on how a file is cut into blocks, nor on
    whether the platform takes pages back."""
    for most, advice in ((100, None), (2**12, layout._DONTNEED), (2**22, None)):
        for module in (layout, checks):
            monkeypatch.setattr(module, "BLOCK_BYTES", most)
        monkeypatch.setattr(layout, "_DONTNEED", advice)
        check_layout(StoredRows.open(saved))
        index = HnswIndex.load(saved, PARAMS)
        np.testing.assert_array_equal(index.vectors(), ROWS)
        np.testing.assert_array_equal(index.keys(), KEYS)


def test_rows_anywhere_in_a_file_are_copied(saved: Path) -> None:
    """More rows than are read at once, in any order and repeated; keys that are not there."""
    stored = StoredRows.open(saved)
    at = np.random.default_rng(1).integers(0, N, 3000)
    np.testing.assert_array_equal(stored.rows(at), ROWS[at])
    assert stored.rows(at[:0]).shape == (0, 8)
    np.testing.assert_array_equal(stored.find(KEYS), np.arange(N))
    assert stored.find(np.array([1, 3, 2**63], np.uint64)).tolist() == [
        -1, int(np.argmax(KEYS == 3)), -1,
    ]  # fmt: skip


@given(st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=30), st.data())
def test_keys_are_found_where_they_are(keys: list[int], data: st.DataObject) -> None:
    """Ascending or not, empty too, also where float64 cannot tell keys apart."""
    wanted = data.draw(st.lists(st.sampled_from([*keys, 0, 2**63, 2**64 - 1]), max_size=20))
    found = KeyLookup(np.array(keys, np.uint64)).find(np.array(wanted, np.uint64))
    assert found.tolist() == [keys.index(key) if key in keys else -1 for key in wanted]
    twice = [key for key in sorted(set(wanted)) if wanted.count(key) > 1]
    assert first_duplicate(np.array(wanted, np.uint64)) == (twice[0] if twice else None)
