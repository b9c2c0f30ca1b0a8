"""What the page says in words: the result, the state of the run, links, code, the banner."""

import dataclasses
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from raypref.core.config import load
from raypref.core.ledger import Ledger, write_bytes
from raypref.core.progress import Work, duration
from raypref.evaluate import statistics
from raypref.evaluate.labels import heading
from raypref.evaluate.summary import verdict
from raypref.evaluate.tables import places
from raypref.models.backbone import BackboneConfig
from raypref.models.lora_config import FILE_NAME
from raypref.pairs.kinds import KINDS
from raypref.report import collect, headline
from raypref.report.embedded import BANNER, banner
from raypref.report.meanings import meaning_of
from raypref.report.page import render
from raypref.report.samples import middle, ranked
from raypref.report.use import snippet
from raypref.report.views import FunnelStep, ReportData, StepCost
from raypref.run import execute
from raypref.run.config import RunConfig
from raypref.run.page import write_page
from raypref.run.pipeline import Run, Step

ROOT = Path(__file__).parents[1]
HOW = {"steps": 3, "guidance": 2.5}
ALONE = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": ""}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (43, "43 s"),
        (200, "3 min 20 s"),
        (8040, "2 h 14 min"),
        (266_400, "3 d 2 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


NAMES = [("stage1", "stage 1 + stage 2"), ("base", "stage 2"), ("sft", "SFT + stage 2")]


@pytest.mark.parametrize(("start", "shown"), NAMES)
def test_a_lora_is_called_what_the_table_calls_it(start, shown, tmp_path):
    run = Run(load(RunConfig, "tiny", [f"train.stage2.start={start}", 'trainings=["stage2"]']))
    results = {name: run.labels[name] for name in run.trained}
    for name in (
        f"stage2/{FILE_NAME}",
        "stage2/mine-stage2.safetensors",
        f"stage2_alone/{FILE_NAME}",
    ):
        write_bytes(f"{tmp_path}/run/{name}", b"x")  # the last: of settings that were replaced
    links = [link.text for link in collect._links(f"{tmp_path}/run", "mine", {}, results, "")]
    lora, kohya = f"stage2/{FILE_NAME} ({shown})", f"({shown}, for ComfyUI and others)"
    assert links == [lora, f"stage2/mine-stage2.safetensors {kohya}"]


# ------------------------------------------------------------------ the result


def scores(gains: list[float], metric: str = "pickscore") -> pd.DataFrame:
    """One row per model, prompt and seed: the base has 20 everywhere."""
    rows = [
        (f"prompt {place}", place, seed, model, metric, value)
        for place, gain in enumerate(gains)
        for seed in (7, 3)
        for model, value in (("base", 20.0), ("stage2", 20.0 + gain))
    ]
    return pd.DataFrame(rows, columns=list(statistics.SCORES))


def evaluated(gains: list[float], metric: str = "pickscore") -> ReportData:
    own = scores(gains, metric)
    return ReportData(
        title="t",
        subtitle="seed 0",
        config_toml="",
        table=statistics.summarise(own, resamples=200),
        final="stage2",
        labels={"stage2": "stage 2"},
        prompt_gains=collect.prompt_gains(own, model="stage2", base="base"),
    )


def test_the_first_sentence_tells_the_gain_and_its_interval():
    said = headline.sentence(evaluated([1.0, 2.0, 3.0, 2.0]))
    assert said.startswith(
        "PickScore rises on average from 20.00 (the model before training) to 22.00 (after stage "
        "2): +2.00, 95% interval ["
    )
    assert said.endswith("]. Better on 4 of 4 prompts, worse on 0.")
    assert "which is worse" not in said


def test_the_first_sentence_names_what_got_worse():
    better, worse = scores([1.0, 2.0]), scores([-0.5, -1.0], "colorfulness")
    same = scores([0.001, -0.004], "prompt_accuracy")  # rounds to zero
    both = pd.concat([better, worse, same, scores([3.0, 3.0], "texture_detail")])
    data = dataclasses.replace(evaluated([1.0]), table=statistics.summarise(both, resamples=50))
    said = headline.sentence(data)
    assert said.count("Worse:") == 1
    assert "Worse: Colorfulness, from 20.00 to 19.25 (-0.75, 95% interval [" in said
    assert "Worse" not in headline.sentence(evaluated([-1.0, -2.0])), "it is the sentence itself"


def test_looks_go_up_and_down_and_are_neither_better_nor_worse():
    darker = pd.concat([scores([1.0, 2.0, 3.0]), scores([-0.5, -1.0, -0.7], "brightness")])
    table = statistics.summarise(darker, resamples=50)
    data = dataclasses.replace(evaluated([1.0]), table=table)
    assert "Worse" not in headline.sentence(data)
    [row] = table[(table["metric"] == "brightness") & (table["model"] == "stage2")].itertuples()
    assert verdict(row) == "lower"
    assert heading("brightness") == "Brightness" and heading("pickscore") == "PickScore ↑"
    assert ("stage2", "brightness") not in places(table) and ("stage2", "pickscore") in places(
        table
    )
    assert "neither more nor less is better" in meaning_of("brightness_in_hole")
    wins = statistics.win_rates(darker, resamples=50)
    assert wins["metric"].unique().tolist() == ["pickscore"]
    gains = collect.prompt_gains(darker, model="stage2", base="base")
    assert [view.metric for view in gains] == ["pickscore"]
    assert f'<span class="flat">▼ {-0.733:.3f}</span>' in render(data)


def test_the_first_sentence_claims_nothing_that_the_interval_does_not():
    said = headline.sentence(evaluated([1.0, -1.0, 0.5, -0.5]))
    assert said.startswith(
        "No clear difference: PickScore is on average 20.00 for the model before training and "
        "20.00 after stage 2 (±0.00, 95% interval ["
    )
    assert said.endswith("]). Better on 2 of 4 prompts, worse on 2.")
    alone = headline.sentence(evaluated([1.0]))
    assert alone.startswith("No clear difference") and "no interval" in alone


@pytest.mark.parametrize(("gain", "worse"), [(0.5, True), (-0.5, False)])
def test_less_can_be_better_in_the_first_sentence(gain, worse):
    said = headline.sentence(evaluated([gain, 2 * gain, 3 * gain], metric="cmmd"))
    assert ("which is worse" in said) == worse
    assert ("rises" in said) == (gain > 0)


def test_before_an_evaluation_the_first_sentence_says_what_there_is():
    data = ReportData(title="t", subtitle="s", config_toml="", to_come=["stage 1"], done=["pairs"])
    assert headline.sentence(data) == "There are no pairs yet."
    funnel = [FunnelStep(name="found", remaining=5000), FunnelStep(name="best", remaining=1234)]
    curated = dataclasses.replace(data, funnel=funnel, pairs=[None])
    assert headline.sentence(curated) == (
        "1,234 preference pairs are ready; nothing is trained yet."
    )
    assert headline.progress(curated) == "Done: pairs. Still to come: stage 1."
    assert headline.progress(dataclasses.replace(curated, to_come=[])) == ""


@pytest.mark.parametrize(
    ("kind", "learned"),
    [("twins", "prefer your photographs"), ("labelled", "prefer the images that people chose")],
)
def test_the_page_says_what_it_is_of(kind, learned):
    data = dataclasses.replace(evaluated([1.0, 2.0]), terms=KINDS[kind].terms)
    assert headline.intro(data) == (
        f"A text-to-image model, trained to {learned}. PickScore rates how well a picture fits its "
        "prompt and pleases people; higher is better."
    )
    lower = dataclasses.replace(evaluated([1.0], "cmmd"), terms=KINDS[kind].terms)
    assert headline.intro(lower).endswith("; lower is better.")
    bare = dataclasses.replace(data, table=None)
    assert headline.intro(bare) == f"Pairs that teach a text-to-image model to {learned}."


def test_the_time_is_the_recorded_one():
    data = ReportData(
        title="t",
        subtitle="s",
        config_toml="",
        costs=[StepCost("a", 60, 1, ""), StepCost("b", 30, 1, "")],
    )
    assert headline.seconds(data) == 90
    assert headline.seconds(dataclasses.replace(data, seconds=125.0)) == 125


def test_the_shown_prompts_are_those_around_the_median():
    gains = list(np.random.default_rng(0).permutation(np.linspace(-2, 5, 41)))
    rows = ranked(scores(gains), model="stage2", base="base")
    shown = middle(rows)
    distance = sorted(abs(gain - np.median(gains)) for gain in gains)
    assert max(abs(own.gain - np.median(gains)) for own in shown) <= distance[4] + 1e-9
    assert len(shown) == 4 and {own.seed for own in shown} == {3}
    lower = ranked(scores([1.0, -1.0, 0.0], metric="cmmd"), model="stage2", base="base")
    assert [own.gain for own in lower] == [-1.0, 0.0, 1.0]  # the best first
    assert middle(rows[:3]) == rows[:3] and middle([]) == []
    assert ranked(scores([1.0]), model="stage1", base="base") == []


def test_the_number_is_of_the_shown_pictures():
    """Seed 3 loses where the mean over both seeds gains; without a score there, seed 7 is shown."""
    own = scores([0.0, 0.0])
    of_model = own["model"] == "stage2"
    own.loc[of_model & (own["seed"] == 7), "score"] = 30.0
    own.loc[of_model & (own["seed"] == 3) & (own["prompt_id"] == 0), "score"] = 19.0
    own.loc[of_model & (own["seed"] == 3) & (own["prompt_id"] == 1), "score"] = np.nan
    rows = ranked(own, model="stage2", base="base")
    assert [(row.prompt_id, row.seed, row.gain) for row in rows] == [(1, 7, 10.0), (0, 3, -1.0)]


# ------------------------------------------------------------------ banner and code


@pytest.mark.parametrize(
    ("models", "source", "said"),
    [
        (("tiny:sd15", "a/b"), "photos/", BANNER),
        (("a/b", "tiny:pickscore"), "s3://photos", BANNER),
        (("tiny:sd15", "tiny:pickscore"), "tiny:world", ""),
        (("a/b", "c/d"), "photos/", ""),
    ],
)
def test_embedded_models_do_not_judge_own_photographs(models, source, said):
    assert banner(models, source) == said


def test_the_code_runs_as_printed(tmp_path, monkeypatch):
    """With the LoRA that peft makes for the embedded base, in a process of its own."""
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    base = BackboneConfig(model="tiny:sd15")
    unet = StableDiffusionPipeline.from_pretrained(base.folder()).unet
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.5)
    folder = tmp_path / 'a "run"' / "stage2"
    StableDiffusionPipeline.save_lora_weights(folder, get_peft_model_state_dict(unet))
    code = snippet(base, lora=str(folder), prompt='a "red" ball\\', side=64, **HOW)
    again = [line for line in code.splitlines() if not line.startswith("pipe.load_lora_weights")]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ALONE, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    drawn = np.asarray(Image.open(tmp_path / "image.png"))
    monkeypatch.chdir(tmp_path)
    exec("\n".join(again), {})
    plain = np.asarray(Image.open(tmp_path / "image.png"))
    assert drawn.shape == (64, 64, 3) and (drawn != plain).any()


