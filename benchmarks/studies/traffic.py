"""How much of a gallery lazy re-scoring passes through the new model, by simulated traffic.

    python -m benchmarks.studies.traffic [--sizes 1000,10000,...] [--exponents 0.6,0.8,...]
                                         [--docs docs/traffic.md]

``common/traffic_model.py`` states the model. One thread, about two minutes and 1 GB of memory for a
million rows. --docs writes the page, and a figure beside it; the printed sentences are its first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import product

import numpy as np

from benchmarks.common.arguments import study_parser
from benchmarks.common.traffic_docs import BUDGETS, PLACES, Simulation, figure, page, summary
from benchmarks.common.traffic_model import (
    Cached,
    Filling,
    Gallery,
    Generator,
    Served,
    Setting,
    make_gallery,
    serve_all,
    serve_within,
    warmed,
)
from compatctl.files import write_atomic

SIZES = (1_000, 10_000, 100_000, 1_000_000)
EXPONENTS = (0.6, 0.8, 1.0, 1.2)
LOG = 1_000_000
"""Queries of the log, at most"""
LATER = 200_000
"""Queries that what the log warmed is measured on"""
COUNTS = tuple(round(10 ** (3 + step / 10)) for step in range(31))
"""Queries served: 1,000 to 1,000,000"""
SHARES = (
    *(round(10 ** (-3 + step / 10), 6) for step in range(30)),
    0.01,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
)
DRAWN = ((5, 4), (5, 8), (5, 16), (10, 9), (10, 18), (10, 36), (20, 19), (20, 38), (20, 76))
"""Rows that a query touches, and rows of the list"""


def main() -> None:
    """Simulate, show, write."""
    arguments = _arguments()
    simulation = simulate(arguments.sizes, arguments.exponents)
    print("\n".join(summary(simulation)))
    if arguments.docs:
        picture = arguments.docs.with_suffix(".svg")
        write_atomic(arguments.docs, page(simulation, picture.name).encode())
        write_atomic(picture, figure(simulation).encode())


def simulate(sizes: Sequence[int], exponents: Sequence[float]) -> Simulation:
    """Every size and exponent; budgets and other models of the traffic on the largest, s = 1."""
    filled: dict[Setting, Filling] = {}
    cached: dict[Setting, Sequence[Cached]] = {}
    budgets: dict[Setting, Mapping[int, Sequence[Served]]] = {}
    variants: dict[Setting, Sequence[Cached]] = {}
    for exponent, rows, place in product(exponents, sizes, PLACES):
        setting = Setting(rows=rows, exponent=exponent, together=place)
        rng = _generator(setting)
        gallery = make_gallery(setting, rng)
        filled[setting] = serve_all(gallery, COUNTS, rng)
        cached[setting] = _warmed(gallery, SHARES, rng)
        print(f"s = {exponent}, {rows:,} rows, together: {place}", file=sys.stderr, flush=True)
    for place in PLACES:
        setting = Setting(rows=max(sizes), exponent=1.0, together=place)
        rng = _generator(setting)
        gallery = make_gallery(setting, rng)
        counts = [count for count in COUNTS if f"{count}".strip("0") == "1"]
        budgets[setting] = {
            budget: serve_within(gallery, budget, counts, rng) for budget in BUDGETS
        }
        for k, listed in DRAWN:
            variant = Setting(rows=max(sizes), exponent=1.0, together=place, k=k, listed=listed)
            rng = _generator(variant)
            variants[variant] = _warmed(make_gallery(variant, rng), (0.1,), rng)
    return Simulation(
        largest=max(sizes), filled=filled, warmed=cached, budgets=budgets, variants=variants
    )


def _warmed(gallery: Gallery, shares: Iterable[float], rng: Generator) -> list[Cached]:
    log = min(len(gallery.by_rank), LOG)
    return warmed(gallery, sorted(set(shares)), log, LATER, rng)


def _generator(setting: Setting) -> Generator:
    """A stream of its own for each setting, whatever else is simulated."""
    return np.random.default_rng(
        [setting.rows, round(10 * setting.exponent), setting.together, setting.k, setting.listed]
    )


def _numbers(kind: type, words: str) -> list[float]:
    return [kind(word) for word in words.split(",")]


def _arguments() -> argparse.Namespace:
    parser = study_parser(__doc__, "docs")
    parser.add_argument("--sizes", type=partial(_numbers, int), default=SIZES)
    parser.add_argument("--exponents", type=partial(_numbers, float), default=EXPONENTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
