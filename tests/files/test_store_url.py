"""How the URL of a store is told from a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from compatctl.errors import InputError, UsageError
from compatctl.files import store_url
from compatctl.recipe import Project
from compatctl.store import Store, is_in_bucket, shown_path, store_path


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a/b", "s3://bucket/a/b/", "s3:/bucket/a/b", Path("s3://bucket/a/b"),
        "S3://bucket/a/b",
    ],
)  # fmt: skip
def test_a_url_is_one_however_its_slashes_are_written(text: Path | str) -> None:
    """A path that spells a URL is that URL: ``Path`` keeps one of its two slashes."""
    assert store_url(text) == "s3://bucket/a/b"


@pytest.mark.parametrize("text", ["store", "/data/store", "./s3", "s3", "a/s3:/b", "c:/store", "."])
def test_a_folder_is_no_url(text: str) -> None:
    """Every other path is a folder's."""
    assert store_url(text) is None
    assert store_path(text) == Path(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://", "s3:///a", "s3://a", "s3://Bucket/a", "s3://key:secret@bucket/a", "s3://bucket/../a",
        "s3://bucket/a//b", "s3://bucket/a?x=1", "gs://bucket/a", "https://host/a", "file:///a",
        "GS://bucket/a", "s3a://bucket/a", "postgresql://host/table", Path("s3://"), Path("gs://"),
    ],
)  # fmt: skip
def test_what_is_no_place_for_a_store_is_refused(text: Path | str) -> None:
    """Other schemes, and names that S3 does not have, are refused and make no folder."""
    with pytest.raises(UsageError, match="s3://BUCKET/PREFIX"):
        store_url(text)


@pytest.mark.parametrize("text", ["s3://key:sec/ret@bucket/a", "gs://key:sec/ret@bucket/a"])
def test_keys_in_a_url_are_not_repeated(text: str) -> None:
    """A message about a refused URL leaves out what stands before the @."""
    with pytest.raises(UsageError) as refused:
        store_url(text)
    assert "@bucket/a" in refused.value.message
    assert "key" not in refused.value.message
    assert "ret" not in refused.value.message


def test_a_project_keeps_the_url_and_moves_folders(tmp_path: Path) -> None:
    """``store:`` of compatctl.yaml is taken from its folder, unless it is a URL."""
    file = tmp_path / "compatctl.yaml"
    file.write_text("format: 1\nstore: s3://bucket/a\n")
    assert store_url(Project.load(file).store) == "s3://bucket/a"
    file.write_text("format: 1\nstore: stores/a\n")
    assert Project.load(file).store == tmp_path / "stores" / "a"


def test_each_url_and_endpoint_has_a_copy_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of a copy depends on URL and endpoint, and is named by its URL."""
    monkeypatch.setenv("COMPATCTL_CACHE", str(tmp_path))
    copies = {store_path("s3://bucket/a"), store_path("s3://bucket/b")}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    here = store_path("s3://bucket/a")
    assert len({*copies, here}) == 3
    assert is_in_bucket(here)
    assert shown_path(here) == "s3://bucket/a"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://elsewhere.example")
    with pytest.raises(InputError, match="another endpoint than AWS_ENDPOINT_URL names"):
        shown_path(here)


def test_plain_http_to_another_machine_must_be_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """http is for the loopback, unless AWS_ALLOW_HTTP says otherwise."""
    monkeypatch.setenv("COMPATCTL_CACHE", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://10.0.0.1:9000")
    with pytest.raises(UsageError, match="plain http to 10"):
        store_path("s3://bucket/a")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    assert store_path("s3://bucket/a")


def test_without_obstore_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store in a bucket needs the extra s3, and the message says so."""
    monkeypatch.setenv("COMPATCTL_CACHE", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)
    with pytest.raises(InputError, match="obstore") as caught:
        Store.open(Path("s3://bucket/without-obstore"))
    assert "compatctl[s3]" in caught.value.tip


def test_without_a_folder_for_the_copy_the_setting_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that cannot be written to, as in a container with a read-only home."""
    taken = tmp_path / "taken"
    taken.write_text("")
    monkeypatch.setenv("COMPATCTL_CACHE", str(taken))
    with pytest.raises(InputError, match="this machine's copy of s3://bucket/a") as refused:
        store_path("s3://bucket/a")
    assert "COMPATCTL_CACHE" in (refused.value.tip or "")


@pytest.mark.parametrize(
    "text",
    [
        "postgresql+psycopg2://app:Secret7@db/shop",
        "jdbc:postgresql://app:Secret7@db/shop",
        "milvus+grpc:/root:Secret7@db/default",
        "redis://:Secret7@db",
        "postgresql://app@db/shop?password=Secret7",
        "https://db/items?token=Secret7",
    ],
)
def test_the_url_of_another_tool_is_refused_without_its_password(text: str) -> None:
    """Whatever the scheme: what may be a password is in no message."""
    with pytest.raises(UsageError) as refused:
        store_url(Path(text))
    assert "Secret7" not in str(refused.value)
    assert "@" not in text or "...@" in str(refused.value)