def test_the_code_names_commits_networks_and_remote_folders():
    base = BackboneConfig(model="a/b@main", network="c/d", variant="fp16")
    code = snippet(base, lora="s3://runs/one/stage2", prompt="p", side=512, **HOW)
    compile(code, "snippet", "exec")
    assert '"a/b", revision="main"' in code and 'variant="fp16"' in code
    assert 'UNet2DConditionModel.from_pretrained("c/d", subfolder="unet"' in code
    assert 'load_lora_weights("stage2")  # copied from s3://runs/one/stage2' in code
    painting = snippet(
        BackboneConfig(family="sd15_inpaint", model="a/b"), lora="/l", prompt="p", side=512, **HOW
    )
    compile(painting, "snippet", "exec")
    assert "mask_image=" in painting and "from PIL import Image" in painting


# ------------------------------------------------------------------ the page of a run


def run_in(folder: Path, *words: str) -> Run:
    settings = [f"storage={folder}", "run=own", "tracking.uri=none", *words]
    return Run(load(RunConfig, "tiny", settings))


def test_a_run_that_has_nothing_yet_has_a_page(tmp_path, caplog):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (64, 64)).save(photos / "a.png")
    (photos / "a.txt").write_text("a caption")
    run = run_in(tmp_path, "evaluate.prompts=", f"source.path={photos}")  # no prompts are needed
    caplog.set_level("INFO")
    assert write_page(run) and write_page(run)
    text = (tmp_path / "own" / "report" / "index.html").read_text()
    models = "stage 1, stage 1 + stage 2, stage 2 alone"
    assert f"Still to come: pairs, latents, {models}, evaluation." in " ".join(text.split())
    assert BANNER in text and "<title>own · raypref</title>" in text
    told = [line for line in caplog.messages if line.startswith("page:")]
    assert len(told) == 1 and told[0].endswith("own/report/index.html")


