"""Another network in a pipeline's place for it, and bases that are not whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import small
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from raypref.core.config import InputError
from raypref.models import checks
from raypref.models.backbone import BackboneConfig, load_denoiser, load_pipeline
from raypref.models.lora_config import LoraConfig

CPU = torch.device("cpu")
BASE = BackboneConfig(model=str(small.path("sd15")))


@pytest.fixture(scope="module")
def diffusion_dpo(tmp_path_factory) -> Path:
    """As `mhdang/dpo-sd1.5-text2image-v1`: a repository that holds a UNet and no more."""
    folder = tmp_path_factory.mktemp("dpo")
    unet = UNet2DConditionModel.from_pretrained(small.path("sd15"), subfolder="unet")
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    unet.save_pretrained(folder / "unet")
    return folder


def predicted(unet: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 77, 32, generator=generator)
    with torch.no_grad():
        return unet(x, torch.tensor([700, 30]), text).sample


@pytest.mark.parametrize("inside", ["", "unet"])
def test_it_replaces_the_unet_in_training_and_in_the_pipeline(diffusion_dpo, inside):
    base = BASE.model_copy(update={"network": str(diffusion_dpo / inside)})
    checks.check_base(base)
    theirs = UNet2DConditionModel.from_pretrained(diffusion_dpo, subfolder="unet")
    expected = predicted(theirs)
    trained = predicted(load_denoiser(base, device=CPU).module)
    torch.testing.assert_close(trained, expected, atol=1e-5, rtol=0)  # channels last
    pipeline = load_pipeline(base, device=CPU)
    assert torch.equal(predicted(pipeline.unet), expected)
    assert not torch.equal(predicted(load_pipeline(BASE, device=CPU).unet), expected)
    # All else is the base's, as in a plain pipeline that was given this UNet.
    plain = StableDiffusionPipeline.from_pretrained(small.path("sd15"), unet=theirs)
    settings = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np"}
    images = [
        p("a red ball", generator=torch.Generator().manual_seed(1), **settings).images
        for p in (pipeline, plain)
    ]
    assert (images[0] == images[1]).all()


def without(tmp_path: Path, *names: str) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(small.path("sd15"), folder)
    for name in names:
        shutil.rmtree(folder / name)
    return folder


def test_a_base_without_a_text_encoder_is_refused(tmp_path):
    folder = without(tmp_path, "text_encoder")
    with pytest.raises(InputError, match="has no text_encoder; sd15 needs a folder with vae"):
        checks.check_base(BackboneConfig(model=str(folder)))
    # Saved without one, the index says so.
    folder = without(tmp_path / "second")
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="has no text_encoder"):
        checks.check_base(BackboneConfig(model=str(folder)))


def test_a_network_is_no_base_and_says_where_it_belongs(diffusion_dpo):
    with pytest.raises(InputError, match=r"has no model_index\.json"):
        checks.check_base(BackboneConfig(model=str(diffusion_dpo)))


@pytest.mark.parametrize(
    "network, message",
    [
        ("/nowhere", "base.network: no model folder '/nowhere'"),
        ("some/network", "base.network: unet/config.json of 'some/network' is missing"),
        (
            str(small.path("sd15-inpaint")),
            "conv_in.weight is (16, 9, 3, 3) there and (16, 4, 3, 3)",
        ),
        (str(small.path("sd3")), "has no unet/config.json"),
    ],
)
def test_a_network_that_cannot_stand_there_is_refused_before_it_is_loaded(network, message):
    with pytest.raises(InputError) as caught:
        checks.check_base(BASE.model_copy(update={"network": network}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_of_a_side_that_the_autoencoder_does_not_take_are_refused():
    checks.check_side(BASE, 64, key="images.size")
    with pytest.raises(InputError, match=r"images\.size=60: .* multiples of 8"):
        checks.check_side(BASE, 60, key="images.size")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("to_q", "to_typo")}, "lora.targets: 'to_typo' names no linear layer"),
        ({"targets": ("conv_in",)}, "lora.targets: 'conv_in' names no linear layer of the unet"),
    ],
)
def test_an_adapter_without_layers_is_refused_before_any_work(changes, message):
    checks.check_adapter(BASE, LoraConfig())
    with pytest.raises(InputError, match=message):
        checks.check_adapter(BASE, LoraConfig(**changes))


def test_a_precision_in_which_gradients_vanish_is_refused():
    with pytest.raises(InputError, match=r"base.dtype=float16: .* bfloat16 or float32"):
        checks.check_adapter(BASE.model_copy(update={"dtype": "float16"}), LoraConfig())
