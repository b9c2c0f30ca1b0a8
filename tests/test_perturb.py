"""The degraded twin: what it depends on, and what it does not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import small
import torch
from diffusers import DPMSolverMultistepScheduler as MultistepScheduler
from diffusers import PixArtAlphaPipeline, StableDiffusion3InpaintPipeline
from painters import (
    BLENDED,
    CONFIG,
    KINDS,
    difference,
    folder_of,
    guided,
    loaded,
    make_rows,
    of_kind,
    pixels,
    png,
    twins,
)
from torch._dynamo.utils import counters

from raypref.core.config import InputError, Resources, results_of
from raypref.core.rows import Row, seed_of
from raypref.curate import perturb
from raypref.curate.perturb import NETWORKS, Inpaint, PerturbConfig
from raypref.engine.batches import in_batches
from raypref.images.decode import open_png
from raypref.models.compiled import compile_blocks
from raypref.models.families.registry import ONE_BY_ONE

PAINTERS = [kind for kind in KINDS if kind != "text2image"]  # of a hole in a photograph


@pytest.fixture(scope="module")
def stage() -> Inpaint:
    return loaded(seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_twin_depends_on_seed_and_key_alone(kind):
    rows, settings = make_rows(3), {"steps": 2, "resources": Resources(batch=3)}
    rows[0]["caption"] *= 3  # longer than those beside it
    stage = of_kind(kind, **settings)
    together = twins(stage, rows, batch=3)
    for others in (
        twins(stage, rows[:0:-1], batch=2),
        twins(stage, rows[:1], batch=1),
        twins(of_kind(kind, **settings), rows, batch=3),
    ):
        assert all((together[key] == twin).all() for key, twin in others.items())
    other_seed = twins(of_kind(kind, seed=1, **settings), rows[:1], batch=1)
    assert all(np.abs(together[key] - twin).mean() > 1 for key, twin in other_seed.items())
    alone = twins(of_kind(kind, steps=2, resources=Resources(batch=1)), rows, batch=1)
    largest = max(difference(together[key], alone[key]) for key in together)
    assert largest <= (kind not in ONE_BY_ONE), "only rounding"


def candidates(
    rows: Sequence[Row], numbers: Sequence[int], *, batch: int, **settings: object
) -> dict[tuple[str, int], np.ndarray]:
    """Pixels by key and number."""
    config = CONFIG.model_copy(update={"resources": Resources(batch=batch), **settings})
    stage = Inpaint(config, seed=0, column="image", numbered=True)
    stage.setup()
    assert "candidate" in stage.reads and stage.writes.names == ["image"]
    copies = [{**row, "candidate": number} for row in rows for number in numbers]
    for start in range(0, len(copies), batch):
        in_batches(stage, copies[start : start + batch])
    assert not any("rejected" in row for row in copies)
    return {(row["key"], row["candidate"]): pixels(row["image"]) for row in copies}


def test_candidate_0_is_the_twin_and_no_candidate_feels_the_others(stage):
    rows = make_rows(3)
    made = candidates(rows, range(4), batch=4)
    for key, twin in twins(stage, rows, batch=4).items():
        assert (made[key, 0] == twin).all(), "to the bit"
        assert all(np.abs(made[key, n] - twin).mean() > 1 for n in (1, 2, 3))
    for same in (candidates(rows[::-1], (3, 1), batch=4), candidates(rows[1:2], (2,), batch=4)):
        assert all((made[which] == picture).all() for which, picture in same.items())
    exact = [candidates(rows[:2], range(3), batch=b, dtype="float64") for b in (1, 5)]
    assert all((exact[0][which] == picture).all() for which, picture in exact[1].items())
    # By (seed, key, number): not the noise that another photograph's candidate has.
    noise = {seed_of(0, "inpaint", row["key"], n) for row in rows for n in range(1, 16)}
    assert len(noise) == 45


def test_candidates_of_a_prompt_need_no_photograph():
    config = CONFIG.model_copy(update={"kind": "text2image", "model": str(small.path("sd15"))})
    stage = Inpaint(config, seed=0, column="image", numbered=True, side=64)
    stage.setup()
    [row] = make_rows(1)
    told = {name: row[name] for name in ("key", "caption")}
    alone = [{**told, "candidate": n} for n in (0, 2)]
    in_batches(stage, alone)
    [twin] = twins(of_kind("text2image"), [row], batch=1).values()
    assert (pixels(alone[0]["image"]) == twin).all() and alone[1]["image"].size == (64, 64)
    assert np.abs(pixels(alone[1]["image"]) - twin).mean() > 1


def test_in_float64_no_pixel_feels_the_batch():
    """Sums run in another order over another batch: by less than moves a pixel."""
    rows = make_rows(5)
    made = [
        twins(of_kind("sd15", dtype="float64", resources=Resources(batch=size)), rows, batch=size)
        for size in (2, 5)
    ]
    assert all((made[0][key] == made[1][key]).all() for key in made[0])


@pytest.mark.parametrize("kind", PAINTERS)
def test_pasted_twins_are_the_photograph_outside_the_mask(kind):
    rows = make_rows(2)
    plain = twins(of_kind(kind), rows, batch=2)
    for key, pasted in twins(of_kind(kind, paste=True), rows, batch=2).items():
        [row] = [row for row in rows if row["key"] == key]
        mask = pixels(row["saliency"]) > 127
        assert (pasted[~mask] == pixels(row["chosen"])[~mask]).all()
        assert (pasted[mask] == plain[key][mask]).all()
        assert (plain[key][~mask] != pixels(row["chosen"])[~mask]).any()


def test_pixart_repaints_everything_from_the_caption_alone():
    """With everything to repaint: what diffusers' own pipeline draws from the same noise."""
    stage = of_kind("pixart", resources=Resources(batch=1))
    [row] = make_rows(1)
    [twin] = twins(
        stage, [{**row, "saliency": png(np.full((64, 64), 255, np.uint8))}], batch=1
    ).values()
    plain = PixArtAlphaPipeline.from_pretrained(small.path("pixart"), dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    image = plain(
        row["caption"],
        height=64,
        width=64,
        num_inference_steps=3,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(seed_of(0, "inpaint", row["key"])),
        use_resolution_binning=False,
        clean_caption=False,
    ).images[0]
    assert difference(twin, np.asarray(image).astype(int)) <= 1


def test_sd35_inpainting_is_that_of_diffusers():
    stage = of_kind("sd35m", resources=Resources(batch=1))
    [row] = make_rows(1)
    [twin] = twins(stage, [row], batch=1).values()
    plain = StableDiffusion3InpaintPipeline.from_pretrained(small.path("sd3"), dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    image = plain(
        row["caption"],
        image=open_png(row["chosen"]),
        mask_image=open_png(row["saliency"]),
        height=64,
        width=64,
        strength=1.0,
        num_inference_steps=3,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(seed_of(0, "inpaint", row["key"])),
    ).images[0]
    assert difference(twin, np.asarray(image).astype(int)) <= 1


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((kind, {}) for kind in PAINTERS if kind != "pixart"),
        *((kind, {"strength": 0.6, "guidance": 1.0}) for kind in BLENDED),
    ],
)
def test_a_twin_is_to_the_bit_what_the_pipeline_makes_of_the_images(kind, settings):
    """Its pixels are made ready and rounded outside of the pipeline, as the pipeline would."""
    stage, rows = of_kind(kind, resources=Resources(batch=2), **settings), make_rows(2)
    made = twins(stage, rows, batch=2)
    for called in ([row] for row in rows) if kind in ONE_BY_ONE else [rows]:
        images = stage.pipeline(
            [row["caption"] for row in called],
            image=[open_png(row["chosen"]) for row in called],
            mask_image=[open_png(row["saliency"]) for row in called],
            height=64,
            width=64,
            strength=settings.get("strength", 1.0),
            num_inference_steps=3,
            generator=[
                torch.Generator().manual_seed(seed_of(0, "inpaint", row["key"])) for row in called
            ],
            **guided(kind, settings.get("guidance", 7.5), count=len(called)),
        ).images
        for row, image in zip(called, images, strict=True):
            assert difference(made[row["key"]], pixels(image)) == 0


