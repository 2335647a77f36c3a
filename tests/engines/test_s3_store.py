"""A store in a bucket, on a real S3 server: commits, copies, races, kills, gc."""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from s3_kit import Proxy, S3Server, objects, proxy
from store_kit import AT, add, backfill, begin, deploy, python, rollback, share, writes

from compatctl.errors import CompatError, ConflictError, DamagedError, InputError
from compatctl.store import (
    Attempt,
    Store,
    check,
    gc,
    manifest_digest,
    read_attempts,
    record_attempt,
    store_exists,
    store_path,
)

RACERS = 8

COMMIT = """
import sys, time
from store_kit import AT, share, writes
from compatctl.errors import CompatError
from compatctl.store import Store
url, name = sys.argv[1:3]
store = Store.open(url)
print("ready", flush=True)
sys.stdin.readline()
try:
    with store.transaction(store.manifest, operation="deploy") as tx:
        sha = tx.put("models", writes(f"model of {name}".encode()))
        known = store.manifest.models
        done = tx.commit(
            operation="deploy", created_at=AT, query_model=sha,
            models=(*known, share(tx, sha, 0, name)),
            report=tx.put("reports", writes(sha.encode())),
        )
    print(done.query_model)
except CompatError as error:
    print(error.message, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def url(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a prefix that is new, and the environment of machine A."""
    for name, value in s3.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COMPATCTL_CACHE", str(tmp_path / "a"))
    return f"s3://stores/{secrets.token_hex(8)}"


