"""Generations: creating, committing, conflicting, going back, checking."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import store_kit
from store_kit import (
    AT,
    add,
    backfill,
    begin,
    deploy,
    info,
    lift,
    python,
    rollback,
    snapshot,
    writes,
)

from compatctl.errors import ConflictError, DamagedError, InputError, UsageError
from compatctl.files import Lock, sha256_bytes, sha256_file
from compatctl.manifest import ModelShare
from compatctl.store import (
    MODEL_FIELDS,
    RollbackPlan,
    Store,
    check,
    embedding_space,
    embedding_spaces,
    gc,
    rollback_plan,
)
from compatctl.store._lineage import lineage


def test_a_new_store_is_complete(store: Store) -> None:
    """Creation makes generation 1 without a parent, and every file is there and intact."""
    assert (store.manifest.generation, store.manifest.parent) == (1, None)
    report = check(store.path)
    assert report.ok
    assert (report.generations, report.files, report.unreferenced) == (1, 4, ())
    assert store.history() == (store.manifest,)
    assert len(store.catalog()) == 20


def test_creation_refuses_what_is_somebody_elses(tmp_path: Path, store: Store) -> None:
    """A store, a file, and a folder with anything in it are left exactly as they are."""
    other = tmp_path / "photos"
    other.mkdir()
    (other / "me.jpg").write_bytes(b"x")
    before = snapshot(tmp_path)
    for path in (store.path, other, other / "me.jpg"):
        with pytest.raises(InputError), Store.create(path):
            pass
    assert snapshot(tmp_path) == before
    assert not (other / "LOCK").exists()


def test_opening_says_what_is_there_instead(tmp_path: Path) -> None:
    """No store, and one whose creation was interrupted, are told apart, and neither opens."""
    with pytest.raises(InputError, match="no store"):
        Store.open(tmp_path)
    (tmp_path / "history").mkdir()
    with pytest.raises(InputError, match="did not finish"):
        Store.open(tmp_path)


def test_a_deploy_writes_no_index(store: Store) -> None:
    """The next generation names the digest of the one before and keeps index and catalogue."""
    before = snapshot(store.path)
    after = deploy(store, b"model B")
    manifest = after.manifest
    assert manifest.generation == 2
    assert manifest.parent == sha256_bytes(before["manifest.json"])
    assert manifest.index == store.manifest.index
    assert manifest.catalog == store.manifest.catalog
    changed = {name for name, data in snapshot(store.path).items() if before.get(name) != data}
    assert {name.split("/")[0] for name in changed} == {
        "manifest.json", "history", "models", "canaries", "reports",
    }  # fmt: skip
    assert after.history() == (store.manifest, manifest)


def test_manifest_and_history_hold_the_same_bytes(store: Store) -> None:
    """The current manifest is the newest file of the history, byte for byte."""
    deploy(store, b"model B")
    history = store.path / "history" / "000002.json"
    assert (store.path / "manifest.json").read_bytes() == history.read_bytes()


def test_a_new_query_model_forgets_the_old_verdict(store: Store) -> None:
    """Report, policy and reason belong to the query model; other commits carry them on."""
    second = deploy(store, b"model B")
    third = add(second, 2)
    assert third.manifest.report == second.manifest.report is not None
    with third.transaction(third.manifest) as tx:
        after = tx.commit(operation="deploy", created_at=AT, query_model=store.manifest.query_model)
    assert after.report is None


def test_leaving_without_a_commit_changes_nothing(store: Store) -> None:
    """An exception after a put leaves the generation; the file is unreferenced and collected."""

    def interrupted() -> None:
        with store.transaction(store.manifest) as tx:
            tx.put("models", writes(b"model B"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert Store.open(store.path).manifest == store.manifest
    left = check(store.path)
    assert left.ok
    assert left.unreferenced == (f"models/{sha256_bytes(b'model B')}.onnx",)
    assert gc(Store.open(store.path)).deleted == left.unreferenced
    assert check(store.path).unreferenced == ()


def test_a_stale_generation_is_a_conflict(store: Store) -> None:
    """A write that was computed from an older generation is refused, and says what came between."""
    deploy(store, b"model B")
    with (
        pytest.raises(ConflictError, match=r"moved on to generation 2 \(deploy\)"),
        store.transaction(store.manifest),
    ):
        pass
    with Lock(store.path / "LOCK", timeout_s=0):
        pass


def test_a_locked_store_is_a_conflict(store: Store) -> None:
    """Another writer's lock is waited for, and then named."""
    with (
        Lock(store.path / "LOCK", operation="backfill"),
        pytest.raises(ConflictError, match="backfill"),
        store.transaction(store.manifest, timeout_s=0.1),
    ):
        pass


