"""`raypref arena`: labels to capabilities, checks, votes; a page and numbers. No image is read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raypref import cli
from raypref.align.plan import RESERVED
from raypref.core.config import InputError, build
from raypref.core.job_lock import only_job_in
from raypref.core.ledger import in_folder
from raypref.judge.arenas import FOLDER, ArenaJobConfig, read_choices
from raypref.pairs.arena import ArenaConfig
from raypref.pairs.choices import Choices, arena_findings, correlation, variance_between
from raypref.pairs.config import PairingConfig
from raypref.pairs.decide import decide
from raypref.pairs.kinds import maker_of
from raypref.pairs.labelled import LabelledPairs
from raypref.pairs.listing import write_labels
from raypref.sources.base import Layout, Pair, Ref
from raypref.sources.layouts import REGISTRY
from raypref.sources.store import Store

TRUE = {"real_images": 33.0, "sharp <b>$x$": 27.0, "plain": 24.0, "early": 16.0}
NOISE = ArenaConfig().noise


def people(count: int, *, seed: int = 0, voters: int = 9) -> list[Pair]:
    """Labels by simulated people: each votes for the image that looks better to them."""
    rng = np.random.default_rng(seed)
    names, means = list(TRUE), np.array(list(TRUE.values()))
    found = []
    for number in range(count):
        sides = rng.integers(0, len(names), 2)
        quality = means[sides] + NOISE * rng.standard_normal(2)
        votes = int((quality[0] - quality[1] + 2 * rng.standard_normal(voters) > 0).sum())
        found.append(
            Pair(
                prompt="a ball",
                first=Ref(f"{number}a.png"),
                second=Ref(f"{number}b.png"),
                label=float(votes > voters / 2),
                confidence=abs(2 * votes / voters - 1),
                first_model=names[sides[0]],
                second_model=names[sides[1]],
                vote_share=votes / voters,
                id=f"pair {number}",
            )
        )
    return found


LISTED: list[Pair] = []


@pytest.fixture(autouse=True)
def labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source whose layout lists `LISTED`."""

    def listing(store: Store) -> Iterator[Pair]:
        yield from LISTED

    monkeypatch.setitem(REGISTRY, "people", Layout(pairs=listing))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels").mkdir()
    return tmp_path / "labels"


def given(pairs: list[Pair], **settings: object) -> ArenaJobConfig:
    LISTED[:] = pairs
    source = {"path": "labels", "layout": "people"}
    return build(ArenaJobConfig, {"source": source, "pairs": {"kind": "labelled", **settings}})


def frame(choices: Choices) -> pd.DataFrame:
    named = np.array(choices.names)
    return pd.DataFrame(
        {
            "chosen": named[choices.chosen],
            "rejected": named[choices.rejected],
            "vote_share": choices.vote_share,
            "confidence": choices.confidence,
        }
    )


# ------------------------------------------------------------------ reading


def test_each_label_is_counted_once_and_turned_to_its_chosen_side() -> None:
    first, second = people(2, seed=1)
    usable = {"first_model": "a", "second_model": "b", "confidence": 0.9}
    listed = [
        first._replace(label=1.0, vote_share=0.75, **usable),
        second._replace(label=0.0, vote_share=0.2, **usable),
        first._replace(id="tie", label=0.5, **usable),
        first._replace(id="bad", problem="bad_record: it has no prompt"),
        first._replace(id="other", label=2.0),
        first._replace(id="open", label=None),
        first._replace(id="unsure", confidence=0.1),
        first._replace(id="nameless", first_model=None, confidence=None),
    ]
    choices, counts = read_choices(given(listed, min_confidence=0.5))
    assert counts == {
        "labels": 8, "dropped": 2, "unlabelled": 1, "low_confidence": 1, "unnamed": 1,
    }  # fmt: skip
    told = frame(choices)[~choices.ties]
    assert sorted(zip(told.chosen, told.rejected, told.vote_share, strict=True)) == [
        ("a", "b", 0.75), ("b", "a", pytest.approx(0.8)),
    ]  # fmt: skip
    assert choices.ties.sum() == 1