@pytest.fixture
def between(s3: S3Server, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before the server, which the clients of this test use."""
    with proxy(s3) as state:
        monkeypatch.setenv("AWS_ENDPOINT_URL", state.endpoint)
        yield state


def _machine(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, this process is another machine: another cache."""
    monkeypatch.setenv("COMPATCTL_CACHE", str(tmp_path / name))


def _names(store: Any) -> set[str]:
    return {entry["path"] for page in obstore.list(store) for entry in page}


def test_another_machine_sees_a_commit_at_its_next_command(
    s3: S3Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What machine A commits, B opens; what B commits, A opens; the history is one chain."""
    begin(url)
    _machine("b", tmp_path, monkeypatch)
    there = Store.open(url)
    assert there.manifest.generation == 1
    assert len(there.catalog()) == 20
    second = deploy(there, b"model B")
    _machine("a", tmp_path, monkeypatch)
    here = Store.open(url)
    assert here.manifest == second.manifest
    assert there.name == here.name == url
    assert there.path != here.path
    assert [state.generation for state in add(here, 3).history()] == [1, 2, 3]
    assert check(here.path).problems == ()
    history = {f"history/{number:06d}.json" for number in (1, 2, 3)}
    assert history <= _names(objects(s3, url))
    assert not any(name.startswith(("writing/", ".new-")) for name in _names(objects(s3, url)))


def test_of_eight_racing_writers_one_wins_and_nothing_is_lost(
    s3: S3Server, url: str, tmp_path: Path
) -> None:
    """Eight machines commit from one generation: one succeeds, seven are told so with exit code 6,
    and the store is the winner's, complete."""
    before = begin(url)
    racers = []
    kits = Path(__file__).parent.parent / "kits"
    code = f"import sys; sys.path.insert(0, {str(kits)!r})\n{COMMIT}"
    for number in range(RACERS):
        os.environ["COMPATCTL_CACHE"] = str(tmp_path / f"machine-{number}")
        racers.append(python(code, url, f"writer-{number}"))
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n", racer.communicate()
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    results = [racer.communicate(timeout=120) for racer in racers]
    codes = [racer.returncode for racer in racers]
    assert sorted(codes) == [0] + [6] * (RACERS - 1), results
    winner = results[codes.index(0)][0].strip()
    os.environ["COMPATCTL_CACHE"] = str(tmp_path / "fresh")
    after = Store.open(url)
    assert (after.manifest.generation, after.manifest.query_model) == (2, winner)
    assert after.manifest.parent == manifest_digest(before.manifest)
    report = check(after.path)
    assert report.problems == ()
    for _, err in (result for result, code in zip(results, codes, strict=True) if code):
        assert "moved on to generation 2" in err or "written by another" in err
    again = deploy(after, b"the next model")  # whoever lost can go on from there
    assert again.manifest.generation == 3


def test_of_racing_creations_one_wins(url: str, tmp_path: Path) -> None:
    """Eight machines create a store at one URL: one does, the others are refused, and what they
    left is nobody's."""
    kits = Path(__file__).parent.parent / "kits"
    code = f"""
import sys; sys.path.insert(0, {str(kits)!r})
from store_kit import begin
from compatctl.errors import CompatError
print("ready", flush=True)
sys.stdin.readline()
try:
    begin(sys.argv[1], model=sys.argv[2].encode())
except CompatError as error:
    sys.exit(error.exit_code)
"""
    racers = []
    for number in range(RACERS):
        os.environ["COMPATCTL_CACHE"] = str(tmp_path / f"creator-{number}")
        racers.append(python(code, url, f"model {number}"))
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    results = [racer.communicate(timeout=120) for racer in racers]
    codes = [racer.returncode for racer in racers]
    assert codes.count(0) == 1, results
    assert set(codes) <= {0, 5, 6}, results
    os.environ["COMPATCTL_CACHE"] = str(tmp_path / "fresh")
    store = Store.open(url)
    winner = store.verified_path("models", store.manifest.query_model).read_bytes()
    assert winner == f"model {codes.index(0)}".encode()
    assert check(store.path).problems == ()
    assert gc(deploy(store, b"model B"), created_at=AT).ok


def test_a_loser_is_left_at_the_state_of_the_bucket(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a conflict the copy has the winner's generation, and the next write succeeds."""
    stale = begin(url)
    _machine("b", tmp_path, monkeypatch)
    winner = deploy(Store.open(url), b"model B")
    _machine("a", tmp_path, monkeypatch)
    with pytest.raises(ConflictError, match="moved on to generation 2"):
        deploy(stale, b"model C")
    assert (stale.path / "manifest.json").read_bytes() == (
        winner.path / "manifest.json"
    ).read_bytes()
    assert deploy(Store.open(url), b"model C").manifest.generation == 3


def test_a_file_is_fetched_once_and_only_when_it_is_needed(
    url: str, between: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fresh machine that opens, looks at the history and rolls back fetches no model, index or
    catalogue; what it reads is fetched once, by whichever command needs it first."""
    deploy(begin(url), b"model B")
    _machine("b", tmp_path, monkeypatch)
    between.requests.clear()
    store = Store.open(url)
    assert len(store.history()) == 2
    assert rollback(store).generation == 3
    for kind in ("models", "indexes", "catalogs", "canaries"):
        assert between.got("GET", f"/{kind}/") == []
    opened = Store.open(url)
    for _ in range(3):
        opened.catalog()
        Store.open(url).verified_path("models", opened.manifest.query_model)
    assert len(between.got("GET", "/catalogs/")) == 1
    assert len(between.got("GET", "/models/")) == 1


def test_looking_for_a_newer_generation_is_one_small_request(
    url: str, between: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``has_moved`` of an unchanged store is one conditional GET without a body."""
    store = begin(url)
    between.requests.clear()
    assert not store.has_moved()
    (seen,) = between.requests
    assert (seen.method, seen.status, seen.answered) == ("GET", 304, 0)
    _machine("b", tmp_path, monkeypatch)
    deploy(Store.open(url), b"model B")
    _machine("a", tmp_path, monkeypatch)
    assert store.has_moved()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_writer_killed_at_any_request_leaves_the_old_or_the_new_generation(
    url: str, between: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Killed before or after its first, second, ... request, a writer leaves generation 1 or 2,
    complete, and the next writer goes on. The one PUT of manifest.json decides which."""
    kits = Path(__file__).parent.parent / "kits"
    code = f"import sys; sys.path.insert(0, {str(kits)!r})\n{COMMIT}"
    begin(url)
    generation, at, committed = 1, 0, False
    while True:
        monkeypatch.setenv("COMPATCTL_CACHE", str(tmp_path / f"{moment}-{at}"))
        writer = python(code, url, f"{moment}-{at}")
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        seen: list[tuple[str, str]] = []

        def kill(method: str, path: str, pid: int = writer.pid, last: int = at) -> None:
            seen.append((method, path))  # noqa: B023
            if len(seen) > last:  # noqa: B023
                os.kill(pid, signal.SIGKILL)
                raise ConnectionError

        setattr(between, moment, kill)
        writer.communicate("go\n", timeout=60)
        setattr(between, moment, lambda method, path: None)
        committed = ("PUT", True) in {(m, p.endswith("manifest.json")) for m, p in seen[: at + 1]}
        if moment == "before" and seen[-1][1].endswith("manifest.json"):
            committed = committed and ("PUT", True) in {
                (m, p.endswith("manifest.json")) for m, p in seen[:at]
            }
        monkeypatch.setenv("COMPATCTL_CACHE", str(tmp_path / f"{moment}-{at}-after"))
        store = Store.open(url)
        assert store.manifest.generation == generation + committed, seen
        monkeypatch.setenv("COMPATCTL_CACHE", str(tmp_path / f"{moment}-{at}"))
        assert Store.open(url).manifest == store.manifest  # the killed writer's own copy
        assert check(store.path).problems == (), seen
        generation = store.manifest.generation
        if writer.returncode == 0:
            break
        assert writer.returncode == -signal.SIGKILL, seen
        at += 1
    assert at > 10  # each request of a commit was one of the moments
    store = deploy(store, b"the last model")
    assert gc(store, created_at=AT).ok
    assert check(store.path).unreferenced == ()


def test_a_creation_killed_at_any_request_is_no_store_and_can_be_repeated(
    url: str, between: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at its first, second, ... request, a creation leaves no store or a complete one, and
    the next one on the same prefix goes on from what it left."""
    kits = Path(__file__).parent.parent / "kits"
    code = (
        f"import sys; sys.path.insert(0, {str(kits)!r})\n"
        "from store_kit import begin\n"
        "begin(sys.argv[1])"
    )
    for at in itertools.count():
        monkeypatch.setenv("COMPATCTL_CACHE", str(tmp_path / f"creator-{at}"))
        creator = python(code, url)
        count = itertools.count()

        def kill(
            method: str, path: str, pid: int = creator.pid, last: int = at, n: Any = count
        ) -> None:
            if next(n) > last:
                os.kill(pid, signal.SIGKILL)
                raise ConnectionError

        between.after = kill
        _, err = creator.communicate(timeout=60)
        between.after = lambda method, path: None
        monkeypatch.setenv("COMPATCTL_CACHE", str(tmp_path / f"creator-{at}-after"))
        if store_exists(store_path(url)):
            break
        assert creator.returncode == -signal.SIGKILL, err
    assert at > 10
    store = Store.open(url)
    assert store.manifest.generation == 1
    assert check(store.path).problems == ()


def test_changed_and_cut_files_in_the_bucket_are_named(s3: S3Server, url: str) -> None:
    """A file with other bytes, a shorter one and a missing one are damage that names the object;
    nothing of them gets into the copy, and check finds each."""
    store = begin(url)
    bucket, manifest = objects(s3, url), store.manifest
    damage = {
        ("models", manifest.query_model): b"model X",
        ("indexes", manifest.index.sha256): None,
        ("catalogs", manifest.catalog): b"",
    }
    for (kind, sha256), data in damage.items():
        path = store.blob_path(kind, sha256)
        name = f"{kind}/{path.name}"
        whole = bytes(obstore.get(bucket, name).bytes())
        obstore.put(bucket, name, whole[:-3] if data is None else data)
        path.unlink()
        with pytest.raises(DamagedError, match=name):
            store.verified_path(kind, sha256)
        assert not path.exists()
    obstore.delete(bucket, f"canaries/{manifest.models[0].canary}.npz")
    problems = check(store.path).problems
    for kind in ("models", "indexes", "catalogs", "canaries"):
        assert any(f"{url}/{kind}/" in problem for problem in problems), problems


def test_a_damaged_copy_is_fetched_again(url: str) -> None:
    """The cache holds copies: one with other bytes is replaced by the bucket's."""
    store = begin(url)
    path = store.blob_path("models", store.manifest.query_model)
    path.chmod(0o644)
    path.write_bytes(b"model X")
    assert store.verified_path("models", store.manifest.query_model).read_bytes() == b"model A"
    store = deploy(store, b"model B")
    names = ["manifest.json", "history/000001.json", "history/000002.json", "remote/state.json"]
    names.append(f"catalogs/{store.manifest.catalog}.npz")
    whole = {name: (store.path / name).read_bytes() for name in names}
    for name in names:
        (store.path / name).chmod(0o644)
        (store.path / name).write_bytes(whole[name][:-9])
        opened = Store.open(url)
        assert len(opened.history()) == 2, name
        assert check(opened.path).problems == (), name
        if name != "remote/state.json":  # what it says of the server is found out again
            assert (store.path / name).read_bytes() == whole[name], name


def test_a_damaged_copy_never_replaces_what_the_bucket_has(s3: S3Server, url: str) -> None:
    """A rollback names files of an earlier generation; this machine's copy of one is cut, and the
    bucket's stays as it is. What no one has whole is refused by its URL."""
    store = backfill(deploy(begin(url), b"model B"), 2)
    name = f"indexes/{store.generation(1).index.sha256}.hnsw"
    whole = bytes(obstore.get(objects(s3, url), name).bytes())
    (store.path / name).chmod(0o644)
    (store.path / name).write_bytes(whole[:-9])
    rollback(store)
    assert bytes(obstore.get(objects(s3, url), name).bytes()) == whole
    assert check(store.path).ok
    store = backfill(deploy(Store.open(url), b"model C"), 2)
    obstore.delete(objects(s3, url), name)
    with pytest.raises(DamagedError, match=f"{url}/{name}.* is missing or empty"):
        rollback(store)
    assert name not in _names(objects(s3, url))


def test_where_no_store_is_the_url_is_named(url: str) -> None:
    """Not the folder of this machine's copy."""
    with pytest.raises(InputError, match=f"^{url}: no store$"):
        Store.open(url)


def test_a_manifest_that_was_changed_or_put_back_is_refused(
    s3: S3Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edited manifest.json is damage; an older one is too, on a machine that saw the newer one,
    for check on any machine, and for whoever would write."""
    first = begin(url)
    old = (first.path / "manifest.json").read_bytes()
    deploy(first, b"model B")
    bucket = objects(s3, url)
    obstore.put(bucket, "manifest.json", old.replace(b'"init"', b'"add"'))
    with pytest.raises(DamagedError):
        Store.open(url)
    obstore.put(bucket, "manifest.json", old)
    with pytest.raises(DamagedError, match="has seen its generation 2"):
        Store.open(url)
    _machine("fresh", tmp_path, monkeypatch)
    fresh = Store.open(url)
    assert any("put back" in problem for problem in check(fresh.path).problems)
    with pytest.raises(DamagedError, match="put back"):
        deploy(fresh, b"model C")


def test_a_server_that_ignores_conditions_is_refused(
    s3: S3Server, between: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where If-None-Match and If-Match have no effect, no store is created: two could win."""
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    between.careless = True
    url = f"s3://open-stores/{secrets.token_hex(8)}"
    with pytest.raises(InputError, match="ignores If-None-Match or If-Match"):
        begin(url)
    between.careless = False
    assert begin(url).manifest.generation == 1
    between.careless = True
    _machine("b", tmp_path, monkeypatch)
    with pytest.raises(InputError, match="ignores If-None-Match or If-Match"):
        deploy(Store.open(url), b"model B")


def test_who_may_only_read_reads_and_is_refused_by_name_when_writing(
    s3: S3Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials that may only read open and verify files; a commit names what was denied."""
    store = begin(url)
    for name, value in s3.env("reader").items():
        monkeypatch.setenv(name, value)
    opened = Store.open(url)
    opened.catalog()
    assert check(opened.path).problems == ()
    with pytest.raises(InputError, match=r"writing s3://.*access denied"):
        deploy(opened, b"model B")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InputError, match="access denied") as caught:
        Store.open(url)
    assert "wrong" not in caught.value.message + caught.value.tip
    assert store.manifest.generation == 1


def test_a_gc_at_work_is_left_alone_and_a_killed_one_taken_over(
    s3: S3Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While deleting.json is fresh, a second gc gets ConflictError; an old one is taken over."""
    store = begin(url)
    bucket = objects(s3, url)
    obstore.put(bucket, f"models/{'0' * 64}.onnx", b"nobody's")
    obstore.put(bucket, "deleting.json", b'{"names": []}')
    with pytest.raises(ConflictError, match="another check --gc"):
        gc(store, created_at=AT)
    monkeypatch.setattr("compatctl.store._remote_check.DEAD_S", 0.0)
    assert gc(store, created_at=AT).deleted == (f"models/{'0' * 64}.onnx",)
    assert "deleting.json" not in _names(bucket)


def test_a_silent_server_is_given_up_in_bounded_time(
    url: str, between: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that takes the connection and says nothing is given up after some tries."""
    begin(url)
    monkeypatch.setattr("compatctl.store._bucket.READ_S", 0.5)
    monkeypatch.setenv("AWS_SESSION_NAME", "another client")
    between.before = lambda method, path: time.sleep(20)
    start = time.monotonic()
    with pytest.raises(CompatError, match=f"reading {url}/manifest.json"):
        Store.open(url)
    assert time.monotonic() - start < 15


def test_without_a_network_the_error_says_so_and_nothing_changes(
    s3: S3Server, url: str, between: Proxy
) -> None:
    """Where the server cannot be reached, commands fail in bounded time with the URL in the
    message; a store opened before can still read the files that it has."""
    store = begin(url)

    def cut(method: str, path: str) -> None:
        raise ConnectionError

    between.before = cut
    with pytest.raises(CompatError, match=f"reading {url}/manifest.json"):
        Store.open(url)
    store.catalog()
    with pytest.raises(CompatError, match=url):
        deploy(store, b"model B")
    between.before = lambda method, path: None
    assert Store.open(url).manifest == store.manifest


def test_an_answer_that_is_lost_is_no_lost_commit(url: str, between: Proxy) -> None:
    """Where the connection breaks after the server took manifest.json, the commit counts as done,
    once; where it breaks before, the PUT is repeated."""
    store = begin(url)
    for moment in ("before", "after"):
        cuts = iter([True])

        def cut(method: str, path: str, left: Iterator[bool] = cuts) -> None:
            if method == "PUT" and path.endswith("/manifest.json") and next(left, False):
                raise ConnectionError

        setattr(between, moment, cut)
        store = deploy(store, f"model {moment}".encode())
        setattr(between, moment, lambda method, path: None)
    assert store.manifest.generation == 3
    assert check(store.path).problems == ()


def test_gc_deletes_what_no_kept_generation_names_and_readers_are_told(
    s3: S3Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gc with ``keep`` deletes the files of older generations from the bucket. A reader that opened
    one before, on a machine without the files, is told ConflictError, not damage."""
    store = begin(url)
    _machine("reader", tmp_path, monkeypatch)
    reader = Store.open(url)
    _machine("a", tmp_path, monkeypatch)
    for model in (b"model B", b"model C"):
        store = backfill(deploy(store, model), 20)
    bucket = objects(s3, url)
    obstore.put(bucket, "models/notes.txt", b"somebody's")
    before = _names(bucket)
    report = gc(store, keep=1, created_at=AT)
    assert report.ok
    assert report.deleted
    assert set(report.deleted) == before - _names(bucket)
    assert f"indexes/{reader.manifest.index.sha256}.hnsw" in report.deleted
    assert "models/notes.txt" in _names(bucket)
    assert "deleting.json" not in _names(bucket)
    assert check(store.path).problems == ()
    _machine("reader", tmp_path, monkeypatch)
    with pytest.raises(ConflictError, match="deleted the files of generation 1"):
        reader.catalog()
    assert Store.open(url).catalog()


def test_gc_leaves_what_a_writer_needs_and_a_writer_sees_what_gc_deletes(
    s3: S3Server, url: str
) -> None:
    """A file that a writer at work has declared is not deleted; one that gc is about to delete is
    refused to a writer, until gc has ended."""
    store = begin(url)
    bucket = objects(s3, url)
    with store.transaction(store.manifest) as tx:
        orphan = tx.put("models", writes(b"model B"))
        canary = tx.put("canaries", writes(b"canary of " + orphan.encode()))
        report = tx.put("reports", writes(b"report on model B"))
    names = [f"models/{orphan}.onnx", f"canaries/{canary}.npz", f"reports/{report}.json"]
    for name in names:
        obstore.put(bucket, name, (store.path / name).read_bytes())
    declared = b'{"generation": 1, "names": ["%s"]}' % names[0].encode()
    obstore.put(bucket, f"writing/{'0' * 32}.json", declared)
    assert set(gc(store, created_at=AT).deleted) == set(names[1:])
    obstore.put(bucket, "deleting.json", b'{"names": ["%s"]}' % names[0].encode())
    with pytest.raises(ConflictError, match="check --gc is deleting it"):
        deploy(store, b"model B")
    obstore.delete(bucket, "deleting.json")
    after = deploy(store, b"model B")
    gc(after, created_at=AT)
    assert not any(name.startswith("writing/") for name in _names(bucket))
    assert after.verified_path("models", orphan)


def test_attempts_of_all_machines_count_together(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A candidate that machine A verified twice has its third attempt on machine B, whose cache is
    empty, and a repeated one counts once."""
    path, question, candidate = begin(url).path, "e" * 64, "c" * 64
    attempts = [Attempt(key=f"{number}" * 64, settings={"seed": number}) for number in range(4)]
    for attempt in attempts[:2]:
        record_attempt(path, candidate, question, attempt)
    _machine("b", tmp_path, monkeypatch)
    there = Store.open(url).path
    assert read_attempts(there, candidate, question) == tuple(attempts[:2])
    assert len(record_attempt(there, candidate, question, attempts[2])) == 3
    _machine("a", tmp_path, monkeypatch)
    assert len(record_attempt(path, candidate, question, attempts[3])) == 4
    assert len(record_attempt(path, candidate, question, attempts[0])) == 1


def test_nothing_secret_is_written_into_the_cache(s3: S3Server, url: str, tmp_path: Path) -> None:
    """No file of the cache contains a key, and its folder is the owner's alone."""
    store = deploy(begin(url), b"model B")
    store.catalog()
    secret = s3.env()["AWS_SECRET_ACCESS_KEY"].encode()
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert files
    assert not any(secret in path.read_bytes() for path in files)
    assert store_path(url).stat().st_mode & 0o077 == 0


def test_a_prefix_that_holds_something_else_is_no_place_for_a_store(
    s3: S3Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store is created only where nothing else lies, and only once."""
    obstore.put(objects(s3, url), "photos/a.png", b"a")
    with pytest.raises(InputError, match="is not empty: it holds photos"):
        begin(url)
    obstore.delete(objects(s3, url), "photos/a.png")
    begin(url)
    _machine("b", tmp_path, monkeypatch)
    with pytest.raises(InputError, match="already a store"):
        begin(url)


def test_a_large_file_goes_up_in_parts_and_comes_back_whole(
    url: str, between: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of several parts appears in the bucket at once, and has its digest elsewhere."""
    store, data = begin(url), os.urandom(40 << 20)
    with store.transaction(store.manifest, operation="deploy") as tx:
        sha = tx.put("models", writes(data))
        tx.commit(
            operation="deploy",
            created_at=AT,
            query_model=sha,
            models=(*store.manifest.models, share(tx, sha, 0, "big.onnx")),
            report=tx.put("reports", writes(b"{}")),
        )
    assert len([r for r in between.got("PUT", sha) if "partNumber" in r.path]) == 3
    _machine("b", tmp_path, monkeypatch)
    assert Store.open(url).verified_path("models", sha).read_bytes() == data
