"""When a store that re-scores is worth promoting: a sentence, without numpy."""

from __future__ import annotations

WORTH_IT = 0.9
"""The share of the rows with a free vector from which a promotion is proposed."""


def promotion_advice(held: int, rows: int) -> str:
    """What to do where ``held`` of ``rows`` gallery rows have a free vector; empty below
    ``WORTH_IT``."""
    if not rows or held < WORTH_IT * rows:
        return ""
    left = f"embeds the other {rows - held} and " if held < rows else ""
    return f"compatctl promote {left}makes the free vectors the index, if its test passes"
