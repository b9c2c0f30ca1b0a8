"""Tables that no run fills: people's votes, scores from elsewhere, recorded times of curation."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ablated import made

from raypref.ablate import beside, figures
from raypref.ablate.driver import make, tables_of
from raypref.ablate.plan import load_config
from raypref.core import progress
from raypref.core.config import InputError
from raypref.study.reading import read_votes
from raypref.study.results import balance

HEAD = "prompt_id,category,rater,left,right,choice\n"
# By hand: p1 2 to 1 for ours, p2 even, p3 lost, p4 won though two took neither.
VOTES = """\
p1,Anime,a,stage2,base,left
p1,Anime,b,base,stage2,right
p1,Anime,c,base,stage2,left
p2,Concept-Art,a,stage2,base,right
p2,Concept-Art,b,stage2,base,left
p3,Anime,a,stage2,base,right
p4,Photo,a,base,stage2,right
p4,Photo,b,base,stage2,tie
p4,Photo,c,base,stage2,tie
p1,Anime,a,stage2,other,left
"""


def votes_in(folder: Path, text: str = VOTES) -> str:
    (folder / "votes.csv").write_text(HEAD + text)
    return str(folder / "votes.csv")


def numbers(name: str, folder: Path, *words: str) -> Any:
    config = load_config("tiny", [f"storage={folder}/runs", *words])
    (table,) = tables_of(name).values()
    found = beside.gather_beside(table, config)
    return found, {(r.model, r.metric): r.mean for r in found.summary.itertuples()}


def test_a_prompt_ends_as_most_of_its_raters_say(tmp_path):
    votes = read_votes(votes_in(tmp_path))
    ended = balance(votes, "stage2", "base").set_index("prompt_id")
    lead = ended["first"] - ended["second"]
    assert lead.to_dict() == {"p1": 1, "p2": 0, "p3": -1, "p4": 1}
    turned = balance(votes, "base", "stage2").set_index("prompt_id")
    assert (turned["second"] - turned["first"]).to_dict() == lead.to_dict()


def test_figure_4_and_table_7a_are_filled_from_the_same_votes(tmp_path):
    words = f"ablate.votes={votes_in(tmp_path)}"
    found, means = numbers("figure4", tmp_path, words)
    assert means == {("base", "win"): 50.0, ("base", "tie"): 25.0, ("base", "lose"): 25.0}
    assert found.problems == {
        "diffusion_dpo": "not run: no votes between stage2 and diffusion_dpo in ablate.votes"
    }
    assert "3 raters, 9 votes" in found.how
    _, means = numbers("table7a", tmp_path, words)
    assert means == {("base", "anime"): 50.0, ("base", "concept_art"): 0.0}


def test_raters_who_fail_attention_checks_count_in_no_table(tmp_path):
    head = HEAD.strip() + ",attention,repeat\n"
    rows = [f"{line},false,false" for line in VOTES.splitlines()]
    rows += ["p1,Anime,b,damaged,stage2,left,true,false"]  # b fails
    (tmp_path / "v.csv").write_text(head + "\n".join(rows))
    found, means = numbers("figure4", tmp_path, f"ablate.votes={tmp_path}/v.csv")
    assert "2 raters, 6 votes" in found.how
    assert means["base", "tie"] == 25.0  # p1: one each
    assert means["base", "win"] == 25.0


def test_without_votes_the_published_values_stand_beside_not_run(tmp_path):
    words = [f"storage={tmp_path}", "tracking.uri=none", "base.family=sd35m"]
    (made_,) = make(tables_of("figure4"), load_config("tiny", words))
    assert made_.failed == {}
    text = (tmp_path / "ablations/figure4/table.md").read_text()
    first = "| ours against the base | not run: add ablate.votes=... (columns in docs/ablations.md)"
    assert f"{first}; paper 63.33 | paper 16.67 | paper 20.00 |" in text
    assert "63.33" in (tmp_path / "ablations/figure4/index.html").read_text()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("p1,A,a,x,y,both\n", "line 2: choice=both: it is one of left, right, tie"),
        ("p1,A,a,x,x,left\n", "line 2: left and right are the same model, x"),
        ("p1,A,,x,y,left\n", "line 2: no value for rater"),
        ("p1,A,a,x\n", "line 2: no value for right, choice"),
        ("p1,A,a,x,y,left\np1,A,a,y,x,left\n", "line 3: rater a voted on prompt p1"),
        ("p1,A,a,x,y,left\np1,B,b,x,y,left\n", "line 3: prompt p1 is of category 'B'"),
        ("", "holds no vote"),
    ],
)
def test_wrong_votes_are_one_line_with_the_place(text, reason, tmp_path):
    with pytest.raises(InputError, match=re.escape(reason)) as error:
        read_votes(votes_in(tmp_path, text))
    assert "\n" not in str(error.value)


def test_votes_need_their_columns_and_their_file(tmp_path):
    (tmp_path / "v.csv").write_text("prompt_id,left\n1,a\n")
    with pytest.raises(InputError, match="no column category, rater, right, choice"):
        read_votes(str(tmp_path / "v.csv"))
    with pytest.raises(InputError, match=r"ablate\.votes: no file '/none\.csv'"):
        read_votes("/none.csv", key="ablate.votes")


def record(
    folder: Path, passes: dict[str, tuple[int, float]], *, model: str, size: int = 0, gpu: float = 0
) -> None:
    folder.mkdir(parents=True)
    told = {name: {"amount": n, "seconds": s} for name, (n, s) in passes.items()}
    (folder / "run.json").write_text(json.dumps({"steps": {"pairs": {"passes": told}}}))
    (folder / "config.toml").write_text(
        f'[perturb]\nmodel = "{model}"\nkind = "sd15"\nsteps = 12\nsize = {size}\n'
        f"resources = {{workers = 2, num_gpus = {gpu}}}\n"
        f'[pickscore]\nmodel = "tiny:pickscore"\nresources = {{num_gpus = {gpu / 2}}}\n'
    )


def test_table_8_tells_what_runs_recorded_beside_the_paper(tmp_path):
    model = load_config("tiny", []).perturb.model
    one = {"measured": (100, 10.0), "scored": (50, 5.0), "twins": (40, 20.0)}
    record(tmp_path / "runs/a", one, model=model)
    record(tmp_path / "runs/b/table3/row", {"measured": (100, 5.0)}, model=model)
    record(tmp_path / "runs/c", {"measured": (1, 1.0)}, model="another")  # not alike
    record(tmp_path / "runs/d", {"measured": (1, 1.0)}, model=model, size=128)  # nor this
    found, means = numbers("table8", tmp_path)
    # Per worker: 2 of them painted 40 twins in 20 s. The median of 10 and 20 is 15.
    rates = {name: means[name, "per_second"] for name in ("measured", "scored", "twins")}
    assert rates == {"measured": 15.0, "scored": 10.0, "twins": 1.0}
    hours = {name: 25_096 / rate / 3600 for name, rate in rates.items()}
    assert means["twins", "gpu_hours"] == pytest.approx(hours["twins"])
    assert means["all", "gpu_hours"] == pytest.approx(sum(hours.values()))
    assert found.published["all", "gpu_hours"] == 52


def test_gpu_hours_of_table_8_count_the_part_of_a_gpu_that_a_worker_holds(tmp_path):
    model = load_config("tiny", []).perturb.model
    passes = {"scored": (50, 5.0), "twins": (40, 20.0)}
    record(tmp_path / "runs/a", passes, model=model, gpu=0.5)
    _, means = numbers("table8", tmp_path)
    # A worker paints with 0.5 of a GPU and scores with 0.25; 2 workers made 2 twins per second.
    assert means["twins", "gpu_hours"] == pytest.approx(25_096 / 1 / 3600 * 0.75)
    assert means["scored", "gpu_hours"] == pytest.approx(25_096 / 10 / 3600 * 0.25)


def test_passes_are_recorded_with_what_they_took(monkeypatch):
    progress.passes()
    now = iter(range(0, 100, 5))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    for _ in range(2):  # two waves
        wave = progress.Progress("twins", total=10, unit="rows", every=99.0, done=4)
        wave.add(6, note="")
        wave.finish(note="")
    found = progress.passes()
    assert found["twins"]["amount"] == 12
    assert found["twins"]["seconds"] > 0
    assert progress.passes() == {}


def styled(**changes: Any) -> Any:
    axes = ("human_preference", "stylization")
    found = made({"base": 0.0, "a": 1.0}, plot="scatter", axes=axes, columns=axes, **changes)
    found.published = {("base", axes[0]): 0.0, ("base", axes[1]): 0.357}
    return found


def test_stylization_comes_from_a_file_by_the_name_or_label_of_a_row(tmp_path):
    (tmp_path / "s.csv").write_text("method,value\nbase,0.3\nRow A,0.25\n")
    found = styled()
    found.labels = {"base": "base", "a": "Row A"}
    rated = beside.with_stylization(found, str(tmp_path / "s.csv")).summary
    own = rated[rated["metric"] == "stylization"].set_index("model")
    assert own["mean"].to_dict() == {"base": 0.3, "a": 0.25}
    assert own.loc["a", "gain"] == pytest.approx(-0.05)
    (tmp_path / "s.csv").write_text("method,value\nc,0.3\n")
    with pytest.raises(InputError, match=r"s\.csv, line 2: method=c is no row; there are base, a"):
        beside.with_stylization(styled(), str(tmp_path / "s.csv"))
    (tmp_path / "s.csv").write_text("method,value\na,high\n")
    with pytest.raises(InputError, match="line 2: value=high is not a number"):
        beside.with_stylization(styled(), str(tmp_path / "s.csv"))


def test_a_scatter_has_this_run_and_the_paper_on_axes_of_their_own(tmp_path):
    found = styled()
    assert figures.is_drawn(found)
    titles = [title for title, _ in figures.panels(found, positions={})]
    assert titles == ["paper"]  # no row of ours has both
    svg = figures.draw(found, positions={})
    assert svg == figures.draw(found, positions={})
    assert "this run: no row has both" in svg and "Stylization" in svg
