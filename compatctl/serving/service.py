"""The service without HTTP: a query in, its answer out, by the query model or a candidate."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, TypeVar

import numpy as np

from compatctl.core.arrays import Vectors
from compatctl.data import Dataset, ItemVectors, thumbnail
from compatctl.deployment.loaded_generation import LoadedGeneration, PreparedQuery
from compatctl.deployment.searcher import Attempts, Searcher
from compatctl.engines import StaleEpochError
from compatctl.errors import CompatError, InputError, UsageError
from compatctl.machine import processors
from compatctl.manifest import Manifest
from compatctl.serving.answer_log import AnswerLog, LogLine
from compatctl.serving.batching import Answer, MicroBatcher, QueueFullError
from compatctl.serving.candidate import (
    DEPLOYED,
    CandidateModel,
    Shadow,
    ShadowQuery,
    Traffic,
    reason_of,
)
from compatctl.serving.metrics import Metrics
from compatctl.serving.shared_metrics import SharedMetrics
from compatctl.store import Store

T = TypeVar("T")

RequestItem = str | bytes | Vectors | Mapping[str, Vectors]
"""What a request may ask for: a text, an image's bytes, a vector, or vectors by space."""

SHOWN_TEXT = 2000
"""Characters of a text that the page shows."""

DRIFT_EVERY = 100
"""Answers of a candidate between two looks at its drift."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may be.

    Attributes:
        body_bytes: bytes of a request's body.
        pixels: width x height of an image.
        text: characters of a text.
        k: answers.
        seconds: until the answer.
        requests: at once.
    """

    body_bytes: int = 10 << 20
    pixels: int = 50_000_000
    text: int = 100_000
    k: int = 1000
    seconds: float = 10.0
    requests: int = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Query:
    """A query of ``k`` answers.

    Attributes:
        id: the caller's id of it, or the sha256 of its content.
        tenant: whose query it is; None: nobody's. It decides which side of the traffic answers.
    """

    item: RequestItem
    k: int
    id: str
    tenant: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Served:
    """An answer, the side that gave it, and whether the query's text was cut off."""

    answer: Answer
    side: str
    cut: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """The answers of the query model and of the candidate.

    Attributes:
        candidate: None: there is no candidate, or it has no answer.
        candidate_error: why it has none although there is one.
    """

    current: Answer
    candidate: Answer | None = None
    candidate_error: str | None = None


def content_id(item: RequestItem) -> str:
    """The sha256 of a query's content, which stands for it where the caller gives no id."""
    digest = hashlib.sha256()
    if isinstance(item, str):
        digest.update(item.encode("utf-8", "surrogatepass"))
    elif isinstance(item, bytes):
        digest.update(item)
    elif isinstance(item, Mapping):
        for space, vector in sorted(item.items()):
            digest.update(f"{space}\n".encode("utf-8", "surrogatepass"))
            digest.update(np.asarray(vector, np.float32).tobytes())
    else:
        digest.update(np.ascontiguousarray(item).tobytes())
    return digest.hexdigest()


