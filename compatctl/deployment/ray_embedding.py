"""Embed blocks of items on a cluster of Ray: each worker has the model, and one that dies is
started again.

Blocks and batches are those of one process, so that rows are the same, in the same order.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import secrets
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Rows, Vectors
from compatctl.data import Dataset
from compatctl.encoder import Encoder
from compatctl.errors import CompatError, InputError
from compatctl.files import DIGEST_BYTES
from compatctl.libraries import require_library
from compatctl.machine import processors
from compatctl.notices import DataWarning, notice
from compatctl.progress import Progress, silent
from compatctl.recipe import Project
from compatctl.store import Store

LOCAL = "local"
"""The address that starts a cluster on this machine, for the command alone."""

WINDOW_BYTES = 1 << 30
"""Bytes of blocks that are given to Ray at once: of items that lie in files, only the paths."""

RESTARTS = 3
"""How often a worker that dies is started again, and how often a block is tried again."""

CONNECT_S = 10.0
"""How long to try an address, in seconds."""

THREADS_S = 30.0
"""How long to wait for the threads of Ray Data after a pass, in seconds."""

# Threads that call Ray by themselves.
_THREADS = ("StreamingExecutor", "ray-data-metadata-prefetch", "iter_threaded")

_LOOPBACK = "127.0.0.2"
"""An address that Ray does not replace by that of the network, as it does 127.0.0.1."""


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """Where to embed: ``address`` as ``ray.init`` takes it, or ``LOCAL``; ``model`` gives the
    sealed bytes of the encoder."""

    address: str
    model: Callable[[], bytes]


def ray_cluster(project: Project, model: Callable[[], bytes]) -> RayCluster | None:
    """The cluster that a project names for a model with these sealed bytes; None without one."""
    return None if project.ray is None else RayCluster(address=project.ray, model=model)


def query_model_cluster(project: Project, store: Store) -> RayCluster | None:
    """The project's cluster for the query model of a store; None without one."""
    sha256 = store.manifest.query_model
    return ray_cluster(project, lambda: store.verified_path("models", sha256).read_bytes())


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """What became of a block of items.

    Attributes:
        rows: rows (n,) of the block that were embedded, ascending.
        features: their features (n, D), float32 unit rows.
        digests: the sha256 (n, 32) of their bytes.
        bad: ids of the others.
    """

    rows: Rows
    features: Vectors
    digests: NDArray[np.uint8]
    bad: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Answer:
    """A block, or an error, with the notices on the way to it."""

    block: Block | None
    error: CompatError | None
    notices: tuple[dict[str, Any], ...]


def embed_each(
    encoder: Encoder,
    parts: Iterable[Dataset],
    cluster: RayCluster | None,
    *,
    skip_bad: bool,
    report: Callable[[int], None] = lambda done: None,
) -> Generator[Block, None, None]:
    """Embed each of the parts, here or on the cluster, in their order.

    Here a part is requested when the one before is done; the cluster takes many ahead. What is
    learned of the items' bytes is remembered by the parts. Close it to leave the cluster early.
    ``report`` is called with the number of items that are embedded here, also within a part.

    Raises:
        InputError: as ``Encoder.embed``; Ray is not installed, or there is no cluster at the
            address.
        CompatError: a worker died more than ``RESTARTS`` times.
    """
    if cluster is None:
        embedded = 0
        for part in parts:
            yield embed_block(encoder, part, skip_bad=skip_bad, report=_after(embedded, report))
            embedded += len(part)
        return
    with _connected(cluster.address) as ray:
        model = ray.put(cluster.model())
        for window in _windows(parts, skip_bad=skip_bad):
            blocks = [part for _, part in window]
            run = _run(ray, blocks, model, encoder.name, skip_bad=skip_bad)
            with contextlib.closing(run) as answers:
                for (items, _), answer in zip(window, answers, strict=True):
                    block = _received(answer)
                    items.remember(block.rows, block.digests)
                    yield block


def _after(before: int, report: Callable[[int], None]) -> Progress:
    """Reports the items of one part, after those of earlier ones."""
    return lambda stage, done, total: report(before + done)


def embed_block(
    encoder: Encoder, items: Dataset, *, skip_bad: bool, report: Progress = silent
) -> Block:
    """Embed the items here; errors as ``Encoder.embed``."""
    if not len(items):
        return Block(
            rows=np.zeros(0, np.int64),
            features=np.zeros((0, encoder.dim), np.float32),
            digests=np.zeros((0, DIGEST_BYTES), np.uint8),
            bad=(),
        )
    embedded = encoder.embed(items, skip_bad=skip_bad, skip_empty=skip_bad, progress=report)
    return Block(
        rows=embedded.rows,
        features=embedded.features,
        digests=embedded.digests,
        bad=tuple(item.id for item in embedded.bad),
    )


