"""Tests of how many rows each model wrote, against sets of items that are followed one by one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from compatctl.manifest import IndexInfo, Manifest, ModelShare, Operation
from compatctl.store import NOTHING, written_rows

MODELS = ("a" * 64, "b" * 64, "c" * 64)
STEPS, SEEDS = 14, 150


@dataclass(frozen=True)
class State:
    """A gallery, item -> its model, and the query model."""

    rows: dict[int, int]
    query: int


class Story:
    """Random operations on a store, as manifests, and what each model wrote."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.states = [State(dict.fromkeys(range(20), 0), 0)]
        self.written: list[dict[int, set[int]]] = [{0: set(range(20))}]
        self.manifests = [self.manifest(Operation.INIT, None)]
        self.oldest = 0

    def manifest(self, operation: Operation, restores: int | None) -> Manifest:
        """The manifest of the newest state."""
        state, number = self.states[-1], len(self.states)
        counts = {m: sum(of == m for of in state.rows.values()) for m in range(len(MODELS))}
        return Manifest(
            generation=number,
            parent=None if number == 1 else "0" * 64,
            operation=operation,
            created_at="2026-01-31T12:00:00Z",
            query_model=MODELS[state.query],
            index=IndexInfo(
                engine="hnswlib",
                space="ip",
                dim=8,
                M=8,
                ef_construction=9,
                ef_search=9,
                count=len(state.rows),
                sha256="1" * 64,
                seed=0,
            ),
            catalog=f"{abs(hash(tuple(sorted(state.rows.items())))):064x}",
            models=tuple(
                ModelShare(sha256=MODELS[m], dim=8, rows=n, name="m", canary="2" * 64)
                for m, n in counts.items()
                if n or m == state.query
            ),
            restores=restores,
        )

    def step(self) -> None:
        """One more operation: a deploy, a backfill, an add, a removal or a rollback."""
        now, rng, restores = self.states[-1], self.rng, None
        rows, new = dict(now.rows), set[int]()
        operation = Operation(
            rng.choice(["deploy", "backfill", "backfill", "add", "remove", "rollback", "rollback"])
        )
        if operation == Operation.DEPLOY:
            now = replace(now, query=int(rng.integers(len(MODELS))))
        elif operation == Operation.BACKFILL:
            others = [item for item, of in rows.items() if of != now.query]
            new = set(rng.permutation(others)[: rng.integers(1, 9)].tolist())
        elif operation == Operation.ADD:
            new = {len(self.states) * 100 + i for i in range(3)}
        elif operation == Operation.REMOVE:
            for item in rng.permutation(list(rows))[:2].tolist():
                del rows[item]
            self.oldest = len(self.states)
        else:
            restores = int(rng.integers(self.oldest, len(self.states)))
            target = self.states[restores]
            added = set(rows) - set(target.rows)
            if rng.random() < 0.5:  # embed again what the restored model cannot search
                new = {item for item in added if rows[item] != target.query}
                kept = {item: rows[item] for item in added - new}
            else:
                kept = {}
            rows, now = {**target.rows, **kept}, target
        rows |= dict.fromkeys(new, now.query)
        written = {model: set(items) for model, items in self.written[-1].items()}
        written.setdefault(now.query, set()).update(new)
        self.states.append(State(rows, now.query))
        self.written.append(written)
        self.manifests.append(self.manifest(operation, None if restores is None else restores + 1))


def test_the_bounds_hold_whatever_was_done() -> None:
    """What a model wrote of the rows that are there lies between the bounds, and is what they say
    where they are equal; that is the rule and not the exception."""
    exact = total = 0
    for seed in range(SEEDS):
        story = Story(seed)
        for _ in range(STEPS):
            story.step()
        states = zip(story.states, story.written, written_rows(story.manifests), strict=True)
        for state, written, counted in states:
            for model, sha256 in enumerate(MODELS):
                bounds = counted.get(sha256, NOTHING)
                there = written.get(model, set()) & set(state.rows)
                assert bounds.least <= len(there) <= bounds.most, (seed, model)
                assert bounds.now == sum(of == model for of in state.rows.values())
                exact, total = exact + bounds.exact, total + 1
    assert exact > total / 2
