"""The tiny world: its photographs, its captions, and the cache it is kept in."""

import csv
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raypref.core.config import InputError
from raypref.demo import cache as tiny_cache
from raypref.demo import photograph, world
from raypref.demo.scene import COLOURS, GROUNDS, SHAPES, Scene, Thing

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


# ------------------------------------------------------------------ cache


def test_two_processes_may_build_at_once(tmp_path):
    code = "from raypref.demo import world; print(world.photos_folder(12, seed=1))"
    env = {**os.environ, "RAYPREF_CACHE": str(tmp_path)}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=120)[0].strip() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert outputs[0] == outputs[1]
    assert [p.name for p in Path(outputs[0]).parent.iterdir()] == ["photos-12-1"]


def test_the_loser_of_a_race_takes_the_winners_entry(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYPREF_CACHE", str(tmp_path))

    def build_late(folder: Path) -> None:
        winner = folder.parent.parent / folder.name
        winner.mkdir()
        (winner / "whose").write_text("winner")
        folder.mkdir()
        (folder / "whose").write_text("loser")

    entry = tiny_cache.cached("thing", build_late)
    assert (entry / "whose").read_text() == "winner"
    assert [p.name for p in entry.parent.iterdir()] == ["thing"]


def test_a_failed_build_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYPREF_CACHE", str(tmp_path))

    def fail(folder: Path) -> None:
        folder.mkdir()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        tiny_cache.cached("thing", fail)
    assert list((tmp_path / f"tiny-{tiny_cache.VERSION}").iterdir()) == []


def test_an_unwritable_cache_is_the_users_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RAYPREF_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="RAYPREF_CACHE"):
        world.photos_folder(2, seed=0)


# ------------------------------------------------------------------ world


def all_shapes_and_grounds() -> list[Scene]:
    grounds, colours = GROUNDS, list(COLOURS)
    return [
        Scene((Thing(shape, colours[i % len(colours)]),), grounds[(i + j) % len(grounds)])
        for i, shape in enumerate(SHAPES)
        for j in range(2)
    ]


def test_a_photograph_follows_from_scene_and_seed():
    photo = photograph.render_scene(RED_BALL, seed=3)
    assert photo.shape == (64, 64, 3)
    assert photo.dtype == np.uint8
    np.testing.assert_array_equal(photo, photograph.render_scene(RED_BALL, seed=3))
    assert (photo != photograph.render_scene(RED_BALL, seed=4)).mean() > 0.5
    assert world.sample_scenes(5, seed=1) == world.sample_scenes(9, seed=1)[:5]
    assert world.held_out_prompts(5) == world.held_out_prompts(9)[:5]


def test_the_mask_is_where_the_thing_is():
    mask = photograph.object_mask(RED_BALL, seed=3)
    assert (mask.shape, mask.dtype) == ((64, 64), bool)
    red, green, blue = np.moveaxis(photograph.render_scene(RED_BALL, seed=3).astype(int), 2, 0)
    reddish = red > np.maximum(green, blue) + 40
    both, either = (mask & reddish).sum(), (mask | reddish).sum()
    assert both / either > 0.85


@pytest.mark.parametrize("scene", all_shapes_and_grounds(), ids=world.caption)
def test_every_shape_is_seen_on_every_ground(scene):
    mask = photograph.object_mask(scene, seed=8)
    assert 0.05 < mask.mean() < 0.5
    photo = photograph.render_scene(scene, seed=8).astype(float)
    assert np.linalg.norm(photo[mask].mean(0) - photo[~mask].mean(0)) > 25
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    assert border.mean() < 0.15


def test_a_degraded_photograph_is_softer_and_duller_the_more_the_worse():
    photo = photograph.render_scene(RED_BALL, seed=3)
    np.testing.assert_array_equal(photograph.degrade(photo, 0), photo)

    def colour(image):
        return np.ptp(image.astype(int), axis=2).mean()

    def detail(image):
        return np.abs(np.diff(image.astype(int).mean(2), axis=1)).mean()

    for measure in (colour, detail):
        values = [measure(photograph.degrade(photo, amount)) for amount in (0, 0.3, 0.6, 1)]
        assert values == sorted(values, reverse=True)
        assert values[-1] < 0.7 * values[0]


def test_the_things_of_a_caption_are_read_back():
    for scene in world.sample_scenes(200, seed=3):
        named = [(thing.shape, thing.colour) for thing in world.things(world.caption(scene))]
        assert named == [(thing.shape, thing.colour) for thing in scene.things]
    assert world.things("a photo of my red car") == []


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


def test_prompts_are_distinct_and_bounded():
    prompts = world.held_out_prompts(60)
    assert len(set(prompts)) == 60
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
