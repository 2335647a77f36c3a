"""Micro-batches: queries that wait together are embedded and searched together."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread

from compatctl.deployment.loaded_generation import Answers, LoadedGeneration, PreparedQuery
from compatctl.deployment.searching import Hit
from compatctl.errors import CompatError

MAX_BATCH = 32
"""Queries of one pass."""


class QueueFullError(Exception):
    """More queries wait than the service takes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """The answer of one query.

    Attributes:
        generation, query_model: as ``Answers``.
        hits: nearest first.
        passed: gallery items that were embedded to re-score the batch in which the query was.
    """

    generation: int
    query_model: str
    hits: tuple[Hit, ...]
    passed: int = 0


@dataclass(kw_only=True, eq=False)
class _Waiting:
    """A query that waits for its answer from one generation."""

    generation: LoadedGeneration
    query: PreparedQuery
    k: int
    future: Future[Answer] = field(default_factory=Future)


class MicroBatcher:
    """One thread answers what waits, as many queries of one generation at once as there are.

    Nothing waits for others to come: a query that comes alone is answered alone, and what comes
    meanwhile makes the next batch.
    """

    def __init__(self, *, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._queue: deque[_Waiting] = deque()
        self._changed = Condition()
        self._closed = False
        self.batches = 0
        self.answered = 0
        self._thread = Thread(target=self._run, name="compatctl-answer", daemon=True)
        self._thread.start()

    def submit(self, generation: LoadedGeneration, query: PreparedQuery, k: int) -> Future[Answer]:
        """The answer of a query by a generation, later. Its errors are those of ``answer``.

        Raises:
            QueueFullError: too many queries wait, or the batcher is closed.
        """
        waiting = _Waiting(generation=generation, query=query, k=k)
        with self._changed:
            if self._closed or len(self._queue) >= self._max_waiting:
                raise QueueFullError
            self._queue.append(waiting)
            self._changed.notify()
        return waiting.future

    @property
    def waiting(self) -> int:
        """Queries that wait now."""
        return len(self._queue)

    def close(self) -> None:
        """Answer what waits, and take no more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            self._answer(batch)
            del batch  # else the last generation that was asked would stay in memory

    def _next(self) -> list[_Waiting]:
        """The oldest query and those of its generation; none at the end."""
        with self._changed:
            while True:
                while not self._queue and not self._closed:
                    self._changed.wait()
                batch = self._taken()
                if batch or self._closed:
                    return batch

    def _taken(self) -> list[_Waiting]:
        """Take them from the queue; what was cancelled is left out of it."""
        batch: list[_Waiting] = []
        left: deque[_Waiting] = deque()
        while self._queue:
            waiting = self._queue.popleft()
            if waiting.future.cancelled():
                continue
            first = batch[0] if batch else waiting
            if waiting.generation is first.generation and len(batch) < MAX_BATCH:
                batch.append(waiting)
            else:
                left.append(waiting)
        self._queue = left
        return batch

    def _answer(self, batch: list[_Waiting]) -> None:
        """Answer a batch; a query that makes it fail fails alone."""
        batch = [waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            answers = batch[0].generation.answer(
                [waiting.query for waiting in batch], max(waiting.k for waiting in batch)
            )
        except Exception as error:  # noqa: BLE001 - it is the request's, not the thread's
            if len(batch) == 1 or not isinstance(error, CompatError):
                for waiting in batch:
                    waiting.future.set_exception(error)
                return
            for waiting in batch:
                self._alone(waiting)
            return
        self.batches += 1
        self.answered += len(batch)
        for row, waiting in enumerate(batch):
            waiting.future.set_result(answer_of(answers, row, waiting.k))

    def _alone(self, waiting: _Waiting) -> None:
        try:
            answers = waiting.generation.answer([waiting.query], waiting.k)
        except Exception as error:  # noqa: BLE001 - as above
            waiting.future.set_exception(error)
            return
        self.batches += 1
        self.answered += 1
        waiting.future.set_result(answer_of(answers, 0, waiting.k))


def answer_of(answers: Answers, row: int, k: int) -> Answer:
    """The answer of one of the queries, with at most ``k`` hits."""
    passed: int = 0 if answers.rescoring is None else answers.rescoring.passed
    return Answer(
        generation=answers.generation,
        query_model=answers.query_model,
        hits=answers[row][:k],
        passed=passed,
    )
