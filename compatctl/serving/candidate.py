"""A candidate beside the query model: in the shadow, where nobody sees its answers, or with a share
of the traffic."""

from __future__ import annotations

import logging
import queue
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from weakref import WeakKeyDictionary

from compatctl.core.binomial import upper_limit
from compatctl.core.hash_order import hash_fraction
from compatctl.deployment.loaded_generation import LoadedGeneration, QueryItem
from compatctl.encoder import Encoder
from compatctl.errors import CompatError
from compatctl.files import write_atomic
from compatctl.serving.answer_log import LogLine
from compatctl.serving.batching import Answer, answer_of

LOG = logging.getLogger("compatctl.serve")

DEPLOYED = "the candidate is the query model now"
"""Why a trial ends."""

MAX_SHADOWS = 64
"""Queries that wait for the shadow; more are dropped and counted."""

MAX_SHADOW_BYTES = 64 << 20
"""Bytes of the queries that wait for the shadow."""

MAX_FAILURES = 20
"""Failures one after the other, after which the shadow stops."""

CERTAINTY = 1e-3
"""The chance of each limit of an error rate."""

TOLERATED_ERRORS = 0.01
"""An error rate up to which traffic goes on."""


@dataclass(kw_only=True, eq=False)
class CandidateModel:
    """A candidate's encoder, asked on the index of whatever generation serves."""

    encoder: Encoder
    _lock: Lock = field(default_factory=Lock, repr=False)
    _own: WeakKeyDictionary[LoadedGeneration, LoadedGeneration] = field(
        default_factory=WeakKeyDictionary, repr=False
    )
    """By the generation that serves, and only as long as anybody asks that."""

    def describe(self) -> dict[str, str]:
        """Its digest and its file's name."""
        return {"sha256": self.encoder.sha256, "name": self.encoder.name}

    def on(self, current: LoadedGeneration) -> LoadedGeneration | None:
        """The generation with the candidate as its query model; None if it is that already.

        Raises:
            InputError: the gallery has another dimension.
        """
        if current.manifest.query_model == self.encoder.sha256:
            return None
        with self._lock:
            if current not in self._own:
                self._own[current] = current.with_model(self.encoder)
            return self._own[current]


@dataclass(frozen=True, kw_only=True, eq=False)
class ShadowQuery:
    """A query that was answered, for the shadow to answer too."""

    item: QueryItem
    k: int
    max_pixels: int
    current: LoadedGeneration
    line: LogLine