def test_a_page_that_fails_stops_nothing(tmp_path, caplog):
    write_bytes(f"{tmp_path}/own/run.json", b"no json")
    assert not write_page(run_in(tmp_path))
    assert "could not be written" in caplog.text
    with pytest.raises(ValueError):  # the last one is what the run ends in
        write_page(run_in(tmp_path), last=True)


def test_the_page_is_written_after_every_step_that_shows_something(tmp_path, monkeypatch):
    run, told = run_in(tmp_path), []
    monkeypatch.setattr(execute, "write_page", lambda _: told.append([*record["steps"]][-1]))
    record = {"steps": {}}

    def step(name: str, *, fills: bool = True) -> Step:
        ledgers = (Ledger(str(tmp_path / name), {}),) if fills else ()

        def work() -> Work:
            for ledger in ledgers:
                ledger.begin()
                ledger.commit(expected=0, counts={})
            return Work(0, "rows")

        return Step(name, lambda: ledgers, work)

    def take(*steps: Step, pages: bool = True) -> list[str]:
        told.clear()
        execute._take(run, [*steps], record, nullcontext, began=0.0, pages=pages)
        return [*told]

    ends = step("card", fills=False), step("report", fills=False)
    # The report itself is the page: none is written right before it.
    assert take(step("pairs"), step("stage1"), step("evaluation"), *ends) == ["pairs", "stage1"]
    assert take(step("pairs"), step("stage1"), *ends) == [], "all skipped"
    assert take(step("cache"), step("stage2")) == ["cache", "stage2"], "a job without the report"
    assert take(step("a"), step("pairs"), ends[1]) == [], "what is done does not count as a step"
    assert take(step("b"), pages=False) == []