def test_another_seed_or_key_makes_another_twin(stage):
    [row] = make_rows(1)
    other_seed = twins(loaded(seed=1), [row], batch=1)[row["key"]]
    twin = twins(stage, [row], batch=1)[row["key"]]
    other_key = twins(stage, [{**row, "key": "0" * 64}], batch=1)["0" * 64]
    assert np.abs(twin - other_seed).mean() > 2
    assert np.abs(twin - other_key).mean() > 2


def test_the_caption_is_followed(stage):
    [row] = make_rows(1)
    twin, other = (
        twins(stage, [{**row, "caption": text}], batch=1)[row["key"]]
        for text in (row["caption"], "snow at night")
    )
    assert difference(twin, other) > 1


def test_the_callers_random_state_is_left_alone(stage):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    in_batches(stage, make_rows(1))
    assert torch.equal(before, torch.get_rng_state())


def test_what_the_mask_covers_does_not_reach_the_twin(stage):
    # Nor does the pipeline keep what is around it: everything passes the autoencoder.
    [row] = make_rows(1)
    mask = pixels(row["saliency"]) > 127
    photo = pixels(row["chosen"]).astype(np.uint8)
    within, around = photo.copy(), photo.copy()
    within[mask] = 255 - within[mask]
    around[~mask] = 255 - around[~mask]
    plain, same, other = (
        twins(stage, [{**row, "chosen": png(image)}], batch=1)[row["key"]]
        for image in (photo, within, around)
    )
    assert (plain == same).all()
    assert difference(plain, other) > 1


