"""A study: what it asks, in which order; its votes, their table, and the pairs they become."""

import csv
import json
from collections import Counter
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from studies import CATEGORIES, MODELS, answer, folders, made

from raypref.cli import console
from raypref.core.config import InputError, build, load, to_toml
from raypref.core.ledger import Ledger
from raypref.run.config import RunConfig
from raypref.sources.layouts import labelled
from raypref.sources.store import locate
from raypref.study.config import StudyConfig
from raypref.study.export import export_votes, read_in, told_of
from raypref.study.folder import DAMAGED, evenly
from raypref.study.make import make_study, same_size
from raypref.study.page import ORDERS, static_page
from raypref.study.votes import Refused, VoteStore, checked, now


def test_prompts_are_drawn_evenly_and_do_not_depend_on_each_other():
    prompts = {str(n): (f"prompt {n}", "abc"[n % 3] if n < 60 else "d") for n in range(62)}
    drawn = evenly(prompts, count=14, seed=3)
    assert Counter(prompts[id_][1] for id_ in drawn) == {"a": 4, "b": 4, "c": 4, "d": 2}
    assert set(drawn) < set(evenly(prompts, count=20, seed=3))
    assert drawn != evenly(prompts, count=14, seed=4)
    turned = dict(reversed(prompts.items()))
    assert drawn == evenly(turned, count=14, seed=3)
    assert len(evenly(prompts, count=0, seed=3)) == 62


def test_each_rater_has_an_order_and_sides_of_their_own(tmp_path):
    study = made(tmp_path, 20, prompts=20, repeats=5, checks=4)
    assert study.order("rater-1") == study.order("rater-1")
    lefts: Counter[str] = Counter()
    firsts = set()
    for number in range(50):
        order = study.order(f"rater-{number}")
        kinds = [study.tasks[asked.task].kind for asked in order]
        assert Counter(kinds) == {"item": 20, "repeat": 5, "check": 4}
        places = {asked.task: place for place, asked in enumerate(order)}
        assert len(places) == 29, "every task once"
        firsts.add(order[0].task)
        seen = {}
        for asked in order:
            task = study.tasks[asked.task]
            if task.kind == "item":
                seen[task.item] = asked
                lefts[study.sides(asked.task)[asked.left]] += 1
            elif task.kind == "repeat":
                first = seen[task.item]  # it came before
                assert (first.left, first.right) == (asked.right, asked.left)
        checks = [place for place, kind in enumerate(kinds) if kind == "check"]
        assert checks[0] < 10 and checks[-1] > 14, "spread"
    assert len(firsts) > 10
    assert abs(lefts[MODELS[0]] / 1000 - 0.5) < 0.08  # five standard deviations


def test_a_rater_may_see_some_of_the_pairs(tmp_path):
    study = made(tmp_path, 20, prompts=0, per_rater=6, repeats=20)
    order = study.order("ab")
    items = Counter(study.tasks[asked.task].item for asked in order)
    assert len(items) == 6 and set(items.values()) == {2}, "what is repeated was seen"
    seen = {a.task for n in range(40) for a in study.order(f"r{n}")}
    assert len(seen) == 40, "together they see all"


def test_images_tell_no_model(tmp_path):
    study = made(tmp_path, 6, checks=2)
    files = list((study.folder / "images").iterdir())
    assert len(files) == 2 * (6 + 2)
    for path in files:
        data = path.read_bytes()
        assert b"secret" not in data and "secret" not in path.name
        image = Image.open(BytesIO(data))
        assert (image.format, image.size, dict(image.getexif())) == ("WEBP", (24, 24), {})
    item = next(item for item in study.items.values() if item.prompt_id == "anime/000")
    (alpha,) = (side for side in item.sides if side.model == MODELS[0])
    source = Image.open(tmp_path / "images" / MODELS[0] / "anime" / "000.png")
    shown = Image.open(study.image(alpha.image)).convert("RGB")
    assert list(shown.getdata()) == list(source.getdata()), "lossless"
    assert item.prompt == "prompt <0> & more"
    assert {item.category for item in study.items.values()} == {*CATEGORIES}
    assert (study.folder / "study.json").stat().st_mode & 0o077 == 0


