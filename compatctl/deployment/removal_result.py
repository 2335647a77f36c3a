"""What a removal tells: what left, what was written again, and what a person must do besides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class RewrittenModel:
    """A model whose file held ``vectors`` of removed items, and the file without them.

    ``difference``: the largest L2 distance between the two files' answers to the canary's images.
    """

    name: str
    before: str
    sha256: str
    vectors: int
    difference: float


@dataclass(frozen=True, kw_only=True)
class RemovalResult:
    """What left the store; for a dry run what would.

    ``removed`` rows of the gallery and ``from_memory`` images of the rehearsal memory; ``already``
    ids were erased before; ``missing`` (ids) were not there. ``rows`` are left. Generations before
    ``whole_from`` can be restored as query models only. Where that is one of ``erased_models``
    (digests), which held vectors of removed items, the ``rewritten`` file takes its place, and the
    generation cannot be restored where there is none.
    ``same_image``: ids that stay and have the very image of a removed one. ``side_files`` beside
    the store were changed; ``candidates`` hold vectors of erased items and will not be deployed;
    ``reports`` (digests) in the store name a removed id, and stay. ``deleted`` files went.
    """

    generation: int
    removed: int
    from_memory: int
    already: int
    missing: tuple[str, ...]
    rows: int
    query_model_before: str
    query_model: str
    rewritten: tuple[RewrittenModel, ...]
    whole_from: int
    erased_models: tuple[str, ...]
    same_image: tuple[str, ...]
    side_files: tuple[str, ...]
    candidates: tuple[str, ...]
    reports: tuple[str, ...]
    deleted: int
    freed_bytes: int
    written: bool
    warnings: tuple[str, ...] = ()

    def warned(self) -> RemovalResult:
        """The same, with what a person must know or do besides."""
        found = []
        if self.same_image:
            found.append(f"other items with the very same image stay: {listed(self.same_image)}")
        if self.query_model != self.query_model_before:
            found.append(
                "the query model's file was written again without the removed items' vectors: its "
                "answers differ by up to "
                f"{max(one.difference for one in self.rewritten):.3g} on the canary's images; "
                "verify measures what that means"
            )
        if self.candidates:
            found.append(
                f"{listed(self.candidates)} holds vectors of removed items and will not be "
                "deployed: fine-tune again"
            )
        if self.reports:
            found.append(f"{len(self.reports)} reports in the store name a removed id, and stay")
        return replace(self, warnings=tuple(found))


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = "" if len(names) <= _SHOWN else f" and {len(names) - _SHOWN} more"
    return ", ".join(names[:_SHOWN]) + more