def test_the_order_of_the_source_does_not_matter_and_the_seed_does() -> None:
    listed = people(300)
    forward, _ = read_choices(given(listed))
    backward, _ = read_choices(given(listed[::-1]))
    for one, other in zip(forward, backward, strict=True):
        assert np.array_equal(one, other)
    other_seed, _ = read_choices(given(listed).model_copy(update={"seed": 1}))
    assert not np.array_equal(other_seed.chosen, forward.chosen)
    columns = ["chosen", "rejected", "vote_share"]
    one, other = (frame(each).sort_values(columns) for each in (forward, other_seed))
    pd.testing.assert_frame_equal(one.reset_index(drop=True), other.reset_index(drop=True))


def test_the_arena_is_the_one_that_a_run_with_these_settings_fits(tmp_path: Path) -> None:
    listed = people(300)
    listed[::7] = [pair._replace(label=0.5) for pair in listed[::7]]
    listed[3] = listed[3]._replace(prompt=" ")  # no run can use it
    listed[4] = listed[4]._replace(first_model=None)
    arena = {"draw_probability": 0.1, "noise": 3.0}
    config = given(listed, arena=arena, min_confidence=0.2, limit=50, flip_labels=0.2)
    run = PairingConfig(source=config.source, seed=config.seed, pairs=config.pairs)
    maker = maker_of(run, place=in_folder(str(tmp_path / "run")))
    assert isinstance(maker, LabelledPairs) and maker.arena is not None
    write_labels(run, maker.index)
    decide(maker.index, run, decided=maker.decided, arena=maker.arena)

    choices, counts = read_choices(config)
    assert (counts["dropped"], counts["unnamed"]) == (1, 1)
    found = arena_findings(choices, config.pairs.arena, seed=0, resamples=100)
    shown = {row.generator: (row.mean, row.std, row.games) for row in found.standings}
    assert shown == {
        row["generator"]: (row["mean"], row["std"], row["games"]) for row in maker.arena.rows()
    }


@pytest.mark.parametrize(
    "change, says",
    [
        ({"first_model": None}, r" names no generators: none of its 5 labels .*chosen_model"),
        ({"label": None}, ": none of its 5 labels decides"),
        ({"first_model": "a", "second_model": "a"}, " names one generator"),
    ],
)
def test_labels_that_make_no_arena_are_refused(change: dict[str, object], says: str) -> None:
    listed = [pair._replace(**change) for pair in people(5)]
    with pytest.raises(InputError, match=rf"^source\.path: '.*labels'{says}"):
        read_choices(given(listed))


def test_a_source_without_labels_is_refused() -> None:
    with pytest.raises(InputError, match="has no labelled pairs"):
        read_choices(given([]))


# ------------------------------------------------------------------ findings


def test_findings_are_those_of_plain_counting() -> None:
    choices, _ = read_choices(given(people(4000)))
    found = arena_findings(choices, ArenaConfig(), seed=0, resamples=50)
    assert [row.generator for row in found.standings] == list(TRUE)
    for row in found.standings:
        assert row.mean - found.standings[2].mean == pytest.approx(
            TRUE[row.generator] - TRUE["plain"], abs=1.0
        )
    told = frame(choices)
    across = told[told.chosen != told.rejected]
    for row in found.standings:
        won, lost = (across.chosen == row.generator).sum(), (across.rejected == row.generator).sum()
        assert row.games == won + lost
        assert row.win_rate == pytest.approx(won / (won + lost))
    assert found.decided == len(told)
    assert found.within == pytest.approx(1 - len(across) / len(told))
    place = {row.generator: number for number, row in enumerate(found.standings)}
    upset = across.chosen.map(place) > across.rejected.map(place)
    assert found.upsets == pytest.approx(upset.mean())
    # The held-out half is about as well foretold as the arena expects.
    assert found.predicted == pytest.approx(1 - found.upsets, abs=0.03)
    assert found.expected == pytest.approx(found.predicted, abs=0.03)
    assert found.batch_difference < 1.0
    assert list(found.quantiles) == [0, 5, 25, 50, 75, 95, 100]
    assert found.quantiles[0] < 1 < found.quantiles[100]