def test_the_soft_map_is_cut_at_one_half(stage):
    [row] = make_rows(1)
    covered = pixels(row["saliency"]) > 127
    soft = np.where(covered, 130, 125).astype(np.uint8)  # 0.51 and 0.49
    hard, soft, faint, nothing = (
        twins(stage, [{**row, "saliency": png(saliency)}], batch=1)[row["key"]]
        for saliency in (
            (covered * 255).astype(np.uint8),
            soft,
            np.full((64, 64), 102, np.uint8),  # 0.4 everywhere
            np.zeros((64, 64), np.uint8),
        )
    )
    assert (hard == soft).all()
    assert (faint == nothing).all()
    assert difference(hard, nothing) > 1


def test_the_network_is_told_where_and_around_what(stage):
    """Channels of its input: 4 noisy latents, the mask, 4 latents of the masked photograph."""
    rows = make_rows(2)
    rows[1]["saliency"] = png(np.full((64, 64), 102, np.uint8))
    seen = []
    hook = stage.pipeline.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        in_batches(stage, rows)
    finally:
        hook.remove()
    full = stage.resources.batch  # the rows, and copies of the last: the shape never changes
    assert seen[0].shape == (2 * full, 9, 8, 8)  # without and with the caption
    mask_HW = pixels(rows[0]["saliency"])[::8, ::8] > 127
    for half in (0, full):
        assert torch.equal(seen[0][half, 4], torch.from_numpy(mask_HW).float())
        assert not seen[0][half + 1, 4].any()  # below one half everywhere: nothing to repaint
    for latents in seen[1:]:
        assert torch.equal(latents[:, 4:], seen[0][:, 4:])


