"""What the service counts and measures, in the text format of Prometheus."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from compatctl.core.score_drift import ScoreDrift
from compatctl.deployment.searcher import Searcher
from compatctl.serving.batching import Answer

if TYPE_CHECKING:
    from compatctl.serving.candidate import Shadow, Traffic

SHORT = 12
"""Characters of a model's digest in a label."""

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_COSINES = tuple(round(0.05 * step, 2) for step in range(1, 20))

_GAUGES: dict[str, tuple[str, ...]] = {
    "compatctl_generation": ("The generation that serves.",),
    "compatctl_switches": ("Times that a newer generation took over.",),
    "compatctl_newest_does_not_serve": (
        "1 if the store's newest generation could not be loaded or failed a check.",
    ),
    "compatctl_query_model": ("1 for the query model.", "model", "name"),
    "compatctl_gallery_share": ("Share of the gallery by model.", "model", "name"),
    "compatctl_gallery_rows": ("Rows of the gallery.",),
    "compatctl_score_drift": (
        "Kolmogorov-Smirnov distance of the last first answers' cosines from the first ones.",
        "query_model",
        "model",
    ),
    "compatctl_score_drift_alarm": (
        "1 if that distance is above its limit.",
        "query_model",
        "model",
    ),
    "compatctl_processes": ("Processes that answer.",),
    "compatctl_waiting": ("Queries that wait to be answered.",),
    "compatctl_batch_mean": ("Mean queries of a pass.",),
    "compatctl_shadow": ("Queries of the shadow by what became of them.", "result"),
    "compatctl_shadow_overlap": ("Mean share of the answers that both sides of the shadow have.",),
    "compatctl_traffic_share": ("Share of the traffic that the candidate answers.",),
    "compatctl_traffic": (
        "Queries of each side of the traffic by what became of them.",
        "side",
        "result",
    ),
    "compatctl_log": ("Lines of the log, written or dropped.", "result"),
}
"""Name -> what it is, and its labels."""


class Metrics:
    """The metrics of one service; any thread may count."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._lock = Lock()
        self._drift: dict[tuple[str, str], ScoreDrift] = {}
        own = self.registry
        self.requests = Counter(
            "compatctl_requests",
            "Search requests by status and side.",
            ["status", "side"],
            registry=own,
        )
        self.seconds = Histogram(
            "compatctl_search_seconds",
            "Seconds from a request's body to its answer.",
            ["side"],
            buckets=_SECONDS,
            registry=own,
        )
        self.passed = Counter(
            "compatctl_gallery_passes",
            "Gallery items that passed through the query model to re-score answers.",
            registry=own,
        )
        self._cosine = Histogram(
            "compatctl_top_cosine",
            "Cosine of the first answer, by the models of the query and of the answer.",
            ["query_model", "model"],
            buckets=_COSINES,
            registry=own,
        )
        self._gauges = {
            name: Gauge(name, text, labels, registry=own)
            for name, (text, *labels) in _GAUGES.items()
        }
        self._gauges["compatctl_processes"].set(1)

    def answered(self, side: str, answer: Answer, seconds: float) -> None:
        """Count an answer."""
        self.requests.labels("200", side).inc()
        self.seconds.labels(side).observe(seconds)
        if answer.passed:
            self.passed.inc(answer.passed)
        if answer.hits:
            hit = answer.hits[0]
            key = (answer.query_model[:SHORT], hit.model[:SHORT])
            self._cosine.labels(*key).observe(hit.cosine)
            with self._lock:
                self._drift.setdefault(key, ScoreDrift()).add(hit.cosine)

    def drifted(self, query_model: str) -> bool:
        """Whether the scores of a query model's answers have drifted, for any model of answers."""
        with self._lock:
            own = [drift for key, drift in self._drift.items() if key[0] == query_model[:SHORT]]
        return any(drift.has_drifted for drift in own)

    def refused(self, status: int, side: str = "none") -> None:
        """Count a request without an answer."""
        self.requests.labels(str(status), side).inc()

    def of_store(self, searcher: Searcher) -> None:
        """Take the values of the generation that serves."""
        manifest = searcher.manifest
        self._gauges["compatctl_generation"].set(manifest.generation)
        self._gauges["compatctl_switches"].set(searcher.switches)
        self._gauges["compatctl_newest_does_not_serve"].set(searcher.problem is not None)
        self._gauges["compatctl_gallery_rows"].set(manifest.index.count)
        self._gauges["compatctl_query_model"].clear()
        self._gauges["compatctl_gallery_share"].clear()
        for share in manifest.models:
            labels = (share.sha256[:SHORT], share.name)
            self._gauges["compatctl_gallery_share"].labels(*labels).set(
                share.rows / manifest.index.count
            )
            if share.sha256 == manifest.query_model:
                self._gauges["compatctl_query_model"].labels(*labels).set(1)
        self._show_drift()

    def _show_drift(self) -> None:
        """The drift of each pair of models."""
        with self._lock:
            drifts = list(self._drift.items())
        self._gauges["compatctl_score_drift"].clear()
        self._gauges["compatctl_score_drift_alarm"].clear()
        for key, drift in drifts:
            distance = drift.distance
            if distance is not None:
                self._gauges["compatctl_score_drift"].labels(*key).set(distance)
                self._gauges["compatctl_score_drift_alarm"].labels(*key).set(drift.has_drifted)

    def of_batches(self, waiting: int, batches: int, answered: int) -> None:
        """Take the values of the micro-batches."""
        self._gauges["compatctl_waiting"].set(waiting)
        self._gauges["compatctl_batch_mean"].set(answered / batches if batches else 0)

    def of_log(self, written: int, dropped: int) -> None:
        """Take the counts of the log."""
        self._gauges["compatctl_log"].labels("written").set(written)
        self._gauges["compatctl_log"].labels("dropped").set(dropped)

    def of_shadow(self, shadow: Shadow) -> None:
        """Take the counts of the shadow."""
        for result, count in shadow.counts.items():
            self._gauges["compatctl_shadow"].labels(result).set(count)
        if shadow.overlap is not None:
            self._gauges["compatctl_shadow_overlap"].set(shadow.overlap)

    def of_traffic(self, traffic: Traffic) -> None:
        """Take the share of the traffic, and the counts of its sides."""
        for side, counts in traffic.counts().items():
            for result, count in counts.items():
                self._gauges["compatctl_traffic"].labels(side, result).set(count)
        self._gauges["compatctl_traffic_share"].set(0.0 if traffic.stopped else traffic.share)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self.registry)
