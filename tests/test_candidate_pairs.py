"""Pairs of candidates: what is painted and scored anew, what is chosen, and what becomes of all."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from candidate_pairs import config, contents, counting, made, photographs
from in_process import without_ray
from PIL import Image
from training import BASES, CPU, rows_of

from raypref.align.latents import CacheConfig, Encode, rows_to_encode
from raypref.align.pair_data import read_pairs
from raypref.core.config import InputError, Resources, load
from raypref.core.ledger import Ledger, in_folder
from raypref.core.rows import IMAGE, seed_of
from raypref.curate.export import export
from raypref.curate.graph import Curation
from raypref.engine.batches import in_batches
from raypref.models.backbone import load_encoder
from raypref.pairs.candidates import CandidatePairs
from raypref.pairs.choice import ChoiceConfig, ChosenPair, choose, rule_scores
from raypref.pairs.kinds import kind_of
from raypref.rewards.pickscore import PickScore
from raypref.run.config import RunConfig

COUNT = 7  # photographs that can be used: six scenes and a grey one


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("source") / "photographs", 6)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    return counting(monkeypatch)


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> CandidatePairs:
    """Three candidates of every photograph."""
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        return made(config(root), tmp_path_factory.mktemp("whole"))


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image)


def test_every_photograph_ends_exactly_once(whole):
    ends = {row["id"]: (row["status"], row["reason"]) for row in whole.photos.rows()}
    assert ends.pop("copy.png") == ("not_selected", "duplicate")
    assert ends.pop("bare.png") == ("rejected", "no_caption")
    assert ends.pop("broken.png") == ("rejected", "truncated")
    assert set(ends.values()) == {("pair", None)} and len(ends) == COUNT
    assert whole.photos.count() == COUNT + 3
    assert {row["id"] for row in whole.rejects.rows(["id"])} == {"bare.png", "broken.png"}


def test_a_pair_is_what_the_rule_chose_of_the_stored_images(whole):
    scores = whole.scores.table().to_pandas()
    for row in whole.pairs.rows():
        own = scores[scores["id"] == row["id"]].sort_values("candidate")
        best = own["pickscore"].idxmax()
        assert row["candidate_chosen"] == own["candidate"][best]
        assert row["score_pickscore_chosen"] == own["pickscore"][best]
        assert (row["score_chosen"], row["score_rejected"], row["gap"]) == (-1.0, -3.0, 1.0)
        for side in ("chosen", "rejected"):
            ledger = whole.images.ledgers[f"{row[f'candidate_{side}']:02d}"]
            images = {own["id"]: own["image"] for own in ledger.rows(["id", "image"])}
            assert row[side]["bytes"] == images[row["id"]]
        hole = next(own for own in whole.holes.rows() if own["id"] == row["id"])
        assert row["mask"]["bytes"] == hole["mask"]["bytes"]
        assert row["source"]["bytes"] == hole["image"]["bytes"]
        assert row["rule"] == "ensemble"
    names = kind_of(whole.config).columns.names
    assert whole.pairs.schema().names[: len(names)] == names
    assert whole.holes.schema().field("mask").type == IMAGE


def test_candidate_0_is_the_twin(whole, root, tmp_path):
    words = ("pairs.kind=twins", "select.negligible=false", "select.top_k=0")
    curation = Curation(config(root, *words), place=in_folder(str(tmp_path)))
    curation.run(curation.config.stream)  # type: ignore[attr-defined]
    twins = {row["id"]: row["rejected"] for row in curation.twins.rows(["id", "rejected"])}
    first = {row["id"]: row["image"] for row in whole.images.ledgers["00"].rows(["id", "image"])}
    assert twins == first and len(twins) == COUNT


def test_more_candidates_paint_only_those(root, tmp_path, done, whole):
    few = made(config(root, "candidates.count=2"), tmp_path)
    assert done == {"painted": 2 * COUNT, "pickscore": 2 * COUNT}
    assert {row["candidate"] for row in few.scores.rows()} == {0, 1}
    more = made(config(root), tmp_path)
    assert done == {"painted": 3 * COUNT, "pickscore": 3 * COUNT}
    assert more.pairs.table().equals(whole.pairs.table()), "as if three had been made at once"


def test_more_photographs_paint_only_those(root, tmp_path, done, whole):
    three = made(config(root, "pairs.limit=3"), tmp_path)
    first = three.pairs.table()
    assert done == {"painted": 9, "pickscore": 9}
    ends = Counter(row["reason"] for row in three.photos.rows() if row["status"] != "rejected")
    assert ends == {None: 3, "beyond_limit": COUNT - 3, "duplicate": 1}
    five = made(config(root, "pairs.limit=5"), tmp_path)
    assert done == {"painted": 15, "pickscore": 15}
    keys = {row["id"]: row["key"] for row in whole.holes.rows(["id", "key"])}
    order = sorted(keys, key=lambda id_: seed_of(0, "taken", keys[id_]))
    assert [row["id"] for row in whole.pairs.rows(["id"])] == order
    assert [row["id"] for row in five.pairs.rows(["id"])] == order[:5], "nested, in one order"
    assert set(first["id"].to_pylist()) == set(order[:3])
    again = made(config(root, "pairs.limit=3"), tmp_path)
    assert done["painted"] == 15
    assert again.pairs.table().equals(first), "the others are left out again"


def test_a_reward_that_is_added_paints_nothing(root, tmp_path, done):
    made(config(root), tmp_path)
    rewards = 'candidates.rewards=["pickscore","clipscore"]'
    both = made(config(root, rewards), tmp_path)
    assert done == {"painted": 3 * COUNT, "pickscore": 3 * COUNT, "clipscore": 3 * COUNT}
    scores = both.scores.table().to_pandas()
    ranks = scores.groupby("id")[["pickscore", "clipscore"]].rank("dense", ascending=False)
    np.testing.assert_array_equal(scores["rule"], -ranks.sum(axis=1))


def test_another_rule_paints_and_scores_nothing(root, tmp_path, done):
    made(config(root), tmp_path)
    before = done.copy()
    for rule in ("choice.by=random", "choice.by=caen", "choice.candidates=2", "choice.ranks=all"):
        made(config(root, rule), tmp_path)
    photograph = made(config(root, "choice.chosen=photograph"), tmp_path)
    assert done == before
    for row in photograph.pairs.rows():
        assert row["chosen"]["bytes"] == row["source"]["bytes"]
        assert (row["candidate_chosen"], row["score_chosen"], row["gap"]) == (-1, None, None)
        assert row["score_pickscore_chosen"] is None and row["score_pickscore_rejected"] is not None


def test_a_candidate_without_a_score_is_in_no_pair(root, tmp_path, monkeypatch):
    """Published: an answer that could not be read scored -1, and lost."""
    score, seen = PickScore.compute, [0]

    def sometimes(self, batch):
        scores = score(self, batch)
        for place in range(len(scores)):
            seen[0] += 1
            if seen[0] % 4:
                scores[place] = np.nan
        return scores

    monkeypatch.setattr(PickScore, "compute", sometimes)
    maker = made(config(root, "candidates.count=6"), tmp_path)
    lacking = {
        (row["id"], row["candidate"]) for row in maker.scores.rows() if row["pickscore"] is None
    }
    assert len(lacking) > COUNT
    for row in maker.pairs.rows():
        assert (
            not {(row["id"], row[f"candidate_{side}"]) for side in ("chosen", "rejected")} & lacking
        )
    ends = Counter(row["reason"] for row in maker.photos.rows())
    assert ends["too_few_candidates"] > 0
    assert ends["too_few_candidates"] + ends[None] == COUNT
    (message,) = {r["message"] for r in maker.rejects.rows() if r["reason"] == "too_few_candidates"}
    assert message.startswith("of 6 candidates, too few have a score")


def test_every_answer_of_a_reward_is_kept(whole):
    """Published: of sixteen answers only the first was, and ids of two files did not match."""
    scores = whole.scores.table().to_pandas()
    assert scores.groupby("id")["candidate"].apply(set).eq({0, 1, 2}).all()
    assert scores["pickscore"].notna().all()
    for number, ledger in whole.scored("pickscore").ledgers.items():
        own = scores[scores["candidate"] == int(number)].set_index("id")["pickscore"]
        assert dict(own) == {row["id"]: row["pickscore"] for row in ledger.rows()}


def test_the_stored_scores_are_those_that_were_chosen_by(root, tmp_path):
    """Published: candidate scaling ranked by sums over all, whatever N was."""
    rule = (
        "candidates.count=4",
        'candidates.rewards=["pickscore","clipscore"]',
        "choice.candidates=2",
    )
    maker = made(config(root, *rule), tmp_path)
    names, choice = ("pickscore", "clipscore"), ChoiceConfig(candidates=2)
    scores = maker.scores.table().to_pandas()
    assert scores[scores["candidate"] >= 2]["rule"].isna().all()
    pairs = {row["id"]: row for row in maker.pairs.rows()}
    for row in maker.holes.rows(["id", "key"]):
        own = scores[scores["id"] == row["id"]].sort_values("candidate")[list(names)].to_numpy()
        rules = rule_scores(own[:2], names, ChoiceConfig(), seed=0, key=row["key"])
        end = choose(rules, choice, seed=0, key=row["key"])
        pair = pairs.get(row["id"])
        found = pair and ChosenPair(pair["candidate_chosen"], pair["candidate_rejected"], False)
        assert found == (end if isinstance(end, ChosenPair) else None)


def test_killed_anywhere_the_result_is_the_same_to_the_byte(root, tmp_path, monkeypatch, whole):
    write, left, kills = Ledger.write_part, [0], 0

    def until_killed(self, table, name=None):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return write(self, table, name)

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "write_part", until_killed)
        for survives in (3, 1, 2, 3, 2, 4, 1, 3, 100):
            left[0] = survives
            try:
                made(config(root), tmp_path)
            except KeyboardInterrupt:
                kills += 1
    assert kills >= 6
    before, after = contents(Path(whole.pairs.path).parent), contents(tmp_path)
    tables = [name for name in before if name.split("/")[0] in ("pairs", "photos", "rejects")]
    assert [name for name in tables if before[name] != after[name]] == []
    assert whole.scores.table().equals(
        CandidatePairs(config(root), place=in_folder(str(tmp_path))).scores.table()
    )


def test_neither_blocks_nor_batches_decide(root, tmp_path, whole):
    words = ("stream.block_rows=3", "perturb.resources.batch=5", "perturb.dtype=float64")
    exact = [
        made(config(root, *words[first:], "perturb.dtype=float64"), tmp_path / str(first))
        for first in (0, 2)
    ]
    assert exact[0].pairs.table().equals(exact[1].pairs.table())


def test_without_a_hole_candidates_are_drawn_from_captions(root, tmp_path, done):
    maker = made(config(root, "pairs.limit=2", kind="text2image"), tmp_path)
    assert done["painted"] == 6
    rows = maker.pairs.table().to_pylist()
    assert len(rows) == 2
    for row in rows:
        assert row["mask"] is None and row["source"] is None
        assert pixels(row["chosen"]["bytes"]).shape == (64, 64, 3)
    for form in ("folders", "pickapic"):
        export(maker.pairs, Ledger(str(tmp_path / form), {}), form)  # type: ignore[arg-type]
    assert not (tmp_path / "folders" / "mask").exists()
    assert not any("saliency" in key for key in maker.pairs.settings)


@pytest.mark.parametrize(("family", "kind"), [("sd15", "text2image"), ("sd15_inpaint", "sd15")])
def test_trainings_read_the_pairs(family, kind, root, tmp_path):
    """Without holes too; the surroundings of a hole are the photograph's."""
    pairs = made(config(root, "pairs.limit=2", kind=kind), tmp_path).pairs
    base = BASES[family].model_copy(update={"dtype": "float32"})
    stage = Encode(base, CacheConfig(resources=Resources(batch=2)), side=64)
    stage.setup()
    rows = rows_of(rows_to_encode(pairs, stage.reads))
    in_batches(stage, rows)
    cache = Ledger(str(tmp_path / "encoded"), {})
    cache.begin()
    schema = pa.schema([("id", pa.string()), *stage.writes])
    own = {name: [row.get(name) for row in rows] for name in schema.names}
    cache.write_part(pa.table(own, schema=schema))
    data = read_pairs(cache, base, pairs=pairs, facts=("score_chosen", "score_rejected"))
    assert len(data) == 2 and data.moments.shape[1] == 2
    assert (data.facts["score_chosen"] > data.facts["score_rejected"]).all()
    if family == "sd15_inpaint":
        row = pairs.table().to_pylist()[0]
        image, mask = (Image.open(io.BytesIO(row[name]["bytes"])) for name in ("source", "mask"))
        expected = load_encoder(base, device=CPU).surroundings([image], [mask])[0]
        torch.testing.assert_close(data.surroundings[0, 0], expected, atol=1e-5, rtol=0)