def test_the_gap_agrees_with_votes_that_it_was_not_told() -> None:
    choices, _ = read_choices(given(people(6000)))
    found = arena_findings(choices, ArenaConfig(), seed=0, resamples=200)
    assert [row.what for row in found.agreements] == ["vote_share", "confidence"]
    for row in found.agreements:
        assert row.pairs == 3000
        for each in (row.pearson, row.spearman):
            assert 0 < each.low < each.value < each.high < 1
        assert row.pearson.value**2 < row.between + 0.02  # the gap is constant within generators
    mixed = choices._replace(vote_share=np.random.default_rng(0).permutation(choices.vote_share))
    control = arena_findings(mixed, ArenaConfig(), seed=0, resamples=200).agreements[0]
    assert control.pearson.low < 0 < control.pearson.high
    assert abs(control.between) < 0.02


def test_without_votes_and_confidence_nothing_is_compared() -> None:
    listed = [pair._replace(vote_share=None, confidence=None) for pair in people(50)]
    choices, _ = read_choices(given(listed))
    assert arena_findings(choices, ArenaConfig(), seed=0, resamples=10).agreements == []


def test_ties_count_where_they_are_asked_for() -> None:
    listed = [p._replace(label=0.5 if i % 4 == 0 else p.label) for i, p in enumerate(people(400))]
    choices, _ = read_choices(given(listed))
    without = arena_findings(choices, ArenaConfig(), seed=0, resamples=10)
    used = arena_findings(choices, ArenaConfig(draw_probability=0.25), seed=0, resamples=10)
    assert without.ties == used.ties == 100
    between = choices.chosen != choices.rejected
    assert sum(row.games for row in used.standings) == 2 * between.sum()
    assert sum(row.games for row in without.standings) == 2 * (between & ~choices.ties).sum()


# ------------------------------------------------------------------ statistics


def test_correlation_is_that_of_numpy_and_pandas_and_its_interval_that_of_theory() -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 12, 20_000).astype(float)  # many equal values
    y = np.round(0.3 * x + 3 * rng.standard_normal(20_000))
    got = correlation(x, y, seed=0, resamples=2000)
    assert got.value == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-12)
    ranks = correlation(
        pd.Series(x).rank().to_numpy(), pd.Series(y).rank().to_numpy(), seed=0, resamples=10
    )
    assert ranks.value == pytest.approx(pd.DataFrame({"x": x, "y": y}).corr("spearman").x.y)
    # Plainly: draw pairs, one bootstrap sample after another.
    drawn = [rng.integers(0, len(x), len(x)) for _ in range(300)]
    plain = np.std([np.corrcoef(x[some], y[some])[0, 1] for some in drawn])
    assert (got.high - got.low) / 3.92 == pytest.approx(plain, rel=0.15)


def test_a_constant_side_has_no_correlation() -> None:
    got = correlation(np.ones(9), np.arange(9.0), seed=0, resamples=10)
    assert all(map(math.isnan, got))


def test_variance_between_groups_is_that_which_was_put_there() -> None:
    rng = np.random.default_rng(2)
    groups = rng.integers(0, 200, 40_000)
    effect = rng.standard_normal(200)
    values = effect[groups] + 2 * rng.standard_normal(40_000)
    assert variance_between(groups, values) == pytest.approx(
        effect.var() / (effect.var() + 4), abs=0.02
    )
    nothing = rng.standard_normal(2_000)
    # Raw shares of 500 groups of chance alone would be a quarter.
    assert abs(variance_between(rng.integers(0, 500, 2_000), nothing)) < 0.06
    assert math.isnan(variance_between(np.arange(5), np.arange(5.0)))


