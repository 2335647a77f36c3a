"""The generations that gc keeps, edits that the history reveals, and links that are refused."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from store_kit import AT, add, backfill, begin, deploy, lift, rollback, snapshot, writes

from compatctl.errors import ConflictError, DamagedError, InputError, UsageError
from compatctl.files import canonical_json, sha256_bytes
from compatctl.manifest import Manifest
from compatctl.store import Store, check, gc, rollback_plan
from compatctl.store._transitions import transition_problems


def _grown(store: Store, times: int) -> Store:
    for seed in range(times):
        store = add(store, 2, seed)
    return store


def _files(store: Store, kind: str) -> int:
    return len(list((store.path / kind).iterdir()))


def test_gc_keeps_the_newest_states_and_the_target_of_a_rollback(store: Store) -> None:
    """With --keep 3 three states stay; the target of a rollback stays at any age."""
    grown = _grown(store, 5)
    before = check(grown.path)
    planned = check(grown.path, keep=3)
    assert before.unreferenced == ()
    report = gc(grown, keep=3, created_at=AT)
    assert report.deleted == planned.unreferenced
    assert (report.generations, report.oldest_restorable, _files(grown, "indexes")) == (7, 4, 3)
    after = Store.open(store.path)
    assert (after.manifest.operation, after.manifest.oldest_restorable) == ("gc", 4)
    assert after.manifest.index == grown.manifest.index
    assert check(after.path).ok
    assert len(after.history()) == 7
    assert rollback_plan(after, to=4).target.index.count == 26
    with pytest.raises(UsageError, match="were deleted"):
        rollback_plan(after, to=3)

    deployed = _grown(deploy(after, b"model B"), 4)
    second = gc(deployed, keep=1, created_at=AT)
    assert second.oldest_restorable == 7
    back = Store.open(store.path)
    assert rollback_plan(back).target.generation == 7
    assert rollback(back).query_model == store.manifest.query_model
    assert check(back.path).ok


def test_gc_repeated_deletes_nothing_more(store: Store) -> None:
    """Generations made by gc do not count as states, so a repeated gc deletes nothing more."""
    gc(_grown(store, 5), keep=3, created_at=AT)
    before = snapshot(store.path)
    for _ in range(4):
        assert gc(Store.open(store.path), keep=3, created_at=AT).deleted == ()
    assert snapshot(store.path) == before


def test_a_reader_whose_files_gc_deleted_gets_a_conflict(store: Store) -> None:
    """A store that was opened before the gc reports a conflict and no damage."""
    grown = _grown(store, 3)
    gc(grown, keep=1, created_at=AT)
    with pytest.raises(ConflictError, match="deleted the files of generation 1"):
        store.verified_path("indexes", store.manifest.index.sha256)
    with pytest.raises(UsageError, match="at least 1"):
        gc(Store.open(store.path), keep=0, created_at=AT)


def _edit(path: Path, **changes: object) -> str:
    """Edit a manifest as somebody who knows the format can; return its digest."""
    data = canonical_json({**json.loads(path.read_bytes()), **changes})
    path.write_bytes(data)
    return sha256_bytes(data)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_edited_generation_is_found_before_it_is_used(store: Store, number: int) -> None:
    """check and rollback name a well-formed edit anywhere in the history."""
    store = _grown(deploy(store, b"model B"), 1)
    path = store.path / "history" / f"{number:06d}.json"
    path.chmod(0o644)
    _edit(path, created_at="2020-01-01T00:00:00Z")
    assert path.name in " ".join(check(store.path).problems)
    with pytest.raises(DamagedError, match=path.name):
        rollback(Store.open(store.path), to=1)


def test_a_manifest_that_differs_from_the_history_does_not_open(store: Store) -> None:
    """An edited digit of manifest.json, or another manifest in its place, is refused."""
    store = deploy(store, b"model B")
    current = store.path / "manifest.json"
    whole = current.read_bytes()
    for data in (
        whole.replace(b'"ef_search": 10', b'"ef_search": 70'),
        begin(store.path.parent / "other", rows=4).path.joinpath("manifest.json").read_bytes(),
    ):
        current.write_bytes(data)
        with pytest.raises(DamagedError, match="history"):
            Store.open(store.path)
        assert not check(store.path).ok
    current.write_bytes(whole)
    (store.path / "history" / "000002.json").unlink()
    with pytest.raises(DamagedError, match="missing"):
        Store.open(store.path)


@pytest.mark.parametrize("number", [3, 6])
def test_check_names_a_manifest_with_a_wrong_number(store: Store, number: int) -> None:
    """If only the number in manifest.json was changed, check names manifest.json."""
    store = deploy(store, b"model B")
    path = store.path / "manifest.json"
    text = path.read_text()
    assert '"generation": 2' in text
    path.write_text(text.replace('"generation": 2', f'"generation": {number}'))
    problems = check(store.path).problems
    assert any(str(path) in problem for problem in problems), problems


def test_a_rewritten_history_does_not_match_an_earlier_head(store: Store) -> None:
    """If every file of the history is edited, the chain is valid and the head differs."""
    store = deploy(store, b"model B")
    head = check(store.path).head
    later = _grown(store, 1)
    assert check(later.path, head=head).ok
    parent = None
    for number in (1, 2, 3):
        path = store.path / "history" / f"{number:06d}.json"
        path.chmod(0o644)
        parent = _edit(path, parent=parent, created_at="2020-01-01T00:00:00Z")
    shutil.copy(path, store.path / "manifest.json")
    assert check(store.path).ok
    assert "rewritten" in " ".join(check(store.path, head=head).problems)


def test_a_history_that_no_operation_can_have_made_is_found(store: Store) -> None:
    """With a valid chain, check finds deploys, rollbacks, adds and backfills that changed what such
    an operation does not change."""
    grown = _grown(store, 1).manifest
    deployed = deploy(Store.open(store.path), b"model B").manifest
    filled = backfill(Store.open(store.path), 7).manifest

    def problems_of(*generations: Manifest) -> str:
        folder = store.path / "history"
        parent = None
        for number, state in enumerate(generations, 1):
            path = folder / f"{number:06d}.json"
            path.unlink(missing_ok=True)
            text = {**state.to_json(), "generation": number, "parent": parent}
            path.write_bytes(canonical_json(text))
            parent = sha256_bytes(path.read_bytes())
        for path in folder.glob("*.json"):
            if int(path.stem) > len(generations):
                path.unlink()
        shutil.copy(folder / f"{len(generations):06d}.json", store.path / "manifest.json")
        return " ".join(check(store.path).problems)

    first = store.manifest
    assert problems_of(first, grown, deployed) == ""
    assert "another index" in problems_of(first, deployed)
    assert "another query_model" in problems_of(
        first, grown, deployed, replace(deployed, operation="rollback", restores=1)
    )
    assert "changed the query model by 'add'" in problems_of(
        first, grown, replace(deployed, operation="add")
    )
    assert "dropped" in problems_of(first, replace(grown, oldest_restorable=2), deployed)
    assert problems_of(first, grown, deployed, filled) == ""
    assert problems_of(first, grown, deployed, replace(filled, models=filled.models[::-1])) == ""
    more = "did more than give rows to the query model"
    for index in (replace(filled.index, M=8), replace(filled.index, seed=1)):
        assert more in problems_of(first, grown, deployed, replace(filled, index=index))
    assert more in problems_of(first, grown, deployed, replace(filled, report=None))
    taken = replace(filled, models=deployed.models, catalog=deployed.catalog)
    assert more in problems_of(first, grown, deployed, filled, taken)
    other = replace(filled, query_model=first.query_model)
    assert "changed the query model by 'backfill'" in problems_of(first, grown, deployed, other)


def test_a_lift_that_did_more_than_map_every_row_is_found(store: Store) -> None:
    """Other row counts or index parameters, a model of the old space, or a report are problems."""
    first, up = store.manifest, lift(store, b"model B").manifest
    assert check(store.path).problems == ()
    assert transition_problems([first, up]) == []
    fewer = replace(up, index=replace(up.index, count=19))
    for wrong in (
        replace(up, index=replace(up.index, M=8)),
        replace(fewer, models=(replace(up.models[0], rows=19), up.models[1])),
        replace(up, models=(replace(first.models[0], dim=5), up.models[1])),
        replace(up, report="e" * 64),
    ):
        assert "more than map every row" in " ".join(transition_problems([first, wrong]))


@pytest.mark.parametrize("name", ["models", "history", "manifest.json", "LOCK", "indexes"])
def test_a_link_inside_the_store_is_refused(store: Store, tmp_path: Path, name: str) -> None:
    """Through a link in place of a file or folder nothing is read or written."""
    elsewhere = tmp_path / "elsewhere"
    shutil.move(store.path / name, elsewhere)
    (store.path / name).symlink_to(elsewhere)
    before = snapshot(tmp_path)
    with pytest.raises(DamagedError, match=r"not a (folder|file) of the store"):
        Store.open(store.path)
    with pytest.raises(DamagedError, match=name), store.transaction(store.manifest):
        pass
    assert snapshot(tmp_path) == before


def test_a_link_or_a_pipe_in_place_of_a_file_is_damage(store: Store, tmp_path: Path) -> None:
    """A link to the same bytes is damage, and a pipe does not make the command hang."""
    path = store.blob_path("models", store.manifest.query_model)
    shutil.move(path, tmp_path / "model")
    path.symlink_to(tmp_path / "model")
    assert "missing" in " ".join(check(store.path).problems)
    with pytest.raises(DamagedError, match="missing or was changed"):
        store.verified_path("models", store.manifest.query_model)
    (store.path / "manifest.json").unlink()
    os.mkfifo(store.path / "manifest.json")
    with pytest.raises(DamagedError, match=r"manifest\.json"):
        Store.open(store.path)


def test_a_store_may_be_reached_by_a_link(store: Store, tmp_path: Path) -> None:
    """The folder of the store itself may be a link."""
    (tmp_path / "by-link").symlink_to(store.path)
    assert check(deploy(Store.open(tmp_path / "by-link"), b"model B").path).ok


def test_a_catalogue_with_rows_of_an_unlisted_model_is_refused(store: Store) -> None:
    """A commit whose catalogue names a model that the manifest does not list is refused."""
    foreign = store.catalog().reassigned([0, 1], "e" * 64)
    with store.transaction(store.manifest) as tx:
        digest = tx.put("catalogs", foreign.write)
        with pytest.raises(InputError, match="not listed"):
            tx.commit(operation="add", created_at=AT, catalog=digest)
    assert Store.open(store.path).manifest == store.manifest


def test_put_replaces_a_link_and_does_not_follow_it(store: Store, tmp_path: Path) -> None:
    """A link at the path of a new file is replaced, and its target is unchanged."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"model B")
    digest = sha256_bytes(b"model B")
    store.blob_path("models", digest).symlink_to(outside)
    with store.transaction(store.manifest) as tx:
        assert tx.put("models", writes(b"model B")) == digest
    assert not store.blob_path("models", digest).is_symlink()
    assert outside.read_bytes() == b"model B"
