"""A searcher: answers queries from a store, and follows its generations without a break."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Self

import numpy as np

from compatctl.core.arrays import Vectors
from compatctl.data import Dataset
from compatctl.deployment.engines import in_engine
from compatctl.deployment.loaded_generation import Answers, LoadedGeneration, QueryItem
from compatctl.engines import StaleEpochError
from compatctl.errors import CompatError, ConflictError, UsageError
from compatctl.manifest import Manifest
from compatctl.pauses import with_pauses
from compatctl.recipe import Project
from compatctl.store import Store, is_in_bucket, store_path

LOG = logging.getLogger("compatctl.searcher")

MAX_ATTEMPTS = 20
"""Searches of one call that an engine may refuse because another generation took over."""

CATCH_UP_S = 0.05
"""Seconds between two of them."""

RETRY_S = 5.0
"""Seconds after which a generation that could not be loaded is tried again."""


class Attempts:
    """The searches of one call, which an engine refuses while another generation takes over."""

    def __init__(self) -> None:
        self._refused = 0

    def next(self, refusal: StaleEpochError, catch_up: Callable[[], bool]) -> None:
        """Prepare the next attempt; an engine's row is switched a moment before the manifest.

        ``catch_up`` says whether another generation is there by now; if not, this waits a moment.

        Raises:
            StaleEpochError: ``refusal``, after ``MAX_ATTEMPTS`` of them.
            CompatError: as ``catch_up``.
        """
        self._refused += 1
        if self._refused == MAX_ATTEMPTS:
            raise refusal
        if not catch_up():
            time.sleep(CATCH_UP_S)


class Searcher:
    """Answers queries from the current generation of a store; any number of threads may ask.

    ``refresh`` loads a newer generation beside the one that serves, checks it, and switches. Each
    call is answered wholly by the generation that was current when it began, and that generation is
    in memory until its last call has ended. One that cannot be loaded or fails a check never
    serves: the one before goes on, and ``problem`` says why.

        with Searcher.open("store", follow_s=0.25) as searcher:
            for hit in searcher.search(["a red lamp"], k=10)[0]:
                print(hit.id, hit.score)

    While two generations with different indexes are loaded, the memory is that of both.
    """

    def __init__(
        self,
        store: Path,
        project: Project,
        data: Dataset | None,
        index_apart: bool,
    ) -> None:
        self._store = store
        self._project = project
        self._data = data
        self._index_apart = index_apart
        self._refreshing = Lock()
        self._seen: object = None
        self._failed_at: float | None = None
        self._problem: str | None = None
        self._stopped = Event()
        self._follower: Thread | None = None
        self._current: LoadedGeneration | None = None
        self._switches = 0

    @classmethod
    def open(
        cls,
        store: Path | str,
        *,
        project: Project | None = None,
        data: Dataset | None = None,
        follow_s: float | None = None,
        index_apart: bool = False,
    ) -> Self:
        """Load the current generation of a store: a folder, or ``s3://BUCKET/PREFIX``.

        ``project`` has the limit ``max_gallery_pass``, and ``data`` the gallery's items, for a
        store that re-scores answers; without data it re-scores with the free vectors that it has.
        ``follow_s``: look for a newer generation that often, in seconds, in a thread; None: only
        ``refresh`` does. ``index_apart``: another index than the first one is loaded, and from
        then on searched, in a process of its own, so that calls do not stand still meanwhile:
        hnswlib holds the interpreter for about 0.7 seconds a gigabyte.

        Raises:
            InputError: there is no store, the query model fails its canary, or hnswlib is missing.
            DamagedError: a file of the generation is missing or changed.
        """
        path = store_path(store)
        searcher = cls(path, project or Project(store=path), data, index_apart)
        searcher.refresh()
        if follow_s is not None:
            searcher._follow(follow_s)
        return searcher

    @property
    def current(self) -> LoadedGeneration:
        """The generation that serves now. Use one for a whole request.

        Raises:
            UsageError: the searcher is closed.
        """
        current = self._current
        if current is None:
            raise UsageError("the searcher is closed", tip="open another one: Searcher.open")
        return current

    @property
    def manifest(self) -> Manifest:
        """The manifest of the generation that serves now; errors as ``current``."""
        return self.current.manifest

    @property
    def problem(self) -> str | None:
        """Why the store's newest generation does not serve; None if it does."""
        return self._problem

    @property
    def switches(self) -> int:
        """How many times a newer generation took over."""
        return self._switches

    def search(self, items: Sequence[QueryItem], k: int = 10) -> Answers:
        """The k nearest gallery items of each query, as ``QueryItem`` describes queries.

        Raises:
            InputError: a query is not of the query model's kind, or does not decode; or k < 1.
            UsageError: the searcher is closed, or ``items`` is one query and no sequence of them.
            StaleEpochError: an engine serves another generation than the store, and goes on so.
        """
        if isinstance(items, str | bytes | Path):
            raise UsageError("search takes a sequence of queries", tip="for one: search([query])")
        attempts = Attempts()
        while True:
            current = self.current
            try:
                return current.answer([current.prepare(item) for item in items], k)
            except StaleEpochError as refusal:
                attempts.next(refusal, partial(self.catch_up, current))

    def catch_up(self, stale: LoadedGeneration) -> bool:
        """``refresh``; whether another generation than ``stale`` serves now."""
        self.refresh()
        return self.current is not stale

    def search_vectors(
        self, vectors: Vectors, k: int = 10, *, query_model: str | None = None
    ) -> Answers:
        """The k nearest gallery items of embedded queries (Q, D): finite rows of unit length.

        ``query_model``: the digest of the model that embedded them. A query must be embedded by the
        model that serves, and only the caller knows which one did.

        Raises:
            ConflictError: another query model serves by now; embed the queries again.
            InputError: another dimension, or rows that are not finite and of unit length; or k < 1.
            UsageError: the searcher is closed, or the store re-scores answers.
        """
        current = self.current
        if query_model is not None and query_model != current.manifest.query_model:
            raise ConflictError(
                f"the queries were embedded by {query_model[:12]}, and generation "
                f"{current.manifest.generation} serves with {current.manifest.query_model[:12]}",
                tip="embed the queries with the query model that serves, and search again",
            )
        return current.search(np.asarray(vectors, np.float32), k, free=None)

    def refresh(self) -> bool:
        """Switch to the store's current generation; whether another one serves now.

        Calls go on during it. Nothing is loaded where manifest.json has not changed.

        Raises:
            CompatError: as ``open``. The generation before goes on serving.
        """
        with self._refreshing:
            seen = self._signature()
            try:
                if not self._may_have_moved(seen):
                    return False
                switched = self._switch(Store.open(self._store))
            except CompatError as error:
                self._failed_at = time.monotonic()
                if self._current is not None and error.message != self._problem:
                    LOG.warning("the newest generation does not serve: %s", error.message)
                self._problem, self._seen = error.message, seen
                raise
            self._problem, self._seen = None, seen
            return switched

    def _switch(self, store: Store) -> bool:
        before = self._current
        if self._stopped.is_set() or (before is not None and store.manifest == before.manifest):
            return False
        loaded = LoadedGeneration.load(
            store,
            project=self._project,
            data=self._data,
            before=before,
            index_apart=self._index_apart,
        )
        if self._stopped.is_set():
            return False
        self._current = loaded
        if before is not None:
            self._switches += 1
            now = loaded.manifest
            LOG.info("generation %d serves, query model %s", now.generation, now.query_model[:12])
        return True

    def _may_have_moved(self, seen: object) -> bool:
        """Whether the store is to be opened again: it changed, or its last generation failed.

        Raises:
            CompatError: a bucket does not answer.
        """
        if self._current is None or self._problem is not None:
            return True
        if is_in_bucket(self._store):
            return self._current.gallery.store.has_moved()
        return seen != self._seen

    def _signature(self) -> object:
        """What changes when the store has another generation; None: that is not known here."""
        if is_in_bucket(self._store):
            return None
        try:
            status = (self._store / "manifest.json").stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _follow(self, every_s: float) -> None:
        def look() -> None:
            while not self._stopped.wait(every_s):
                waits = self._problem is not None and self._signature() == self._seen
                since = time.monotonic() - (self._failed_at or 0.0)
                if waits and since < RETRY_S:
                    continue
                try:
                    with self._gently():
                        self.refresh()
                except CompatError:  # it is in ``problem``, and the generation before serves
                    continue
                except Exception as error:
                    LOG.exception("the newest generation does not serve")
                    self._problem, self._seen = type(error).__name__, self._signature()
                    self._failed_at = time.monotonic()

        self._follower = Thread(target=look, name="compatctl-follow", daemon=True)
        self._follower.start()

    def _gently(self) -> AbstractContextManager[None]:
        """With pauses, unless requests wait for the new generation: an engine that has switched
        refuses their searches until it serves here."""
        current = self._current
        waited_for = current is None or in_engine(current.manifest)
        return nullcontext() if waited_for else with_pauses()

    def close(self) -> None:
        """Answer no more calls; those that run end as usual. Closing twice is fine."""
        self._stopped.set()
        if self._follower is not None:
            self._follower.join()
        self._current = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
