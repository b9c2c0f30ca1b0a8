"""What is measured: chosen by name, known by what decides its values, as few passes as fit."""

import numpy as np
import pytest
from PIL import Image

from raypref.core.config import InputError, load, results_of
from raypref.engine.batches import in_batches
from raypref.evaluate.measures import MetricsConfig, measures
from raypref.evaluate.metrics import PixelMetrics
from raypref.images.decode import encode_png
from raypref.images.looks import looks
from raypref.rewards.passes import in_one_pass, passes
from raypref.rewards.pickscore import PickScoreConfig
from raypref.rewards.rewards import rewards_of
from raypref.run.config import RunConfig

PICKSCORE = PickScoreConfig(model="tiny:pickscore", processor="tiny:pickscore")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("metrics.rewards=picscore", "^metrics.rewards=.*named once and is one of: pickscore"),
        ("metrics.rewards=pickscore,pickscore", "named once"),
        ("metrics.rewards=dinov2", "named once"),
        ("metrics.embedder=realism", "one of: pickscore"),
    ],
)
def test_an_unknown_name_is_refused_with_those_there_are(given: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(RunConfig, "tiny", [given])


def test_each_measure_has_its_own_settings() -> None:
    metrics = MetricsConfig(critic="tiny:critic.safetensors")
    found = measures(metrics, PICKSCORE, rewards_of({}))
    assert list(found) == ["pickscore", "pixels", "prompt_accuracy", "embedding_pickscore"]
    assert found["embedding_pickscore"].scores == []
    assert found["pixels"].scores == ["texture_detail", "colorfulness"]
    assert found["pixels"].settings == {}, "a reward that changes makes nothing else stale"
    settings = results_of(found["pickscore"].settings)
    assert settings["pickscore.model"] == "tiny:pickscore"
    assert "pickscore.resources.batch" not in settings
    fewer = MetricsConfig(rewards=(), distance=False)
    assert list(measures(fewer, PICKSCORE, rewards_of({}))) == ["pixels"]


def test_the_question_table_is_known_by_its_content(tmp_path) -> None:
    head = "item_id,text,proposition_id,dependency,category_broad,category_detailed"
    file = tmp_path / "dpg_bench.csv"
    metrics = MetricsConfig(dpg_questions=str(file))
    known = []
    for question in ("Is it red?", "Is it blue?"):
        text = f"{head},question_natural_language\n1,a,1,0,entity,whole,{question}\n"
        file.write_text(text)
        known.append(measures(metrics, PICKSCORE, rewards_of({}))["dpg"].settings["questions"])
    assert known[0] != known[1]


def test_a_missing_model_is_named_before_any_work() -> None:
    with pytest.raises(InputError, match=r"pickscore\.model"):
        PickScoreConfig(model="/nowhere").check()
    with pytest.raises(InputError, match=r"pickscore\.processor"):
        PICKSCORE.model_copy(update={"processor": "/nowhere"}).check()
    PICKSCORE.check()


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_a_score_does_not_depend_on_the_batch(batch: int) -> None:
    """float32: equal to 1e-4 of a score of about 20, whatever the batch and its company."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
    resources = PICKSCORE.resources.model_copy(update={"batch": batch})
    config = PICKSCORE.model_copy(update={"resources": resources})
    rows = [
        {"image": encode_png(Image.fromarray(p)), "prompt": f"a photo of a red ball {i}"}
        for i, p in enumerate(pictures)
    ]
    stage = measures(MetricsConfig(), config, rewards_of({}))["pickscore"].stage
    stage.setup()
    in_batches(stage, rows)
    model = PICKSCORE.load()
    alone = [
        float(model.score([Image.fromarray(p)], [row["prompt"]])[0])
        for p, row in zip(pictures, rows, strict=True)
    ]
    np.testing.assert_allclose([row["pickscore"] for row in rows], alone, atol=1e-4)


def test_pixel_metrics_fill_both_columns() -> None:
    row = {"image": encode_png(Image.new("RGB", (8, 8), (10, 20, 30)))}
    PixelMetrics()([row])
    assert row["texture_detail"] == 0 and row["colorfulness"] > 0


def test_looks_are_measured_when_asked_for() -> None:
    chosen = MetricsConfig(rewards=(), distance=False, looks=True)
    found = measures(chosen, PICKSCORE, rewards_of({}))["looks"]
    assert found.scores == ["brightness", "contrast", "saturation", "composition"]
    image = Image.new("RGB", (8, 8), (255, 0, 0))
    row = {"image": encode_png(image)}
    found.stage([row])
    assert {name: row[name] for name in found.scores} == {
        name: value for name, value in looks(image).items() if name != "texture"
    }


def names(found: list[dict]) -> list[list[str]]:
    return [list(together) for together in found]


def test_measures_whose_models_fit_on_a_gpu_share_a_pass() -> None:
    share = {name: {"resources": {"num_gpus": 0.4}} for name in ("clipscore", "aesthetic")}
    others = rewards_of({**share, "hpsv3": {"resources": {"num_gpus": 0.1}}})
    half = PICKSCORE.resources.model_copy(update={"num_gpus": 0.5})
    pickscore = PICKSCORE.model_copy(update={"resources": half})
    metrics = MetricsConfig(rewards=("pickscore", "hpsv3", "clipscore", "aesthetic"))
    found = names(passes(measures(metrics, pickscore, others)))
    # The embedding is PickScore's own: one model. Seven billion weights stay alone.
    together = ["pickscore", "clipscore", "pixels", "embedding_pickscore"]
    assert found == [together, ["hpsv3"], ["aesthetic"]]


def test_what_needs_an_environment_of_its_own_is_alone() -> None:
    metrics = MetricsConfig(rewards=("deqa", "pickscore"), distance=False)
    chosen = measures(metrics, PICKSCORE, rewards_of({}))
    chosen["pickscore"] = chosen["pickscore"]._replace(runtime_env={"pip": ["x"]})
    assert names(passes(chosen)) == [["deqa"], ["pickscore"], ["pixels"]]


@pytest.mark.parametrize("name", ["pickscore", "clipscore"])
def test_a_score_of_the_embedding_is_that_of_the_image(name: str, monkeypatch) -> None:
    """To the bit, and the image tower runs once for both."""
    others = rewards_of({"clipscore": {"model": "tiny:pickscore"}})
    metrics = MetricsConfig(rewards=(name,), embedder=name)
    found = measures(metrics, PICKSCORE, others)
    del found["pixels"]
    common, own = in_one_pass(found, column="image")
    rng = np.random.default_rng(0)
    rows = [
        {"image": encode_png(Image.fromarray(p)), "prompt": f"a photo of a red ball {i}"}
        for i, p in enumerate(rng.integers(0, 256, (7, 64, 64, 3), dtype=np.uint8))
    ]
    apart = [dict(row) for row in rows]
    for measure in found.values():
        measure.stage.setup()
        in_batches(measure.stage, apart)
    (embed,), (score,) = common[1:], own[name]
    score.setup()
    tower = score.reward.clip if name == "clipscore" else score.reward
    method = "images" if name == "clipscore" else "_image_features"
    seen = []
    looked = getattr(tower, method)
    monkeypatch.setattr(tower, method, lambda pixels: seen.append(len(pixels)) or looked(pixels))
    embed.model = score.reward
    for stage in (*common, *own[name], *own[f"embedding_{name}"]):
        in_batches(stage, rows)
    assert seen == [embed.resources.batch]
    for row, other in zip(rows, apart, strict=True):
        assert row[name] == other[name] and row["embedding"] == other["embedding"]
