"""The scores in the table of photographs do not tell how many were scored again."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
from report_runs import fill

from raypref.core.ledger import Ledger
from raypref.core.rows import REJECT
from raypref.curate.publish import CuratedLedgers
from raypref.curate.rescore import QUICK
from raypref.curate.select import Ranking, SelectConfig

SCORES = pa.schema(
    [("id", pa.string()), (QUICK, pa.float32()), ("pickscore", pa.float32()), *REJECT]
)


def test_only_photographs_whose_pair_was_tried_have_the_exact_score(tmp_path: Path) -> None:
    quick = {"a": 20.5, "b": 20.25, "c": 20.0, "inf": math.inf}
    # Scored again, as in a run that went further before a kill, and in one that did not.
    for name, again in (("far", "abc"), ("near", "ab")):
        ledger = Ledger(str(tmp_path / name), {})
        rows: list[dict[str, object]] = [
            {"id": id_, QUICK: quick[id_], "pickscore": 19.0} for id_ in (*again, "inf")
        ]
        fill(ledger, rows, SCORES)
        ranking = Ranking(SelectConfig(top_k=1), also=lambda row: True)
        ranking.begin(["a", "b", "c"])
        tried = {"reject_reason": None, "pickscore": 21.0}
        ranking.add([{"id": "a", "pickscore_rejected": 21.0, **tried}])
        ranking.add([{"id": "b", "pickscore_rejected": 20.0, **tried}])
        assert ranking.complete and ranking.tried == {"a", "b"}
        made = CuratedLedgers(ledger, ledger, ledger, ledger)
        assert made.exact_scores(ranking.tried) == {"a": 19.0, "b": 19.0, "inf": 19.0}
