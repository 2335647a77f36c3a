"""Whatever the bytes of a file, a reader soon returns or raises a CompatError."""

from __future__ import annotations

from functools import cache

import fuzz_targets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = 250
SLOW = {"recipe": 60, "policy": 100, "torch": 100, "picture": 200}
FAST = settings(
    derandomize=True,
    database=None,
    deadline=20_000,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
INTERESTING = (
    b"\0", b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"9" * 30, b"[" * 40, b'"', b"\n", b",",
    b"NaN", b"1e999", b"-1", b"../", b"\xed\xa0\x80", b"\xef\xbb\xbf",
)  # fmt: skip


@cache
def _seeds(name: str) -> tuple[bytes, ...]:
    return tuple(fuzz_targets.TARGETS[name].seeds())


@st.composite
def _changed(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A valid file with spans flipped, cut, inserted or doubled."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(1, 40)))
        match draw(st.sampled_from(["flip", "cut", "insert", "double", "replace", "end"])):
            case "flip" if start < len(data):
                data[start] ^= draw(st.integers(1, 255))
            case "cut":
                del data[start:stop]
            case "insert":
                data[start:start] = draw(st.sampled_from(INTERESTING) | st.binary(max_size=12))
            case "double":
                data[start:start] = data[start:stop] * draw(st.integers(1, 20))
            case "replace":
                piece = draw(st.sampled_from(INTERESTING) | st.binary(min_size=1, max_size=12))
                data[start : start + len(piece)] = piece
            case "end":
                del data[start:]
    return bytes(data)


@pytest.mark.parametrize("name", fuzz_targets.TARGETS)
def test_valid_files_are_read(name: str) -> None:
    """The files that are mutated are read without an error, so mutations reach deep code."""
    target = fuzz_targets.TARGETS[name]
    for number, data in enumerate(_seeds(name)):
        path = fuzz_targets._FOLDER / f"valid{number}{target.suffix}"
        path.write_bytes(data)
        target.read(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", fuzz_targets.TARGETS)
def test_changed_files_are_read_or_refused(name: str) -> None:
    """A file with some changed bytes is read, or refused with a message."""

    @settings(FAST, max_examples=SLOW.get(name, EXAMPLES))
    @given(data=_changed(_seeds(name)))
    def check(data: bytes) -> None:
        fuzz_targets.run(name, data)

    check()


@pytest.mark.parametrize("name", fuzz_targets.TARGETS)
def test_any_bytes_are_read_or_refused(name: str) -> None:
    """Arbitrary bytes are read, or refused with a message."""

    @settings(FAST, max_examples=60)
    @given(data=st.binary(max_size=300))
    def check(data: bytes) -> None:
        fuzz_targets.run(name, data)

    check()
