"""Whatever the bytes of a file are, a reader returns or raises a CompatError, and soon."""

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
        at = draw(st.integers(0, len(data)))
        to = min(len(data), at + draw(st.integers(1, 40)))
        match draw(st.sampled_from(["flip", "cut", "insert", "double", "replace", "end"])):
            case "flip" if at < len(data):
                data[at] ^= draw(st.integers(1, 255))
            case "cut":
                del data[at:to]
            case "insert":
                data[at:at] = draw(st.sampled_from(INTERESTING) | st.binary(max_size=12))
            case "double":
                data[at:at] = data[at:to] * draw(st.integers(1, 20))
            case "replace":
                piece = draw(st.sampled_from(INTERESTING) | st.binary(min_size=1, max_size=12))
                data[at : at + len(piece)] = piece
            case "end":
                del data[at:]
    return bytes(data)


@pytest.mark.parametrize("name", fuzz_targets.TARGETS)
def test_valid_files_are_read(name: str) -> None:
    """The files that the mutations start from are read without an error, so they reach deep."""
    target = fuzz_targets.TARGETS[name]
    for at, data in enumerate(_seeds(name)):
        path = fuzz_targets._FOLDER / f"valid{at}{target.suffix}"
        path.write_bytes(data)
        target.read(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", fuzz_targets.TARGETS)
def test_changed_files_are_read_or_refused(name: str) -> None:
    """A file of which some bytes are others is read, or refused with a message."""

    @settings(FAST, max_examples=SLOW.get(name, EXAMPLES))
    @given(data=_changed(_seeds(name)))
    def check(data: bytes) -> None:
        fuzz_targets.run(name, data)

    check()


@pytest.mark.parametrize("name", fuzz_targets.TARGETS)
def test_any_bytes_are_read_or_refused(name: str) -> None:
    """Bytes that never were such a file are refused with a message."""

    @settings(FAST, max_examples=60)
    @given(data=st.binary(max_size=300))
    def check(data: bytes) -> None:
        fuzz_targets.run(name, data)

    check()
