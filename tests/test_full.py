"""Folders of full size for benchmarks: exact parameter counts, and small ones that load and run."""

from __future__ import annotations

from pathlib import Path

import full
import numpy as np
import pytest
import torch
from PIL import Image

from raypref.core.config import Resources
from raypref.core.rows import Row
from raypref.curate.perturb import Inpaint, PerturbConfig
from raypref.curate.saliency import Saliency, SaliencyConfig
from raypref.models.backbone import BackboneConfig, load_denoiser
from raypref.models.families.sd3 import SD3Conditioning
from raypref.models.families.sd15 import SD15Conditioning
from raypref.rewards.pickscore import PickScoreConfig

CPU = torch.device("cpu")

# Of the published weights: the numbers of elements in their safetensors files (SD-3.5-M's without
# its table of positions, 384 x 384 x 1,536); u2net.pth's stands in raypref/models/u2net.py.
PUBLISHED = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd15-inpaint": {"unet": 859_535_364, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd35m": {"transformer": 2_243_171_520},
    "pickscore": {"": 986_109_441},
    "u2net": {"": 44_009_869},
}


@pytest.fixture(scope="module")
def under(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def written(name: str, under: Path) -> str:
    return full.model(name, "small", under=under, device=CPU)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_full_size_has_the_published_number_of_parameters(name: str) -> None:
    assert full.parameters(name, "full") == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_small_size_has_the_same_networks(name: str) -> None:
    assert full.parameters(name, "small").keys() == PUBLISHED[name].keys()
    assert sum(full.parameters(name, "small").values()) < 1_000_000


def test_the_sd15_folder_is_a_base_model(under: Path) -> None:
    denoiser = load_denoiser(BackboneConfig(model=written("sd15", under)), device=CPU)
    predicted = denoiser.predict(
        torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), SD15Conditioning(torch.randn(2, 77, 32))
    )
    assert predicted.shape == (2, 4, 8, 8) and predicted.isfinite().all()
    assert predicted.std() > 0.01, "activations vanish on the way"


def test_the_sd35m_folder_is_one_without_encoders(under: Path) -> None:
    config = BackboneConfig(family="sd35m", model=written("sd35m", under))
    denoiser = load_denoiser(config, device=CPU)
    prompts = SD3Conditioning(torch.randn(2, 333, 32), torch.randn(2, 64))
    x = torch.randn(2, 16, 8, 8)
    predicted = denoiser.predict(x, torch.tensor([10.0, 900.0]), prompts)
    assert predicted.shape == x.shape and predicted.isfinite().all()


def test_the_folders_of_curation_make_and_score_a_twin(under: Path) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    row: Row = {"key": "k", "caption": "a red ball", "chosen": photo}
    saliency = Saliency(SaliencyConfig(weights=written("u2net", under), side=32))
    perturb = PerturbConfig(model=written("sd15-inpaint", under), steps=2)
    perturb.check(64)
    for transform in (saliency, Inpaint(perturb, seed=0)):
        transform.setup()
        transform.finish([row], transform.compute(transform.prepare([row])))
    assert row["saliency"].size == row["rejected"].size == (64, 64)
    folder = written("pickscore", under)
    config = PickScoreConfig(model=folder, processor=folder, resources=Resources(batch=1))
    scores = config.load().score([photo, row["rejected"]], ["a red ball"] * 2)
    assert np.isfinite(scores).all() and scores[0] != scores[1]


def test_a_folder_is_written_once_and_whole(under: Path) -> None:
    folder = Path(written("sd15", under))
    before = (folder / "model_index.json").stat().st_mtime_ns
    written("sd15", under)
    assert (folder / "model_index.json").stat().st_mtime_ns == before
    assert not list(under.rglob("partial-*"))
