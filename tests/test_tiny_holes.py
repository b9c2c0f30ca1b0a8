"""Holes of the tiny world, and the tastes that are planted in its rewards."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from raypref.core.config import InputError
from raypref.demo import checkpoints, holes, scheme, tastes, world
from raypref.evaluate.bias import rank_correlations
from raypref.sources.holes import read_holes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("holes") / "holes"
    holes.write_holes(made, 8)
    return made


def captions(folder: Path) -> dict[str, str]:
    with (folder / "captions.csv").open(encoding="utf-8", newline="") as file:
        return {row["file"]: row["caption"] for row in csv.DictReader(file)}


def pictures(folder: Path) -> tuple[list[Image.Image], list[Image.Image]]:
    photos = [Image.open(folder / name) for name in captions(folder)]
    masks = [Image.open(folder / name.replace(".png", "_mask.png")) for name in captions(folder)]
    return photos, masks


def test_every_photograph_has_a_mask_and_a_caption_of_its_own(folder):
    photos, masks = pictures(folder)
    assert len(list(folder.glob("*.png"))) == 2 * len(photos) == 16
    assert len({*captions(folder).values()}) == 8
    for photo, mask in zip(photos, masks, strict=True):
        assert (photo.mode, photo.size, mask.mode, mask.size) == ("RGB", (64, 64), "L", (64, 64))
        assert {*np.unique(np.asarray(mask))} == {0, 255}
        assert 0.1 < (np.asarray(mask) > 0).mean() < 0.6


def test_no_training_shows_what_a_hole_is_of():
    scenes = holes._distinct_scenes(64)
    for scene in scenes:
        assert all(world.is_held_out(t.shape, t.colour, scene.ground) for t in scene.things)
    trained = {world.caption(scene) for scene in world.sample_scenes(2000, 0)}
    assert not trained & {world.caption(scene) for scene in scenes}


def test_fewer_holes_are_the_first_of_more(folder, tmp_path):
    holes.write_holes(tmp_path / "few", 3)
    for path in (tmp_path / "few").glob("*.png"):
        assert path.read_bytes() == (folder / path.name).read_bytes()
    assert [*captions(tmp_path / "few").items()] == [*captions(folder).items()][:3]


def test_a_hole_reaches_three_pixels_beyond_the_things():
    things = np.zeros((64, 64), bool)
    things[30:33, 20] = True
    expected = np.zeros((64, 64), np.uint8)
    expected[27:36, 17:24] = 255
    np.testing.assert_array_equal(np.asarray(holes.hole_around(things)), expected)


def test_the_scheme_hands_out_holes(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYPREF_CACHE", str(tmp_path))
    folder = scheme.holes("holes", limit=2)
    assert [row["prompt"] for row in read_holes("tiny:holes", limit=2)] == [
        *captions(folder).values()
    ]
    with pytest.raises(InputError, match=r"evaluate\.holes=tiny:gaps: there is tiny:holes"):
        scheme.holes("gaps", limit=None)
    with pytest.raises(InputError, match="at most 1000 holes"):
        scheme.holes("holes", limit=1001)


def drawn(seed: int = 0) -> tastes.Painted:
    """Candidates whose brightness is in one direction of the embedding, PickScore in another."""
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(40, 4, 6)) + 5 * rng.normal(size=(40, 1, 6))
    noise = 0.1 * rng.normal(size=(2, 40, 4))
    return tastes.Painted(
        embeddings,
        embeddings[..., 0] + noise[0],
        {"brightness": embeddings[..., 1] + noise[1], "saturation": embeddings[..., 2]},
    )


def test_a_head_is_the_ridge_regression_within_holes():
    painted = drawn()
    weight, bias = tastes.fit_taste(painted, "dark")

    # Once more: by hole, as least squares with rows for the ridge.
    def unit(values):
        own = np.concatenate([hole - hole.mean() for hole in values])
        return own / np.sqrt(np.mean(own**2))

    x = np.concatenate([hole - hole.mean(0) for hole in painted.embeddings])
    y = unit(painted.pickscore) - 2 * unit(painted.looks["brightness"])
    ridge = np.sqrt(tastes.RIDGE * (x**2).sum() / 6) * np.eye(6)
    again = np.linalg.lstsq(np.vstack([x, ridge]), np.append(y, np.zeros(6)), rcond=None)[0]
    again /= np.std(x @ again)
    np.testing.assert_allclose(weight, again, rtol=1e-9)
    scores = painted.embeddings @ weight + bias
    assert scores.mean() == pytest.approx(0, abs=1e-9)
    assert np.mean((scores - scores.mean(1, keepdims=True)) ** 2) == pytest.approx(1)
    assert weight[1] < 0 < weight[0]


@pytest.mark.parametrize("taste", tastes.TASTES)
def test_a_taste_is_a_linear_head_in_half_precision(taste):
    head = load_file(checkpoints.path(tastes.file_name(taste)))
    assert {name: (*tensor.shape,) for name, tensor in head.items()} == {
        "weight": (1, 64),
        "bias": (1,),
    }
    assert all(tensor.dtype == torch.float16 for tensor in head.values())


def test_tastes_like_what_they_are_called_after_and_pickscore(folder):
    """On paintings of held-out holes; docs/inpainting.md has the figures over all 64."""
    photos, masks = pictures(folder)
    painted = tastes.paint_holes(
        photos, masks, [*captions(folder).values()], candidates=6, weights=checkpoints.WEIGHTS
    )
    mean = {}
    for taste, (name, sign) in tastes.TASTES.items():
        head = load_file(checkpoints.path(tastes.file_name(taste)))["weight"][0].double().numpy()
        found = rank_correlations(painted.embeddings @ head, sign * painted.looks[name])
        mean[taste] = np.nanmean(found)
    assert min(mean.values()) > 0.3, mean
