"""Manifests and catalogues come back as they were written, and damaged ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_kit import manifest

from compatctl.errors import DamagedError, InputError
from compatctl.files import canonical_json
from compatctl.manifest import FORMAT, Catalog, Manifest, ModelShare, Rescoring


def _raw(**changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(canonical_json(manifest().to_json()))
    return {**raw, **changes}


def test_a_manifest_is_read_as_it_was_written() -> None:
    """Reading gives an equal manifest, which is written as the same bytes."""
    written = manifest(forced_reason="Ärger", report="d" * 64)
    data = canonical_json(written.to_json())
    read = Manifest.from_json(json.loads(data), "here")
    assert read == written
    assert canonical_json(read.to_json()) == data


def test_a_newer_format_names_the_version_that_reads_it() -> None:
    """A manifest of a later format is refused, and the tip names the version that wrote it."""
    raw = _raw(format=FORMAT + 1, tool_version="9.1", something="new")
    with pytest.raises(InputError, match=f"reads up to {FORMAT}") as caught:
        Manifest.from_json(raw, "here")
    assert "9.1" in caught.value.tip


def test_unknown_and_missing_entries_are_refused() -> None:
    """An unknown or a missing entry is damage, and the message names it."""
    with pytest.raises(DamagedError, match="unknown entry 'extra'"):
        Manifest.from_json(_raw(extra=1), "here")
    short = _raw()
    del short["catalog"]
    with pytest.raises(DamagedError, match="'catalog' is missing"):
        Manifest.from_json(short, "here")


def test_an_older_format_is_refused_with_a_tip() -> None:
    """A manifest of an earlier format is refused, and the tip is to create the store again."""
    with pytest.raises(InputError, match=f"manifest format {FORMAT - 1}") as caught:
        Manifest.from_json(_raw(format=FORMAT - 1), "here")
    assert "create the store again" in caught.value.tip


def test_a_generation_needs_its_memory() -> None:
    """A manifest with a memory needs one file more than the same without."""
    assert Manifest.from_json(_raw(), "here").memory is None
    written = manifest(memory="e" * 64)
    read = Manifest.from_json(json.loads(canonical_json(written.to_json())), "here")
    assert read == written
    assert set(written.blobs()) - set(manifest().blobs()) == {("memories", "e" * 64)}


def test_a_calibration_is_read_as_it_was_written() -> None:
    """The knots of a score map come back the same."""
    written = manifest(calibration=((-1.0, -1.0), (0.25, 0.5), (1.0, 1.0)))
    read = Manifest.from_json(json.loads(canonical_json(written.to_json())), "here")
    assert read == written
    assert read.calibration is not None
    assert canonical_json(read.to_json()) == canonical_json(written.to_json())


RULE: dict[str, Any] = {
    "candidates": 10,
    "passes": 3,
    "max_ms": None,
    "weight": 0.5,
    "slope": 0.2,
    "intercept": -0.1,
}


def test_rescoring_is_optional_and_read_as_it_was_written() -> None:
    """A manifest without it has no such entry, so the digests of earlier ones stay."""
    assert "rescoring" not in manifest().to_json()
    written = manifest(rescoring=Rescoring(**RULE))
    read = Manifest.from_json(json.loads(canonical_json(written.to_json())), "here")
    assert read == written
    assert canonical_json(read.to_json()) == canonical_json(written.to_json())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory", "short"),
        ("rescoring", {}),
        ("rescoring", {**RULE, "weight": -1.0}),
        ("rescoring", {**RULE, "candidates": 0}),
        ("rescoring", {**RULE, "max_ms": -1}),
        ("rescoring", {**RULE, "intercept": None}),
        ("rescoring", {**RULE, "more": 1}),
        ("calibration", []),
        ("calibration", [[-1, -1], [0.5, 0.2], [0.4, 0.3], [1, 1]]),
        ("calibration", "a map"),
        ("format", 0),
        ("format", True),
        ("generation", 0),
        ("generation", 1.0),
        ("query_model", "A" * 64),
        ("catalog", None),
        ("parent", "short"),
        ("created_at", "yesterday"),
        ("created_at", "2026-01-31T12:00:00"),
        ("operation", 3),
        ("operation", "resize"),
        ("restores", 0),
        ("index", []),
        ("index", {"engine": "hnswlib"}),
        ("models", {}),
        ("models", [{"sha256": "a" * 64, "dim": 8, "rows": -1, "name": "x"}]),
        ("models", ["a" * 64]),
    ],
)
def test_wrong_types_are_refused(name: str, value: object) -> None:
    """A value of a wrong type is damage, and the message names its entry."""
    with pytest.raises(DamagedError, match=name):
        Manifest.from_json(_raw(**{name: value}), "here")


@pytest.mark.parametrize("raw", [None, [], 3, "manifest"])
def test_json_that_is_no_object_is_no_manifest(raw: object) -> None:
    """JSON that is no object is damage."""
    with pytest.raises(DamagedError, match="JSON object"):
        Manifest.from_json(raw, "here")


def test_contradictions_are_found() -> None:
    """Rows, dimensions, the query model and the generation's parent must agree."""
    share = ModelShare(sha256="e" * 64, dim=9, rows=1, name="odd", canary="d" * 64)
    odd = manifest(models=(share, share), restores=5, oldest_restorable=2, parent="f" * 64)
    text = "; ".join(odd.contradictions())
    expected = ("twice", "query model", "2 rows, the index 3", "9 dim", "restores", "from 2", "par")
    for part in expected:
        assert part in text


