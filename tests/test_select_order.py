"""Which photographs are paired: a random K of those that pass, and the pool of the best N."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from candidate_pairs import config, counting, photographs
from in_process import without_ray
from test_select import ledger_of, scores

from raypref.core.ledger import in_folder
from raypref.core.rows import Row
from raypref.curate.graph import Curation
from raypref.curate.perturb import Inpaint
from raypref.curate.select import in_pool

COUNT = 7  # photographs that can be used: six scenes and a grey one
RANDOM = ("select.order=random", "select.negligible=false")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("source") / "photographs", 6)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    return counting(monkeypatch)


def curated(root: Path, folder: Path, *words: str) -> Curation:
    """Twins, made or resumed; what was made with other settings is replaced, as by --redo."""
    settings = config(root, "pairs.kind=twins", *words)
    maker = Curation(settings, place=in_folder(str(folder)))
    for ledger in maker.ledgers:
        if ledger.state() == "stale":
            ledger.clear()
    maker.run(settings.stream)
    return maker


def taken(maker: Curation) -> list[str]:
    """Ids of the pairs in order of rank."""
    rows = maker.pairs.table(["id", "rank"]).to_pylist()
    return [row["id"] for row in sorted(rows, key=lambda row: row["rank"])]


def drawn(maker: Curation, seed: int) -> list[str]:
    """The order read aloud: by the first 63 bits of a hash of seed and content."""

    def draw(row: Row) -> int:
        data = f"{seed}\0taken\0{row['key']}".encode()
        return int(hashlib.sha256(data).hexdigest()[:16], 16) >> 1

    rows = [row for row in maker.scored.rows() if row["reject_reason"] is None]
    return [row["id"] for row in sorted(rows, key=draw)]


def ends(maker: Curation) -> Counter[str | None]:
    usable = [row for row in maker.photos.rows() if row["status"] != "rejected"]
    return Counter(row["reason"] for row in usable)


def test_a_random_k_is_drawn_by_seed_and_content(root, tmp_path, done):
    three = curated(root, tmp_path, *RANDOM, "select.top_k=3")
    assert taken(three) == drawn(three, 0)[:3] and len(drawn(three, 0)) == COUNT
    assert ends(three) == {None: 3, "not_needed": COUNT - 3, "duplicate": 1}
    best = [row["id"] for row in sorted(three.scored.rows(), key=lambda row: -row["pickscore"])]
    assert taken(three) != best[:3], "these photographs do not show the difference"
    five = curated(root, tmp_path, *RANDOM, "select.top_k=5")
    assert taken(five)[:3] == drawn(five, 0)[:3], "of more, the same come first"
    assert done["pickscore"] == COUNT, "the photographs are scored once"
    other = curated(root, tmp_path, *RANDOM, "select.top_k=3", "seed=1")
    assert taken(other) == drawn(other, 1)[:3] != drawn(other, 0)[:3]


def test_it_does_not_depend_on_names_blocks_or_workers(root, tmp_path):
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for file in sorted(root.glob("0*")):  # in another order
        shutil.copy(file, renamed / f"{9 - int(file.stem)}{file.suffix}")
    shutil.copy(root / "grey.png", renamed / "grey.png")
    shutil.copy(root / "grey.txt", renamed / "grey.txt")
    words = (*RANDOM, "select.top_k=4")
    first = curated(root, tmp_path / "a", *words, "stream.block_rows=1", "stream.part_rows=2")
    other = curated(renamed, tmp_path / "b", *words, "perturb.resources.batch=3")
    keys = [[row["key"] for row in maker.pairs.rows(["key"])] for maker in (first, other)]
    assert keys[0] == keys[1]


def test_only_those_that_pass_are_drawn(root, tmp_path):
    """Of all pairs, those that pass in the drawn order; a killed run ends as an undisturbed one."""
    everything = curated(root, tmp_path / "all", *RANDOM, "select.top_k=0")
    pairs = {row["id"]: row for row in everything.pairs.rows()}
    gaps = sorted(row["pickscore_chosen"] - row["pickscore_rejected"] for row in pairs.values())
    gap = (gaps[3] + gaps[4]) / 2  # three pass
    words = ("select.order=random", f"select.min_gap={gap}", "select.top_k=2")
    paint, painted = Inpaint.finish, 0

    def dies(self: Inpaint, rows: list[Row], out: object) -> None:
        nonlocal painted
        painted += 1
        if painted == 2:
            raise RuntimeError("killed")
        paint(self, rows, out)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Inpaint, "finish", dies)
        with pytest.raises(RuntimeError, match="killed"):
            curated(root, tmp_path / "some", *words, "stream.block_rows=1")
    two = curated(root, tmp_path / "some", *words, "stream.block_rows=1")

    def passes(id_: str) -> bool:
        return pairs[id_]["pickscore_chosen"] - pairs[id_]["pickscore_rejected"] > gap

    assert taken(two) == [id_ for id_ in drawn(everything, 0) if passes(id_)][:2]


def test_pairs_are_made_of_the_pool_alone(root, tmp_path, done):
    words = ("select.negligible=false", "select.top_k=6")
    whole = curated(root, tmp_path, *words)
    ranks = taken(whole)
    pool = curated(root, tmp_path, *words, "source.pool_size=4")
    assert taken(pool) == ranks[:4]
    assert ends(pool) == {None: 4, "outside_pool": COUNT - 4, "duplicate": 1}
    assert done["pickscore"] == COUNT, "nothing is scored again"
    full = curated(root, tmp_path, *words, "source.pool_size=4", "select.top_k=3")
    assert ends(full) == {None: 3, "not_needed": COUNT - 3, "duplicate": 1}
    every = ("source.pool_size=4", "curate.exhaustive=true", "select.top_k=3")
    tried = curated(root, tmp_path, *words, *every)
    assert ends(tried) == {None: 3, "beyond_top_k": 1, "outside_pool": COUNT - 4, "duplicate": 1}
    any_of = curated(root, tmp_path, *words, *RANDOM, "source.pool_size=4", "select.top_k=3")
    assert taken(any_of) == [id_ for id_ in drawn(any_of, 0) if id_ in ranks[:4]][:3]


def test_quick_scores_give_the_same_pool(root, tmp_path):
    words = ("select.negligible=false", "select.top_k=6", "source.pool_size=4")
    exact = curated(root, tmp_path / "exact", *words)
    quick = curated(root, tmp_path / "quick", *words, "pickscore.quick=bfloat16")
    assert taken(quick) == taken(exact) and len(taken(exact)) == 4
    again = curated(root, tmp_path / "quick", *words, *RANDOM, "pickscore.quick=bfloat16")
    assert not again.quick, "any photograph may come first"


def test_the_settings_are_noted_by_the_pairs_alone(root, tmp_path):
    def maker(*words: str) -> Curation:
        return Curation(config(root, "pairs.kind=twins", *words), place=in_folder(str(tmp_path)))

    before = maker()
    assert "select.order" not in before.pairs.settings
    assert not [key for key in before.pairs.settings if "pool" in key]
    for word in ("select.order=random", "source.pool_size=4"):
        other = maker(word)
        assert other.pairs.fingerprint != before.pairs.fingerprint
        assert other.scored.fingerprint == before.scored.fingerprint
        assert other.twins.fingerprint == before.twins.fingerprint


@pytest.mark.parametrize("seed", range(10))
def test_the_pool_is_the_best_of_all_with_ties_by_id(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    rows = scores(rng, count=40)
    scored = ledger_of(tmp_path, rows)
    sound = [row for row in rows if row["reject_reason"] is None]
    ranked = sorted(sound, key=lambda row: (-row["pickscore"], row["id"]))
    for size in (0, 1, rng.randrange(2, 40), len(sound), 99):
        found = {row["id"] for row in scored.rows(["id"], where=in_pool(scored, size))}
        assert found == {row["id"] for row in ranked[: size or None]}