def test_no_pair_left_says_where_the_photographs_went(root, tmp_path, monkeypatch):
    monkeypatch.setattr(PickScore, "compute", lambda self, batch: np.zeros(16, np.float32))
    with pytest.raises(InputError, match=r"no pair was left: .*7 draw"):
        made(config(root), tmp_path / "draws")
    drawn = made(config(root, "choice.draws=random"), tmp_path / "random")
    rows = drawn.pairs.table(["candidate_chosen", "candidate_rejected", "gap"]).to_pylist()
    assert (
        len(rows) == COUNT
        and len({(r["candidate_chosen"], r["candidate_rejected"]) for r in rows}) > 2
    )
    assert {row["gap"] for row in rows} == {None}, "no gap has a mean of 0"
    with pytest.raises(InputError, match=r"no photograph has a hole; \d+ hole_too_small"):
        made(config(root, "holes.min_share=0.999"), tmp_path / "holes")


CAPO, PHOTOGRAPH = "train.stage2_alone.objective=capo", "choice.chosen=photograph"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["choice.by=hpsv9"], r"choice\.by=hpsv9"),
        (['candidates.rewards=["hpsv9"]'], r"candidates\.rewards=\['hpsv9'\]"),
        (["pairs.flip_labels=0.5"], r"pairs\.flip_labels is a setting of .*labelled or images"),
        (["pairs.gap=given"], r"pairs\.gap is a setting of pairs\.kind=labelled, and"),
        (["color.enabled=true", "color.variant=released"], r"color\.variant=released compares"),
        (["base.family=sd15_inpaint", "perturb.kind=text2image"], r"reads masks"),
        ([CAPO], r"train\.stage2_alone\.objective=capo: .*choice\.by=ensemble"),
        ([CAPO, "choice.by=caen", PHOTOGRAPH], r"reads score_chosen, score_rejected of"),
        (["train.stage2_alone.curriculum=easy_first", PHOTOGRAPH], r"stage2_alone reads gap of"),
        (["metrics.rubric=answers.jsonl"], r"metrics\.rubric: .*add evaluate\.holes"),
        (["pairs.kind=twins", "pairs.limit=3"], r"pairs\.limit is a setting of .*candidates or"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(root, words, said):
    with pytest.raises(InputError, match=said):
        config(root, *words)


def test_other_kinds_leave_the_settings_of_candidates_alone(root):
    """A table's rows may switch the kind of one preset."""
    settings = config(root, "pairs.kind=twins", "choice.by=hpsv9")
    assert isinstance(settings, RunConfig)
    plain = load(RunConfig, "tiny", [f"source.path={root}"])
    place = in_folder("nowhere")
    assert (
        Curation(plain, place=place).pairs.fingerprint
        == Curation(
            plain.model_copy(update={"candidates": settings.candidates, "choice": settings.choice}),
            place=place,
        ).pairs.fingerprint
    )


def test_missing_models_are_named_before_any_work(root):
    words = ('candidates.rewards=["clipscore"]', "rewards.clipscore.model=nobody/nothing")
    maker = CandidatePairs(config(root, *words), place=in_folder("nowhere"))
    with pytest.raises(InputError, match=r"rewards\.clipscore\.model"):
        for need in maker.needs:
            need()
    used = kind_of(maker.config).used(maker.config)
    assert list(used) == ["saliency", "perturb", "rewards.clipscore"]


def test_pairs_hold_what_the_cards_say(whole):
    for ledger in (whole.pairs, whole.holes, whole.scores):
        card = Path(ledger.path, "_README.md").read_text(encoding="utf-8")
        told = {line.split("`")[1] for line in card.splitlines() if line.startswith("| `")}
        assert {*ledger.schema().names} - told <= {"reject_stage", "reject_message"}
    assert pa.types.is_float64(whole.scores.schema().field("rule").type)