def test_sizes_do_not_tell_either():
    small, large, wide = (Image.new("RGB", size) for size in ((64, 64), (96, 96), (96, 64)))
    assert {image.size for image in same_size(small, large)} == {(64, 64)}
    assert {image.size for image in same_size(large, small)} == {(64, 64)}
    assert {image.size for image in same_size(wide, large)} == {(64, 64)}
    assert same_size(wide, wide.copy())[0].size == (96, 64)


def test_every_two_models_or_one_against_the_others(tmp_path):
    names = folders(tmp_path, 2)
    third = tmp_path / "third"
    (tmp_path / MODELS[0]).rename(tmp_path / "first")
    names = [str(tmp_path / "first"), names[1], str(third)]
    for path in (tmp_path / "first").rglob("*.png"):
        copy = third / path.relative_to(tmp_path / "first")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    for versus, expected in (("", 3), ("first", 2)):
        out = str(tmp_path / f"study{expected}")
        made_here = make_study(names, build(StudyConfig, {"out": out, "versus": versus})).study
        models = Counter(tuple(sorted(s.model for s in i.sides)) for i in made_here.items.values())
        assert len(models) == expected and set(models.values()) == {2}


def cast(study, store, rater, number, choice):
    told = answer(study, rater, number, choice)
    return store.cast(checked(told, study, time=now())), told


def test_a_vote_counts_once(tmp_path):
    study = made(tmp_path)
    store = VoteStore(study.folder)
    kept, told = cast(study, store, "ann", 0, "left")
    vote = checked(told, study, time=now())
    assert (kept, store.cast(vote)) == ("stored", "stored")
    assert cast(study, store, "ann", 0, "right")[0] == "other", "another tab"
    assert [v.choice for v in store.all()] == ["left"]
    assert store.undo("bob", told["id"]) is False, "of another rater"
    assert store.undo("ann", told["id"]) and store.undo("ann", told["id"])
    assert store.all() == []
    assert store.cast(vote) == "undone", "sent again, late: it stays taken back"
    assert cast(study, store, "ann", 0, "right")[0] == "stored"
    with pytest.raises(Refused, match="another vote has this id"):
        store.cast(checked({**answer(study, "bob", 1), "id": told["id"]}, study, time=now()))
    store.close()
    again = VoteStore(study.folder)
    assert [(v.rater, v.choice) for v in again.all()] == [("ann", "right")]
    again.close()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"rater": "a"}, "a code has"),
        ({"rater": "Ann Smith"}, "a code has"),
        ({"rater": 5}, "a code has"),
        ({"task": "ffff"}, "no such task"),
        ({"task": ["x"]}, "no such task"),
        ({"id": "../../x"}, "hexadecimal"),
        ({"left": "x"}, "not the images"),
        ({"right": None}, "not the images"),
        ({"choice": "both"}, "choice is not"),
        ({"choice": "tie"}, "choice is not left, right$"),
        ({"seconds": -1}, "no number"),
        ({"seconds": "nan"}, "no number"),
        ({"seconds": [1]}, "no number"),
    ],
)
def test_what_is_no_vote_is_refused(tmp_path, wrong, says):
    study = made(tmp_path, 2, ties=False)
    with pytest.raises(Refused, match=says):
        checked({**answer(study, "ann", 0), **wrong}, study, time=now())


