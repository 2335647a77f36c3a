"""Sizes, lines and page of ``simplex_born.py``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

from benchmarks.common.pages import head, row, shares

K = 768
"""Vertices: LOCAL + NEW + ELSEWHERE of them are given out."""
LOCAL, NEW, ELSEWHERE, UNSEEN = 200, 100, 400, 400
"""Characters: deployed, new in the fine-tuning, of the new model's pre-training, of nobody."""
HELD_OUT = 2
"""Typefaces in which a local character asks, by its hash; in the others it trains."""
GROUPS = ("seen by both", "new in the fine-tuning", "unseen")
FIRST = ("old on old", "new as it came")
ARMS = ("none", "deployed", "itself")


@dataclass(frozen=True, kw_only=True)
class Line:
    """Queries of one model on the deployed gallery."""

    seed: int
    group: str
    model: str
    queries: int
    hit_rate: float
    gain: float
    """Over the deployed model's own queries"""
    low: float
    high: float
    """Of the gain, 95%"""
    over_deployed: float
    """Over the arm "deployed", with its interval"""
    over_low: float
    over_high: float
    own: float
    """hit@1 on a gallery that this model embedded itself"""


def table(lines: Sequence[Line]) -> list[str]:
    """Means over the seeds; in brackets how many seeds' intervals lie above and below 0."""
    rows = [*head("classes", "query model", "hit@1, deployed gallery",
                  "gain over old on old", "shown to gain, to lose", 'over "deployed"',
                  "shown to gain, to lose", "on a gallery of its own")]  # fmt: skip
    seeds = len({line.seed for line in lines})
    for group in GROUPS:
        for model in (*FIRST, *ARMS):
            matching = [line for line in lines if (line.group, line.model) == (group, model)]
            if not matching:
                continue
            shown = [
                f"{sum(low > 0 for low, _ in ends)}, {sum(high < 0 for _, high in ends)} of {seeds}"
                for ends in (
                    [(result.low, result.high) for result in matching],
                    [(result.over_low, result.over_high) for result in matching],
                )
            ]
            rows.append(
                row(
                    group,
                    model,
                    shares([result.hit_rate for result in matching]),
                    "" if model == FIRST[0] else f"{mean(result.gain for result in matching):+.3f}",
                    "" if model == FIRST[0] else shown[0],
                    ""
                    if model == "deployed"
                    else f"{mean(x.over_deployed for x in matching):+.3f}",
                    "" if model == "deployed" else shown[1],
                    shares([result.own for result in matching]),
                )
            )
    return rows


def page(lines: Sequence[Line]) -> str:
    """The whole page."""
    return "\n".join([INTRO, *table(lines), "", FINDINGS, "## Each seed", "", *_each(lines), ""])


def _each(lines: Sequence[Line]) -> Iterable[str]:
    yield from head("classes", "seed", "query model", "queries", "hit@1", "gain, 95%",
                    'over "deployed", 95%')  # fmt: skip
    for line in lines:
        if line.model in ARMS:
            yield row(
                line.group, str(line.seed), line.model, str(line.queries), f"{line.hit_rate:.3f}",
                f"{line.gain:+.3f} [{line.low:+.3f}, {line.high:+.3f}]",
                "" if line.model == "deployed" else
                f"{line.over_deployed:+.3f} [{line.over_low:+.3f}, {line.over_high:+.3f}]",
            )  # fmt: skip


INTRO = f"""\
# Begin on a simplex: when, how, and which reference then

For whoever can still choose how the first model is trained: whether to begin on a simplex, how, and
what it gained.

## When

A *simplex* gives each class a vector of its own, far from all others, before any model is trained.
The vectors stay when models change, so every version trains towards the same ones.

Begin on one where no gallery is deployed yet, or where it will be embedded again anyway; the
classes have labels; and you can say how many there will be. K vertices have room for K classes, of
all versions together, and need K - 1 dimensions: both stay as long as the store. A gallery that an
ordinary model filled is not moved onto a simplex; [ablation.md](ablation.md) tries that.

A shared simplex alone does not make a new model compatible (row "none" below): the contrast with
the deployed gallery does, and the gate decides for each new version. Later versions train towards
the class means of the gallery, the default, and not towards the vertices: that gains more even here
([experiments.md](experiments.md)).

## How

    compatctl begin --base first.ckpt --dim 767     train, export, embed the gallery: a store
    compatctl finetune --base new.ckpt              each later model

`begin` trains by the project's recipe with `frame: simplex` and `lambda: 1.0`, whatever these say.
It is `finetune` with these settings and `init --model new.onnx` in one command. `--dry-run` shows
classes, vertices and rows. [sequential.md](sequential.md) continues with the later versions.

## Which reference

The deployed model (a small CNN, {LOCAL} characters) and the new one (half as wide again,
{ELSEWHERE} other characters) were both trained against the frozen d-Simplex (K = {K}), without a
shared vertex. The new one is fine-tuned on the deployed characters and {NEW} new ones. The gallery
is one typeface; its vectors stay. There are three references for the higher-order term (HOC, code
form, lambda .1, mu 10):

- **none**: cross-entropy against the vertices alone.
- **deployed**: the deployed gallery's stored vectors, and the deployed encoder's output for items
  outside it.
- **itself**: the new model's own output before fine-tuning, as in the authors' code (repository
  miccunifi/iamcl2r, `src/iamcl2r/main.py`: both networks begin with the downloaded checkpoint).

Queries of seen characters are in {HELD_OUT} of six typefaces, another two for each, in which they
did not train; queries of unseen ones ({UNSEEN}) are in five. Figures are means of the seeds, each
in brackets; intervals (95%, over classes) above or below 0 are counted.

    python examples/kanji/build.py
    python -m benchmarks.studies.simplex_born --docs docs/simplex-born.md
"""

FINDINGS = """\
Over three seeds, cross-entropy alone loses in every group (shown in 8 of 9), so a shared simplex
alone does not make a replaced backbone compatible. With **deployed** no loss is shown in any seed
and any group. With **itself** seen classes gain more, and a gallery that is re-embedded later is
better by a tenth, but in one seed the hit rate of unseen characters is below the old model's. So
the deployed gallery is the safe reference while it stays, and the model itself is the better one if
the gallery will be re-embedded soon.
"""
