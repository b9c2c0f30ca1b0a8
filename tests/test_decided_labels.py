"""From labels to pairs before any image is read: gaps, noise on purpose."""

from pathlib import Path

import numpy as np
import pytest
from label_listing import Listing

from raypref.core.config import InputError, load
from raypref.core.ledger import in_folder
from raypref.core.rows import seed_of
from raypref.models.families.registry import FAMILIES, INPAINTING, family
from raypref.pairs import labelled
from raypref.pairs.arena import ArenaConfig, fit, gap, walk_order
from raypref.pairs.config import PairsConfig
from raypref.pairs.decide import DROPPED, decide, is_flipped, outcomes
from raypref.pairs.kinds import maker_of
from raypref.pairs.labelled import LabelledPairs
from raypref.pairs.listing import survey, write_labels
from raypref.run.config import RunConfig
from raypref.sources.base import Pair, Ref
from raypref.sources.remembered import unchanged

PAIRS = PairsConfig(kind="labelled", gap="given")


@pytest.fixture
def listing(tmp_path, monkeypatch):
    return Listing(tmp_path / "labels", monkeypatch)


def arena_labels(listing: Listing, count: int = 150) -> list[Pair]:
    """Labels of three generators, of which `c` is the best; nothing has an image."""
    random = np.random.default_rng(0)
    for number in range(count):
        one, other = random.choice(3, 2, replace=False)
        label = float(random.random() < 1 / (1 + np.exp(other - one)))
        if number % 10 == 9:
            label = 0.5
        models = {"first_model": "bca"[one], "second_model": "bca"[other]}
        refs = Ref(f"{number}-0.png"), Ref(f"{number}-1.png")
        listing.entries.append(
            Pair(f"p {number}", *refs, label, id=f"i{number}", gap=float(number), **models)
        )
    return [entry for entry in listing.entries if isinstance(entry, Pair)]


def decided(config: RunConfig, folder: Path) -> tuple[list[dict], LabelledPairs]:
    maker = maker_of(config, place=in_folder(str(folder)))
    assert isinstance(maker, LabelledPairs)
    write_labels(config, maker.index)
    decide(maker.index, config, decided=maker.decided, arena=maker.arena)
    return [*maker.decided.rows()], maker


def test_gaps_are_the_arena_s_divided_by_their_mean(listing, tmp_path):
    pairs = arena_labels(listing)
    config = listing.config("seed=3", "pairs.limit=100")
    rows, maker = decided(config, tmp_path)
    # Straight: every label that decides is a game, in the order drawn from the seed.
    names = ["a", "b", "c"]
    games = [pair for pair in pairs if pair.label != 0.5]
    order = walk_order([pair.id for pair in pairs], 3)
    walked = [pairs[place] for place in order if pairs[place].label != 0.5]
    sides = [
        [names.index(m) for m in (p.first_model, p.second_model)][:: 1 if p.label == 1 else -1]
        for p in walked
    ]
    arena = fit(*np.array(sides).T, generators=3, config=ArenaConfig())
    taken = games[:100]
    own = [
        [names.index(m) for m in (p.first_model, p.second_model)][:: 1 if p.label == 1 else -1]
        for p in taken
    ]
    gaps, stds = gap(arena, *np.array(own).T, ArenaConfig())
    assert [row["id"] for row in rows] == [pair.id for pair in taken]
    assert [row["gap"] for row in rows] == pytest.approx(gaps / gaps.mean(), rel=1e-12)
    assert [row["gap_std"] for row in rows] == pytest.approx(stds / gaps.mean(), rel=1e-12)
    assert np.mean([row["gap"] for row in rows]) == pytest.approx(1)
    assert maker.arena is not None
    told = {row["generator"]: row for row in maker.arena.rows()}
    assert [told[name]["mean"] for name in names] == pytest.approx(arena.mean.tolist(), rel=1e-12)
    assert sum(row["games"] for row in told.values()) == 2 * len(games)
    assert maker.decided.parts() == ["part-00000000.parquet"]


def test_the_gaps_of_the_source_are_taken_where_it_is_asked_for(listing, tmp_path):
    pairs = [pair for pair in arena_labels(listing) if pair.label != 0.5]
    rows, maker = decided(listing.config("pairs.gap=given"), tmp_path / "given")
    mean = np.mean([pair.gap for pair in pairs])
    assert [row["gap"] for row in rows] == pytest.approx([pair.gap / mean for pair in pairs])
    assert maker.arena is None and {row["gap_std"] for row in rows} == {None}
    shuffled, _ = decided(listing.config("pairs.gap=given", "pairs.shuffle_gaps=true"), tmp_path)
    assert [row["gap"] for row in shuffled] != [row["gap"] for row in rows]
    assert sorted(row["gap"] for row in shuffled) == sorted(row["gap"] for row in rows)
    listing.entries = [pair._replace(gap=None) for pair in pairs]
    with pytest.raises(InputError, match=r"pairs\.gap=given: no label .* has a gap"):
        decided(listing.config("pairs.gap=given"), tmp_path / "none")


