"""Metrics of several processes are those of one that did it all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from compatctl.deployment.searching import Hit
from compatctl.serving import shared_metrics
from compatctl.serving.batching import Answer
from compatctl.serving.metrics import _GAUGES, Metrics
from compatctl.serving.shared_metrics import SharedMetrics, fold_ended


def _answer(cosine: float) -> Answer:
    hit = Hit(id="a", label="", score=cosine, cosine=cosine, model="aa" * 32, rescored=False)
    return Answer(generation=1, query_model="bb" * 32, hits=(hit,), passed=2)


def _samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_each_gauge_has_a_rule() -> None:
    """By which the values of the processes become one."""
    known = {*shared_metrics.RULES, *shared_metrics.OF_STORE, *shared_metrics.COUNTS}
    assert set(_GAUGES) == known


def test_counts_are_the_sums_and_outlive_their_process(tmp_path: Path) -> None:
    """Random answers, each counted by one of three processes and by one that counts all; before
    and after one of the three ends, and after another that takes its place counts on."""
    rng, all_of_them = np.random.default_rng(0), Metrics()
    metrics = [Metrics() for _ in range(3)]
    shares = [SharedMetrics(tmp_path) for _ in range(3)]

    def count(number: int) -> None:
        seconds, cosine = float(rng.exponential(0.1)), float(rng.uniform(-1, 1))
        for one in (metrics[number], all_of_them):
            one.answered("current", _answer(cosine), seconds)
            one.refused(422)

    def publish() -> None:
        for one, shared in zip(metrics, shares, strict=True):
            one.of_log(3, 1)
            shared.publish(one.registry)

    def check(processes: int) -> None:
        seen, wanted = _samples(shares[0].text()), _samples(all_of_them.text())
        for key, value in wanted.items():
            if key[0].startswith(("compatctl_requests", "compatctl_search", "compatctl_top")):
                assert abs(seen[key] - value) < 1e-9 * max(1.0, abs(value)), key
        assert seen["compatctl_processes", ()] == processes

    for _ in range(200):
        count(int(rng.integers(3)))
    publish()
    check(3)
    log = ("compatctl_log", (("result", "written"),))
    assert _samples(shares[0].text())[log] == 9
    shares[2]._own.rename(tmp_path / "99999999-1.json")  # as if by a process of its own
    fold_ended(tmp_path, 99_999_999)
    check(2)
    assert _samples(shares[0].text())[log] == 9
    metrics[2], shares[2] = Metrics(), SharedMetrics(tmp_path)
    for _ in range(50):
        count(2)
    publish()
    check(3)
    fold_ended(tmp_path, 12_345)  # one that died before it counted


def test_a_store_is_told_as_one_process_sees_it(tmp_path: Path) -> None:
    """While one process has switched and the other has not: the generation before, with its own
    model alone."""
    for generation in (2, 1):
        metrics = Metrics()
        metrics._gauges["compatctl_generation"].set(generation)
        metrics._gauges["compatctl_query_model"].labels(f"m{generation}", "name").set(1)
        metrics._gauges["compatctl_waiting"].set(generation)
        metrics._gauges["compatctl_switches"].set(generation - 1)
        shared = SharedMetrics(tmp_path)
        shared.publish(metrics.registry)
    seen = _samples(shared.text())
    assert seen["compatctl_generation", ()] == 1
    models = [key[1] for key in seen if key[0] == "compatctl_query_model"]
    assert models == [(("model", "m1"), ("name", "name"))]
    assert (seen["compatctl_waiting", ()], seen["compatctl_switches", ()]) == (3, 1)
