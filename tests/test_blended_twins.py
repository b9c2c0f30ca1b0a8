"""Twins by text-to-image models whose pipelines blend the latents around the hole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from painters import BLENDED, CONFIG, difference, folder_of, make_rows, of_kind, pixels, png, twins
from torch import nn

from raypref.core.config import InputError, Resources
from raypref.models.families.registry import ONE_BY_ONE

each = pytest.mark.parametrize("kind", BLENDED)


@pytest.mark.parametrize("kind", ["pixart", *BLENDED])
def test_blended_latents_keep_what_is_around_the_mask(kind, monkeypatch):
    """With nothing to repaint: the photograph through the autoencoder, in whatever many steps."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda own, generator: own.mode())
    stage = of_kind(kind)
    [row] = make_rows(1)
    [twin] = twins(
        stage, [{**row, "saliency": png(np.zeros((64, 64), np.uint8))}], batch=1
    ).values()
    x_BCHW = torch.from_numpy(pixels(row["chosen"])).permute(2, 0, 1)[None] / 127.5 - 1
    frame = x_BCHW[:, :, None] if kind == "qwen_image" else x_BCHW  # its autoencoder is of video
    with torch.no_grad():
        y_BCHW = stage.pipeline.vae(frame).sample.view_as(x_BCHW)
    back = ((y_BCHW[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1) * 255).round().numpy()
    assert difference(twin, back) <= 1


@each
def test_of_a_photograph_that_is_all_hole_only_klein_sees_anything(kind):
    """Its pipeline hands the whole photograph to the network; the others start from noise."""
    rows = [{**row, "saliency": png(np.full((64, 64), 255, np.uint8))} for row in make_rows(2)]
    other = {**rows[0], "chosen": rows[1]["chosen"]}
    stage = of_kind(kind)
    twin, same = (twins(stage, [row], batch=1)[rows[0]["key"]] for row in (rows[0], other))
    assert (twin != same).any() == (kind == "flux2_klein")


@pytest.mark.parametrize("kind", sorted(ONE_BY_ONE))
def test_in_half_precision_captions_beside_it_move_no_twin(kind):
    """In a batch of 4 they moved Qwen-Image's by up to 6 of 255 levels."""
    stage = of_kind(kind, dtype="bfloat16")
    *rows, other = make_rows(4)
    longer = {**other, "caption": other["caption"] * 6}
    made, beside = (twins(stage, [*rows, last], batch=4) for last in (other, longer))
    assert all((made[row["key"]] == beside[row["key"]]).all() for row in rows)


@each
def test_every_layer_that_can_be_is_channels_last(kind):
    rows, settings = make_rows(1), {"steps": 2, "resources": Resources(batch=1)}
    plain, quick = (of_kind(kind, channels_last=last, **settings) for last in (False, True))
    [before], [made] = (twins(stage, rows, batch=1).values() for stage in (plain, quick))
    assert difference(before, made) <= 1
    layer = next(part for part in quick.pipeline.vae.modules() if isinstance(part, nn.Conv2d))
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("changes", "side", "message"),
    [
        ({"kind": "flux_fill", "model": folder_of("flux")}, 64, r"Transformer2DModel of 384 input"),
        ({"kind": "flux", "model": folder_of("flux_fill")}, 64, r"FluxTransformer2DModel of 64"),
        ({"kind": "z_image", "model": folder_of("sd35m")}, 64, r"a ZImageTransformer2DModel of 16"),
        ({"kind": "qwen_image", "model": folder_of("z_image")}, 64, r"a QwenImageTransformer2DMod"),
        (
            {"kind": "flux2_klein", "model": folder_of("flux")},
            64,
            r"Flux2Transformer2DModel of 128 input channels and guidance_embeds=False as its",
        ),
        *(
            ({"kind": kind, "model": folder_of(kind)}, 72, r"images\.size=72: .* multiples of 16")
            for kind in BLENDED
        ),
        (
            {"kind": "flux2_klein", "model": folder_of("flux2_klein"), "size": 1040},
            64,
            r"perturb\.size=1040: .* paints at most 1024 pixels a side; set perturb\.size=1024",
        ),
        (
            {"kind": "qwen_image", "model": folder_of("qwen_image"), "steps": 1},
            64,
            r"at least 2 steps",
        ),
    ],
)
def test_what_a_worker_could_not_do_is_refused_before_any_work(changes, side, message):
    with pytest.raises(InputError, match=message) as caught:
        CONFIG.model_copy(update=changes).check(side)
    assert "\n" not in str(caught.value)
