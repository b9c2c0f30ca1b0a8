"""Holes as the models paint them: polarity, rims, batches, LoRAs, and the plain pipeline's bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image
from torch import Tensor

from raypref.core.config import Resources
from raypref.core.rows import Row
from raypref.demo import photograph, world
from raypref.engine.batches import in_batches
from raypref.evaluate.generate import BASE, GenerateConfig
from raypref.evaluate.painting import Paint
from raypref.models import adapters, lora, paint
from raypref.models.backbone import BackboneConfig, load_autoencoder, load_denoiser
from raypref.models.lora_config import LoraConfig

TINY = BackboneConfig(family="sd15_inpaint", model="tiny:sd15-inpaint")
CONFIG = GenerateConfig(seeds=(42, 7), steps=8, guidance=2.5, size=64)
CPU = torch.device("cpu")
NOTHING, ALL = (Image.new("L", (64, 64), level) for level in (0, 255))


def photographs(count: int) -> list[tuple[str, Image.Image, Image.Image]]:
    """Caption, photograph and mask of its things."""
    found = []
    for index, scene in enumerate(world.sample_scenes(count, seed=21, held_out=True)):
        image = Image.fromarray(photograph.render_scene(scene, seed=index))
        mask = photograph.object_mask(scene, seed=index) > 0
        found.append((world.caption(scene), image, Image.fromarray(mask.astype(np.uint8) * 255)))
    return found


def row(number: int, *, model: str = BASE, noise: int = 42, mask: Image.Image | None = None) -> Row:
    prompt, photo, own = photographs(number + 1)[number]
    return {
        "id": f"{model}/{number}/{noise}",
        "model": model,
        "prompt": prompt,
        "noise": noise,
        "photograph": photo,
        "mask": own if mask is None else mask,
    }


def loaded(loras: dict[str, str] | None = None, **changes: object) -> Paint:
    stage = Paint(TINY, CONFIG.model_copy(update=changes), loras=loras or {})
    stage.setup()
    return stage


@pytest.fixture(scope="module")
def stage() -> Paint:
    return loaded()


def painted(stage: Paint, rows: list[Row], *, batch: int = 4) -> list[Row]:
    copies = [dict(row) for row in rows]
    for start in range(0, len(copies), batch):
        in_batches(stage, copies[start : start + batch])
    return copies


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


# ------------------------------------------------------------------ polarity


def test_a_hole_of_no_pixels_returns_the_photograph():
    rows = [row(number, mask=NOTHING) for number in range(4)]
    made = painted(loaded(steps=15, guidance=1.0), rows)
    assert all((levels(each["image"]) == levels(each["photograph"])).all() for each in made)
    # The model's own output is the autoencoder's copy, but for what the network gets wrong.
    autoencoder = load_autoencoder(TINY, device=CPU)
    means = autoencoder.image_moments([each["photograph"] for each in rows])[:, 0]
    copies = autoencoder.decode(means).detach().permute(0, 2, 3, 1).numpy() * 255
    for number, copy in enumerate(copies):
        own, other = (np.abs(levels(made[n]["raw"]) - copy).mean() for n in (number, number - 1))
        assert own < 4 and other > 15
        assert own < np.abs(levels(rows[number]["photograph"]) - copy).mean()


def test_a_hole_of_all_pixels_ignores_the_photograph(stage):
    first, other = row(0, mask=ALL), row(1, mask=ALL)
    other |= {"prompt": first["prompt"], "id": "other"}
    made = painted(stage, [first, other])
    assert (levels(made[0]["raw"]) == levels(made[1]["raw"])).all()
    assert (levels(made[0]["image"]) == levels(made[0]["raw"])).all()
    assert np.abs(levels(made[0]["image"]) - levels(first["photograph"])).mean() > 10


def test_the_hole_is_repainted_and_what_is_around_it_stays(stage):
    """As released, the samplers of Follow-Your-Preference gave the mask the other way round."""
    for each in painted(stage, [row(number) for number in range(3)]):
        hole = np.asarray(each["mask"]) > 127
        gone = levels(each["photograph"]).copy()
        gone[hole] = 255 - gone[hole]
        [same] = painted(stage, [{**each, "photograph": Image.fromarray(gone.astype(np.uint8))}])
        assert (levels(same["raw"]) == levels(each["raw"])).all(), "what it covers is not seen"
        off = np.abs(levels(each["raw"]) - levels(each["photograph"])).mean(-1)
        assert off[hole].mean() > 2 * off[~hole].mean()
        rim = np.asarray(Image.fromarray(hole.astype(np.uint8) * 255)) > 127
        for axis in (0, 1):
            rim = rim | np.roll(rim, 1, axis) | np.roll(rim, -1, axis)
        assert (levels(each["image"])[~rim] == levels(each["photograph"])[~rim]).all()
        assert (levels(each["image"])[hole] == levels(each["raw"])[hole]).all()


def test_flux_fill_takes_the_mask_the_same_way():
    """Its random weights draw nothing, but tell what they are given."""
    base = BackboneConfig(family="flux_fill", model=str(small.path("flux-fill")))
    stage = Paint(base, CONFIG.model_copy(update={"steps": 2}), loras={})
    stage.setup()
    first, other = row(0, mask=ALL), row(1, mask=ALL)
    made = painted(stage, [first, other | {"prompt": first["prompt"]}])
    assert (levels(made[0]["raw"]) == levels(made[1]["raw"])).all(), "all is hole"
    given, hole = row(0), np.asarray(row(0)["mask"]) > 127
    photo = levels(given["photograph"])
    changed = [
        {
            **given,
            "photograph": Image.fromarray(
                np.where(where[..., None], 255 - photo, photo).astype(np.uint8)
            ),
        }
        for where in (hole, ~hole)
    ]
    plain, within, around = (levels(each["raw"]) for each in painted(stage, [given, *changed]))
    assert (plain == within).all() and (plain != around).any()
    [kept] = painted(stage, [row(0, mask=NOTHING)])
    assert (levels(kept["image"]) == photo).all()


# ------------------------------------------------------------------ putting back


def plain_blend(output: np.ndarray, photo: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """OpenCV's GaussianBlur(mask, (21, 21), 0) and the released mix, written out."""
    sigma = 0.3 * ((21 - 1) * 0.5 - 1) + 0.8
    weights = np.exp(-(np.arange(-10, 11) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    blurred = np.pad(mask.astype(float), 10, mode="reflect")
    for axis in (0, 1):
        blurred = np.apply_along_axis(np.convolve, axis, blurred, weights, mode="valid")
    m = (1 - (1 - mask) * (1 - blurred))[..., None]
    return photo * (1 - m) + output * m


def test_a_soft_rim_is_that_of_the_release():
    rng = np.random.default_rng(0)
    output, photo = rng.integers(0, 256, (2, 512, 512, 3), np.uint8)
    mask = np.zeros((512, 512), np.uint8)
    mask[100:300, 200:] = 255  # also at the picture's edge
    mask[400, 40] = 255
    images = [Image.fromarray(each) for each in (output, photo, mask)]
    blended = levels(paint.blended(*images))
    expected = plain_blend(output, photo, (mask > 127).astype(float))
    assert np.abs(blended - expected).max() <= 0.5 + 1e-6
    assert (blended[mask > 127] == output[mask > 127]).all()
    assert (blended[320:380] == photo[320:380]).all(), "more than 10 pixels away"
    assert (blended[305, 250:] != photo[305, 250:]).any()
    pasted = levels(paint.paste(*images))
    assert (pasted == np.where((mask > 127)[..., None], output, photo)).all()


def test_the_models_own_output_can_be_judged(stage):
    own = loaded(blend=False)
    assert own.writes.names == ["image"] and stage.writes.names == ["image", "raw"]
    [raw], [blended] = painted(own, [row(0)]), painted(stage, [row(0)])
    assert (levels(raw["image"]) == levels(blended["raw"])).all() and "raw" not in raw
    assert (levels(raw["image"]) != levels(blended["image"])).any()


# ------------------------------------------------------------------ one row, whatever is beside it


def test_a_painting_does_not_depend_on_its_batch(stage):
    rows = [row(number, noise=noise) for number in range(3) for noise in (42, 7)]
    together = {each["id"]: levels(each["raw"]) for each in painted(stage, rows, batch=8)}
    for others in (painted(stage, rows[::-1], batch=4), painted(stage, rows[1::2], batch=1)):
        assert all((levels(each["raw"]) == together[each["id"]]).all() for each in others)
    wide = loaded(resources=Resources(batch=3))
    for each in painted(wide, rows, batch=3):
        assert np.abs(levels(each["raw"]) - together[each["id"]]).max() <= 1, "only rounding"
    first = list(together.values())
    assert all(np.abs(first[0] - each).mean() > 1 for each in first[1:])


# ------------------------------------------------------------------ LoRAs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a LoRA as trainings write it."""
    folder, config = tmp_path_factory.mktemp("lora"), LoraConfig(rank=2, alpha=8)
    denoiser = load_denoiser(TINY, device=CPU)
    adapters.attach(denoiser.module, config, names=("learner",), seed=3)
    learner: Tensor = adapters.vector(denoiser.module, "learner").detach()
    noise = torch.randn(learner.shape, generator=torch.Generator().manual_seed(3))
    # So strong that images differ, and no stronger: rounding would be blown up over the steps.
    adapters.fill(denoiser.module, "learner", learner + 0.03 * noise)
    values = adapters.state(denoiser.module, "learner")
    lora.save(values, config, folder=str(folder), component=denoiser.component)
    return str(folder)


def test_a_plain_pipeline_paints_our_images_with_our_lora(trained, tmp_path):
    """Of someone without this project, who puts the hole back as they like."""
    rows = [row(number, model=model) for model in (BASE, "ours") for number in range(2)]
    alone = Resources(batch=1)  # as the pipeline is called: another batch rounds another way
    made = painted(loaded({"ours": trained}, resources=alone), rows, batch=1)
    plain = StableDiffusionInpaintPipeline.from_pretrained(
        TINY.folder(), dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    plain.set_progress_bar_config(disable=True)
    images: dict[str, np.ndarray] = {}
    for model in (BASE, "ours"):
        if model == "ours":
            plain.load_lora_weights(str(Path(trained)))
        for each in (each for each in rows if each["model"] == model):
            [image] = plain(
                each["prompt"],
                image=each["photograph"],
                mask_image=each["mask"],
                height=64,
                width=64,
                num_inference_steps=CONFIG.steps,
                guidance_scale=CONFIG.guidance,
                generator=torch.Generator().manual_seed(42),
            ).images
            images[each["id"]] = levels(image)
    assert all((levels(each["raw"]) == images[each["id"]]).all() for each in made), "to the bit"
    for number in range(2):
        ours, base = images[f"ours/{number}/42"], images[f"{BASE}/{number}/42"]
        assert np.abs(ours - base).mean() > 1


def test_merged_weights_paint_as_the_lora_does(trained):
    rows = [row(0, model=model) for model in ("ours", BASE)]
    kept, merged = (loaded({"ours": trained}, fuse=fuse) for fuse in (False, True))
    for ours, fused in zip(painted(kept, rows), painted(merged, rows), strict=True):
        assert np.abs(levels(ours["raw"]) - levels(fused["raw"])).max() <= 1
