"""The URL of a table: what it may be, and that a message never shows a password. No server runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shop_kit import run

from compatctl.engines import CollectionLocation, TableLocation, parse_url

REST = "id=i&vector=v"


@pytest.mark.parametrize("scheme", ["postgresql", "milvus", "POSTGRES", "Milvus"])
def test_every_part_is_read_decoded(scheme: str) -> None:
    """User, password, host, database, table and columns, whatever signs they have."""
    password, columns = "a%2Fb%3F%23%40%3A%25%C3%A9", "id=my%20id&vector=v%26&label=l"
    found = parse_url(f"{scheme}://u%40x:{password}@[::1]:77/d%2Fb/t%20t?{columns}")
    assert (found.user, found.password) == ("u@x", "a/b?#@:%é")
    assert (found.host, found.port, found.database, found.table) == ("::1", "77", "d/b", "t t")
    assert (found.id, found.vector, found.label) == ("my id", "v&", "l")
    assert "%23" not in found.url + repr(found) + json.dumps(found.to_json())
    again = parse_url(found.url)
    assert again == found
    assert again.password == ""


@pytest.mark.parametrize("scheme", ["postgresql", "milvus"])
def test_a_location_is_the_same_after_json(scheme: str) -> None:
    """``from_json`` takes what ``to_json`` gives, without the password."""
    found = parse_url(f"{scheme}://u:secret@h/db/t?{REST}&label=l&name=n")
    assert isinstance(found, TableLocation | CollectionLocation)
    assert type(found).from_json(found.to_json(), "a file") == found
    assert "secret" not in str(found.to_json())


@pytest.mark.parametrize("verb", ["import", "doctor"])
@pytest.mark.parametrize("scheme", ["postgresql", "milvus"])
def test_a_variable_that_contradicts_the_url_is_refused(
    verb: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is reached: rows would be read in one place and switched in another. What the
    URL leaves out, or says as the variable does, contradicts nothing."""
    words = ["--model", tmp_path / "x.onnx", "--store", tmp_path / "s"] if verb == "import" else []
    monkeypatch.setenv("COMPATCTL_ENGINE_URL", f"{scheme}://u:cret@127.0.0.1:1/db")
    for part, place in (
        ("host", "u@localhost:1/db"),
        ("port", "u@127.0.0.1:2/db"),
        ("user", "v@127.0.0.1:1/db"),
        ("database", "u@127.0.0.1:1/other"),
    ):
        refused = run(verb, f"{scheme}://{place}/t?{REST}", *words)
        assert refused.code == 2, refused.stderr
        assert f"the URL names the {part}" in refused.stderr
        assert "cret" not in refused.stdout + refused.stderr
    for place in ("u@127.0.0.1:1/db", "127.0.0.1/db"):
        same = run(verb, f"{scheme}://{place}/t?{REST}", *words)
        assert same.code == 5
        assert "the URL names" not in same.stderr


@pytest.mark.parametrize("verb", ["import", "doctor"])
@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:se/cret@h/db/t?{REST}",
        f"postgresql://u:12/cret@h/t?{REST}",
        f"postgresql://u:se?cret@h/db/t?{REST}",
        f"postgresql://u:12?cret=1@h/db/t?{REST}",
        f"postgresql://u:se#cret@h/db/t?{REST}",
        f"postgresql://u:12#cret@h/db/t?{REST}",
        f"postgresql://u:a@b/cret@h/t?{REST}",
        f"postgresql://u:cret\u2100@h/db/t?{REST}",
        f"postgresql://u:cret@h:x/db/t?{REST}",
        f"postgresql://u@h/db/t?{REST}&cret",
        f"postgresql://u@[cret/db/t?{REST}",
        "postgresql:/u:cret@h/db/t",
        "mysql://u:cret@h/db/t",
        f"milvus://u:se/cret@h/db/t?{REST}",
        f"milvus:/u:cret@h/db/t?{REST}",
    ],
)
def test_no_message_shows_a_password(verb: str, url: str, tmp_path: Path) -> None:
    """Whatever sign of it moves the borders of the URL's parts: exit code 2 and no part of it."""
    words = ["--model", tmp_path / "x.onnx", "--store", tmp_path / "s"] if verb == "import" else []
    for form in ([], ["--json"]):
        refused = run(verb, url, *words, *form)
        assert refused.code == 2, refused.stdout + refused.stderr
        assert "cret" not in refused.stdout + refused.stderr
