"""The searcher: one answer a generation, any number of threads, and no break at a switch."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from serve_kit import wait_for
from shop_kit import Shop
from text_shop_kit import TextShop

import compatctl
from compatctl.data import from_files, load
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.loaded_generation import Answers
from compatctl.deployment.searcher import CATCH_UP_S, MAX_ATTEMPTS, Attempts, Searcher
from compatctl.engines import StaleEpochError
from compatctl.errors import ConflictError, DamagedError, InputError, UsageError
from compatctl.index import HnswIndex, IndexApart
from compatctl.serving.server import kept_from_collections
from compatctl.store import Store

K = 5


def _force(shop: Shop, name: str) -> None:
    given = ("--model", shop.path(name), "--force", "--reason", "drill")
    result = shop.run("deploy", *given)
    assert result.code == 0, result.stderr


def _images(shop: Shop, count: int) -> list[bytes]:
    data = load(shop.data()).filter(split="test", role="query")
    return [Path(str(data.sources[row])).read_bytes() for row in range(count)]


@dataclass
class Slow:
    """The answers of each generation, by the query model alone and all stored rows, one by one."""

    shop: Shop
    queries: list[bytes]
    found: dict[int, np.ndarray] = field(default_factory=dict)

    def learn(self) -> None:
        """Compute those of the store's generation."""
        store = Store.open(self.shop.path("store"))
        gallery = DeployedGallery.open(store)
        rows = gallery.vectors()
        best = []
        for query in self.queries:
            path = self.shop.path("query.png")
            path.write_bytes(query)
            feature = gallery.encoder.embed(from_files([path])).features[0]
            best.append(np.sort([float(feature @ row) for row in rows])[::-1][:K])
        self.found[store.manifest.generation] = np.array(best)

    def agrees(self, answers: Answers) -> bool:
        """Whether answers are those of the generation that they name."""
        return bool(np.allclose(answers.cosines, self.found[answers.generation], atol=2e-5))


def test_a_searcher_answers_as_the_command_and_as_a_slow_search(shop: Shop) -> None:
    """Ids, scores and the model of each hit are those of ``compatctl search``."""
    queries = _images(shop, 3)
    slow = Slow(shop, queries)
    slow.learn()
    with compatctl.Searcher.open(shop.path("store")) as searcher:
        answers = searcher.search(queries, K)
        assert slow.agrees(answers)
        path = shop.path("one.png")
        path.write_bytes(queries[1])
        told = shop.run("search", path, "-k", K).json["queries"][0]["hits"]
        assert [hit["id"] for hit in told] == list(answers.ids[1])
        assert [hit.model for hit in answers[1]] == [hit["model"] for hit in told]
        assert {hit.model for hits in answers for hit in hits} == {searcher.manifest.query_model}
        assert searcher.search([path], K).ids[0] == answers.ids[1]


def test_vectors_are_searched_only_for_the_model_that_serves(shop: Shop) -> None:
    """Vectors of the model give the same answers; after a switch their model is refused."""
    queries = _images(shop, 4)
    with Searcher.open(shop.path("store")) as searcher:
        current = searcher.current
        prepared = [current.prepare(query).arrays for query in queries]
        (features,) = current.encoder.unchecked_rows(("embedding",), prepared)
        model = searcher.manifest.query_model
        answers = searcher.search_vectors(features, K, query_model=model)
        assert answers.ids == searcher.search(queries, K).ids
        _force(shop, "new.onnx")
        assert searcher.refresh()
        with pytest.raises(ConflictError, match="embedded by"):
            searcher.search_vectors(features, K, query_model=model)
        with pytest.raises(InputError, match="norm"):
            searcher.search_vectors(2 * features, K)


def test_a_deploy_takes_the_index_over_and_a_repeated_refresh_does_nothing(shop: Shop) -> None:
    """Only what is new is loaded, and an old generation answers as long as someone holds it."""
    queries = _images(shop, 3)
    slow = Slow(shop, queries)
    slow.learn()
    with Searcher.open(shop.path("store")) as searcher:
        before = searcher.current
        assert not searcher.refresh()
        _force(shop, "new.onnx")
        slow.learn()
        assert searcher.search(queries, K).generation == 1
        assert searcher.refresh()
        assert not searcher.refresh()
        assert searcher.current.gallery.index is before.gallery.index
        assert searcher.current.encoder is not before.encoder
        after = searcher.search(queries, K)
        assert after.generation == 2
        assert slow.agrees(after)
        late = before.answer([before.prepare(query) for query in queries], K)
        assert late.generation == 1
        assert slow.agrees(late)
        assert shop.run("rollback").code == 0
        assert searcher.refresh()
        assert searcher.manifest.query_model == before.manifest.query_model
        assert searcher.switches == 2


