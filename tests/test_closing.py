"""What a run says last: numbers, intervals and a verdict that follows from them."""

import numpy as np
import pandas as pd

from raypref.evaluate.statistics import SUMMARY
from raypref.evaluate.summary import closing

NAN = (np.nan,) * 3
LABELS = {"base": "base", "both": "stage 1 + stage 2"}


def test_a_table_and_what_became_better():
    rows = [
        ("base", "pickscore", 20.0, 19.5, 20.5, *NAN, 24, 48, 0),
        ("base", "colorfulness", 40.0, 38.0, 42.0, *NAN, 24, 48, 0),
        ("base", "cmmd", 9.0, 8.0, 10.0, *NAN, 24, 48, 0),
        ("both", "pickscore", 21.0, 20.5, 21.5, 1.0, 0.8, 1.2, 24, 48, 0),
        ("both", "colorfulness", 40.1, 38.0, 42.0, 0.1, -0.5, 0.7, 24, 48, 0),
        ("both", "cmmd", 7.0, 6.0, 8.0, -2.0, -2.5, -1.5, 24, 48, 0),
        ("other", "pickscore", 23.0, 22.0, 24.0, 3.0, 2.0, 4.0, 24, 48, 0),  # of another run
    ]
    lines = closing(
        pd.DataFrame(rows, columns=list(SUMMARY)), final="both", labels=LABELS
    ).splitlines()
    assert lines[0].split("  ")[-1].strip() == "CMMD ↓"
    assert lines[2].startswith("stage 1 + stage 2  21.00 [20.50, 21.50]  40.10 [38.00, 42.00]")
    start = lines.index("stage 1 + stage 2 against base:")
    assert [line.split() for line in lines[start + 1 :]] == [
        ["PickScore", "+1.00", "[0.80,", "1.20]", "better"],
        ["Colorfulness", "+0.10", "[-0.50,", "0.70]", "no", "clear", "difference"],
        ["CMMD", "↓", "-2.00", "[-2.50,", "-1.50]", "better"],
    ]


def test_a_model_that_was_not_scored_is_said_so():
    rows = [
        ("base", "pickscore", 20.0, 19.5, 20.5, *NAN, 24, 48, 0),
        ("base", "cmmd", 9.0, 8.0, 10.0, *NAN, 24, 48, 0),
        ("both", "pickscore", 19.0, 18.5, 19.5, -1.0, -1.2, -0.8, 24, 48, 0),
    ]
    text = closing(pd.DataFrame(rows, columns=list(SUMMARY)), final="both", labels=LABELS)
    assert "not run" in text
    assert text.splitlines()[-1].endswith("worse")
