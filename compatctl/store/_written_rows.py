"""How many gallery rows each model wrote, by the history: what rollbacks undid included.

A rollback restores the earlier rows, and gc deletes the files of the later ones, but the manifests
of all generations are kept. They count each model's rows and do not name them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compatctl.manifest import Manifest, Operation


@dataclass(frozen=True, kw_only=True)
class WrittenRows:
    """Gallery rows whose vectors one model wrote, in a generation or an earlier one.

    ``now`` are those of the generation. ``least`` and ``most`` bound those that it ever wrote and
    that are rows still: rows that a rollback undid and those written later may be the same items.
    ``most`` may be above the number of rows: a rollback can bring items back.
    """

    now: int = 0
    least: int = 0
    most: int = 0

    @property
    def exact(self) -> bool:
        """Whether the number is known."""
        return self.least == self.most


NOTHING = WrittenRows()


def written_rows(history: Sequence[Manifest]) -> Iterator[dict[str, WrittenRows]]:
    """For every generation of a whole ``history``, oldest first: what each model wrote until then.

    A digest that is missing wrote nothing.
    """
    known: dict[int, _Known] = {}
    for state in history:
        before = known.get(state.generation - 1)
        target = before if state.restores is None else known[state.restores]
        now = (
            _Known.first(state) if before is None or target is None else before.next(target, state)
        )
        known[state.generation] = now
        yield now.written


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What is known of a generation; two with the same ``items`` have the same items as rows."""

    state: Manifest
    items: int
    written: dict[str, WrittenRows]

    @classmethod
    def first(cls, state: Manifest) -> _Known:
        written = {
            share.sha256: WrittenRows(now=share.rows, least=share.rows, most=share.rows)
            for share in state.models
        }
        return cls(state=state, items=state.generation, written=written)

    def next(self, target: _Known, state: Manifest) -> _Known:
        """That of ``state``, the generation after this one, made from the ``target``'s."""
        items = self._items(target, state)
        rows, base = _rows(state), _rows(target.state)
        return _Known(
            state=state,
            items=items,
            written={
                model: self._written(model, target, state, items, rows[model], base[model])
                for model in {**self.written, **rows}
            },
        )

    def _items(self, target: _Known, state: Manifest) -> int:
        """The items of the next generation: an add or removal changes them, a rollback may."""
        if state.catalog == self.state.catalog:
            return self.items
        same = state.index.count == target.state.index.count
        return target.items if same else state.generation

    def _written(  # noqa: PLR0917
        self, model: str, target: _Known, state: Manifest, items: int, now: int, base: int
    ) -> WrittenRows:
        """What a model wrote until ``state``: ``now`` rows there, ``base`` in the target."""
        known = self.written.get(model, NOTHING)
        gone = max(0, self.state.index.count - state.index.count)
        least = known.least - gone
        if state.restores is not None and items != self.items:  # it may have dropped any of them
            least = target.written.get(model, NOTHING).least
        removed = max(0, known.now - now) if state.operation == Operation.REMOVE else 0
        added = 0 if state.catalog == self.state.catalog else max(0, now - base)
        return WrittenRows(
            now=now, least=max(now, least), most=max(now, known.most + added - removed)
        )


def _rows(state: Manifest) -> defaultdict[str, int]:
    return defaultdict(int, {share.sha256: share.rows for share in state.models})
