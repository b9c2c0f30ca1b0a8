"""Predicted memory of a GPU: by hand for some steps, and every preset and recipe fits its card."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import full
import memory
import pytest
from gpu_sections import counting

from raypref.core.config import load
from raypref.core.layers import PRESETS
from raypref.models.families.registry import FAMILIES, INPAINTING
from raypref.run.config import RunConfig
from raypref.run.execute import needs_of_step
from raypref.run.memory_plan import CARDS, latents_gib, predicted_gib, too_large
from raypref.run.model_sizes import AROUND, JUDGES, PAINTERS, SIZES, STORED, U2NET
from raypref.run.outlook import _models
from raypref.run.pipeline import Run

ROOT = Path(__file__).parents[1]
GIVEN = [*memory.GIVEN[:3], 'trainings=["stage2"]']


def predicted(preset: str, *overrides: str) -> dict[str, float]:
    return predicted_gib(load(RunConfig, preset, [*GIVEN, *overrides]))


def file_of(name: str) -> Path:
    return memory.RECIPES / name if name.endswith(".toml") else PRESETS / f"{name}.toml"


@pytest.mark.parametrize("name", memory.ON)
def test_every_step_fits_the_card_that_is_named_with_a_tenth_to_spare(name: str) -> None:
    head = file_of(name).read_text().split("\n\n")[0]
    card = memory.ON[name]
    assert {int(size) for size in re.findall(r"(\d+) GB(?: or more)?[,:. ]", head)} >= {card}
    gib = memory.predictions()[name]
    made = {"holes", "candidates"} if name.startswith("fyp_") else {"scored", "twins"}
    assert made | {"cache", "stage1", "stage2", "sft", "images"} <= gib.keys()
    assert too_large(gib, card=CARDS[card]) == {}


def test_all_presets_and_recipes_for_gpus_are_in_the_table() -> None:
    known = [path.stem for path in PRESETS.glob("*.toml")]
    known += [path.name for path in memory.RECIPES.glob("*.toml")]
    assert {*known} - {"tiny", "fyp_tiny", "cpu.toml"} == {*memory.ON}


def test_a_training_by_hand() -> None:
    # SD-1.5's UNet in bfloat16; 0.8 million adapter weights in float32, six copies without EMA;
    # 8 samples of two images; CUDA and workspaces.
    weights = 859_520_964 * 2 / 2**30 + 797_184 * 4 * 6 / 2**30
    expected = weights + 16 * SIZES["sd15"].saved + 1.5
    assert predicted("sd15")["stage2"] == pytest.approx(expected, abs=0.06)
    sparse = predicted("sd15", "train.stage2.gradient_checkpointing=true")["stage2"]
    assert sparse == pytest.approx(weights + 16 * SIZES["sd15"].recomputed + 1.5, abs=0.06)
    # Larger images and more precise weights take more, in proportion.
    large = predicted("sd15", "images.size=1024", "base.dtype=float32")["stage2"]
    assert large - 1.5 == pytest.approx(2 * weights + 8 * 16 * SIZES["sd15"].saved, rel=0.01)


def test_the_precision_of_drawing_and_encoding_counts() -> None:
    """Weights of networks and autoencoder in GiB, and what a batch takes, by hand."""
    parts = [size * 1e9 * 2 / 2**30 for size in (2.4697 + 5.5806, 0.0838)]
    drawn, encoded = 8 * SIZES["sd35m"].drawn, 4 * 4 * SIZES["sd35m"].encoded
    given = {"": (1, 1), "float32": (2, 2), "float16": (1, 1)}
    for dtype, (networks, decoding) in given.items():
        found = predicted("sd35m", f"evaluate.dtype={dtype}")["images"]
        expected = parts[0] * networks + (parts[1] + drawn) * decoding + 1.5
        assert found == pytest.approx(expected, abs=0.06), dtype
    apart = predicted("sd35m", "evaluate.dtype=float16", "evaluate.vae_dtype=float32")["images"]
    assert apart == pytest.approx(parts[0] + 2 * (parts[1] + drawn) + 1.5, abs=0.06)
    cache = predicted("sd35m", "cache.vae_dtype=float32")["cache"]
    text = 5.5806 * 1e9 * 2 / 2**30
    assert cache == pytest.approx(text + 2 * (parts[1] + encoded) + 1.5, abs=0.06)


def test_an_autoencoder_that_works_in_float32_counts_as_such() -> None:
    own = "base.family=sdxl_inpaint"
    found = predicted("sdxl", own)
    assert found == predicted("sdxl", own, "cache.vae_dtype=float32")
    assert found["cache"] > 1.5 * predicted("sdxl")["cache"]
    assert found["stage2"] == predicted("sdxl")["stage2"]


def test_twins_take_memory_by_the_side_they_are_painted_at() -> None:
    plain, large = predicted("sd15"), predicted("sd15", "perturb.size=1024")
    batch = 8 * SIZES["sd15"].drawn  # in float16
    assert large["twins"] - plain["twins"] == pytest.approx(3 * batch, abs=0.11)
    assert large["images"] == plain["images"]


@pytest.mark.parametrize("kind", ["flux", "qwen_image"])
def test_a_painter_counts_with_its_own_networks(kind: str) -> None:
    """Qwen-Image paints one at a time, whatever the batch."""
    own, given = SIZES[kind], (f"perturb.kind={kind}", "perturb.dtype=bfloat16")
    found = predicted("fyp_sd15", *given, "perturb.resources.batch=8")["candidates"]
    weights = (own.trained + own.text + own.autoencoder) * 1e9 * 2 / 2**30
    images = 8 if kind == "flux" else 1
    assert found == pytest.approx(weights + images * own.drawn + 1.5, abs=0.06)


def test_rollouts_count_where_they_outweigh_the_gradients() -> None:
    def stage1(*more: str) -> float:
        return predicted("sd15", 'trainings=["stage1"]', "train.stage1.micro_batch=1", *more)[
            "stage1"
        ]

    large = stage1("train.stage1.rollout_batch=256") - stage1("train.stage1.rollout_batch=128")
    assert large == pytest.approx(128 * SIZES["sd15"].forward, abs=0.1)
    # On four workers each has 64 samples of a step: no more than these are rolled out.
    shared = "train.stage1.resources.workers=4"
    assert stage1("train.stage1.rollout_batch=256", shared) == stage1(
        "train.stage1.rollout_batch=64", shared
    )


def test_workers_that_share_a_gpu_add_up() -> None:
    one = predicted("sd15")["scored"]
    assert predicted("sd15", "pickscore.resources.workers=2")["scored"] == pytest.approx(
        2 * one, abs=0.1
    )
    # At 0.3 of a GPU each, three share it and the fourth gets another.
    four = predicted("sd15", "pickscore.resources.workers=4")["scored"]
    assert four == pytest.approx(3 * one, abs=0.2)


def test_what_does_not_fit_is_seen() -> None:
    card = CARDS[24]
    assert too_large(predicted("sd35m", "cache.resources.batch=8"), card=card).keys() == {"cache"}
    assert too_large(predicted("sd35m", "evaluate.resources.batch=16"), card=card).keys() == {
        "images"
    }
    assert "stage2" in too_large(predicted("sd15", "train.stage2.micro_batch=16"), card=card)
    assert "twins" in too_large(predicted("sd15", "perturb.kind=sd35m"), card=card)
    assert "scored" in too_large(predicted("sd15", "photographic.enabled=true"), card=card)


def test_models_that_curation_may_use_count_where_they_are_used(tmp_path: Path) -> None:
    assert "captions" not in predicted("sd15")
    gib = predicted("sd15", "captions.model=some/vlm")
    judge = JUDGES["photographic"]
    expected = judge.parameters * 1e9 * 2 / 2**30 + 4 * judge.image + 1.5
    assert gib["captions"] == pytest.approx(expected, abs=0.06)
    (tmp_path / "photo.png").touch()
    (tmp_path / "photo.txt").write_text("a photo")
    used = {"captions": "captions.model=some/vlm", "photographic": "photographic.enabled=true"}
    for words in ([], *([word] for word in used.values()), [*used.values()]):
        config = load(RunConfig, "sd15", [*GIVEN, *words, f"source.path={tmp_path}"])
        run = Run(config)
        keys = {key.split(".")[0] for key, *_ in needs_of_step(config, run.steps[0])}
        assert keys & {*used} == {name for name, word in used.items() if word in words}
        models = _models(run, ["pairs"])
        assert ("some/vlm" in models) == (used["captions"] in words)
        assert (config.photographic.model in models) == (used["photographic"] in words)


def test_the_settings_for_12_gb_fit() -> None:
    micro = [f"train.{name}.micro_batch=2" for name in ("stage1", "stage2", "sft")]
    rest = ["cache.resources.batch=4", "train.stage1.rollout_batch=64", memory.GIVEN[3]]
    gib = predicted("sd15", *micro, *rest)
    assert "sft" in gib and too_large(gib, card=11.6) == {}


def test_steps_without_gpus_are_left_out() -> None:
    assert predicted_gib(load(RunConfig, "tiny", [])) == {}


def test_weights_are_those_of_the_published_networks() -> None:
    sd15, sd35m = full.parameters("sd15", "full"), full.parameters("sd35m", "full")
    positions = 384 * 384 * 1536
    known = {
        SIZES["sd15"].trained: sd15["unet"],
        SIZES["sd15"].text: sd15["text_encoder"],
        SIZES["sd15"].autoencoder: sd15["vae"],
        SIZES["sd35m"].trained: sd35m["transformer"] + positions,
        PAINTERS["sd15"]: sum(full.parameters("sd15-inpaint", "full").values()),
        JUDGES["pickscore"].parameters: full.parameters("pickscore", "full")[""],
        U2NET: full.parameters("u2net", "full")[""],
    }
    for billions, counted in known.items():
        assert billions == pytest.approx(counted / 1e9, rel=2e-3)


def test_every_family_has_its_sizes() -> None:
    assert SIZES.keys() == STORED.keys() == {*FAMILIES}
    assert AROUND.keys() == INPAINTING


def test_what_a_pass_keeps_is_not_more_than_the_plan_says() -> None:
    counts = counting.count("sd15")
    assert 0.95 * SIZES["sd15"].saved < counts.saved < 1.01 * SIZES["sd15"].saved


def test_the_document_has_the_table() -> None:
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert "\n".join(memory.table()) in text, "run benchmarks/memory.py"
    assert "\n".join(memory.quantised_table()) in text, "run benchmarks/memory.py"


def test_it_is_predicted_without_any_heavy_library() -> None:
    heavy = ["torch", "diffusers", "peft", "transformers", "ray", "mlflow"]
    code = f"import sys; sys.modules |= dict.fromkeys({heavy})\n"
    code += "from raypref.core.config import load; from raypref.run.config import RunConfig\n"
    code += "from raypref.run.memory_plan import predicted_gib\n"
    code += f"print(predicted_gib(load(RunConfig, 'sd15', {GIVEN}))['stage2'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) > 10


@pytest.mark.parametrize(
    "preset, given, values",
    [
        # Two sides, each both ways, mean and variance; CLIP's tokens.
        ("sd15", [], 2 * 2 * 2 * 4 * 64 * 64 + 77 * 768),
        ("sd15", ["pairs.kind=images", "images.size=256"], 2 * 2 * 4 * 32 * 32 + 77 * 768),
        ("sd35m", [], 2 * 2 * 2 * 16 * 64 * 64 + 333 * 4096 + 2048),
        ("sd35m", ["cache.t5_tokens=128"], 2 * 2 * 2 * 16 * 64 * 64 + 205 * 4096 + 2048),
        ("sd15", ["cache.t5_tokens=128"], 2 * 2 * 2 * 4 * 64 * 64 + 77 * 768),
        # What is around a hole, both ways.
        ("sd15", ["base.family=sd15_inpaint"], (2 * 2 * 2 * 4 + 2 * 5) * 64 * 64 + 77 * 768),
        (
            "sdxl",
            ["base.family=sdxl_inpaint"],
            (2 * 2 * 2 * 4 + 2 * 5) * 128 * 128 + 77 * 2048 + 1280,
        ),
        (
            "sd35m",
            ["base.family=flux_fill"],
            (2 * 2 * 2 * 16 + 2 * 80) * 64 * 64 + 512 * 4096 + 768,
        ),
    ],
)
def test_latents_by_hand(preset: str, given: list[str], values: int) -> None:
    config = load(RunConfig, preset, ["source.path=p", *given])
    assert latents_gib(config, 1000) * 2**30 == pytest.approx(4 * 1000 * values)