def test_a_generation_that_contradicts_itself_is_refused(store: Store) -> None:
    """Wrong row counts, a missing file and a malformed time do not become a generation."""
    before = snapshot(store.path)
    index = store.manifest.index
    with store.transaction(store.manifest) as tx:
        with pytest.raises(InputError, match="rows"):
            tx.commit(operation="add", created_at=AT, index=replace(index, count=7))
        with pytest.raises(DamagedError, match="missing or empty"):
            tx.commit(operation="add", created_at=AT, report="0" * 64)
        with pytest.raises(DamagedError, match="created_at"):
            tx.commit(operation="add", created_at="now")
        with pytest.raises(InputError, match="empty"):
            tx.put("models", writes(b""))
    assert snapshot(store.path).items() >= before.items()
    assert Store.open(store.path).manifest == store.manifest


def test_a_file_is_copied_not_moved(store: Store, tmp_path: Path) -> None:
    """Putting a path stores a copy under its digest and leaves the source."""
    source = tmp_path / "new.onnx"
    source.write_bytes(b"model B")
    with store.transaction(store.manifest) as tx:
        digest = tx.put("models", source)
    assert source.read_bytes() == b"model B"
    assert sha256_file(store.blob_path("models", digest)) == digest
    with store.transaction(store.manifest) as tx, pytest.raises(InputError, match="missing"):
        tx.put("models", tmp_path / "missing.onnx")


def test_an_orphan_of_a_killed_commit_is_overwritten(store: Store) -> None:
    """A history file without its commit is not history; the next commit takes its number."""
    orphan = store.path / "history" / "000002.json"
    orphan.write_bytes(b"half a manif")
    assert store.history() == (store.manifest,)
    assert check(store.path).unreferenced == ("history/000002.json",)
    after = deploy(store, b"model B")
    assert check(after.path).ok
    assert len(after.history()) == 2


def test_a_changed_manifest_is_refused_with_the_way_back(store: Store) -> None:
    """A manifest that was edited, cut short or swapped does not open; history says what it was."""
    path = store.path / "manifest.json"
    whole = path.read_bytes()
    for data in (whole.replace(b"  ", b" "), whole[:50], whole + b"\n", b""):
        path.write_bytes(data)
        with pytest.raises(DamagedError) as caught:
            Store.open(store.path)
        assert "history" in caught.value.tip
    shutil.copy(store.path / "history" / "000001.json", path)
    assert check(store.path).ok


def test_rollback_restores_the_very_bytes(store: Store) -> None:
    """After deploy and rollback the same model answers over the same index and catalogue bytes."""
    first = store.manifest
    second = deploy(store, b"model B")
    before = snapshot(store.path)
    third = rollback(second)
    assert (third.generation, third.restores, third.operation) == (3, 1, "rollback")
    for name in ("query_model", "index", "catalog", "models", "registry", "report", "policy"):
        assert getattr(third, name) == getattr(first, name)
    after = snapshot(store.path)
    assert {name for name in after if before.get(name) != after[name]} == {
        "manifest.json", "history/000003.json",
    }  # fmt: skip
    again = Store.open(store.path)
    assert sha256_file(again.verified_path("indexes", third.index.sha256)) == first.index.sha256
    assert check(again.path).ok


def test_a_rollback_that_is_repeated_undoes_one_deploy(store: Store) -> None:
    """A, B, C: rollback gives B, however often it is called; --to goes to A, and comes back."""
    a = store.manifest.query_model
    b = deploy(store, b"model B")
    c = deploy(b, b"model C")
    fourth = rollback(c)
    assert (fourth.query_model, fourth.restores) == (b.manifest.query_model, 2)
    again = Store.open(store.path)
    assert rollback(again) == rollback(again, to=2) == fourth
    assert rollback_plan(again) == RollbackPlan(target=b.manifest, already_restored=True)
    fifth = rollback(again, to=1)
    assert (fifth.query_model, fifth.restores) == (a, 1)
    assert rollback(Store.open(store.path)) == fifth
    sixth = rollback(Store.open(store.path), to=3)
    assert sixth.query_model == c.manifest.query_model
    assert rollback(Store.open(store.path)).query_model == b.manifest.query_model


def test_rollback_after_deploying_again_undoes_that_deploy(store: Store) -> None:
    """A, B, rollback, C, rollback: the state before C is A, not B."""
    b = deploy(store, b"model B")
    rollback(b)
    c = deploy(Store.open(store.path), b"model C")
    assert rollback(c).query_model == store.manifest.query_model


