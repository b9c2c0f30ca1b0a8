"""Images for the evaluation, and the proof that a LoRA of ours is at full strength elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from raypref.core.config import InputError, build
from raypref.core.rows import Row
from raypref.engine.batches import in_batches
from raypref.evaluate.generate import BASE, Generate, GenerateConfig, other_loras, rows_to_generate
from raypref.evaluate.sets import read_set
from raypref.models import adapters, lora, lora_formats
from raypref.models.backbone import BackboneConfig, load_denoiser, load_encoder
from raypref.models.families.conditioning import Conditioning
from raypref.models.lora_config import LoraConfig

TINY = BackboneConfig(model=str(small.path("sd15")))
CONFIG = GenerateConfig(prompts="tiny:prompts", seeds=(42, 7), steps=3, size=64, limit=2)
STRONG = LoraConfig(rank=2, alpha=8)  # not alpha = rank: that loaders assume
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, list[Tensor]]:
    """A folder with an exported LoRA, and what its network predicts within the training code."""
    folder = tmp_path_factory.mktemp("lora")
    denoiser = load_denoiser(TINY, device=CPU)
    adapters.attach(denoiser.module, STRONG, names=("learner",), seed=3)
    learner = adapters.vector(denoiser.module, "learner").detach()
    noise = torch.randn(learner.shape, generator=torch.Generator().manual_seed(3))
    adapters.fill(denoiser.module, "learner", learner + 0.1 * noise)
    values = adapters.state(denoiser.module, "learner")
    lora.save(values, STRONG, folder=str(folder), component=denoiser.component)
    with torch.no_grad():
        prediction = denoiser.predict(*network_input())
    return folder, prediction


def network_input() -> tuple[Tensor, Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(9)
    prompts = load_encoder(TINY, device=CPU).text_embeddings(["a photo of a red ball", ""])
    return torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([700, 30]), prompts


def plain_pipeline() -> StableDiffusionPipeline:
    """As someone without this project loads it."""
    pipeline = StableDiffusionPipeline.from_pretrained(small.path("sd15"), safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def plain_image(pipeline: StableDiffusionPipeline, row: Row) -> np.ndarray:
    [image] = pipeline(
        row["prompt"],
        num_inference_steps=CONFIG.steps,
        guidance_scale=CONFIG.guidance,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(row["seed"]),
    ).images
    return np.asarray(image).astype(int)


def loaded(loras: dict[str, str]) -> Generate:
    stage = Generate(TINY, CONFIG, loras=loras)
    stage.setup()
    return stage


@pytest.fixture(scope="module")
def stage(trained) -> Generate:
    return loaded({"ours": str(trained[0])})


def make_rows(models: Sequence[str]) -> list[Row]:
    texts = [prompt.text for prompt in read_set("tiny:prompts", limit=2)]
    return rows_to_generate(texts, CONFIG, models).to_pylist()


def images(stage: Generate, rows: Sequence[Row], *, batch: int) -> dict[str, np.ndarray]:
    copies = [dict(row) for row in rows]
    for start in range(0, len(copies), batch):
        in_batches(stage, copies[start : start + batch])
    return {row["id"]: np.asarray(row["image"]).astype(int) for row in copies}


def furthest(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> int:
    assert a.keys() == b.keys()
    return max(int(np.abs(a[name] - b[name]).max()) for name in a)


# ------------------------------------------------------------------ the stage


def test_every_row_is_one_image_with_an_id_of_its_own():
    config = CONFIG.model_copy(update={"seeds": (1, 12, 2)})
    table = rows_to_generate(["a", "b", "a b"], config, [BASE, "stage1", "both"])
    rows = table.to_pylist()
    assert len({row["id"] for row in rows}) == len(rows) == 27
    facts = {(row["model"], row["prompt_id"], row["seed"]) for row in rows}
    assert len(facts) == 27
    assert {row["prompt_id"]: row["prompt"] for row in rows} == {0: "a", 1: "b", 2: "a b"}
    models = [row["model"] for row in rows]
    assert models == sorted(models, key=[BASE, "stage1", "both"].index)


def test_a_seed_that_stands_twice_is_refused():
    with pytest.raises(InputError, match=r"seeds must differ"):
        build(GenerateConfig, {"prompts": "tiny:prompts", "seeds": [42, 7, 42]})


def test_a_noise_is_of_a_seed_or_of_a_prompt_and_seed():
    released = rows_to_generate(["a", "b"], CONFIG, [BASE, "both"]).to_pylist()
    assert all(row["noise"] == row["seed"] for row in released)
    own = CONFIG.model_copy(update={"seed_mode": "per_prompt"})
    rows = rows_to_generate(["a", "b"], own, [BASE, "both"]).to_pylist()
    noises = {(row["prompt"], row["seed"]): row["noise"] for row in rows}
    assert len(set(noises.values())) == 4, "each prompt and seed has its own"
    assert all(row["noise"] == noises[row["prompt"], row["seed"]] for row in rows), "for all models"
    assert [row["seed"] for row in rows] == [row["seed"] for row in released]
    # It hangs on the prompt's words, not on its place or on the others.
    alone = rows_to_generate(["b"], own, [BASE]).to_pylist()
    assert [row["noise"] for row in alone] == [noises["b", seed] for seed in own.seeds]


@pytest.mark.parametrize("name", ["base", "a/b", "", "a b", "..", "v1.5"])
def test_a_lora_needs_a_name_of_its_own(name):
    with pytest.raises(InputError, match="cannot be called"):
        build(GenerateConfig, {"loras": {name: "folder"}})


def test_other_loras_are_known_by_their_bytes(trained, tmp_path):
    folder = str(trained[0])
    shutil.copytree(folder, tmp_path / "copy")
    found = other_loras({"a": folder, "b": str(tmp_path / "copy")})
    assert found["a"].fingerprint == found["b"].fingerprint and found["b"].folder != folder
    with pytest.raises(InputError, match=r"evaluate\.loras\.c: no LoRA weights in"):
        other_loras({"c": str(tmp_path)})


def test_an_image_does_not_depend_on_its_batch(stage):
    rows = make_rows([BASE, "ours"])
    together = images(stage, rows, batch=8)
    # To the bit: also where a batch ends because another model's rows begin.
    assert furthest(together, images(stage, rows[::-1], batch=3)) == 0
    assert furthest(together, images(stage, rows[1::2] + rows[::2], batch=1)) == 0
    assert (
        furthest(
            {k: v for k, v in together.items() if "ours" in k},
            images(stage, make_rows(["ours"]), batch=4),
        )
        == 0
    )


def test_seed_prompt_and_model_each_change_the_image(stage):
    made = images(stage, make_rows([BASE, "ours"]), batch=8)
    first = made.pop("base/00000/42")
    others = ("base/00000/7", "base/00001/42", "ours/00000/42")
    assert all(np.abs(first - made[name]).mean() > 0.5 for name in others)


def test_the_base_is_the_base_whatever_is_loaded_beside_it(stage):
    rows = make_rows([BASE])
    expected = images(loaded({}), rows, batch=4)
    assert furthest(images(stage, rows, batch=4), expected) == 0
    images(stage, make_rows(["ours"]), batch=4)
    assert furthest(images(stage, rows, batch=4), expected) == 0
    plain = plain_pipeline()
    assert furthest({row["id"]: plain_image(plain, row) for row in rows}, expected) <= 1


def test_a_lora_of_others_may_be_a_file_in_another_layout(trained, stage, tmp_path):
    shutil.copytree(trained[0], tmp_path / "theirs")
    lora_formats.write_shared(str(tmp_path / "theirs"), name="k.safetensors", component="unet")
    file = (tmp_path / "theirs" / "k.safetensors").rename(tmp_path / "k.safetensors")
    found = other_loras({"ours": str(file)})["ours"]
    assert found.folder == str(file)
    theirs = loaded({"ours": found.folder})
    rows = make_rows(["ours"])
    assert furthest(images(theirs, rows, batch=2), images(stage, rows, batch=2)) == 0


def test_two_loras_do_not_mix(trained, stage, tmp_path):
    folder = trained[0]
    denoiser = load_denoiser(TINY, device=CPU)
    adapters.attach(denoiser.module, STRONG, names=("learner",), seed=3)
    zero = adapters.state(denoiser.module, "learner")  # B is zero: this one does nothing
    lora.save(zero, STRONG, folder=str(tmp_path), component="unet")
    both = loaded({"ours": str(folder), "nothing": str(tmp_path)})
    rows = make_rows(["ours"])
    assert furthest(images(both, rows, batch=4), images(stage, rows, batch=4)) == 0
    idle = [{**row, "id": row["id"].replace("nothing", BASE)} for row in make_rows(["nothing"])]
    assert furthest(images(both, idle, batch=4), images(both, make_rows([BASE]), batch=4)) == 0


# ------------------------------------------------------------------ the LoRA elsewhere


def test_loras_of_different_ranks_share_a_base(trained, stage, tmp_path):
    wide = LoraConfig(rank=5, alpha=5)
    denoiser = load_denoiser(TINY, device=CPU)
    adapters.attach(denoiser.module, wide, names=("learner",), seed=4)
    generator = torch.Generator().manual_seed(4)
    values = {
        key: 0.1 * torch.randn(value.shape, generator=generator)
        for key, value in adapters.state(denoiser.module, "learner").items()
    }
    lora.save(values, wide, folder=str(tmp_path), component="unet")
    both = loaded({"wide": str(tmp_path), "ours": str(trained[0])})
    rows = make_rows(["ours", "wide", BASE])
    made = images(both, rows, batch=4)
    alone = images(loaded({"wide": str(tmp_path)}), make_rows(["wide"]), batch=4)
    assert furthest({name: made[name] for name in alone}, alone) <= 1
    theirs = images(stage, make_rows(["ours", BASE]), batch=4)
    assert furthest({name: made[name] for name in theirs}, theirs) <= 1
    name = "wide/00000/42"
    assert np.abs(made[name] - made[name.replace("wide", BASE)]).mean() > 0.5


def test_a_plain_pipeline_makes_the_same_images_with_our_lora(trained, stage):
    folder, _ = trained
    plain = plain_pipeline()
    rows = make_rows(["ours"])
    without = {row["id"]: plain_image(plain, row) for row in rows}
    plain.load_lora_weights(str(folder))
    theirs = {row["id"]: plain_image(plain, row) for row in rows}
    assert furthest(theirs, images(stage, rows, batch=4)) <= 1
    assert min(np.abs(theirs[name] - without[name]).mean() for name in theirs) > 1


def test_alpha_survives_the_export(trained):
    folder, in_training = trained
    x_BCHW, timesteps_B, prompts = network_input()
    plain = plain_pipeline()
    with torch.no_grad():
        base = plain.unet(x_BCHW, timesteps_B, prompts.sequence_BLD).sample
        plain.load_lora_weights(str(folder))
        elsewhere = plain.unet(x_BCHW, timesteps_B, prompts.sequence_BLD).sample
    torch.testing.assert_close(elsewhere, in_training, atol=1e-5, rtol=0)
    assert (elsewhere - base).abs().mean() > 0.01


def test_our_own_loader_reads_it_back(trained):
    folder, in_training = trained
    denoiser = load_denoiser(TINY, device=CPU)
    adapters.attach(denoiser.module, STRONG, names=("learner", "ref"), seed=0)
    lora.load_weights(denoiser.module, STRONG, folder=str(folder), name="ref", component="unet")
    adapters.activate(denoiser.module, "ref")
    with torch.no_grad():
        torch.testing.assert_close(
            denoiser.predict(*network_input()), in_training, atol=1e-5, rtol=0
        )
