"""The log of a real service is the order of a backfill, and the service goes on meanwhile."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from serve_kit import Server, wait_for
from shop_kit import Shop

from compatctl.core.hash_order import hash_key
from compatctl.data import load
from compatctl.store import Store

K = 4
FORCE = ("--force", "--reason", "drill")


def test_what_a_service_answers_most_is_re_embedded_first(shop: Shop) -> None:
    """Counted here from the answers that callers got; equals by hash. The service answers from the
    new generation without a new start."""
    assert shop.run("deploy", "--model", shop.path("new.onnx"), *FORCE).code == 0
    data = load(shop.data()).filter(split="test", role="query")
    queries = [Path(str(source)).read_bytes() for source in data.sources[:25]]
    counts: Counter[str] = Counter()
    with Server(shop.folder, "--log", "answers.jsonl") as server:
        for query in queries:
            answer = server.ask(f"/v1/search?k={K}", query)
            counts.update(hit["id"] for hit in answer.json["hits"])
        log = shop.path("answers.jsonl")
        wait_for(lambda: log.read_bytes().count(b"\n") == len(queries))
        catalog = Store.open(shop.path("store")).catalog()
        first = sorted(catalog.ids, key=lambda item: (-counts[item], hash_key(item)))[:12]
        share = 12 / len(catalog)
        result = shop.run("backfill", "--order", log, "--share", share, "--step", 5, *FORCE)
        assert result.code == 0, result.stderr
        generation = result.json["generation"]

        def follows() -> bool:
            answer = server.ask(f"/v1/search?k={K}", queries[0])
            return bool(answer.json["generation"] == generation)

        wait_for(follows)
        assert server.stop()[0] == 0
    catalog, model = Store.open(shop.path("store")).catalog(), result.json["query_model"]
    pairs = zip(catalog.ids, catalog.model_of, strict=True)
    assert {item for item, at in pairs if catalog.models[at] == model} == set(first)
    assert len({counts[item] for item in first}) > 1
