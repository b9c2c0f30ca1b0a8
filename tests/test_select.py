"""Selection in waves against a slow reference that sees everything, on scores with many ties."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raypref.core.ledger import Ledger
from raypref.core.rows import REJECT, Row, reject
from raypref.curate.select import (
    SOUND,
    Ranking,
    SelectConfig,
    mean_colorfulness,
    near_repeated_ids,
    next_wave,
    repeated_ids,
)


def scores(rng: random.Random, count: int) -> list[Row]:
    """Scores on a coarse grid, so that equal scores and gaps on the limit are common."""
    rows: list[Row] = []
    for number in range(count):
        row: Row = dict.fromkeys(REJECT.names)
        row |= {"id": f"{number:03d}", "pickscore": rng.randrange(8) / 4}
        row["pickscore_rejected"] = rng.randrange(8) / 4
        if rng.random() < 0.1:
            reject(row, "crop", "missing_file", "gone since it was measured")
        rows.append(row)
    return rows


def reference(rows: list[Row], config: SelectConfig) -> list[str]:
    """The rule read aloud: of all pairs that pass, the K with the best photographs."""

    def passes(row: Row) -> bool:
        gap = row["pickscore"] - row["pickscore_rejected"]
        return row["reject_reason"] is None and (gap > config.min_gap or not config.negligible)

    passed = sorted(filter(passes, rows), key=lambda row: (-row["pickscore"], row["id"]))
    return [row["id"] for row in passed][: config.top_k or None]


def ledger_of(folder: Path, rows: list[Row], *, part: int = 7) -> Ledger:
    """The rows in several parts."""
    ledger = Ledger(str(folder), {})
    ledger.begin()
    kinds = {"pickscore": pa.float32(), "colorfulness": pa.float64()}
    names = [name for name in rows[0] if name != "pickscore_rejected"]
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
    for start in range(0, len(rows), part):
        ledger.write_part(pa.Table.from_pylist(rows[start : start + part], schema=schema))
    return ledger


def in_waves(
    rows: list[Row], scored: Ledger, config: SelectConfig, rng: random.Random
) -> tuple[Ranking, int]:
    """Rank in waves of any size whose pairs arrive in any order; also how many pairs it took."""
    ranking = Ranking(config, also=lambda row: True)
    by_id = {row["id"]: row for row in rows}
    made, below = 0, math.inf
    while not ranking.complete:
        wave = next_wave(scored, rng.randrange(1, 9), below=below)
        if wave.num_rows == 0:
            break
        ids = wave["id"].to_pylist()
        ranking.begin(ids)
        for id_ in rng.sample(ids, len(ids)):
            made += 1
            if ranking.add([by_id[id_]]):
                break
        below = wave["pickscore"][-1].as_py()
    return ranking, made


@pytest.mark.parametrize("seed", range(40))
def test_pairs_made_in_waves_are_those_of_making_all(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    rows = scores(rng, count=rng.randrange(1, 60))
    config = SelectConfig(
        min_gap=rng.randrange(-2, 3) / 4, top_k=rng.randrange(20), negligible=rng.random() < 0.8
    )
    # What failed before pairs are made never enters a wave; what fails later is passed over.
    scored = ledger_of(tmp_path, [row | dict.fromkeys(REJECT.names) for row in rows])
    ranking, made = in_waves(rows, scored, config, rng)
    assert sorted(ranking.ranks, key=ranking.ranks.__getitem__) == reference(rows, config)
    assert sorted(ranking.ranks.values()) == list(range(len(ranking.ranks)))
    last = reference(rows, config)[-1:] if ranking.complete else order(rows)[-1:]
    # Nothing beyond the wave in which the K-th passed.
    assert made <= order(rows).index(last[0]) + 9 + ties(rows)
    everything = Ranking(config, also=lambda row: True, exhaustive=True)
    everything.begin(order(rows))
    everything.add(rows)
    assert everything.ranks == ranking.ranks
    rejected = {row["id"] for row in rows if row["reject_reason"]}
    assert everything.rejected.keys() == rejected >= ranking.rejected.keys()
    assert ranking.failed.items() <= everything.failed.items()


def ties(rows: list[Row]) -> int:
    """The most photographs of one score: a wave is not ended between them."""
    return max(Counter(row["pickscore"] for row in rows).values())


def order(rows: list[Row]) -> list[str]:
    return [row["id"] for row in sorted(rows, key=lambda row: (-row["pickscore"], row["id"]))]


def test_few_pairs_are_made_where_many_pass(tmp_path: Path) -> None:
    """The paper's rates: 4,041 of 10,475 pass, 512 are taken."""
    rng = np.random.default_rng(0)
    passes = rng.permutation(np.arange(10_475) < 4_041)
    rows: list[Row] = [
        dict.fromkeys(REJECT.names)
        | {"id": f"{i:05d}", "pickscore": 20 + i / 10_475, "pickscore_rejected": 22.0 - 9 * ok}
        for i, ok in enumerate(passes)
    ]
    ranking, made = in_waves(
        rows, ledger_of(tmp_path, rows, part=2000), SelectConfig(), random.Random(0)
    )
    assert len(ranking.ranks) == 512
    assert abs(made - 512 * 10_475 / 4_041) < 150  # 1,327 +- what chance does