def test_votes_become_a_table_and_pairs_that_a_training_reads(tmp_path, capsys):
    """Three raters: alpha wins 2:1, 1:0 with two ties, an even split; a check, a repeat."""
    study = made(tmp_path, 4, repeats=1, checks=1)
    store = VoteStore(study.folder)
    by_prompt = {
        "anime/000": ("alpha", "alpha", "beta"),
        "photo/001": ("alpha", "tie", "tie"),
        "anime/002": ("alpha", "beta", "tie"),
        "photo/003": ("beta", "beta", "beta"),
    }
    for place, rater in enumerate(("ann", "bob", "cyd")):
        for number, asked in enumerate(study.order(rater)):
            task, models = study.tasks[asked.task], study.sides(asked.task)
            wanted = by_prompt[study.items[task.item].prompt_id][place]
            side = "left" if models[asked.left] == f"secret_{wanted}" else "right"
            if task.kind == "check":  # only ann is attentive
                side = "right" if (models[asked.left] == DAMAGED) == (rater == "ann") else "left"
            elif task.kind == "repeat":
                side = "left"  # whatever is there: it must not count
            cast(
                study,
                store,
                rater,
                number,
                "tie" if wanted == "tie" and task.kind == "item" else side,
            )
    exported = export_votes(study, store)
    store.close()
    assert (exported.pairs, exported.ties) == (3, 1)
    said = "18 votes of 3 raters: 3 ties, 3 repeats, 3 attention checks, of which 2 failed"
    assert told_of(exported) == said
    table = pq.read_table(study.folder / "votes.parquet").to_pylist()
    with (study.folder / "votes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["choice"] for row in rows] == [row["choice"] for row in table]
    assert list(rows[0])[:12] == [
        *("study", "item", "prompt_id", "category", "rater", "left", "right", "choice"),
        *("seconds", "time", "attention", "repeat"),
    ]
    own = [row for row in rows if row["prompt_id"] == "anime/000" and row["attention"] == "false"]
    wins = Counter(row[row["choice"]] for row in own if row["repeat"] == "false")
    assert wins == {"secret_alpha": 2, "secret_beta": 1}
    pairs = list(labelled.pairs(locate(str(study.folder / "pairs.csv"), key="source.path")))
    found = {pair.prompt: (pair.first_model, pair.vote_share, pair.confidence) for pair in pairs}
    assert found == {
        "prompt <0> & more": (MODELS[0], pytest.approx(2 / 3), pytest.approx(1 / 3)),
        "prompt <1> & more": (MODELS[0], pytest.approx(2 / 3), pytest.approx(1 / 3)),
        "prompt <3> & more": (MODELS[1], 1.0, 1.0),
    }
    assert all(pair.label == 1.0 and not pair.problem for pair in pairs)
    assert all((study.folder / pair.first.file).is_file() for pair in pairs)
    assert console(["study", "votes", str(study.folder)]) == 0
    out = capsys.readouterr().out
    assert said in out and "3 pairs by majority, 1 tie left out" in out
    assert f"pairs.kind=labelled source.path={study.folder}/pairs.csv" in out


def test_a_page_without_a_server_has_all_and_its_votes_come_back(tmp_path, capsys):
    study = made(tmp_path, 4, repeats=1, static=True)
    page = (study.folder / "page.html").read_text()
    assert page == static_page(study)
    assert "secret" not in page and str(tmp_path) not in page
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert len(data["tasks"]) == 5 and len(data["orders"]) == ORDERS
    orders = {tuple(order) for order in data["orders"]}
    assert len(orders) > ORDERS / 2
    assert all(sorted(p if p >= 0 else -p - 1 for p in order) == [*range(5)] for order in orders)
    flipped = sum(place < 0 for order in data["orders"] for place in order)
    assert 150 < flipped < 350

    def saved(name: str, choices: dict[int, str], day: int) -> str:
        votes = []
        for number, choice in choices.items():
            task, _, left, right = data["tasks"][number]
            own = {"id": f"{day:02d}{number:030d}", "task": task, "left": left, "right": right}
            time = f"2026-01-{day:02d}T10:00:0{number}.000Z"
            votes.append({**own, "choice": choice, "seconds": 2.0, "time": time})
        (tmp_path / name).write_text(
            json.dumps({"study": study.id, "rater": "ann", "votes": votes})
        )
        return str(tmp_path / name)

    first = saved("first.json", {0: "left", 1: "tie"}, 1)
    later = saved("later.json", {1: "right", 2: "left"}, 2)
    store = VoteStore(study.folder)
    assert read_in(study, store, [first]) == 2
    assert read_in(study, store, [first, later, first]) == 1
    votes = {vote.task: vote.choice for vote in store.all()}
    assert [votes[data["tasks"][n][0]] for n in range(3)] == ["left", "right", "left"]
    lines = ["study,rater,id,task,left,right,choice,seconds,time"]
    task, _, left, right = data["tasks"][3]
    lines.append(f"{study.id},bob,{'b' * 32},{task},{left},{right},right,3.5,2026-01-01T00:00:00Z")
    (tmp_path / "bob.csv").write_text("\n".join(lines))
    assert console(["study", "votes", str(study.folder), str(tmp_path / "bob.csv")]) == 0
    assert "1 new vote of 1 file" in capsys.readouterr().out
    assert {vote.rater for vote in store.all()} == {"ann", "bob"}
    before = store.all()
    for wrong, says in (
        ("not JSON", "no file of votes"),
        (json.dumps([1]), "no file of votes"),
        (json.dumps({"study": "x", "rater": "ann", "votes": [{}]}), "vote 1: .* another study"),
        (json.dumps({"study": study.id, "rater": "ann", "votes": [{}]}), "vote 1: .* no such task"),
    ):
        (tmp_path / "wrong.json").write_text(wrong)
        with pytest.raises(InputError, match=says):
            read_in(study, store, [first, str(tmp_path / "wrong.json")])
    assert store.all() == before
    # The rater's code was changed by hand: all ids are another's. What stood stands.
    (tmp_path / "anna.json").write_text(Path(first).read_text().replace('"ann"', '"anna"'))
    with pytest.raises(InputError, match="rater anna is refused: another vote has this id"):
        read_in(study, store, [str(tmp_path / "anna.json")])
    assert store.all() == before
    store.close()


def test_wrong_words_are_one_line(tmp_path, capsys):
    names = folders(tmp_path / "in", 2)
    (tmp_path / "broken" / "anime").mkdir(parents=True)
    (tmp_path / "broken" / "anime" / "000.png").write_bytes(b"no image")
    out = f"out={tmp_path / 'out'}"
    for words, says in (
        ([], "say what to do: make, serve, votes"),
        (["mak"], "'mak' is none of make, serve, votes"),
        (["make", *names], "'out' is required"),
        (["make", names[0], out], f"'{names[0]}' is no run; name a run, or two or more folders"),
        (["make", *names, out, "pairs=5"], "unknown key 'pairs'"),
        (["make", *names, out, "versus=x"], "versus: there is no 'x'; there are secret_alpha"),
        (["make", *names, out, "categories=x"], "there is no 'x'; there are anime, photo"),
        (["make", *names, out, "models=secret_alpha"], "one model cannot be compared"),
        (["make", *names, out, "repeats=9"], "repeats=9: there are fewer pairs"),
        (["make", *names, "out=s3://x"], "a study lies in a local folder"),
        (["make", names[0], str(tmp_path / "broken"), out], "the image anime/000 of broken"),
        (["make", names[0], str(tmp_path / "none"), out], "is no run and no folder of images"),
        (["serve", str(tmp_path)], "there is no study in"),
        (["serve"], "name one study"),
        (["votes"], "name one study"),
    ):
        assert console(["study", *words]) == 2
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1 and says in told[0], told
    make_study(names, build(StudyConfig, {"out": str(tmp_path / "out")}))
    assert console(["study", "make", *names, out]) == 2
    assert "holds a study, maybe with votes" in capsys.readouterr().err
    Path(tmp_path / "out" / "study.json").write_text("{}")
    assert console(["study", "votes", str(tmp_path / "out")]) == 2
    assert "cannot be read: KeyError" in capsys.readouterr().err


def png(value: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (16, 16), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def filled(at: Path, rows: list[dict]) -> None:
    """A complete ledger."""
    ledger = Ledger(str(at), {})
    ledger.begin()
    ledger.write_part(pa.Table.from_pylist([{**row, "reject_reason": None} for row in rows]))
    ledger.commit(expected=len(rows), counts={})


def run_of(at: Path, models: dict[str, int], *, seeds: tuple[int, ...] = (7, 3)) -> str:
    """A run whose models drew four prompts, each in grey levels of its own."""
    for model, level in models.items():
        rows = [
            {
                "prompt_id": n,
                "prompt": f"prompt {n}",
                "seed": seed,
                "image": png(level + 10 * n + seed),
            }
            for n in range(4)
            for seed in seeds
        ]
        own = [{**row, "id": f"{model}/{n}"} for n, row in enumerate(rows)]
        filled(at / "evaluation" / "images" / model, own)
    scores = [{"prompt_id": n, "category": "ab"[n % 2], "score": 0.5} for n in range(4)]
    pq.write_table(pa.Table.from_pylist(scores), at / "evaluation" / "scores.parquet")
    (at / "config.toml").write_text(to_toml(load(RunConfig, "tiny", ["pairs.kind=labelled"])))
    return str(at)


def levels(study) -> dict[tuple[str, str], int]:
    """The grey level of each image, by prompt and model."""
    return {
        (item.prompt_id, side.model): Image.open(study.image(side.image)).getpixel((0, 0))[0]
        for item in study.items.values()
        for side in item.sides
    }


def test_a_run_is_asked_about_by_its_own_model_and_the_base(tmp_path):
    run = run_of(tmp_path / "mine", {"base": 10, "stage1": 60, "stage2_alone": 110})
    config = {"out": str(tmp_path / "a"), "prompts": 3}
    study = make_study([run], build(StudyConfig, config)).study
    assert {m for _, m in levels(study)} == {"base", "stage2_alone"}, "of labelled pairs"
    assert len(study.items) == 3 and {i.category for i in study.items.values()} == {"a", "b"}
    assert all(item.prompt == f"prompt {item.prompt_id}" for item in study.items.values())
    wanted = {"base": 10, "stage2_alone": 110}
    assert all(v == wanted[m] + 10 * int(n) + 3 for (n, m), v in levels(study).items()), "seed 3"
    config = {"out": str(tmp_path / "b"), "models": ["stage1", "base"], "image_seed": 7}
    found = levels(make_study([run], build(StudyConfig, config)).study)
    assert found["2", "stage1"] == 60 + 20 + 7 and len(found) == 8
    for wrong, says in (
        ({"models": ["x", "base"]}, "there is no 'x'; there are base, stage1, stage2_alone"),
        ({"image_seed": 5}, r"image_seed=5: all models have \[3, 7\]"),
        ({"prompt_set": "none"}, "holds no finished images; raypref evaluate makes them"),
        ({"images": "candidates"}, "holds no finished images; raypref run makes them"),
    ):
        with pytest.raises(InputError, match=says):
            make_study([run], build(StudyConfig, {"out": str(tmp_path / "c"), **wrong}))


def test_runs_are_compared_by_prompt_and_candidates_by_photograph(tmp_path):
    one = run_of(tmp_path / "one", {"base": 10, "stage2_alone": 60}, seeds=(7, 3))
    other = run_of(tmp_path / "other", {"base": 10, "stage2_alone": 110}, seeds=(7,))
    config = build(StudyConfig, {"out": str(tmp_path / "a"), "versus": "one/stage2_alone"})
    found = levels(make_study([one, other], config).study)
    assert {model for _, model in found} == {"one/base", "one/stage2_alone", "other/stage2_alone"}
    assert found["1", "other/stage2_alone"] == 110 + 10 + 7, "the seed that both have"
    for number in ("00", "01"):
        rows = [{"id": f"{n}.png", "prompt": f"caption {n}", "image": png(50)} for n in range(3)]
        filled(tmp_path / "one" / "candidates" / "images" / number, rows)
    config = build(StudyConfig, {"out": str(tmp_path / "b"), "images": "candidates"})
    study = make_study([one], config).study
    assert {m for _, m in levels(study)} == {"00", "01"}
    assert {item.prompt for item in study.items.values()} == {f"caption {n}" for n in range(3)}
