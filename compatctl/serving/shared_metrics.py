"""The metrics of a service of several processes: each writes its own to a folder, any reads all."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from threading import Event, Thread
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

PUBLISH_S = 1.0
"""Seconds between two writings: what a killed process counted in them is lost."""

ENDED = "ended.json"

COUNTS = frozenset(("compatctl_shadow", "compatctl_traffic", "compatctl_log"))
"""Gauges that count: they go on after the process that counted."""

RULES: dict[str, Callable[[list[float]], float]] = {
    "compatctl_switches": max,
    "compatctl_newest_does_not_serve": max,
    "compatctl_score_drift": max,
    "compatctl_score_drift_alarm": max,
    "compatctl_waiting": sum,
    "compatctl_processes": sum,
    "compatctl_batch_mean": fmean,
    "compatctl_shadow_overlap": fmean,
    "compatctl_traffic_share": min,
}
"""How a gauge's values of the processes become one."""

OF_STORE = frozenset(
    (
        "compatctl_generation",
        "compatctl_query_model",
        "compatctl_gallery_share",
        "compatctl_gallery_rows",
    )
)
"""Gauges of the generation that serves: those of the process with the oldest one."""

_Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Family:
    """A metric and its samples: (name, labels) -> value."""

    kind: str
    text: str
    samples: dict[_Key, float] = field(default_factory=dict)

    @property
    def adds_up(self) -> bool:
        """Whether it counts from the start of the service."""
        return self.kind in {"counter", "histogram"}


_Snapshot = dict[str, _Family]


class SharedMetrics:
    """Of one process. ``folder`` is one that the processes of a service share, and nobody else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own = folder / f"{os.getpid()}-{time.time_ns()}.json"
        self._latest: dict[str, Any] = {}
        self._stopped = Event()
        self._thread: Thread | None = None

    def start(self, publish: Callable[[], object]) -> None:
        """Call ``publish`` every ``PUBLISH_S`` seconds, in a thread, and a last time at the end."""

        def run() -> None:
            ends = False
            while not ends:
                ends = self._stopped.wait(PUBLISH_S)
                publish()

        self._thread = Thread(target=run, name="compatctl-metrics", daemon=True)
        self._thread.start()

    def publish(self, metrics: Collector) -> None:
        """Write the metrics of this process. Without space the others see the last ones."""
        self._latest = {"families": _as_json(_snapshot(metrics.collect()))}
        with contextlib.suppress(OSError):
            _write(self._own, self._latest)

    def text(self) -> bytes:
        """The metrics of all processes, in the text format of Prometheus.

        Counts are sums, and those of processes that have ended stay in them.
        """
        return generate_latest(_Merged(self._of_all()))

    def totals(self, name: str) -> dict[tuple[str, ...], int]:
        """The sums of a metric that counts, by the values of its labels in their names' order."""
        family = self._of_all().get(name)
        samples = {} if family is None else family.samples
        return {
            tuple(value for _, value in labels): int(count)
            for (_, labels), count in samples.items()
        }

    def _of_all(self) -> _Snapshot:
        # In this order: what has ended meanwhile is in ``ENDED``, and is left out here by its name.
        running = {path.name: _read(path) for path in self._folder.glob("*-*.json")}
        running[self._own.name] = self._latest
        ended = _read(self._folder / ENDED)
        folded = set(ended.get("names", ()))
        snapshots = [
            _from_json(content["families"])
            for name, content in running.items()
            if content and name not in folded
        ]
        return _merged(snapshots, _from_json(ended.get("families", {})))

    def close(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()


def fold_ended(folder: Path, pid: int) -> None:
    """Keep the counts of a process that has ended. Only one process calls it.

    Raises:
        OSError: there is no space.
    """
    ended = _read(folder / ENDED)
    counts, names = _from_json(ended.get("families", {})), list(ended.get("names", ()))
    files = list(folder.glob(f"{pid}-*.json"))
    for path in files:
        snapshot = _from_json(_read(path).get("families", {}))
        kept = {
            name: family for name, family in snapshot.items() if family.adds_up or name in COUNTS
        }
        counts = _added([counts, kept])
        names.append(path.name)
    _write(folder / ENDED, {"names": names, "families": _as_json(counts)})
    for path in files:
        path.unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)
class _Merged(Collector):
    """Families as prometheus_client takes them."""

    families: _Snapshot

    def collect(self) -> Iterator[Metric]:
        """Each metric."""
        for name, family in self.families.items():
            metric = Metric(name, family.text, family.kind)
            for (sample, labels), value in family.samples.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric


def _merged(snapshots: list[_Snapshot], ended: _Snapshot) -> _Snapshot:
    """The metrics of the service."""
    counted = _added([*snapshots, ended])
    oldest = min(snapshots, key=_generation, default={})
    merged: _Snapshot = {}
    for name, family in counted.items():
        if family.adds_up or name in COUNTS:
            merged[name] = family
        elif name in OF_STORE:
            merged[name] = oldest.get(name, family)
        else:
            merged[name] = _joined([one[name] for one in snapshots if name in one], RULES[name])
    return merged


def _generation(snapshot: _Snapshot) -> float:
    return snapshot["compatctl_generation"].samples["compatctl_generation", ()]


def _added(snapshots: Iterable[_Snapshot]) -> _Snapshot:
    """Sums of all samples; of the times at which a count began, the first."""
    total: _Snapshot = {}
    for snapshot in snapshots:
        for name, family in snapshot.items():
            empty = _Family(kind=family.kind, text=family.text)
            samples = total.setdefault(name, empty).samples
            for key, value in family.samples.items():
                if key[0].endswith("_created"):
                    samples[key] = min(value, samples.get(key, value))
                else:
                    samples[key] = samples.get(key, 0.0) + value
    return total


def _joined(families: list[_Family], rule: Callable[[list[float]], float]) -> _Family:
    """One gauge of those of the processes that run."""
    values: dict[_Key, list[float]] = {}
    for family in families:
        for key, value in family.samples.items():
            values.setdefault(key, []).append(value)
    samples = {key: float(rule(each)) for key, each in values.items()}
    return _Family(kind=families[0].kind, text=families[0].text, samples=samples)


def _snapshot(metrics: Iterable[Metric]) -> _Snapshot:
    return {
        metric.name: _Family(
            kind=metric.type,
            text=metric.documentation,
            samples={
                (sample.name, tuple(sorted(sample.labels.items()))): sample.value
                for sample in metric.samples
            },
        )
        for metric in metrics
    }


def _as_json(snapshot: _Snapshot) -> dict[str, object]:
    return {
        name: [family.kind, family.text, [[*key, value] for key, value in family.samples.items()]]
        for name, family in snapshot.items()
    }


def _from_json(families: dict[str, Any]) -> _Snapshot:
    return {
        name: _Family(
            kind=kind,
            text=text,
            samples={
                (sample, tuple((label, value) for label, value in labels)): number
                for sample, labels, number in samples
            },
        )
        for name, (kind, text, samples) in families.items()
    }


def _write(path: Path, content: object) -> None:
    """Replace a file at once. It need not outlive the machine: nothing is synced."""
    path.parent.mkdir(mode=0o700, exist_ok=True)  # a cleaner of temporary folders may have come
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


def _read(path: Path) -> dict[str, Any]:
    """The content of a file; nothing if there is none by now."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return content