# ------------------------------------------------------------------ the command


def test_the_command_prints_a_table_and_leaves_a_page_and_numbers(
    labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LISTED[:] = people(1500)
    words = ["source.layout=people", "run=hpd", "pairs.arena.noise=4", "table.resamples=100"]
    assert cli.console(["arena", str(labels), *words]) == 0
    out = capsys.readouterr().out
    assert out.index("real_images") < out.index("plain") < out.index("early")
    assert "1,500 decided" in out and "votes for the chosen image of 750 held-out pairs" in out
    folder = tmp_path / "runs" / "hpd" / "arena-page"
    numbers = json.loads((folder / "arena.json").read_text())
    assert numbers["settings"]["pairs"]["arena"]["noise"] == 4.0
    assert [row["generator"] for row in numbers["standings"]] == list(TRUE)
    assert numbers["agreements"][0]["pearson"]["value"] > 0
    page = (folder / "index.html").read_text()
    assert "sharp &lt;b&gt;$x$" in page and "<b>$x$" not in page
    assert "<svg" in page and "var(--accent)" in page
    assert "https:" not in page and "http:" not in page.replace("http://www.w3.org", "")


def test_a_file_of_settings_serves_and_says_where_the_labels_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LISTED[:] = people(60)
    own = tmp_path / "own.toml"
    own.write_text(
        'extends = "sd15"\nrun = "mine"\n[source]\npath = "labels"\nlayout = "people"\n'
        "[pairs.arena]\ndrift = 0.1\n[table]\nresamples = 100\n"
    )
    assert cli.console(["arena", str(own)]) == 0
    numbers = json.loads((tmp_path / "runs" / "mine" / "arena-page" / "arena.json").read_text())
    assert numbers["settings"]["pairs"]["arena"]["drift"] == 0.1


def test_a_run_keeps_its_folder_and_its_ledger(
    labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LISTED[:] = people(60)
    words = ["arena", str(labels), "source.layout=people", "table.resamples=100"]
    ledger = tmp_path / "runs" / "run" / "arena"
    ledger.mkdir(parents=True)
    with only_job_in(str(ledger.parent)):
        assert cli.console(words) == 2
    assert "is in use by another job" in capsys.readouterr().err
    assert cli.console(words) == 0
    assert [*ledger.iterdir()] == [] and FOLDER in RESERVED


def test_what_is_not_there_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.console(["arena", "nowhere"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: source.path: there is no folder or file 'nowhere'"
    assert not (tmp_path / "runs").exists()


CSV = "prompt,chosen,rejected,chosen_model,rejected_model\n" + "".join(
    f"p {number},{number}a.png,{number}b.png,{models}\n"
    for number, models in enumerate(["real_images,flux", "flux,sd2", "sd2,flux", "flux,sd2"] * 9)
)
HPDV3 = [
    {"prompt": f"p {number}", "path1": f"{number}a.jpg", "path2": f"{number}b.jpg"}
    | {"model1": better, "model2": worse, "confidence": 0.9, "choice_dist": [7, 2]}
    for number, (better, worse) in enumerate([("real_images", "flux"), ("flux", "sd2")] * 18)
]


@pytest.mark.parametrize(
    "name, text", [("labels.csv", CSV), ("all.json", json.dumps(HPDV3))], ids=["csv", "hpdv3"]
)
def test_published_and_own_labels_are_recognised(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert cli.console(["arena", name, "table.resamples=100"]) == 0
    numbers = json.loads((tmp_path / "runs" / "run" / "arena-page" / "arena.json").read_text())
    assert [row["generator"] for row in numbers["standings"]] == ["real_images", "flux", "sd2"]
    assert numbers["labels"] == {"labels": 36} and numbers["decided"] == 36