@dataclass(kw_only=True, eq=False)
class SearchService:
    """Answers queries of many requests at once.

    ``shadow`` and ``traffic`` have a candidate, ``log`` gets a line for each answer, ``data`` has
    what the page shows of gallery items, ``shared`` the metrics of all ``processes`` of the
    service.
    """

    searcher: Searcher
    limits: Limits
    metrics: Metrics
    log: AnswerLog | None = None
    shadow: Shadow | None = None
    traffic: Traffic | None = None
    data: Dataset | None = None
    shared: SharedMetrics | None = None
    processes: int = 1
    _batchers: dict[str, MicroBatcher] = field(init=False, repr=False)
    """One for each side, so that a slow candidate holds nobody's query but its own."""
    _pool: ThreadPoolExecutor = field(init=False, repr=False)
    _refreshing: Lock = field(init=False, repr=False)
    _reading_history: Lock = field(default_factory=Lock, repr=False)
    _requests: int = 0
    _candidate_answers: int = 0

    def __post_init__(self) -> None:
        sides = ("current",) if self.candidate is None else ("current", "candidate")
        most = 2 * self.limits.requests
        self._batchers = {side: MicroBatcher(max_waiting=most) for side in sides}
        workers = max(1, processors() // self.processes)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="compatctl-prepare")
        self._refreshing = Lock()
        if self.shared is not None:
            self._publish()
            self.shared.start(self._publish)

    @property
    def candidate(self) -> CandidateModel | None:
        """The candidate of the shadow or of the traffic."""
        side = self.shadow or self.traffic
        return None if side is None else side.candidate

    @property
    def is_full(self) -> bool:
        """Whether as many requests run as may."""
        return self._requests >= self.limits.requests

    async def search(self, query: Query) -> Served:
        """The answer of a query.

        Raises:
            QueueFullError: too many requests run.
            TimeoutError: it took longer than ``limits.seconds``.
            InputError: the query is not what the model takes.
            UsageError: the searcher is closed.
        """
        began = time.perf_counter()
        async with self._admitted():
            served, current = await self._again(lambda: self._search(query))
        self.metrics.answered(served.side, served.answer, time.perf_counter() - began)
        self._record(query, served, current)
        return served

    @asynccontextmanager
    async def _admitted(self) -> AsyncIterator[None]:
        """One request of those that may run at once, for the seconds that it may take."""
        if self.is_full:
            raise QueueFullError
        self._requests += 1
        try:
            async with asyncio.timeout(self.limits.seconds):
                yield
        finally:
            self._requests -= 1

    async def _again(self, call: Callable[[], Awaitable[T]]) -> T:
        """A call's result, again where an engine switched to another generation meanwhile."""
        attempts = Attempts()
        while True:
            current = self.searcher.current
            try:
                return await call()
            except StaleEpochError as refusal:
                catch_up = partial(self.searcher.catch_up, current)
                await self._in_pool(attempts.next, refusal, catch_up)

    async def _search(self, query: Query) -> tuple[Served, LoadedGeneration]:
        current = self.searcher.current
        traffic = self.traffic
        if traffic is None or not traffic.takes(query.tenant or query.id):
            return await self._counted("current", current, query), current
        if reason := _untried(current.manifest, traffic.candidate):
            traffic.stop(reason)
            return await self._counted("current", current, query), current
        try:
            served = await self._tried(traffic.candidate, current, query)
        except (StaleEpochError, asyncio.CancelledError):
            raise
        except Exception:  # noqa: BLE001 - the caller gets the query model's answer
            served = await self._counted("current", current, query)
            traffic.count("candidate", failed=True)  # the query is good: the other model takes it
            return served, current
        traffic.count("candidate", failed=False)
        self._look_for_drift(traffic, current)
        return served, current

    async def _counted(self, side: str, generation: LoadedGeneration, query: Query) -> Served:
        """The answer of one generation, counted for its side of the traffic."""
        prepared = await self._prepared(generation, query)
        try:
            served = await self._ask(side, generation, query, prepared)
        except (QueueFullError, StaleEpochError, asyncio.CancelledError):
            raise
        except Exception:
            if self.traffic is not None:
                self.traffic.count(side, failed=True)
            raise
        if self.traffic is not None:
            self.traffic.count(side, failed=False)
        return served

    async def _tried(
        self, candidate: CandidateModel, current: LoadedGeneration, query: Query
    ) -> Served:
        """The candidate's answer, in half of the time, so that the query model has the other half.

        Raises:
            TimeoutError: it took longer.
            QueueFullError: too many queries wait for it.
            InputError: the gallery has another dimension, or the candidate fails on the query.
        """
        async with asyncio.timeout(self.limits.seconds / 2):
            generation = await self._in_pool(candidate.on, current)
            assert generation is not None, "the candidate is not the query model"
            prepared = await self._prepared(generation, query)
            return await self._ask("candidate", generation, query, prepared)

    async def _prepared(self, generation: LoadedGeneration, query: Query) -> PreparedQuery:
        return await self._in_pool(
            lambda: generation.prepare(query.item, max_pixels=self.limits.pixels)
        )

    async def _ask(
        self, side: str, generation: LoadedGeneration, query: Query, prepared: PreparedQuery
    ) -> Served:
        """The answer of one generation."""
        future = self._batchers[side].submit(generation, prepared, query.k)
        return Served(answer=await asyncio.wrap_future(future), side=side, cut=prepared.cut)

    async def _in_pool(self, call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *arguments)

    def _look_for_drift(self, traffic: Traffic, current: LoadedGeneration) -> None:
        self._candidate_answers += 1
        if self._candidate_answers % DRIFT_EVERY:
            return
        drifted = self.metrics.drifted(traffic.candidate.encoder.sha256)
        if drifted and not self.metrics.drifted(current.manifest.query_model):
            traffic.stop("the scores of its answers drifted, and the query model's did not")

    def _record(self, query: Query, served: Served, current: LoadedGeneration) -> None:
        """Log the answer, after the shadow's if the query is in its sample."""
        line = LogLine(query=query.id, side=served.side, answer=served.answer)
        if self.shadow is not None and self.shadow.takes(query.id):
            asked = ShadowQuery(
                item=query.item,
                k=query.k,
                max_pixels=self.limits.pixels,
                current=current,
                line=line,
            )
            if self.shadow.offer(asked):
                return
        if self.log is not None:
            self.log.add(line)

    async def compare(self, query: Query) -> Compared:
        """The answers of the query model and of the candidate, which may fail alone.

        Raises:
            as ``search``.
        """
        async with self._admitted():
            return await self._again(lambda: self._compare(query))

    async def _compare(self, query: Query) -> Compared:
        current, candidate = self.searcher.current, self.candidate
        first = await self._counted("current", current, query)
        if candidate is None or candidate.encoder.sha256 == current.manifest.query_model:
            return Compared(current=first.answer)
        try:
            second = await self._tried(candidate, current, query)
        except (StaleEpochError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - the caller gets the query model's answer
            return Compared(current=first.answer, candidate_error=reason_of(error))
        return Compared(current=first.answer, candidate=second.answer)

    def state(self) -> dict[str, Any]:
        """What decides whether queries are answered."""
        try:
            manifest = self.searcher.manifest
        except UsageError:
            return {"ready": False, "reason": "closing"}
        return {
            "ready": not self.is_full,
            "generation": manifest.generation,
            "query_model": manifest.query_model,
            "newest_does_not_serve": self.searcher.problem is not None,
        }

    def status(self, generations: int) -> dict[str, Any]:
        """What serves, what is tried beside it, and the last generations, newest first.

        Raises:
            UsageError: the searcher is closed.
        """
        gallery = self.searcher.current.gallery
        manifest = gallery.manifest
        return {
            **self.state(),
            "modality": gallery.encoder.modality,
            "rows": manifest.index.count,
            "models": [
                {"sha256": share.sha256, "name": share.name, "rows": share.rows}
                for share in manifest.models
            ],
            "has_items": self.data is not None,
            "candidate": None if self.candidate is None else self.candidate.describe(),
            "shadow": None if self.shadow is None else self.shadow.describe(),
            "traffic": None if self.traffic is None else self.traffic.describe(),
            "processes": self.processes,
            "history": self._history(gallery.store, manifest, generations),
        }

    def _history(self, store: Store, manifest: Manifest, generations: int) -> list[dict[str, Any]]:
        """The last generations, newest first, as far as the store can be read now."""
        shown = [_in_history(manifest)]
        first = max(1, manifest.generation - generations + 1)
        with self._reading_history:  # the store keeps what it has read, for one thread
            for number in range(manifest.generation - 1, first - 1, -1):
                try:
                    shown.append(_in_history(store.generation(number)))
                except CompatError:  # what serves is in memory, and ``problem`` says what is wrong
                    break
        return shown

    def item(self, item_id: str) -> tuple[bytes, str] | None:
        """A gallery item's picture (JPEG) or text, and its media type; None: it is not here."""
        if self.data is None or item_id not in self.searcher.current.gallery.catalog.row_of:
            return None
        row = self.data.row_of.get(item_id)
        if row is None:
            return None
        try:
            content = self.data.content(row)
        except InputError:
            return None
        if isinstance(content, str):
            return content[:SHOWN_TEXT].encode("utf-8", "replace"), "text/plain; charset=utf-8"
        return None if isinstance(content, ItemVectors) else (thumbnail(content), "image/jpeg")

    def metrics_text(self) -> bytes:
        """The metrics of the service, of all its processes, in the text format of Prometheus.

        Raises:
            UsageError: the searcher is closed.
        """
        if self.shared is not None:
            self._publish()
            return self.shared.text()
        with self._refreshing:
            self._refresh_metrics()
            return self.metrics.text()

    def _publish(self) -> None:
        """Write the metrics of this process for the others."""
        assert self.shared is not None, "there are other processes"
        with self._refreshing:
            self._refresh_metrics()
            self.shared.publish(self.metrics.registry)
        if self.traffic is not None and self.traffic.stopped is None:
            self.traffic.judge(self.shared.totals("compatctl_traffic"))

    def _refresh_metrics(self) -> None:
        """Bring the metrics up to date."""
        self.metrics.of_store(self.searcher)
        batchers = self._batchers.values()
        self.metrics.of_batches(
            sum(one.waiting for one in batchers),
            sum(one.batches for one in batchers),
            self.answered,
        )
        if self.log is not None:
            self.metrics.of_log(self.log.written, self.log.dropped)
        if self.shadow is not None:
            self.metrics.of_shadow(self.shadow)
        if self.traffic is not None:
            self.metrics.of_traffic(self.traffic)

    @property
    def answered(self) -> int:
        """Queries that were answered."""
        return sum(one.answered for one in self._batchers.values())

    def close(self) -> None:
        """Answer what waits, write the log, and end."""
        if self.shared is not None:
            self.shared.close()
        for batcher in self._batchers.values():
            batcher.close()
        self._pool.shutdown(cancel_futures=True)
        if self.shadow is not None:
            self.shadow.close()
        if self.log is not None:
            self.log.close()
        self.searcher.close()


def _in_history(manifest: Manifest) -> dict[str, Any]:
    return {
        "generation": manifest.generation,
        "operation": str(manifest.operation),
        "created_at": manifest.created_at,
        "query_model": manifest.query_model,
        "rows": manifest.index.count,
        "restores": manifest.restores,
    }


def _untried(manifest: Manifest, candidate: CandidateModel) -> str | None:
    """Why a candidate gets none of a generation's traffic; None: it may."""
    if manifest.query_model == candidate.encoder.sha256:
        return DEPLOYED
    if manifest.rescoring is not None or manifest.calibration is not None:
        return "the store re-scores answers or calibrates scores now, and a candidate does not"
    return None
