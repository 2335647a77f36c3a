"""Judgments where another split than the held-out one may query: are any of these queries?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compatctl.core.arrays import Rows
from compatctl.data import Dataset, Judgments, read_qrels
from compatctl.deployment.data import has_classes
from compatctl.errors import InputError
from compatctl.notices import MAX_NAMES, notice


def judgments_for(qrels: Path | None, data: Dataset, rows: Rows) -> Judgments | None:
    """The judgments in the file ``qrels`` if some are of the queries ``rows`` (Q,) of the data.

    If none is, their labels say what is relevant, and a notice says so; None then, and without a
    file of judgments.

    Raises:
        InputError: the file cannot be read; or none is of these queries, and there are no labels.
    """
    if qrels is None or not len(rows):
        return None
    judged = read_qrels(qrels)
    ids = [data.items[int(row)].id for row in rows]
    with_answer = {judged.query_ids[code] for code in np.unique(judged.query).tolist()}
    if with_answer.intersection(ids):
        return judged
    split = data.items[int(rows[0])].split
    if not has_classes(data):
        raise InputError(
            f"{qrels}: none of its {len(judged)} judgments is of the {len(ids)} queries of the "
            f"split {split}, and the data have no labels",
            tip=f"judge some queries of the split {split}, or give the items labels",
        )
    notice(
        "judged-by-label",
        qrels,
        f"queries of the split {split} without a judgment",
        ids[:MAX_NAMES],
        "items of their label are relevant to them",
        count=len(ids),
    )
    return None