def _received(answer: _Answer) -> Block:
    """The block, after its notices are told here; or the error is raised."""
    for told in answer.notices:
        notice(**told)
    if answer.error is not None:
        raise answer.error
    assert answer.block is not None, "a worker gives one of them"
    return answer.block


class Worker:
    """Runs in a process of Ray: has the encoder, and embeds blocks."""

    def __init__(self, model: Sequence[Any], name: str, threads: int, *, skip_bad: bool) -> None:
        import ray

        self._encoder = Encoder.from_bytes(ray.get(model[0]), Path(name), threads)
        self._skip_bad = skip_bad

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        """``items``, a pickled data set, to ``answer``, a pickled ``_Answer``."""
        block: Block | None = None
        failed: CompatError | None = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DataWarning)
            try:
                items = pickle.loads(row["items"])
                block = embed_block(self._encoder, items, skip_bad=self._skip_bad)
            except CompatError as error:
                failed = error
        told = tuple(
            _as_arguments(one.message) for one in caught if isinstance(one.message, DataWarning)
        )
        return {"answer": pickle.dumps(_Answer(block=block, error=failed, notices=told))}


def _as_arguments(warning: DataWarning) -> dict[str, Any]:
    """What ``notice`` was called with."""
    names = ("kind", "source", "what", "names", "result", "count")
    return {name: getattr(warning, name) for name in names}


def _windows(
    parts: Iterable[Dataset], *, skip_bad: bool
) -> Iterator[list[tuple[Dataset, dict[str, bytes]]]]:
    """Parts with what is sent of them, as many at once as ``WINDOW_BYTES`` allow."""
    window: list[tuple[Dataset, dict[str, bytes]]] = []
    size = 0
    for part in parts:
        items = pickle.dumps(part.portable(skip_bad=skip_bad))
        window.append((part, {"items": items}))
        size += len(items)
        if size > WINDOW_BYTES:
            yield window
            window, size = [], 0
    if window:
        yield window


def _run(
    ray: Any, window: list[dict[str, bytes]], model: Any, name: str, *, skip_bad: bool
) -> Generator[_Answer, None, None]:
    """The answers to the blocks of a window, in order. Close it to leave early: what Ray runs for
    them has ended then."""
    total = int(ray.cluster_resources().get("CPU", 1))
    threads = min(4, total)
    blocks = ray.data.from_items(window, override_num_blocks=len(window))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it deprecates the two arguments, and has no others
        answers = blocks.map(
            Worker,
            fn_constructor_args=([model], name, threads),
            fn_constructor_kwargs={"skip_bad": skip_bad},
            concurrency=(1, max(1, total // threads)),
            num_cpus=threads,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
        )
    try:
        with _ended_threads(), contextlib.closing(iter(answers.iter_rows())) as rows:
            for row in rows:
                yield pickle.loads(row["answer"])
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise CompatError(
            f"embedding on Ray: a worker died {RESTARTS + 1} times: "
            f"{str(error).strip().splitlines()[0]}",
            tip="a worker may need more memory than its machine has; without --ray the items are "
            "embedded here",
        ) from error


@contextlib.contextmanager
def _ended_threads() -> Iterator[None]:
    """Wait at the end for threads that Ray Data has started meanwhile.

    Ray ends the process if one of them calls it after ``ray.shutdown``, and Ray Data itself waits
    two seconds for them at most.
    """
    earlier = set(threading.enumerate())
    try:
        yield
    finally:
        deadline = time.monotonic() + THREADS_S
        for thread in set(threading.enumerate()) - earlier:
            if thread.name.startswith(_THREADS):
                thread.join(max(0.0, deadline - time.monotonic()))


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster; what it prints goes to stderr.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == LOCAL and "ray" not in sys.modules:  # which reads the token when it is imported
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    require_library("ray.data", extra="ray", subject="--ray")
    import ray
    import ray.data

    with contextlib.redirect_stdout(sys.stderr):
        try:
            _require_reachable(address)
            _start(ray, address)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise InputError(
                f"no cluster of Ray at {address}: {str(error).strip().splitlines()[0]}",
                tip=f"give the address that ray start printed, or --ray {LOCAL}",
            ) from error
        try:
            _silence(ray)
            yield ray
        finally:
            ray.shutdown()


def _require_reachable(address: str) -> None:
    """Try the port of HOST:PORT: Ray itself waits for it for minutes.

    Raises:
        OSError: nothing listens there.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


def _start(ray: Any, address: str) -> None:
    """Connect to a cluster, or start one that only this process can use."""
    common = {"log_to_driver": False, "logging_level": "error"}
    if address != LOCAL:
        ray.init(address=address, **common)
        return
    ray.init(
        num_cpus=processors(),
        include_dashboard=False,
        _node_ip_address=_LOOPBACK,
        **common,
    )


def _silence(ray: Any) -> None:
    """No progress bars and no plans of execution; results in the order of the blocks."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
