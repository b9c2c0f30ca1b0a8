"""What votes say, against two libraries, numbers worked out by hand, and raters who are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import choix
import krippendorff
import numpy as np
import pandas as pd
import pytest

from raypref.cli import console
from raypref.core.config import InputError
from raypref.study import results
from raypref.study.reading import read_votes
from raypref.study.results import ALL, results_of_votes
from raypref.study.summary import result_lines

# Prompt and category, and what raters r1, r2, r3 preferred: by hand below.
SAID = {
    ("p1", "anime"): ("ours", "ours", "base"),  # won
    ("p2", "anime"): ("ours", "base", "tie"),  # tied
    ("p3", "photo"): ("tie", "tie", "ours"),  # won by one vote, though most say neither
    ("p4", "photo"): ("base", "base", "base"),  # lost
}


def vote(
    prompt: str, category: str, rater: str, left: str, right: str, said: str, **flags: bool
) -> dict[str, object]:
    choice = {left: "left", right: "right"}.get(said, "tie")
    about = {"prompt_id": prompt, "category": category, "rater": rater, "left": left}
    told = {"right": right, "choice": choice, "attention": False, "repeat": False}
    return {"item": f"{prompt}/{'/'.join(sorted((left, right)))}", **about, **told, **flags}


def by_hand() -> pd.DataFrame:
    rows = []
    for (prompt, category), said in SAID.items():
        for number, own in enumerate(said):
            left, right = ("ours", "base") if number % 2 else ("base", "ours")
            rows.append(vote(prompt, category, f"r{number + 1}", left, right, own))
    return pd.DataFrame(rows)


def simulated(
    strengths: dict[str, float], *, prompts: int, raters: int, left: float = 0.0, seed: int = 0
) -> pd.DataFrame:
    """Votes of raters who prefer by the strengths, a tenth ties; `left` is a habit of theirs."""
    rng = np.random.default_rng(seed)
    names, rows = list(strengths), []
    for prompt in range(prompts):
        for one in range(len(names)):
            for other in range(one):
                for rater in range(raters):
                    sides = [names[one], names[other]]
                    rng.shuffle(sides)
                    gap = strengths[sides[0]] - strengths[sides[1]] + left
                    said = sides[0] if rng.random() < 1 / (1 + np.exp(-gap)) else sides[1]
                    said = "tie" if rng.random() < 0.1 else said
                    rows.append(vote(f"p{prompt}", "", f"r{rater}", sides[0], sides[1], said))
    return pd.DataFrame(rows)


def test_prompts_are_won_tied_and_lost_by_majority() -> None:
    found = results_of_votes(by_hand()).outcomes.set_index("category")
    assert list(found.index) == [ALL, "anime", "photo"]
    assert list(found.loc[ALL, ["model", "other", "win", "tie", "loss", "rate"]]) == [
        *("ours", "base", 50.0, 25.0, 25.0, 62.5)
    ]
    assert list(found.loc["anime", ["win", "tie", "loss"]]) == [50.0, 50.0, 0.0]
    assert list(found.loc["photo", ["win", "tie", "loss"]]) == [50.0, 0.0, 50.0]
    assert list(found["n_prompts"]) == [4, 2, 2] and list(found["n_votes"]) == [12, 6, 6]


def test_the_interval_of_wins_is_that_of_resampled_prompts() -> None:
    votes = simulated({"base": 0.0, "ours": 0.3}, prompts=40, raters=5)
    row = results_of_votes(votes).outcomes.iloc[0]
    balance = results.balance(votes, "ours", "base")
    won = (balance["first"] > balance["second"]).to_numpy()
    rng = np.random.default_rng(7)
    means = 100 * won[rng.integers(40, size=(4000, 40))].mean(axis=1)
    assert np.quantile(means, [0.025, 0.975]) == pytest.approx([row.win_low, row.win_high], abs=3)


@pytest.mark.parametrize("seed", range(5))
def test_agreement_is_that_of_another_library(seed: int) -> None:
    rng = np.random.default_rng(seed)
    answers = rng.integers(3, size=(6, 30)).astype(float)  # raters x prompts
    answers[:, rng.random(30) < 0.5] = rng.integers(3)  # some agree wholly
    answers[rng.random((6, 30)) < 0.3] = np.nan  # not all saw all
    counts = np.stack([(answers == k).sum(axis=0) for k in range(3)], axis=1).astype(float)
    shared = counts[counts.sum(axis=1) >= 2]
    ours = results.alpha(shared, np.ones((1, len(shared))))[0]
    theirs = krippendorff.alpha(reliability_data=answers, level_of_measurement="nominal")
    assert ours == pytest.approx(theirs, abs=1e-12)


def test_agreement_of_votes_does_not_depend_on_sides_or_order() -> None:
    votes = simulated({"base": 0.0, "ours": 1.0}, prompts=20, raters=4)
    turned = votes.rename(columns={"left": "right", "right": "left"}).iloc[::-1]
    turned["choice"] = turned["choice"].map({"left": "right", "right": "left", "tie": "tie"})
    one, other = (results_of_votes(each).agreement for each in (votes, turned))
    pd.testing.assert_frame_equal(one, other)


def pairs_of(wins: np.ndarray) -> list[tuple[int, int]]:
    return [(i, j) for i, row in enumerate(wins) for j, n in enumerate(row) for _ in range(int(n))]


def test_strengths_are_those_of_another_library() -> None:
    wins = np.array([[0, 12, 30, 9], [8, 0, 17, 11], [3, 6, 0, 5], [9, 4, 16, 0]])
    ours = results.bradley_terry(wins.astype(float))
    theirs = choix.opt_pairwise(4, pairs_of(wins), alpha=0, tol=1e-12)
    assert ours == pytest.approx(theirs - theirs.mean(), abs=1e-5)


def test_a_model_that_never_lost_has_no_strength() -> None:
    assert np.isnan(results.bradley_terry(np.array([[0.0, 3.0], [0.0, 0.0]]))).all()
    always = pd.DataFrame([vote(f"p{n}", "", "r", "ours", "base", "ours") for n in range(5)])
    assert results_of_votes(always).strengths["strength"].isna().all()


@pytest.mark.parametrize("names", [("base", "a", "b"), ("x", "y", "z", "w")])
def test_raters_of_known_preferences_are_recovered(names: Sequence[str]) -> None:
    known = dict(zip(names, (0.0, 0.9, -0.5, 0.3), strict=False))
    found = results_of_votes(simulated(known, prompts=60, raters=9, seed=3)).strengths
    shift = 0.0 if "base" in known else np.mean(list(known.values()))
    # Half of each tie goes to either side: a tenth of ties draws strengths together by as much.
    for row in found.itertuples():
        assert row.strength == pytest.approx(known[row.model] - shift, abs=0.2)
        assert row.low <= row.strength <= row.high


def test_a_habit_of_raters_is_seen_and_does_not_move_who_wins() -> None:
    honest = simulated({"base": 0.0, "ours": 0.8}, prompts=80, raters=5)
    lazy = simulated({"base": 0.0, "ours": 0.8}, prompts=80, raters=5, left=1.0)
    share, low, high = results_of_votes(honest).left
    assert low < 0.5 < high and low < share < high
    assert results_of_votes(lazy).left[1] > 0.6
    assert any("have a habit" in line for line in result_lines(results_of_votes(lazy)))
    assert results_of_votes(lazy).strengths.iloc[0]["model"] == "ours"


def test_raters_who_fail_attention_checks_are_left_out_and_named() -> None:
    votes = by_hand()
    checks = [
        vote("p1", "anime", rater, "damaged", "ours", said, attention=True)
        for rater, said in (("r1", "ours"), ("r2", "ours"), ("r3", "damaged"))
    ]
    found = results_of_votes(pd.concat([votes, pd.DataFrame(checks)], ignore_index=True))
    assert list(found.raters["left_out"]) == [False, False, True]
    assert found.n_votes == 8
    assert list(found.outcomes.iloc[0][["win", "tie", "loss"]]) == [25.0, 50.0, 25.0]
    assert any("rater r3, who passed 0 of 1" in line for line in result_lines(found))
    lenient = pd.concat([votes, pd.DataFrame(checks)], ignore_index=True)
    assert results_of_votes(lenient, least_checks=0.0).n_votes == 12
    nobody = pd.concat([votes, pd.DataFrame(checks)], ignore_index=True)
    nobody.loc[nobody["attention"], "choice"] = "tie"
    with pytest.raises(InputError, match="all raters failed"):
        results_of_votes(nobody)


def test_repeats_count_once_and_tell_whether_a_rater_is_steady() -> None:
    again = [
        vote("p1", "anime", "r1", "base", "ours", "ours", repeat=True),
        vote("p4", "photo", "r1", "base", "ours", "ours", repeat=True),  # said base before
    ]
    found = results_of_votes(pd.concat([by_hand(), pd.DataFrame(again)], ignore_index=True))
    assert found.n_votes == 12
    own = found.raters.set_index("rater").loc["r1"]
    assert (own["repeats"], own["repeats_alike"]) == (2, 1)


def test_a_table_of_other_people_is_read_and_a_wrong_one_names_its_row(tmp_path: Path) -> None:
    file = tmp_path / "votes.csv"
    columns = ["prompt_id", "category", "rater", "left", "right", "choice"]
    by_hand()[columns].to_csv(file, index=False)
    read = results_of_votes(read_votes(str(file))).outcomes
    pd.testing.assert_frame_equal(read, results_of_votes(by_hand()).outcomes)
    file.write_text(file.read_text().replace("tie", "both", 1))
    with pytest.raises(InputError, match="line 7: choice=both: it is one of left, right, tie"):
        read_votes(str(file))
    file.write_text("prompt,choice\n")
    with pytest.raises(InputError, match="no column prompt_id, category, rater, left, right"):
        read_votes(str(file))


def test_the_command_writes_table_and_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_hand().to_csv(tmp_path / "votes.csv", index=False)
    assert console(["study", "results", str(tmp_path / "votes.csv")]) == 0
    said = capsys.readouterr().out
    assert "ours against base: wins 50.00% of 4 prompts" in said
    table = (tmp_path / "results.md").read_text()
    assert "| ours | base | anime | 50.00 | 50.00 | 0.00 |" in table
    page = (tmp_path / "results.html").read_text()
    assert "Wins per prompt" in page and "<svg" in page
    assert pd.read_csv(tmp_path / "results.csv")["n_prompts"].tolist() == [4, 2, 2]
