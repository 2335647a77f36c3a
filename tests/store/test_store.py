"""Stores: creation, commits, conflicts, rollbacks and checks."""

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


def test_creation_refuses_a_folder_with_other_content(tmp_path: Path, store: Store) -> None:
    """A store, a file, and a folder with a file in it are left unchanged."""
    other = tmp_path / "photos"
    other.mkdir()
    (other / "me.jpg").write_bytes(b"x")
    before = snapshot(tmp_path)
    for path in (store.path, other, other / "me.jpg"):
        with pytest.raises(InputError), Store.create(path):
            pass
    assert snapshot(tmp_path) == before
    assert not (other / "LOCK").exists()


def test_opening_distinguishes_no_store_from_an_unfinished_one(tmp_path: Path) -> None:
    """The message says whether there is no store or one whose creation did not finish."""
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


def test_a_new_query_model_drops_the_earlier_report(store: Store) -> None:
    """A deploy resets the report; other commits keep it."""
    second = deploy(store, b"model B")
    third = add(second, 2)
    assert third.manifest.report == second.manifest.report is not None
    with third.transaction(third.manifest) as tx:
        after = tx.commit(operation="deploy", created_at=AT, query_model=store.manifest.query_model)
    assert after.report is None


def test_leaving_without_a_commit_changes_nothing(store: Store) -> None:
    """After an exception the generation is the same, and gc deletes the file that was put."""

    def interrupted() -> None:
        with store.transaction(store.manifest) as tx:
            tx.put("models", writes(b"model B"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert Store.open(store.path).manifest == store.manifest
    report = check(store.path)
    assert report.ok
    assert report.unreferenced == (f"models/{sha256_bytes(b'model B')}.onnx",)
    assert gc(Store.open(store.path)).deleted == report.unreferenced
    assert check(store.path).unreferenced == ()


def test_a_stale_generation_is_a_conflict(store: Store) -> None:
    """A write computed from an older generation is refused with the operation that came between."""
    deploy(store, b"model B")
    with (
        pytest.raises(ConflictError, match=r"moved on to generation 2 \(deploy\)"),
        store.transaction(store.manifest),
    ):
        pass
    with Lock(store.path / "LOCK", timeout_s=0):
        pass


def test_a_locked_store_is_a_conflict(store: Store) -> None:
    """After the timeout the error names the operation that holds the lock."""
    with (
        Lock(store.path / "LOCK", operation="backfill"),
        pytest.raises(ConflictError, match="backfill"),
        store.transaction(store.manifest, timeout_s=0.1),
    ):
        pass


def test_a_generation_that_contradicts_itself_is_refused(store: Store) -> None:
    """Wrong row counts, a missing file, a malformed time and an empty file are refused."""
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
    """A history file without a commit is unreferenced, and the next commit takes its number."""
    orphan = store.path / "history" / "000002.json"
    orphan.write_bytes(b"half a manif")
    assert store.history() == (store.manifest,)
    assert check(store.path).unreferenced == ("history/000002.json",)
    after = deploy(store, b"model B")
    assert check(after.path).ok
    assert len(after.history()) == 2


def test_a_changed_manifest_is_refused_with_a_tip(store: Store) -> None:
    """An edited or truncated manifest.json does not open, and the tip names the history."""
    path = store.path / "manifest.json"
    whole = path.read_bytes()
    for data in (whole.replace(b"  ", b" "), whole[:50], whole + b"\n", b""):
        path.write_bytes(data)
        with pytest.raises(DamagedError) as caught:
            Store.open(store.path)
        assert "history" in caught.value.tip
    shutil.copy(store.path / "history" / "000001.json", path)
    assert check(store.path).ok


def test_rollback_restores_the_same_files(store: Store) -> None:
    """After deploy and rollback the model, index and catalogue are the earlier ones."""
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
    """After A, B, C a rollback restores B, however often it runs; --to reaches A and C."""
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
    """After A, B, a rollback and C, a rollback restores A and not B."""
    b = deploy(store, b"model B")
    rollback(b)
    c = deploy(Store.open(store.path), b"model C")
    assert rollback(c).query_model == store.manifest.query_model


def test_a_rollback_to_before_a_backfill_undoes_no_deploy(store: Store) -> None:
    """After B, a backfill and a rollback to B, the next rollback undoes B."""
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


def test_a_lift_starts_a_new_embedding_space(store: Store) -> None:
    """A deploy stays in the space, a lift starts one, and a rollback returns to the earlier one."""
    first = store.manifest
    up = lift(deploy(store, b"model B"), b"model C")
    later = deploy(up, b"model D")
    spaces = [embedding_space(later, state) for state in later.history()]
    assert spaces == [0, 0, 3, 3]
    rollback(later, to=2)
    assert embedding_space(Store.open(store.path), Store.open(store.path).manifest) == 0
    rollback(Store.open(store.path), to=4)
    again = Store.open(store.path)
    assert embedding_space(again, again.manifest) == 3
    assert embedding_space(again, first) == 0
    assert check(again.path).ok


def test_the_spaces_of_all_generations_equal_those_of_each(store: Store) -> None:
    """Both functions agree over two lifts and several kinds of rollbacks."""
    up = deploy(lift(deploy(store, b"model B"), b"model C"), b"model D")
    rollback(up, to=2)
    rollback(add(Store.open(store.path), 3), to=4)
    grown = add(Store.open(store.path), 5)
    rollback(grown, to=5)
    back = Store.open(store.path)
    with back.transaction(back.manifest, operation="rollback") as tx:
        gallery = {name: getattr(grown.manifest, name) for name in ("index", "catalog", "models")}
        model = {name: getattr(up.manifest, name) for name in MODEL_FIELDS}
        tx.commit(operation="rollback", created_at=AT, restores=4, **gallery, **model)
    rollback(lift(Store.open(store.path), b"model E", dim=4), to=10)
    again = Store.open(store.path)
    rollback(again, to=9)
    last = Store.open(store.path)
    assert embedding_spaces(last) == (0, 0, 3, 3, 0, 0, 3, 3, 0, 3, 11, 3, 0)
    assert embedding_spaces(last) == tuple(embedding_space(last, state) for state in last.history())
    assert embedding_spaces(again) == embedding_spaces(last)[:-1]
    lifts = [[state for state in lineage(last, generation) if state.operation == "lift"]
             for generation in last.history()]  # fmt: skip
    assert embedding_spaces(last) == tuple(
        states[0].generation if states else 0 for states in lifts
    )
    assert check(last.path).ok


def test_a_rollback_restores_the_earlier_rows(store: Store) -> None:
    """Items added since are not in the restored gallery, and return with their generation."""
    third = add(deploy(store, b"model B"), 5)
    fourth = rollback(third)
    assert fourth.index == store.manifest.index
    assert check(store.path).ok
    assert rollback(Store.open(store.path), to=3).index.count == 25


def test_a_rollback_without_a_needed_file_changes_nothing(store: Store) -> None:
    """If a file of the target is empty, nothing is written, and the error names the file."""
    second = deploy(store, b"model B")
    path = store.blob_path("models", store.manifest.query_model)
    path.write_bytes(b"")
    with pytest.raises(DamagedError, match=path.name):
        rollback(second)
    assert Store.open(store.path).manifest == second.manifest


@pytest.mark.parametrize("to", [0, 2, 9])
def test_a_rollback_to_a_missing_or_current_generation_is_a_usage_error(
    store: Store, to: int
) -> None:
    """A generation that does not exist, or is the current one, cannot be restored."""
    second = deploy(store, b"model B")
    with pytest.raises(UsageError, match=str(to)):
        rollback(second, to=to)


def test_reading_and_rollback_do_not_import_numpy(store: Store) -> None:
    """Opening, history and rollback need only the manifests, in a new process."""
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
    """Open, history, catalogue, plan and check leave every file and its mtime unchanged."""
    second = deploy(store, b"model B")
    times = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    Store.open(store.path).history()
    second.catalog()
    rollback_plan(second)
    assert check(second.path).ok
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == times


def test_check_names_a_flipped_bit_in_any_file(store: Store) -> None:
    """A changed bit in any blob or history file is reported with its path."""
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


def test_a_shallow_check_finds_only_missing_files(store: Store) -> None:
    """Without ``deep`` a missing file is found, and a changed one is not."""
    path = store.blob_path("models", store.manifest.query_model)
    path.write_bytes(b"model X")
    assert check(store.path, deep=False).ok
    path.unlink()
    assert not check(store.path, deep=False).ok


def test_the_row_counts_of_catalogue_and_manifest_must_agree(store: Store) -> None:
    """Commit, check and reading refuse a catalogue with fewer rows than the index."""
    shorter = replace(
        store.catalog(), ids=("a",), labels=("x",), keys=[0], model_of=[0], digests=None,
    )  # fmt: skip
    with store.transaction(store.manifest) as tx:
        digest = tx.put("catalogs", shorter.write)
        with pytest.raises(InputError, match="1 rows, the index 20"):
            tx.commit(operation="add", created_at=AT, catalog=digest)
    with store.transaction(store.manifest) as tx:  # as an older version could
        tx.commit(operation="add", created_at=AT, catalog=digest)
    again = Store.open(store.path)
    report = check(again.path)
    assert not report.ok
    assert "1 rows, the index 20" in " ".join(report.problems)
    with pytest.raises(DamagedError, match="has 1 rows"):
        again.catalog()


def test_gc_deletes_only_unreferenced_files_of_its_own(store: Store) -> None:
    """gc deletes what no generation names, and no file with a foreign name."""
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
    """If a generation is damaged, gc keeps every file."""
    second = deploy(store, b"model B")
    (store.path / "history" / "000001.json").write_bytes(b"{}")
    (store.path / "models" / ".new-0123").write_bytes(b"half")
    report = gc(Store.open(second.path))
    assert report.deleted == ()
    assert "nothing was deleted" in " ".join(report.problems)
    assert (store.path / "models" / ".new-0123").exists()


def test_a_broken_chain_is_found(store: Store) -> None:
    """A history file replaced with another valid manifest does not match its child."""
    second = deploy(store, b"model B")
    other = begin(store.path.parent / "other", rows=4)
    shutil.copy(other.path / "history" / "000001.json", store.path / "history" / "000001.json")
    with pytest.raises(DamagedError, match="parent"):
        second.history()
    assert "parent" in " ".join(check(second.path).problems)


def test_a_creation_without_its_files_is_refused(tmp_path: Path) -> None:
    """A first generation whose files are missing is refused, and the folder does not open."""
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


def test_a_store_knows_whether_it_has_moved(tmp_path: Path) -> None:
    """``has_moved`` is false for the newest generation and true for an older one."""
    first = begin(tmp_path / "store")
    assert not first.has_moved()
    second = deploy(first, b"model B")
    assert first.has_moved()
    assert not second.has_moved()