@pytest.mark.parametrize("kind", ["sd15", "text2image", "pixart", "sdxl"])
def test_dpm_solver_draws_as_diffusers_scheduler_does(kind):
    """The twin of the plain pipeline with diffusers' scheduler put in place of its own."""
    settings = {"steps": 4, "resources": Resources(batch=2)}
    own, quick = of_kind(kind, **settings), of_kind(kind, scheduler="dpmsolver++", **settings)
    rows = make_rows(2)
    before, made = twins(own, rows, batch=2), twins(quick, rows, batch=2)
    calls: list[int] = []
    network = quick.pipeline.components[NETWORKS[kind][0]]
    network.register_forward_pre_hook(lambda *_: calls.append(1))
    own.pipeline.scheduler = MultistepScheduler.from_config(own.pipeline.scheduler.config)
    assert all((made[key] == twin).all() for key, twin in twins(own, rows, batch=2).items())
    assert all((made[key] == twin).all() for key, twin in twins(quick, rows, batch=1).items())
    assert len(calls) == 2 * 4, "one call of the network per step, where PNDM takes one more"
    if kind != "pixart":  # whose own it is
        assert all(difference(made[key], before[key]) > 1 for key in made)


def test_layout_and_compilation_move_a_twin_by_rounding_only(monkeypatch):
    compiled = partial(compile_blocks, backend="eager")
    monkeypatch.setattr(perturb, "compile_blocks", compiled)
    rows, settings = make_rows(2), {"steps": 2, "resources": Resources(batch=2)}
    expected = twins(loaded(seed=0, **settings), rows, batch=2)
    counters.clear()
    quick = loaded(seed=0, compile=True, channels_last=True, **settings)
    weight = quick.pipeline.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    made = twins(quick, rows, batch=2)
    assert counters["stats"]["unique_graphs"] > 2
    assert all(difference(made[key], expected[key]) <= 1 for key in made)


def test_older_pairs_stay_valid():
    kept = {key.partition(".")[2] for key in results_of({"perturb": PerturbConfig()})}
    assert "steps" in kept and not {"scheduler", "compile", "channels_last"} & kept
    other = results_of({"perturb": PerturbConfig(scheduler="dpmsolver++", compile=True)})
    assert other["perturb.scheduler"] == "dpmsolver++" and "perturb.compile" not in other


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_the_kind_is_taken(kind):
    CONFIG.model_copy(update={"kind": kind, "model": folder_of(kind)}).check(64)


@pytest.mark.parametrize(
    ("changes", "side", "message"),
    [
        ({"kind": "sd35m"}, 64, r"perturb\.model: .* perturb.kind=sd35m, .*SD3Transformer2DModel"),
        ({"kind": "pixart"}, 64, r"perturb\.model: .*needs a PixArtTransformer2DModel of 4"),
        ({"kind": "text2image"}, 64, r"perturb\.model: .*UNet2DConditionModel of 4 input"),
        ({"kind": "sd15", "model": str(small.path("sd3"))}, 64, r"needs a UNet2DConditionModel"),
        ({"model": str(small.path("sdxl-inpaint"))}, 64, r" is of SDXL; set perturb\.kind=sdxl"),
        ({"kind": "sdxl"}, 64, r" is not of SDXL; set perturb\.kind=sd15"),
        ({}, 66, r"images\.size=66: .* multiples of 8"),
        (
            {"kind": "sd35m", "model": str(small.path("sd3")), "scheduler": "dpmsolver++"},
            64,
            r"perturb\.scheduler=dpmsolver\+\+: .*along a flow; leave it at pipeline",
        ),
        (
            {"kind": "flux_fill", "model": str(small.path("flux-fill"))},
            72,
            r"images\.size=72: .* multiples of 16",
        ),
        ({"kind": "flux_fill", "model": str(small.path("sd3"))}, 64, r"needs a FluxTransformer2D"),
        (
            {"kind": "pixart", "model": str(small.path("pixart")), "strength": 0.5},
            64,
            r"perturb\.strength=0\.5: pixart repaints from pure noise only",
        ),
    ],
)
def test_what_a_worker_could_not_do_is_refused_before_any_work(changes, side, message):
    with pytest.raises(InputError, match=message) as caught:
        CONFIG.model_copy(update=changes).check(side)
    assert "\n" not in str(caught.value)