def test_a_gap_of_exactly_the_limit_is_negligible() -> None:
    config = SelectConfig(min_gap=0.25)
    assert not config.passes(1.5, 1.25)
    assert config.passes(1.5, math.nextafter(1.25, 0))
    assert not config.passes(1.0, 2.0)
    assert SelectConfig(negligible=False).passes(1.0, 2.0)


def test_a_further_condition_is_asked_of_every_pair() -> None:
    row: Row = {"pickscore": 9.0, "pickscore_rejected": 1.0, **dict.fromkeys(REJECT.names)}
    ranking = Ranking(SelectConfig(), also=lambda row: row["id"] != "b")
    ranking.begin("abc")
    ranking.add(row | {"id": id_} for id_ in "cba")
    assert ranking.ranks == {"a": 0, "c": 1}
    assert ranking.failed == {"b": "less_colorful_than_twin"}


@pytest.mark.parametrize("seed", range(5))
def test_a_wave_holds_the_best_and_does_not_part_ties(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    rows = scores(rng, count=50)
    sound = [row for row in rows if row["reject_reason"] is None]
    scored = ledger_of(tmp_path, rows)
    below = math.inf
    seen: list[str] = []
    while (wave := next_wave(scored, 5, below=below)).num_rows:
        assert wave.num_rows >= 5 or len(seen) + wave.num_rows == len(sound)
        seen += wave["id"].to_pylist()
        below = wave["pickscore"][-1].as_py()
    assert seen == order(sound)


def test_duplicates_are_the_same_bytes_with_the_same_caption(tmp_path: Path) -> None:
    def key(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    same_start = key("x")[:20] + key("z")[20:]  # of another key than x: not the same
    pairs = [*zip("dbeac", map(key, "xyxyz"), strict=True), ("f", same_start), ("g", key("x"))]
    rows = [{"id": id_, "key": key_, **dict.fromkeys(REJECT.names)} for id_, key_ in pairs]
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        assert repeated_ids(ledger_of(tmp_path / str(seed), rows, part=2)) == ["b", "e", "g"]


def test_photographs_that_look_alike_are_told_by_their_hashes(tmp_path: Path) -> None:
    rng = random.Random(0)

    def flipped(value: int, bits: int) -> int:
        for bit in rng.sample(range(64), bits):
            value ^= 1 << bit
        return value

    base = [rng.getrandbits(64) for _ in range(50)]
    values = {f"{i:03d}": value for i, value in enumerate(base)}
    values |= {f"near {i:03d}": flipped(base[i], i % 4) for i in range(40)}  # 0 to 3 bits
    values |= {f"other {i:03d}": flipped(base[i], 4 + i % 3) for i in range(40)}
    empty = dict.fromkeys(REJECT.names)
    rows = [{"id": i, "phash": f"{value:016x}", **empty} for i, value in values.items()]
    rng.shuffle(rows)
    # The slow way: every one against all that were kept before it.
    kept: list[int] = []
    expected = []
    for id_ in sorted(values):
        if any((values[id_] ^ other).bit_count() <= 3 for other in kept):
            expected.append(id_)
        else:
            kept.append(values[id_])
    assert near_repeated_ids(ledger_of(tmp_path, rows), SOUND) == expected
    assert {f"near {i:03d}" for i in range(40)} <= set(expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_does_not_depend_on_order_to_the_bit(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    values = [rng.uniform(0, 100) * 10 ** rng.randrange(-9, 9) for _ in range(500)]
    means, naive = set(), set()
    for turn in range(6):
        rng.shuffle(values)
        rows = [
            {"id": str(i), "colorfulness": value, **dict.fromkeys(REJECT.names)}
            for i, value in enumerate(values)
        ]
        means.add(mean_colorfulness(ledger_of(tmp_path / str(turn), rows, part=99), SOUND))
        naive.add(sum(values) / 500)
    assert means == {math.fsum(values) / 500}
    assert len(naive) > 1, "the numbers do not show the difference"


def test_rejects_do_not_count_for_the_mean(tmp_path: Path) -> None:
    rows = [{"id": i, "colorfulness": c, **dict.fromkeys(REJECT.names)} for i, c in [("a", 1.0)]]
    bad: Row = {"id": "b", "colorfulness": None}
    reject(bad, "photos", "empty", "no bytes")
    assert mean_colorfulness(ledger_of(tmp_path, [*rows, bad]), SOUND) == 1.0