def test_flipped_labels_are_drawn_by_seed_and_id_and_turn_all_round(listing, tmp_path):
    arena_labels(listing)
    listing.entries = [
        pair._replace(vote_share=0.75) for pair in listing.entries if isinstance(pair, Pair)
    ]
    rows, _ = decided(listing.config("pairs.flip_labels=0.25"), tmp_path / "noisy")
    clean, _ = decided(listing.config(), tmp_path / "clean")
    for noisy, plain in zip(rows, clean, strict=True):
        flipped = seed_of(0, "flip", noisy["id"]) < 0.25 * 2**63
        assert noisy["flipped"] == flipped and not plain["flipped"]
        same = ["chosen_at", "rejected_at", "chosen_model", "rejected_model"]
        other = [same[1], same[0], same[3], same[2]] if flipped else same
        assert [noisy[name] for name in same] == [plain[name] for name in other]
        share = 1 - plain["vote_share"] if flipped else plain["vote_share"]
        assert noisy["vote_share"] == pytest.approx(share)
    assert 0.1 < np.mean([row["flipped"] for row in rows]) < 0.4
    reversed_ = listing.config("pairs.flip_labels=0.25")
    listing.entries.reverse()
    again = {row["id"]: row["flipped"] for row in decided(reversed_, tmp_path / "other")[0]}
    assert again == {row["id"]: row["flipped"] for row in rows}
    assert is_flipped("any", listing.config("pairs.flip_labels=1"))


def test_tables_of_runs_read_the_labels_once(listing, tmp_path, monkeypatch):
    arena_labels(listing, 20)
    reads = []
    monkeypatch.setattr(
        labelled, "survey", lambda config: (reads.append(config), survey(config))[1]
    )
    rows = ["pairs.flip_labels=0.25", "pairs.shuffle_gaps=true", "seed=1"]
    place = in_folder(str(tmp_path))
    with unchanged():
        found = {maker_of(listing.config(words), place=place).index.fingerprint for words in rows}
    assert len(reads) == 1 and len(found) == 1
    maker_of(listing.config(), place=place).index.fingerprint  # noqa: B018
    assert len(reads) == 2


def test_a_negative_gap_of_the_source_is_dropped_where_gaps_are_the_source_s(listing, tmp_path):
    for gap_ in (2.0, -1.0, 0.0, None):
        listing.pair(1.0, gap=gap_, first_model="a", second_model="b")
    listing.pair(0.5, gap=-1.0)
    rows, maker = decided(listing.config("pairs.gap=given"), tmp_path / "given")
    assert [(row["id"], row["gap"]) for row in rows] == [
        ("row 0", 2),
        ("row 2", 0),
        ("row 3", None),
    ]
    told = {row["id"]: row for row, why in outcomes(maker.index.rows(), PAIRS) if why == DROPPED}
    assert told.keys() == {"row 1"}
    assert told["row 1"]["problem"] == "bad_gap: the gap of row 1 is -1; it must be 0 or more"
    fitted, _ = decided(listing.config(), tmp_path / "fitted")
    assert [row["id"] for row in fitted] == ["row 0", "row 1", "row 2", "row 3"]


def test_confidence_is_compared_only_where_a_limit_is_set(listing, tmp_path):
    for confidence in (-3.0, 0.1, 0.9, None):
        listing.pair(1.0, confidence=confidence)
    rows, _ = decided(listing.config(), tmp_path / "all")
    assert [row["confidence"] for row in rows] == [-3.0, 0.1, 0.9, None]
    rows, _ = decided(listing.config("pairs.min_confidence=0.5"), tmp_path / "sure")
    assert [row["confidence"] for row in rows] == [0.9, None]


@pytest.mark.parametrize(
    "toml, says",
    [
        ('pairs = "labelled"', "pairs='labelled': "),
        ('[pairs]\nkind = ["labelled"]', r"pairs\.kind=\['labelled'\]: "),
        ('[pairs]\nkind = "ranked"', r"pairs\.kind='ranked': "),
        (
            '[pairs]\nkind = "labelled"\n[base]\nfamily = "sd15_inpaint"',
            r"base\.family=sd15_inpaint reads masks .* pairs\.kind=labelled has none",
        ),
    ],
)
def test_kinds_of_pairs_that_cannot_be_are_named(toml, says, tmp_path):
    file = tmp_path / "a.toml"
    file.write_text(f'extends = "tiny"\n{toml}\n')
    with pytest.raises(InputError, match=f"^{says}"):
        load(RunConfig, str(file))


def test_families_that_read_masks_are_known_before_they_are_loaded():
    assert {name for name in FAMILIES if family(name).inpaints} == INPAINTING
