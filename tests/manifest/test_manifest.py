"""Strict manifests, and catalogues that survive any text and refuse any damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_kit import manifest

from compatctl.errors import DamagedError, InputError
from compatctl.files import canonical_json
from compatctl.manifest import FORMAT, Catalog, Manifest, ModelShare


def _raw(**changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(canonical_json(manifest().to_json()))
    return {**raw, **changes}


def test_a_manifest_survives_its_file() -> None:
    """Writing and reading gives an equal manifest, and writing that gives the same bytes."""
    one = manifest(forced_reason="Ärger", report="d" * 64)
    data = canonical_json(one.to_json())
    again = Manifest.from_json(json.loads(data), "here")
    assert again == one
    assert canonical_json(again.to_json()) == data


def test_a_newer_format_names_the_version_that_reads_it() -> None:
    """A manifest of a later format is refused with the version that wrote it."""
    raw = _raw(format=FORMAT + 1, tool_version="9.1", something="new")
    with pytest.raises(InputError, match=f"reads up to {FORMAT}") as caught:
        Manifest.from_json(raw, "here")
    assert "9.1" in caught.value.tip


def test_unknown_and_missing_entries_are_refused() -> None:
    """An entry that this version does not know, or that is not there, is damage, named."""
    with pytest.raises(DamagedError, match="unknown entry 'extra'"):
        Manifest.from_json(_raw(extra=1), "here")
    short = _raw()
    del short["catalog"]
    with pytest.raises(DamagedError, match="'catalog' is missing"):
        Manifest.from_json(short, "here")


def test_an_older_format_is_refused_with_the_way_on() -> None:
    """A store of a format before the first stable one has to be created again."""
    with pytest.raises(InputError, match=f"manifest format {FORMAT - 1}") as caught:
        Manifest.from_json(_raw(format=FORMAT - 1), "here")
    assert "create the store again" in caught.value.tip


def test_a_memory_is_one_of_the_files_that_a_generation_needs() -> None:
    """A manifest without a memory needs one file less."""
    assert Manifest.from_json(_raw(), "here").memory is None
    one = manifest(memory="e" * 64)
    again = Manifest.from_json(json.loads(canonical_json(one.to_json())), "here")
    assert again == one
    assert set(one.blobs()) - set(manifest().blobs()) == {("memories", "e" * 64)}


def test_a_calibration_is_read_as_it_was_written() -> None:
    """The knots of a score map come back the same."""
    one = manifest(calibration=((-1.0, -1.0), (0.25, 0.5), (1.0, 1.0)))
    again = Manifest.from_json(json.loads(canonical_json(one.to_json())), "here")
    assert again == one
    assert again.calibration is not None
    assert canonical_json(again.to_json()) == canonical_json(one.to_json())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory", "short"),
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
    """Every entry is checked, and the message names the one that is wrong."""
    with pytest.raises(DamagedError, match=name):
        Manifest.from_json(_raw(**{name: value}), "here")


@pytest.mark.parametrize("raw", [None, [], 3, "manifest"])
def test_what_is_no_object_is_no_manifest(raw: object) -> None:
    """JSON that is not an object is refused without a traceback."""
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
def test_a_catalogue_survives_its_file(tmp_path: Path, ids: tuple[str, ...]) -> None:
    """Any text comes back as it was: NULs, undecodable file names, very long ids."""
    one = _catalog(ids=ids, labels=("", "", ""), keys=np.array([2**64 - 1, 0, 7], np.uint64))
    one.write(tmp_path / "c.npz")
    again = Catalog.read(tmp_path / "c.npz")
    assert (again.ids, again.labels, again.models) == (one.ids, one.labels, one.models)
    assert again.keys.tolist() == [2**64 - 1, 0, 7]
    assert (again.keys.dtype, again.model_of.dtype) == (np.uint64, np.int32)


def test_equal_catalogues_are_equal_bytes(tmp_path: Path) -> None:
    """The file holds no time and no address: two writes give the same bytes."""
    _catalog().write(tmp_path / "1.npz")
    _catalog().write(tmp_path / "2.npz")
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()


def test_duplicates_are_named() -> None:
    """An id that is there twice is an InputError that names it and says how often."""
    with pytest.raises(InputError, match="'b' occurs 2 times"):
        _catalog(ids=("a", "b", "b"))
    with pytest.raises(InputError, match="same key"):
        _catalog(keys=np.array([1, 1, 2]))


@pytest.mark.parametrize(
    "changes",
    [{"ids": ("a", "b")}, {"ids": ("a", "", "c")}, {"model_of": np.array([0, 1, 0])}],
)
def test_inconsistent_columns_are_refused(changes: dict[str, Any]) -> None:
    """Other lengths, empty ids and models that are not listed are refused."""
    with pytest.raises(InputError):
        _catalog(**changes)


def test_damaged_catalogues_are_refused(tmp_path: Path) -> None:
    """Cut short, with a changed byte, missing, or of another shape: DamagedError, never a crash."""
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
    """An npz with an object array, which would run code, is refused."""
    np.savez(tmp_path / "c.npz", ids=np.array([_Trap()], object))
    with pytest.raises(DamagedError, match="pickle"):
        Catalog.read(tmp_path / "c.npz")


def test_new_rows_get_unused_keys_and_the_old_ones_stay() -> None:
    """Extending appends rows under the next keys and counts them for their model."""
    one = _catalog(keys=np.array([5, 9, 2]))
    grown = one.extended(["n1", "n2"], ["y", "y"], "b" * 64)
    assert grown.keys.tolist() == [5, 9, 2, 10, 11]
    assert grown.counts() == {"a" * 64: 3, "b" * 64: 2}
    assert len(one) == 3
    with pytest.raises(InputError, match="'id0'"):
        one.extended(["id0"], ["y"], "a" * 64)


def test_digests_of_images_survive_and_grow_with_the_rows(tmp_path: Path) -> None:
    """The digests are in the file; rows whose image nobody knows are all zero, and not known."""
    rng = np.random.default_rng(0)
    some = rng.integers(1, 256, (2, 32)).astype(np.uint8)
    one = _catalog().extended(["n1", "n2"], ["y", "y"], "b" * 64, some)
    one.write(tmp_path / "c.npz")
    again = Catalog.read(tmp_path / "c.npz")
    assert again.digest_known.tolist() == [False, False, False, True, True]
    assert (again.digests[3:] == some).all()
    moved = again.reassigned(np.array([0, 3]), "b" * 64, some)
    assert moved.digest_known.tolist() == [True, False, False, True, True]
    assert moved.relabelled(np.array([1]), ["z"]).labels == ("x", "z", "x", "y", "y")
    with pytest.raises(InputError, match="digests"):
        _catalog(digests=np.zeros((3, 20), np.uint8))


def test_renamed_models_keep_their_rows() -> None:
    """Each row is of the model that replaces its own; a model without rows is dropped."""
    mixed = _catalog().reassigned(np.array([0, 2]), "b" * 64).reassigned(np.array([1]), "c" * 64)
    found = mixed.with_models({"b" * 64: "d" * 64, "c" * 64: "e" * 64})
    assert found.counts() == {"d" * 64: 2, "e" * 64: 1}
    assert found.model_of.tolist() == [0, 1, 0]
    assert (found.ids, found.keys.tolist()) == (mixed.ids, mixed.keys.tolist())


def test_reassigned_rows_keep_their_items() -> None:
    """Re-embedding rows changes who embedded them, and nothing else."""
    moved = _catalog().reassigned(np.array([1]), "b" * 64)
    assert moved.counts() == {"a" * 64: 2, "b" * 64: 1}
    assert moved.model_of.tolist() == [0, 1, 0]
    assert moved.ids == _catalog().ids
