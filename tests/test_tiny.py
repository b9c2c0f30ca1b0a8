"""The embedded default: checkpoints in hub layout and the world they are shown."""

import csv
import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raypref.config import InputError
from raypref.tiny import checkpoints, photograph, world
from raypref.tiny.scene import COLOURS, GROUNDS, SHAPES, Scene, Thing

NAMES = ("sd15", "sd15-inpaint", "pickscore", "u2netp.pth")
RED_BALL = Scene((Thing("ball", "red", "shiny"),), "grass")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):
    """A cache of this module's own, so that no test meets what an older version built."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYPREF_CACHE", str(folder))
        yield folder


def digests(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {p.relative_to(path.parent).as_posix(): sha256(p) for p in files}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("name", NAMES)
def test_a_second_build_has_the_same_bytes(cache, tmp_path, monkeypatch, name):
    first = digests(checkpoints.path(name))
    monkeypatch.setenv("RAYPREF_CACHE", str(tmp_path))
    torch.manual_seed(1234)
    torch.rand(7)
    again = checkpoints.path(name)
    assert again.is_relative_to(tmp_path)
    assert digests(again) == first
    assert first


def test_building_leaves_global_state_alone(tmp_path, monkeypatch):
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    def state():
        logs = (diffusers_logging, transformers_logging)
        levels = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
        return torch.get_rng_state().tolist(), torch.get_default_dtype(), levels

    monkeypatch.setenv("RAYPREF_CACHE", str(tmp_path))
    before = state()
    checkpoints.path("sd15")
    assert state() == before


def test_weights_do_not_depend_on_the_default_dtype(cache, tmp_path, monkeypatch):
    first = digests(checkpoints.path("pickscore"))
    monkeypatch.setenv("RAYPREF_CACHE", str(tmp_path))
    torch.set_default_dtype(torch.float64)
    try:
        assert digests(checkpoints.path("pickscore")) == first
    finally:
        torch.set_default_dtype(torch.float32)


def test_two_processes_may_build_at_once(tmp_path):
    code = "from raypref.tiny import checkpoints as c; print(c.path('pickscore'))"
    env = {**os.environ, "RAYPREF_CACHE": str(tmp_path)}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=120)[0].strip() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert outputs[0] == outputs[1]
    assert [p.name for p in Path(outputs[0]).parent.iterdir()] == ["pickscore"]


def test_the_loser_of_a_race_takes_the_winners_entry(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYPREF_CACHE", str(tmp_path))

    def build_late(folder: Path) -> None:
        winner = folder.parent.parent / folder.name
        winner.mkdir()
        (winner / "whose").write_text("winner")
        folder.mkdir()
        (folder / "whose").write_text("loser")

    entry = checkpoints.cached("thing", build_late)
    assert (entry / "whose").read_text() == "winner"
    assert [p.name for p in entry.parent.iterdir()] == ["thing"]


def test_a_failed_build_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYPREF_CACHE", str(tmp_path))

    def fail(folder: Path) -> None:
        folder.mkdir()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoints.cached("thing", fail)
    assert list((tmp_path / f"tiny-{checkpoints.VERSION}").iterdir()) == []


def test_an_unwritable_cache_is_the_users_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RAYPREF_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="RAYPREF_CACHE"):
        checkpoints.path("pickscore")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r"tiny:sd16.*tiny:sd15, .*tiny:u2netp\.pth"):
        checkpoints.path("sd16")


def test_sd15_loads_and_draws(cache):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(checkpoints.path("sd15"), safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    schedule = pipe.scheduler.config
    assert (schedule.steps_offset, schedule.set_alpha_to_one, schedule.skip_prk_steps) == (
        1,
        False,
        True,
    )
    assert (schedule.beta_start, schedule.beta_end) == (0.00085, 0.012)
    assert pipe.vae.config.scaling_factor == 0.18215
    image = pipe(
        world.caption(RED_BALL),
        num_inference_steps=2,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert image.size == (64, 64)
    assert np.asarray(image).std() > 1


def test_the_inpainting_pipeline_runs(cache):
    from diffusers import StableDiffusionInpaintPipeline

    folder = checkpoints.path("sd15-inpaint")
    pipe = StableDiffusionInpaintPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.config.in_channels == 9
    image = pipe(
        world.caption(RED_BALL),
        image=Image.fromarray(photograph.render(RED_BALL, seed=0)),
        mask_image=Image.fromarray(photograph.object_mask(RED_BALL, seed=0)),
        num_inference_steps=2,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert image.size == (64, 64)


def test_every_word_is_one_token_and_the_specials_come_last(cache):
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(checkpoints.path("sd15") / "tokenizer")
    for prompt in world.held_out_prompts(50):
        ids = tokenizer(prompt).input_ids
        assert len(ids) == len(prompt.split()) + 2
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == prompt
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (
        len(tokenizer) - 2,
        len(tokenizer) - 1,
    )
    odd = "Zürich, 日本 & 3 ¾-inch nails"
    assert tokenizer.decode(tokenizer(odd).input_ids, skip_special_tokens=True).startswith("z")


def test_pickscore_reloads_and_spreads(cache):
    from transformers import CLIPModel, CLIPProcessor

    folder = checkpoints.path("pickscore")
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    scenes = world.sample_scenes(12, seed=5)
    inputs = processor(
        text=[world.caption(scene) for scene in scenes],
        images=[
            Image.fromarray(photograph.render(scene, seed=i)) for i, scene in enumerate(scenes)
        ],
        return_tensors="pt",
        padding=True,
    )
    assert inputs.pixel_values.shape == (12, 3, 64, 64)
    with torch.no_grad():
        outputs = model(**inputs)
    assert model.logit_scale.item() == pytest.approx(math.log(100))
    image = torch.nn.functional.normalize(outputs.image_embeds, dim=-1)
    text = torch.nn.functional.normalize(outputs.text_embeds, dim=-1)
    formula = model.logit_scale.exp() * image @ text.T
    torch.testing.assert_close(formula.detach(), outputs.logits_per_image, atol=1e-4, rtol=0)
    assert formula.diag().std() > 1
    assert formula.std(dim=0).min() > 0.5  # one caption, many photographs


def test_photographs_reach_pickscore_unresized(cache):
    from transformers import CLIPProcessor

    processor = CLIPProcessor.from_pretrained(checkpoints.path("pickscore")).image_processor
    photo = photograph.render(RED_BALL, seed=1)
    pixels = processor(images=Image.fromarray(photo), return_tensors="np")["pixel_values"][0]
    mean, std = np.array(processor.image_mean), np.array(processor.image_std)
    restored = (pixels.transpose(1, 2, 0) * std + mean) * 255
    np.testing.assert_allclose(restored, photo, atol=1e-3)


def test_u2netp_has_the_published_size(cache):
    state = torch.load(checkpoints.path("u2netp.pth"), weights_only=True)
    learned = (t for key, t in state.items() if "running_" not in key and "num_batches" not in key)
    assert sum(t.numel() for t in learned) == 1_131_181


# ------------------------------------------------------------------ world


def all_shapes_and_grounds() -> list[Scene]:
    grounds, colours = GROUNDS, list(COLOURS)
    return [
        Scene((Thing(shape, colours[i % len(colours)]),), grounds[(i + j) % len(grounds)])
        for i, shape in enumerate(SHAPES)
        for j in range(2)
    ]


def test_a_photograph_follows_from_scene_and_seed():
    photo = photograph.render(RED_BALL, seed=3)
    assert photo.shape == (64, 64, 3)
    assert photo.dtype == np.uint8
    np.testing.assert_array_equal(photo, photograph.render(RED_BALL, seed=3))
    assert (photo != photograph.render(RED_BALL, seed=4)).mean() > 0.5
    assert world.sample_scenes(5, seed=1) == world.sample_scenes(9, seed=1)[:5]
    assert world.held_out_prompts(5) == world.held_out_prompts(9)[:5]


def test_the_mask_is_where_the_thing_is():
    mask = photograph.object_mask(RED_BALL, seed=3)
    assert (mask.shape, mask.dtype) == ((64, 64), bool)
    red, green, blue = np.moveaxis(photograph.render(RED_BALL, seed=3).astype(int), 2, 0)
    reddish = red > np.maximum(green, blue) + 40
    both, either = (mask & reddish).sum(), (mask | reddish).sum()
    assert both / either > 0.85


@pytest.mark.parametrize("scene", all_shapes_and_grounds(), ids=world.caption)
def test_every_shape_is_seen_on_every_ground(scene):
    mask = photograph.object_mask(scene, seed=8)
    assert 0.05 < mask.mean() < 0.5
    photo = photograph.render(scene, seed=8).astype(float)
    assert np.linalg.norm(photo[mask].mean(0) - photo[~mask].mean(0)) > 25
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    assert border.mean() < 0.15


def test_training_and_held_out_combinations_are_disjoint():
    def combinations(scenes):
        return {(t.shape, t.colour, scene.ground) for scene in scenes for t in scene.things}

    train = combinations(world.sample_scenes(800, seed=0))
    held_out = combinations(world.sample_scenes(200, seed=0, held_out=True))
    assert train
    assert held_out
    assert not train & held_out


def test_captions_name_what_is_drawn():
    assert world.caption(RED_BALL) == "a photo of a shiny red ball on grass"
    cone, cube = Thing("cone", "orange"), Thing("cube", "blue", "striped")
    assert world.caption(Scene((cone, cube), "sand", "dusk")) == (
        "a photo of an orange cone next to a striped blue cube on sand at dusk"
    )
    known = set(world.words())
    for scene in world.sample_scenes(100, seed=2):
        text = world.caption(scene).split()
        assert set(text) <= known
        named = [name for t in scene.things for name in (t.shape, t.colour)]
        assert {*named, scene.ground} <= set(text)


def test_prompts_are_distinct_and_bounded(cache):
    prompts = world.held_out_prompts(60)
    assert len(set(prompts)) == 60
    assert world.prompts_file(60).read_text(encoding="utf-8").splitlines() == prompts
    assert len(set(world.held_out_prompts(world.MOST_PROMPTS))) == world.MOST_PROMPTS
    with pytest.raises(InputError, match="1000"):
        world.held_out_prompts(1001)


def test_photos_and_captions_match(cache, tmp_path, monkeypatch):
    folder = world.photos_folder(20, seed=7)
    with (folder / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [p.name for p in sorted(folder.glob("*.png"))]
    assert [row["caption"] for row in rows] == [
        world.caption(scene) for scene in world.sample_scenes(20, seed=7)
    ]
    spread = [
        np.ptp(np.asarray(Image.open(p)).astype(int), axis=2).mean() for p in folder.glob("*.png")
    ]
    assert min(spread) < 15 < 40 < max(spread)  # faded ones and colourful ones
    monkeypatch.setenv("RAYPREF_CACHE", str(tmp_path))
    assert digests(world.photos_folder(20, seed=7)) == digests(folder)