def _catalog(n: int = 3, **changes: Any) -> Catalog:
    columns: dict[str, Any] = {
        "ids": tuple(f"id{i}" for i in range(n)),
        "labels": ("x",) * n,
        "keys": np.arange(n),
        "model_of": np.zeros(n),
        "models": ("a" * 64,),
    }
    return Catalog(**{**columns, **changes})


@pytest.mark.parametrize(
    "ids", [("a", "b\0", "ü\udcff 猫"), ("x" * 100_000, "y", "z"), ("1", "01", " ")]
)
def test_a_catalogue_is_read_as_it_was_written(tmp_path: Path, ids: tuple[str, ...]) -> None:
    """Any text is read back: NULs, undecodable file names, very long ids."""
    written = _catalog(ids=ids, labels=("", "", ""), keys=np.array([2**64 - 1, 0, 7], np.uint64))
    written.write(tmp_path / "c.npz")
    read = Catalog.read(tmp_path / "c.npz")
    assert (read.ids, read.labels, read.models) == (written.ids, written.labels, written.models)
    assert read.keys.tolist() == [2**64 - 1, 0, 7]
    assert (read.keys.dtype, read.model_of.dtype) == (np.uint64, np.int32)


def test_equal_catalogues_are_equal_bytes(tmp_path: Path) -> None:
    """Two files of the same catalogue have the same bytes."""
    _catalog().write(tmp_path / "1.npz")
    _catalog().write(tmp_path / "2.npz")
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()


def test_duplicates_are_named() -> None:
    """A repeated id or key is an InputError, which names the id and its count."""
    with pytest.raises(InputError, match="'b' occurs 2 times"):
        _catalog(ids=("a", "b", "b"))
    with pytest.raises(InputError, match="same key"):
        _catalog(keys=np.array([1, 1, 2]))


@pytest.mark.parametrize(
    "changes",
    [{"ids": ("a", "b")}, {"ids": ("a", "", "c")}, {"model_of": np.array([0, 1, 0])}],
)
def test_inconsistent_columns_are_refused(changes: dict[str, Any]) -> None:
    """Columns of other lengths, empty ids and unlisted models are refused."""
    with pytest.raises(InputError):
        _catalog(**changes)


def test_damaged_catalogues_are_refused(tmp_path: Path) -> None:
    """A truncated, changed, missing or other file is a DamagedError."""
    path = tmp_path / "c.npz"
    _catalog(50).write(path)
    whole = path.read_bytes()
    for data in (whole[:100], whole[:-30], b"", b"PK", whole.replace(b"id49", b"id4\xff", 1)):
        path.write_bytes(data)
        with pytest.raises(DamagedError):
            Catalog.read(path)
    with pytest.raises(DamagedError):
        Catalog.read(tmp_path / "missing.npz")
    np.savez(path, ids=np.zeros(3))
    with pytest.raises(DamagedError, match="columns"):
        Catalog.read(path)


class _Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("/tmp/never"),)  # type: ignore[return-value]


def test_a_pickle_in_a_catalogue_is_never_loaded(tmp_path: Path) -> None:
    """An npz with an object array, which can run code, is refused."""
    np.savez(tmp_path / "c.npz", ids=np.array([_Trap()], object))
    with pytest.raises(DamagedError, match="pickle"):
        Catalog.read(tmp_path / "c.npz")


def test_new_rows_get_unused_keys() -> None:
    """Added rows have the keys after the largest one and count for their model."""
    catalog = _catalog(keys=np.array([5, 9, 2]))
    grown = catalog.extended(["n1", "n2"], ["y", "y"], "b" * 64)
    assert grown.keys.tolist() == [5, 9, 2, 10, 11]
    assert grown.counts() == {"a" * 64: 3, "b" * 64: 2}
    assert len(catalog) == 3
    with pytest.raises(InputError, match="'id0'"):
        catalog.extended(["id0"], ["y"], "a" * 64)


def test_digests_of_images_are_stored_with_the_rows(tmp_path: Path) -> None:
    """The digests are read back; the digest of an unknown image is zero and not known."""
    rng = np.random.default_rng(0)
    digests = rng.integers(1, 256, (2, 32)).astype(np.uint8)
    catalog = _catalog().extended(["n1", "n2"], ["y", "y"], "b" * 64, digests)
    catalog.write(tmp_path / "c.npz")
    read = Catalog.read(tmp_path / "c.npz")
    assert read.digest_known.tolist() == [False, False, False, True, True]
    assert (read.digests[3:] == digests).all()
    moved = read.reassigned(np.array([0, 3]), "b" * 64, digests)
    assert moved.digest_known.tolist() == [True, False, False, True, True]
    assert moved.relabelled(np.array([1]), ["z"]).labels == ("x", "z", "x", "y", "y")
    with pytest.raises(InputError, match="digests"):
        _catalog(digests=np.zeros((3, 20), np.uint8))


def test_replaced_models_keep_their_rows() -> None:
    """Each row gets the model that replaces its own; a model without rows is dropped."""
    mixed = _catalog().reassigned(np.array([0, 2]), "b" * 64).reassigned(np.array([1]), "c" * 64)
    replaced = mixed.with_models({"b" * 64: "d" * 64, "c" * 64: "e" * 64})
    assert replaced.counts() == {"d" * 64: 2, "e" * 64: 1}
    assert replaced.model_of.tolist() == [0, 1, 0]
    assert (replaced.ids, replaced.keys.tolist()) == (mixed.ids, mixed.keys.tolist())


def test_reassigned_rows_keep_their_items() -> None:
    """Reassigning rows changes their model and nothing else."""
    moved = _catalog().reassigned(np.array([1]), "b" * 64)
    assert moved.counts() == {"a" * 64: 2, "b" * 64: 1}
    assert moved.model_of.tolist() == [0, 1, 0]
    assert moved.ids == _catalog().ids