def test_going_back_behind_a_backfill_undoes_no_deploy(store: Store) -> None:
    """B, backfill, back to B, backfill: the next rollback undoes B, with the second or without."""
    deployed = deploy(store, b"model B")
    filled = backfill(deployed, 8)
    back = rollback(filled, to=2)
    assert (back.index, back.catalog) == (deployed.manifest.index, deployed.manifest.catalog)
    assert rollback_plan(Store.open(store.path)).target == store.manifest
    backfill(Store.open(store.path), 12)
    undone = rollback(Store.open(store.path))
    for name in ("query_model", "index", "catalog", "models"):
        assert getattr(undone, name) == getattr(store.manifest, name), name
    again = Store.open(store.path)
    assert rollback(again) == undone
    assert check(again.path).ok


def test_states_on_two_sides_of_a_lift_are_of_two_spaces(store: Store) -> None:
    """Deploys and adds stay in a space, lifts leave it, going back leads into the one of then."""
    first = store.manifest
    up = lift(deploy(store, b"model B"), b"model C")
    later = deploy(up, b"model D")
    embedding_spaces = [embedding_space(later, one) for one in later.history()]
    assert embedding_spaces == [0, 0, 3, 3]
    rollback(later, to=2)
    assert embedding_space(Store.open(store.path), Store.open(store.path).manifest) == 0
    rollback(Store.open(store.path), to=4)
    again = Store.open(store.path)
    assert embedding_space(again, again.manifest) == 3
    assert embedding_space(again, first) == 0
    assert check(again.path).ok


def test_spaces_of_all_generations_are_those_of_each(store: Store) -> None:
    """Over two lifts, states restored whole, restored once more, and with rows that were kept."""
    up = deploy(lift(deploy(store, b"model B"), b"model C"), b"model D")
    rollback(up, to=2)
    rollback(add(Store.open(store.path), 3), to=4)
    grown = add(Store.open(store.path), 5)
    rollback(grown, to=5)
    back = Store.open(store.path)
    with back.transaction(back.manifest, operation="rollback") as tx:
        had = {name: getattr(grown.manifest, name) for name in ("index", "catalog", "models")}
        model = {name: getattr(up.manifest, name) for name in MODEL_FIELDS}
        tx.commit(operation="rollback", created_at=AT, restores=4, **had, **model)
    rollback(lift(Store.open(store.path), b"model E", dim=4), to=10)
    again = Store.open(store.path)
    rollback(again, to=9)
    last = Store.open(store.path)
    assert embedding_spaces(last) == (0, 0, 3, 3, 0, 0, 3, 3, 0, 3, 11, 3, 0)
    assert embedding_spaces(last) == tuple(embedding_space(last, one) for one in last.history())
    assert embedding_spaces(again) == embedding_spaces(last)[:-1]
    lifts = [[one for one in lineage(last, each) if one.operation == "lift"]
             for each in last.history()]  # fmt: skip
    assert embedding_spaces(last) == tuple(one[0].generation if one else 0 for one in lifts)
    assert check(last.path).ok


def test_a_rollback_restores_the_rows_of_then(store: Store) -> None:
    """Items added since the target are in no row of it, and come back with their generation."""
    third = add(deploy(store, b"model B"), 5)
    fourth = rollback(third)
    assert fourth.index == store.manifest.index
    assert check(store.path).ok
    assert rollback(Store.open(store.path), to=3).index.count == 25


def test_rollback_before_the_commit_needs_the_files(store: Store) -> None:
    """When a file of the target is gone, nothing is written, and the file is named."""
    second = deploy(store, b"model B")
    path = store.blob_path("models", store.manifest.query_model)
    path.write_bytes(b"")
    with pytest.raises(DamagedError, match=path.name):
        rollback(second)
    assert Store.open(store.path).manifest == second.manifest


@pytest.mark.parametrize("to", [0, 2, 9])
def test_rollback_to_no_older_generation_is_a_usage_error(store: Store, to: int) -> None:
    """A generation that is not there, or is the current one, cannot be restored."""
    second = deploy(store, b"model B")
    with pytest.raises(UsageError, match=str(to)):
        rollback(second, to=to)


def test_reading_and_rollback_load_no_numpy(store: Store) -> None:
    """Status, history and rollback work from the manifests alone, in a fresh process."""
    deploy(store, b"model B")
    code = (
        "import sys; from pathlib import Path\n"
        "from compatctl.store import Store, restore, rollback_plan\n"
        "s = Store.open(Path(sys.argv[1])); s.history()\n"
        "restore(s, rollback_plan(s).target, created_at='2026-02-01T00:00:00Z')\n"
        "print({'numpy', 'hnswlib', 'onnx', 'torch'} & set(sys.modules))"
    )
    with python(code, store.path) as process:
        out, err = process.communicate()
    assert (out, err) == ("set()\n", "")
    assert Store.open(store.path).manifest.generation == 3