class Shadow:
    """Sends a share of the queries to a candidate, in a thread of its own.

    No request waits for it: queries beyond ``MAX_SHADOWS`` are dropped, a failure is counted, and
    after ``MAX_FAILURES`` in a row it stops.

    Attributes:
        counts: answered, failed, dropped.
        stopped: why it stopped; None: it runs.
    """

    def __init__(
        self, candidate: CandidateModel, *, share: float, write: Callable[[LogLine], None]
    ) -> None:
        self.candidate = candidate
        self.share = share
        self.counts: Counter[str] = Counter(answered=0, failed=0, dropped=0)
        self.stopped: str | None = None
        self._write = write
        self._overlap = 0.0
        self._bytes = 0
        self._failures = 0
        self._lock = Lock()
        self._queue: queue.Queue[ShadowQuery | None] = queue.Queue(MAX_SHADOWS)
        self._thread = Thread(target=self._run, name="compatctl-shadow", daemon=True)
        self._thread.start()

    def describe(self) -> dict[str, Any]:
        """Its share, counts, mean overlap, and why it stopped."""
        return {
            "share": self.share,
            **self.counts,
            "overlap": self.overlap,
            "stopped": self.stopped,
        }

    def takes(self, query: str) -> bool:
        """Whether a query of this id is in the sample: the same for the same id."""
        return self.stopped is None and hash_fraction(f"shadow\n{query}") < self.share

    def offer(self, query: ShadowQuery) -> bool:
        """Take a query, if there is room; its line is written with the candidate's answer then."""
        size = len(query.item) if isinstance(query.item, str | bytes) else 0
        with self._lock:
            if self._bytes + size <= MAX_SHADOW_BYTES:
                try:
                    self._queue.put_nowait(query)
                except queue.Full:
                    pass
                else:
                    self._bytes += size
                    return True
            self.counts["dropped"] += 1
        return False

    @property
    def overlap(self) -> float | None:
        """Mean share of the answers that both sides have; None before the first."""
        answered = self.counts["answered"]
        return self._overlap / answered if answered else None

    def close(self) -> None:
        """Answer what waits, and end."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (query := self._queue.get()) is not None:
            size = len(query.item) if isinstance(query.item, str | bytes) else 0
            with self._lock:
                self._bytes -= size
            self._write(self._line(query))
            del query  # else the generation that it was asked of would stay in memory

    def _line(self, query: ShadowQuery) -> LogLine:
        """The query's line with the candidate's answer, or why there is none."""
        line = query.line
        if self.stopped is not None:
            return _with(line, error=self.stopped)
        try:
            other = self._answer(query)
        except Exception as error:  # noqa: BLE001 - a candidate's failure is no one's but its own
            self.counts["failed"] += 1
            self._failures += 1
            reason = reason_of(error)
            if self._failures >= MAX_FAILURES:
                self.stopped = f"{MAX_FAILURES} failures in a row, the last: {reason}"
            return _with(line, error=reason)
        self._failures = 0
        if other is None:
            self.stopped = DEPLOYED
            return line
        self.counts["answered"] += 1
        self._overlap += overlap(line.answer, other)
        return _with(line, other=other)

    def _answer(self, query: ShadowQuery) -> Answer | None:
        generation = self.candidate.on(query.current)
        if generation is None:
            return None
        prepared = generation.prepare(query.item, max_pixels=query.max_pixels)
        return answer_of(generation.answer([prepared], query.k), 0, query.k)


def reason_of(error: Exception) -> str:
    """Why a candidate failed, in words for whoever tries it."""
    if isinstance(error, TimeoutError):
        return "it took too long"
    return error.message if isinstance(error, CompatError) else type(error).__name__


def _with(line: LogLine, *, other: Answer | None = None, error: str | None = None) -> LogLine:
    return LogLine(
        query=line.query, side=line.side, answer=line.answer, other=other, other_error=error
    )


def overlap(first: Answer, second: Answer) -> float:
    """The share of the answers that both have, of the longer one; 1 if both are empty."""
    ids = [{hit.id for hit in answer.hits} for answer in (first, second)]
    longest = max(map(len, ids))
    return len(ids[0] & ids[1]) / longest if longest else 1.0


class Traffic:
    """Lets a candidate answer a share of the queries, until it errs or drifts.

    The same key, a tenant or a query, is always on the same side. The candidate stops for good when
    its error rate is surely above that of the query model and ``TOLERATED_ERRORS``, or when the
    scores of its answers drift and the query model's do not. ``stop_file``: where the processes of
    a service say why, so that it stops in all of them.
    """

    def __init__(
        self, candidate: CandidateModel, *, share: float, stop_file: Path | None = None
    ) -> None:
        self.candidate = candidate
        self.share = share
        self._stopped: str | None = None
        self._stop_file = stop_file
        self._lock = Lock()
        self._answered: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()

    @property
    def stopped(self) -> str | None:
        """Why it stopped, here or in another process of the service; None: it runs."""
        if self._stopped is None and self._stop_file is not None and self._stop_file.exists():
            self._stopped = self._stop_file.read_text("utf-8")
        return self._stopped

    def takes(self, key: str) -> bool:
        """Whether the candidate answers queries of this key now."""
        return self.stopped is None and hash_fraction(f"traffic\n{key}") < self.share

    def count(self, side: str, *, failed: bool) -> None:
        """Count an answer or a failure of a side, and stop the candidate if it errs too often."""
        with self._lock:
            (self._failed if failed else self._answered)[side] += 1
            if failed and side == "candidate":
                self._judge(self._failed, self._answered)

    def judge(self, totals: Mapping[tuple[str, ...], int]) -> None:
        """Stop the candidate if it errs too often by the counts of all processes of the service,
        of each (result, side): "failed" or "answered"."""
        sides = ("current", "candidate")
        failed, answered = (
            {side: totals.get((result, side), 0) for side in sides}
            for result in ("failed", "answered")
        )
        with self._lock:
            self._judge(failed, answered)

    def _judge(self, failed: Mapping[str, int], answered: Mapping[str, int]) -> None:
        errs = _error_rate(failed["candidate"], answered["candidate"])
        usual = _error_rate(failed["current"], answered["current"])
        if errs.lower > max(usual.upper, TOLERATED_ERRORS) and self.stopped is None:
            self._stop(f"{errs.rate:.0%} of its answers failed")

    def stop(self, reason: str) -> None:
        """Let the query model answer everything from now on."""
        with self._lock:
            self._stop(reason)

    def _stop(self, reason: str) -> None:
        if self.stopped is not None:
            return
        self._stopped = reason
        if self._stop_file is not None:
            try:
                write_atomic(self._stop_file, reason.encode())
            except CompatError as error:
                LOG.error("the other processes do not stop the candidate: %s", error.message)

    def describe(self) -> dict[str, Any]:
        """Its share, the counts of both sides, and why it stopped."""
        return {"share": self.share, **self.counts(), "stopped": self.stopped}

    def counts(self) -> dict[str, dict[str, int]]:
        """Answers and failures of each side."""
        with self._lock:
            return {
                side: {"answered": self._answered[side], "failed": self._failed[side]}
                for side in ("current", "candidate")
            }


@dataclass(frozen=True, kw_only=True)
class _ErrorRate:
    """An error rate, and the limits that its counts allow; 0 without any."""

    rate: float = 0.0
    lower: float = 0.0
    upper: float = 0.0


def _error_rate(failed: int, answered: int) -> _ErrorRate:
    total = failed + answered
    if not total:
        return _ErrorRate()
    return _ErrorRate(
        rate=failed / total,
        lower=1.0 - upper_limit(answered, total, CERTAINTY),
        upper=upper_limit(failed, total, CERTAINTY),
    )
