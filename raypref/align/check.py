"""Whether trainings find in the pairs what they read, told before any pair is encoded."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow.compute as pc

from raypref.align.config import TrainingConfig
from raypref.core.config import InputError
from raypref.core.ledger import Ledger


def check_pairs(pairs: Ledger, *, trainings: Mapping[str, TrainingConfig]) -> None:
    """See that there are pairs, and that the trainings find the numbers that they read.

    Images are not read here: there may be millions. Their size is seen to where they are encoded.

    Args:
        pairs: the pairs, or single labelled images, which have a `score`.
        trainings: what is trained on them, by name.

    Raises:
        InputError: there is no pair, a number is missing, or scores are of no use; names the
            training.
    """
    if not pairs.count():
        raise InputError(f"{pairs.path} holds no pairs; there is nothing to train on")
    single = "score" in pairs.schema().names
    scores = pc.min_max(pairs.table(["score"])["score"]).as_py() if single else None
    for name, training in trainings.items():
        for column in (*training.columns, *(["score"] if single and training.labelled else [])):
            own = column in training.facts or column != "gap"
            what = f"objective={training.objective}" if own else "curriculum"
            _must_be_whole(pairs, column, f"train.{name}.{what}")
        if scores is not None:
            training.check_scores(scores["min"], scores["max"], key=f"train.{name}")


def _must_be_whole(pairs: Ledger, column: str, whose: str) -> None:
    missing = pairs.count(pc.field(column).is_null())
    if not missing:
        return
    why = "; a gap needs labels that name both generators" if column == "gap" else ""
    raise InputError(
        f"{whose} reads {column} of the pairs, and {missing} of {pairs.count()} have none{why}"
    )