def test_an_index_apart_answers_as_one_in_memory(
    shop: Shop, emoji: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The index of an add is loaded and searched by another process, with the same answers and
    errors, and a deploy after it keeps that process."""
    queries = _images(shop, 3)
    with Searcher.open(shop.path("store"), index_apart=True) as searcher:
        assert isinstance(searcher.current.gallery.index, HnswIndex)
        assert _changes(shop, emoji)[3]() == 0
        assert searcher.refresh()
        apart = searcher.current.gallery.index
        assert isinstance(apart, IndexApart)
        with Searcher.open(shop.path("store")) as other:
            own, here = other.search(queries, K), other.current.gallery.index
            found = searcher.search(queries, K)
            assert (found.generation, found.ids) == (own.generation, own.ids)
            np.testing.assert_array_equal(found.cosines, own.cosines)
            np.testing.assert_array_equal(apart.keys(), here.keys())
            np.testing.assert_array_equal(apart.vectors(), here.vectors())
            assert len(apart) == apart.max_ef == len(here)
        with pytest.raises(InputError, match="no row"):
            apart.vectors(np.array([2**40], np.uint64))
        with pytest.raises(InputError, match="norm"):
            searcher.search_vectors(np.ones((1, here.vectors().shape[1]), np.float32))
        _force(shop, "new.onnx")
        assert searcher.refresh()
        assert searcher.current.gallery.index is apart
        found = searcher.search(queries, K)
        apart._process.kill()
        assert searcher.search(queries, K).ids == found.ids
        assert "is loaded again" in caplog.text


def test_the_process_of_an_index_ends_with_what_it_serves(shop: Shop, emoji: Path) -> None:
    """A generation that no call holds any more, and a killed owner, leave no process behind."""
    store = shop.path("store")
    with Searcher.open(store, index_apart=True) as searcher:
        assert _changes(shop, emoji)[3]() == 0
        assert searcher.refresh()
        first = searcher.current.gallery.index._process
        shop.path("gone.txt").write_text("fresh\n")
        assert shop.run("remove", "--ids", shop.path("gone.txt")).code == 0
        assert searcher.refresh()
        wait_for(lambda: first.poll() is not None)
        last = searcher.current.gallery.index._process
        assert last.poll() is None
    del searcher
    gc.collect()
    wait_for(lambda: last.poll() is not None)
    program = (
        "import sys, pathlib; from compatctl.deployment.gallery import DeployedGallery as D; "
        "from compatctl.store import Store; g = D.open(Store.open(pathlib.Path(sys.argv[1]))); "
        "g.load_index_apart(); print(g.index._process.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, store],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as owner:  # fmt: skip
        assert owner.stdout is not None
        index = Path(f"/proc/{int(owner.stdout.readline())}")
        assert index.exists()
        owner.kill()
    wait_for(lambda: not index.exists())


def test_a_generation_is_freed_without_the_garbage_collector(shop: Shop, emoji: Path) -> None:
    """What a service loaded is kept out of collections: only references keep it in memory."""
    with Searcher.open(shop.path("store")) as searcher:
        searcher.search(_images(shop, 2), K)
        gone = [weakref.ref(searcher.current), weakref.ref(searcher.current.gallery.index)]
        with kept_from_collections():
            assert gc.get_freeze_count() > 0
            assert _changes(shop, emoji)[3]() == 0
            assert searcher.refresh()
            assert [reference() for reference in gone] == [None, None]
        assert gc.get_freeze_count() == 0


def test_no_answer_fails_or_mixes_generations_during_switches(shop: Shop, emoji: Path) -> None:
    """Six threads ask through deploys, rollbacks and adds; each answer is of one generation."""
    queries = _images(shop, 3)
    slow = Slow(shop, queries)
    slow.learn()
    errors: list[Exception] = []
    seen: dict[int, int] = {}
    lock, stop = threading.Lock(), threading.Event()
    pending: list[Answers] = []
    with Searcher.open(shop.path("store"), follow_s=0.02) as searcher:

        def ask() -> None:
            while not stop.is_set():
                try:
                    answers = searcher.search(queries, K)
                except (compatctl.CompatError, RuntimeError, ValueError, IndexError) as error:
                    errors.append(error)
                    return
                with lock:
                    seen[answers.generation] = seen.get(answers.generation, 0) + 1
                    pending.append(answers)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for change in _changes(shop, emoji):
            assert change() in (None, 0)
            slow.learn()
            _wait(lambda: searcher.manifest.generation == max(slow.found))
            reached = len(pending)
            _wait(lambda reached=reached: len(pending) > reached + 6)  # type: ignore[misc]
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors, errors
    assert set(seen) == set(slow.found)
    assert len(seen) == 7
    assert all(slow.agrees(answers) for answers in pending)


def _changes(shop: Shop, emoji: Path) -> list[Callable[[], object]]:
    images = sorted((emoji / "images" / "twemoji").iterdir())
    table = emoji / f"{shop.folder.parent.name}-searcher.csv"
    table.write_text(f"id,path,label\nfresh,{images[3]},fresh\n")
    return [
        lambda: _force(shop, "new.onnx"),
        lambda: shop.run("rollback").code,
        lambda: _force(shop, "worse.onnx"),
        lambda: shop.run("add", "--data", table).code,
        lambda: shop.run("rollback", "--to", 1, "--added", "keep").code,
        lambda: shop.run("rollback", "--to", 2, "--added", "keep").code,
    ]


def _wait(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    stop = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < stop, "it took too long"
        time.sleep(0.005)


def test_a_damaged_generation_never_serves_and_the_one_before_goes_on(shop: Shop) -> None:
    """The reason is in ``problem``; once the file is whole again, the generation serves."""
    queries = _images(shop, 2)
    with Searcher.open(shop.path("store"), follow_s=0.02) as searcher:
        _force(shop, "new.onnx")
        _wait(lambda: searcher.manifest.generation == 2)
        _force(shop, "worse.onnx")
        _wait(lambda: searcher.manifest.generation == 3)
    with Searcher.open(shop.path("store")) as searcher:
        assert shop.run("rollback").code == 0
        model = shop.path("store") / "models" / f"{shop.manifest()['query_model']}.onnx"
        whole = model.read_bytes()
        model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(DamagedError, match="was changed"):
            searcher.refresh()
        assert searcher.problem is not None
        assert searcher.search(queries, K).generation == 3
        model.write_bytes(whole)
        assert searcher.refresh()
        assert searcher.problem is None
        assert searcher.search(queries, K).generation == 4


def test_bad_queries_are_refused_by_name(shop: Shop) -> None:
    """Another kind, bytes that are no image, k of 0, one query that is no list, a closed one."""
    searcher = Searcher.open(shop.path("store"))
    for bad, said in (("a text", "takes images"), (b"junk", "does not decode"), (b"", "empty")):
        with pytest.raises(InputError, match=said):
            searcher.search([bad], K)
    with pytest.raises(InputError, match="at least 1"):
        searcher.search(_images(shop, 1), 0)
    with pytest.raises(UsageError, match="sequence"):
        searcher.search(b"bytes", K)  # type: ignore[arg-type]
    assert len(searcher.search([], K)) == 0
    searcher.close()
    searcher.close()
    with pytest.raises(UsageError, match="closed"):
        searcher.search(_images(shop, 1), K)
    with pytest.raises(InputError, match="no store"):
        Searcher.open(shop.folder / "nowhere")


def test_a_store_of_texts_is_searched_by_texts(tmp_path: Path) -> None:
    """The answers are those of the command, and a text that is cut off is known."""
    shop = TextShop(tmp_path)
    shop.done("init", "--model", shop.models["old"])
    data = load(shop.data)
    text = str(data.content(0))
    told = shop.done("search", text, "-k", K, "--json").json["queries"][0]["hits"]
    with Searcher.open(tmp_path / "store") as searcher:
        answers = searcher.search([text, text], K)
        assert [hit["id"] for hit in told] == list(answers.ids[0]) == list(answers.ids[1])
        assert not searcher.current.prepare(text).cut
        with pytest.raises(InputError, match="takes texts"):
            searcher.search([b"bytes"], K)


def test_a_search_that_an_engine_refuses_is_tried_again_for_a_second() -> None:
    """``MAX_ATTEMPTS`` refusals end a call with the last one; after each other it catches up, and
    waits a moment only where no other generation is there yet."""
    attempts = Attempts()
    asked: list[float] = []

    def catch_up() -> bool:
        asked.append(time.monotonic())
        return len(asked) % 2 == 0

    for _ in range(MAX_ATTEMPTS - 1):
        attempts.next(StaleEpochError("another epoch"), catch_up)
    last = StaleEpochError("the last")
    with pytest.raises(StaleEpochError, match="the last"):
        attempts.next(last, catch_up)
    assert len(asked) == MAX_ATTEMPTS - 1
    waits = np.diff(asked)
    assert waits[::2].min() >= CATCH_UP_S
    assert np.median(waits[1::2]) < CATCH_UP_S


class Forgetful(Searcher):
    """A searcher without memory for each other generation's first load."""

    failures = 0

    def _switch(self, store: Store) -> bool:
        if self._current is not None and store.manifest.generation != self.failures + 1:
            self.failures = store.manifest.generation - 1
            raise MemoryError
        return super()._switch(store)


def test_an_error_that_nobody_foresaw_does_not_end_following(shop: Shop) -> None:
    """The store is looked at on and on: the generation serves when it can be loaded."""
    with Forgetful.open(shop.path("store"), follow_s=0.02) as searcher:
        for generation, model in ((2, "new.onnx"), (3, "worse.onnx")):
            _force(shop, model)
            _until(lambda: searcher.problem == "MemoryError")
            assert searcher.manifest.generation == generation - 1
            _until(lambda: searcher.manifest.generation == generation)  # noqa: B023
            assert searcher.problem is None


def _until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)
