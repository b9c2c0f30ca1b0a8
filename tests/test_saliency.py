"""U2-Net under its published names, and the saliency stage around it."""

from __future__ import annotations

import csv
import os
import pickle
import warnings
from pathlib import Path

import corpus
import numpy as np
import pytest
import torch
from PIL import Image
from u2net_states import narrow

from raypref.core.config import InputError
from raypref.core.rows import is_rejected
from raypref.curate.saliency import Saliency, SaliencyConfig, saliency_map
from raypref.engine.batches import in_batches
from raypref.images.decode import ImageConfig, as_png, center_square, decode, encode_png
from raypref.models.u2net import load_u2net


def test_a_map_has_the_size_of_its_image_and_the_full_range():
    sizes = [(320, 320), (512, 512), (200, 120)]
    maps = saliency_map(narrow(), [corpus.scene(i, size=size) for i, size in enumerate(sizes)])
    assert [m.shape for m in maps] == [(height, width) for width, height in sizes]
    assert all(m.dtype == np.uint8 for m in maps)
    assert (maps[0].min(), maps[0].max()) == (0, 255)  # 320x320 is not resized back


def test_a_map_does_not_depend_on_its_neighbours():
    model = narrow()
    images = [corpus.scene(i, size=(128, 128)) for i in range(5)]
    alone = [saliency_map(model, [image])[0] for image in images]
    together = saliency_map(model, images)
    backwards = saliency_map(model, images[::-1])[::-1]
    for one, two, three in zip(alone, together, backwards, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


class FirstOf(torch.nn.Module):
    """Stands for the network: records its input, returns a given map first and another second."""

    def __init__(self, fused: torch.Tensor) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.fused = fused
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.seen.append(x)
        return self.fused, 1 - self.fused


def test_normalisation_by_hand():
    fused = torch.full((1, 1, 320, 320), 0.3)
    fused[..., :160] = 0.4
    fused[..., :80] = 0.36
    model = FirstOf(fused)
    image = Image.new("RGB", (320, 320), (255, 0, 51))
    (soft,) = saliency_map(model, [image])
    assert (soft[:, :80] == 153).all()
    assert (soft[:, 80:160] == 255).all()
    assert (soft[:, 160:] == 0).all()
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    assert model.seen[0].shape == (1, 3, 320, 320)
    np.testing.assert_allclose(model.seen[0][0, :, 7, 9], expected, rtol=1e-5)


def test_a_constant_map_is_all_zero():
    model = FirstOf(torch.full((1, 1, 320, 320), 0.7))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy only warns of a division by zero
        (soft,) = saliency_map(model, [corpus.scene(size=(64, 64))])
    assert soft.shape == (64, 64)
    assert not soft.any()


def row(image: Image.Image, id_: str = "a") -> dict:
    return {"id": id_, "chosen": encode_png(center_square(image, 128)), "reject_reason": None}


@pytest.fixture
def stage(tmp_path) -> Saliency:
    path = tmp_path / "narrow.pth"
    torch.save(narrow().state_dict(), path)
    return Saliency(SaliencyConfig(weights=str(path)))


def test_the_stage_adds_soft_map_and_mask(stage):
    stage = pickle.loads(pickle.dumps(stage))
    stage.setup()
    rows = [row(corpus.scene(i), str(i)) for i in range(3)]
    in_batches(stage, rows)
    for i, done in enumerate(rows):
        assert not is_rejected(done)
        assert set(stage.writes.names) <= set(done)
        soft, mask = done["saliency"], done["mask"]
        assert (soft.mode, mask.mode, soft.size, mask.size) == ("L", "L", (128, 128), (128, 128))
        expected = np.where(np.asarray(soft) > 128, 255, 0)
        np.testing.assert_array_equal(np.asarray(mask), expected)
        assert set(np.unique(mask)) == {0, 255}
        again = [row(corpus.scene(i), str(i))]
        in_batches(stage, again)
        assert as_png(again[0]["saliency"]) == as_png(done["saliency"])


def test_a_photograph_without_salient_region_is_rejected(tmp_path):
    model = narrow()
    with torch.no_grad():  # a dead last layer: the same value everywhere
        model["outconv"].weight.zero_()
    path = tmp_path / "dead.pth"
    torch.save(model.state_dict(), path)
    stage = Saliency(SaliencyConfig(weights=str(path)))
    stage.setup()
    rows = [row(corpus.scene())]
    in_batches(stage, rows)
    assert rows[0]["reject_stage"] == "saliency"
    assert rows[0]["reject_reason"] == "no_salient_region"
    assert "128" in rows[0]["reject_message"]
    assert "mask" not in rows[0]


def test_a_missing_file_says_where_to_get_it(tmp_path):
    stage = Saliency(SaliencyConfig(weights=str(tmp_path / "u2net.pth")))
    with pytest.raises(InputError) as info:
        stage.setup()
    message = str(info.value)
    assert message.startswith("saliency.weights: ")
    assert "xuebinqin/U-2-Net" in message
    assert "\n" not in message


def test_published_maps(shared_data: Path):
    """With the official weights (not shipped) the published maps come out."""
    path = os.environ.get("RAYPREF_U2NET")
    if not path:
        pytest.skip("set RAYPREF_U2NET to u2net.pth or u2netp.pth to compare with published maps")
    model = load_u2net(Path(path))
    small = sum(p.numel() for p in model.parameters()) < 10_000_000
    column = "u2netp_map" if small else "u2net_map"
    folder = shared_data / "saliency"
    with (folder / "index.csv").open(encoding="utf-8", newline="") as file:
        published_maps = {line["image"]: line[column] for line in csv.DictReader(file)}
    errors = {}
    for name, map_name in published_maps.items():
        image = decode((folder / name).read_bytes(), ImageConfig())
        (soft,) = saliency_map(model, [image])
        expected = np.asarray(Image.open(folder / map_name).convert("L")).astype(float)
        errors[name] = float(np.abs(soft - expected).mean() / 255)
    assert np.mean(list(errors.values())) < 0.02, errors