def test_reading_writes_nothing(store: Store) -> None:
    """Open, history, catalogue, plan and check leave every file and its time as they were."""
    second = deploy(store, b"model B")
    times = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    Store.open(store.path).history()
    second.catalog()
    rollback_plan(second)
    assert check(second.path).ok
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == times


def test_check_names_a_flipped_bit_in_any_file(store: Store) -> None:
    """One changed bit in any blob or history file is found and named by its path."""
    second = deploy(store, b"model B")
    for name in snapshot(store.path):
        if name == "manifest.json":
            continue
        path = store.path / name
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        report = check(second.path)
        assert not report.ok
        assert name in " ".join(report.problems)
        path.write_bytes(whole)
    assert check(second.path).ok


def test_a_shallow_check_sees_missing_files_only(store: Store) -> None:
    """Without ``deep`` no file is read: a missing one is found, a changed one is not."""
    path = store.blob_path("models", store.manifest.query_model)
    path.write_bytes(b"model X")
    assert check(store.path, deep=False).ok
    path.unlink()
    assert not check(store.path, deep=False).ok


def test_check_compares_the_catalogue_with_the_manifest(store: Store) -> None:
    """Fewer rows than the index has are no commit; where they are there, no catalogue opens."""
    shorter = replace(
        store.catalog(), ids=("a",), labels=("x",), keys=[0], model_of=[0], digests=None,
    )  # fmt: skip
    with store.transaction(store.manifest) as tx:
        digest = tx.put("catalogs", shorter.write)
        with pytest.raises(InputError, match="1 rows, the index 20"):
            tx.commit(operation="add", created_at=AT, catalog=digest)
    with store.transaction(store.manifest) as tx:  # as if an older version had put it there
        tx.commit(operation="add", created_at=AT, catalog=digest)
    again = Store.open(store.path)
    report = check(again.path)
    assert not report.ok
    assert "1 rows, the index 20" in " ".join(report.problems)
    with pytest.raises(DamagedError, match="has 1 rows"):
        again.catalog()


def test_gc_keeps_every_generation_and_what_others_put_there(store: Store) -> None:
    """Only what no generation names is deleted; a person's own files are not touched."""
    rollback(deploy(store, b"model B"))
    keep = snapshot(store.path)
    (store.path / "models" / "README").write_bytes(b"mine")
    (store.path / "models" / ".new-0123").write_bytes(b"half")
    (store.path / ".new-4567.json").write_bytes(b"half")
    (store.path / "indexes" / f"{'0' * 64}.hnsw").write_bytes(b"left")
    report = gc(Store.open(store.path))
    assert report.ok
    assert len(report.deleted) == 3
    assert report.freed_bytes == 12
    assert snapshot(store.path) == {**keep, "models/README": b"mine"}


def test_gc_deletes_nothing_while_a_generation_is_unreadable(store: Store) -> None:
    """What a damaged generation names is unknown, so everything is kept."""
    second = deploy(store, b"model B")
    (store.path / "history" / "000001.json").write_bytes(b"{}")
    (store.path / "models" / ".new-0123").write_bytes(b"half")
    report = gc(Store.open(second.path))
    assert report.deleted == ()
    assert "nothing was deleted" in " ".join(report.problems)
    assert (store.path / "models" / ".new-0123").exists()


def test_a_broken_chain_is_found(store: Store) -> None:
    """A history file that was exchanged for another valid manifest no longer fits its child."""
    second = deploy(store, b"model B")
    other = begin(store.path.parent / "other", rows=4)
    shutil.copy(other.path / "history" / "000001.json", store.path / "history" / "000001.json")
    with pytest.raises(DamagedError, match="parent"):
        second.history()
    assert "parent" in " ".join(check(second.path).problems)


def test_a_creation_from_a_deployed_index_needs_its_model(tmp_path: Path) -> None:
    """A first generation whose files were not put is refused, and the folder does not open."""
    with Store.create(tmp_path / "s") as tx, pytest.raises(DamagedError, match="models"):
        tx.commit(
            operation="init",
            created_at=store_kit.AT,
            query_model="a" * 64,
            index=info("b" * 64, 3),
            catalog="c" * 64,
            models=(ModelShare(sha256="a" * 64, dim=8, rows=3, name="old.onnx", canary="d" * 64),),
        )
    with pytest.raises(InputError):
        Store.open(tmp_path / "s")
