"""Libraries of extras: what is said where one is missing, or is there and does not load."""

from __future__ import annotations

from pathlib import Path

import pytest

from compatctl.errors import InputError, UsageError
from compatctl.libraries import require_library


@pytest.mark.parametrize(
    ("name", "load"), [("absent", True), ("absent.part", True), ("absent", False)]
)
def test_a_missing_library_is_named_with_its_extra(name: str, load: bool) -> None:
    """Of a module of it as well, whether it would be imported or only looked for."""
    with pytest.raises(UsageError) as caught:
        require_library(name, extra="e", subject="x", load=load, tip=", or y", error=UsageError)
    assert caught.value.message == "x needs absent, which is not installed"
    assert caught.value.tip == "pip install 'compatctl[e]', or y"


@pytest.mark.parametrize("source", ["raise ImportError('no libpq')", "import no_libpq"])
def test_a_library_that_does_not_load_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """An installed library whose own needs are missing is no traceback."""
    (tmp_path / "broken_library.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"needs broken_library, which does not load: .*no.libpq"):
        require_library("broken_library", extra="e", subject="x")


def test_a_library_that_is_there_passes() -> None:
    """Nothing happens."""
    require_library("numpy", extra="e", subject="x")
    require_library("numpy", extra="e", subject="x", load=False)
