"""Precision, noise and rounding of drawn images and of latents, against plain pipelines."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import diffusers
import numpy as np
import pytest
import small
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor
from training import CPU, hole, photographs

from raypref.align.cache_config import CacheConfig
from raypref.align.latents import Encode
from raypref.core.config import Resources, load, results_of
from raypref.core.rows import Row
from raypref.engine.batches import in_batches
from raypref.evaluate import generate
from raypref.evaluate.generate import BASE, Generate, GenerateConfig
from raypref.evaluate.painting import Paint
from raypref.images.decode import encode_png
from raypref.models.backbone import BackboneConfig, load_encoder
from raypref.models.families.registry import FAMILIES, READ_BY_T5, family
from raypref.run.config import RunConfig
from raypref.run.pipeline import Run

BASES = {
    "sd15": BackboneConfig(model=str(small.path("sd15"))),
    "sd35m": BackboneConfig(family="sd35m", model=str(small.path("sd3"))),
    "sd15_inpaint": BackboneConfig(family="sd15_inpaint", model=str(small.path("sd15-inpaint"))),
    "sdxl_inpaint": BackboneConfig(family="sdxl_inpaint", model=str(small.path("sdxl-inpaint"))),
    "flux_fill": BackboneConfig(family="flux_fill", model=str(small.path("flux-fill"))),
}
ONE = GenerateConfig(steps=2, size=64, guidance=4.0, resources=Resources(batch=1), blend=False)
CAPTIONS = [caption for caption, _ in photographs(3)]


def inputs(name: str) -> Row:
    """What a row of a family's evaluation holds."""
    row: Row = {"model": BASE, "prompt": CAPTIONS[0], "noise": 7}
    around = {"photograph": photographs(1)[0][1], "mask": hole(1)}
    return row | (around if family(name).inpaints else {})


@cache
def drawn(name: str, **settings: Any) -> np.ndarray:
    """Our image of `inputs`."""
    config = ONE.model_copy(update=settings)
    kind = Paint if family(name).inpaints else Generate
    stage = kind(BASES[name].model_copy(update={"dtype": "float64"}), config, loras={})
    stage.setup()
    row = inputs(name)
    in_batches(stage, [row])
    return np.asarray(row["image"]).astype(int)


@cache
def plain(name: str, dtype: str, vae_dtype: str) -> np.ndarray:
    """The image that diffusers draws, 0..1, its autoencoder called in a precision of its own."""
    own, folder = family(name), BASES[name].model
    pipeline = getattr(diffusers, own.pipeline).from_pretrained(
        folder, dtype=getattr(torch, dtype), **own.options
    )
    pipeline.set_progress_bar_config(disable=True)
    precise = getattr(torch, vae_dtype)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", dtype=precise)

    def encode(x_BCHW: Tensor) -> AutoencoderKLOutput:
        moments = vae.encode(x_BCHW.to(precise)).latent_dist.parameters.to(x_BCHW.dtype)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments))

    if vae_dtype != dtype:
        pipeline.vae.register_to_config(force_upcast=False)  # SDXL's would change the precision
        pipeline.vae.encode = encode
        pipeline.vae.decode = lambda z, **given: vae.decode(z.to(precise), **given)
    row = inputs(name)
    around = {}
    if own.inpaints:
        around = {"image": row["photograph"], "mask_image": row["mask"]}
    if name == "sdxl_inpaint":
        around["strength"] = 1.0
    made: np.ndarray = pipeline(
        row["prompt"],
        **around,
        height=64,
        width=64,
        num_inference_steps=2,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(7)],
        output_type="np",
    ).images[0]
    return made


@pytest.mark.parametrize(
    ("name", "dtype"), [("sd15", "bfloat16"), *((name, "float16") for name in BASES)]
)
def test_an_image_is_drawn_in_the_precision_asked_for(name: str, dtype: str) -> None:
    """The base's own is float64 here."""
    made = drawn(name, dtype=dtype)
    assert (made == (plain(name, dtype, dtype) * 255).round()).all()
    if name == "sd15":
        assert (made != drawn(name, dtype="float32")).any(), "it matters"


@pytest.mark.parametrize("name", BASES)
def test_the_autoencoder_has_a_precision_of_its_own(name: str) -> None:
    apart = drawn(name, dtype="float16", vae_dtype="float32")
    assert (apart == (plain(name, "float16", "float32") * 255).round()).all()
    assert (apart != drawn(name, dtype="float16")).any(), "it matters"


def test_the_autoencoder_may_be_the_less_precise_part() -> None:
    coarse = drawn("sd15", dtype="float32", vae_dtype="bfloat16")
    assert (coarse == (plain("sd15", "float32", "bfloat16") * 255).round()).all()
    assert (coarse != drawn("sd15", dtype="float32")).any()


def test_a_precise_autoencoder_has_the_weights_that_are_stored() -> None:
    """Not those that were rounded to the rest's precision first."""
    stage = Generate(BASES["sd15"], ONE.model_copy(update={"dtype": "bfloat16"}), loras={})
    stage.config = stage.config.model_copy(update={"vae_dtype": "float32"})
    stage.setup()
    stored = AutoencoderKL.from_pretrained(BASES["sd15"].model, subfolder="vae").state_dict()
    held = stage.pipeline.vae.state_dict()
    assert all(torch.equal(held[name], value) for name, value in stored.items())
    assert stage.pipeline.unet.dtype == stage.pipeline.text_encoder.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [Generate, Paint])
def test_pixels_are_rounded_or_cut_off(kind: type[Generate]) -> None:
    levels = np.array([0.0, 0.4, 0.6, 99.499, 99.501, 100.0, 254.6, 255.0])
    pixels = (levels / 255).astype(np.float32).reshape(1, 8, 1).repeat(3, axis=2)
    expected = {"nearest": [0, 0, 1, 99, 100, 100, 255, 255]}
    expected["truncate"] = [int(np.float32(255) * value) for value in pixels[0, :, 0]]
    assert expected["truncate"][:5] == [0, 0, 0, 99, 99] and expected["truncate"][6] == 254
    for rounding, wanted in expected.items():
        config = ONE.model_copy(update={"rounding": rounding})
        row: Row = {}
        kind(BASES["sd15"], config, loras={}).finish([row], [pixels])
        assert np.asarray(row["image"])[0].tolist() == [[level] * 3 for level in wanted]


def test_cut_off_images_are_half_a_level_darker() -> None:
    cut, near = (drawn("sd15", dtype="float32", rounding=r) for r in ("truncate", "nearest"))
    assert (cut == np.floor(plain("sd15", "float32", "float32") * np.float32(255))).all()
    assert {*np.unique(near - cut)} == {0, 1} and 0.4 < (near - cut).mean() < 0.6


@pytest.mark.parametrize(("where", "expected"), [("cpu", "cpu"), ("model", "cuda")])
def test_noise_is_drawn_where_it_is_asked_for(
    where: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pipeline:
        def __call__(self, *, generator: list[Any], **_: Any) -> Any:
            seen.extend(generator)
            return type("Made", (), {"images": np.zeros((len(generator), 8, 8, 3))})

    class Generator:
        def __init__(self, device: Any = "cpu") -> None:
            self.device, self.seed = torch.device(device).type, -1

        def manual_seed(self, seed: int) -> Generator:
            self.seed = seed
            return self

    seen: list[Generator] = []
    monkeypatch.setattr(generate, "pick_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(generate, "load_pipeline", lambda *_, **__: Pipeline())
    stage = Generate(BASES["sd15"], ONE.model_copy(update={"noise_device": where}), loras={})
    stage.setup()
    monkeypatch.setattr(torch, "Generator", Generator)
    rows = [{**inputs("sd15"), "noise": noise} for noise in (3, 4)]
    stage.compute(stage.prepare(rows))
    assert [(each.device, each.seed) for each in seen] == [(expected, 3), (expected, 4)]


def test_on_a_cpu_the_model_is_where_noise_is_drawn_anyway() -> None:
    here = drawn("sd15", dtype="float32", noise_device="model")
    assert (here == drawn("sd15", dtype="float32")).all()


# ------------------------------------------------------------------ latents and captions


def encoded(name: str, **settings: Any) -> list[Row]:
    """Columns of three pairs that the base encodes in bfloat16."""
    base = BASES[name].model_copy(update={"dtype": "bfloat16"})
    rows: list[Row] = [
        {
            "id": str(number),
            "prompt": caption,
            **{side: {"bytes": encode_png(photo)} for side in ("chosen", "rejected")},
            "mask": {"bytes": encode_png(hole(number))},
        }
        for number, (caption, photo) in enumerate(photographs(3))
    ]
    stage = Encode(base, CacheConfig(resources=Resources(batch=3)).model_copy(update=settings))
    stage.setup()
    in_batches(stage, rows)
    return rows


def values(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype=np.float32).copy())


@pytest.mark.parametrize("name", ["sd35m", "flux_fill"])
def test_photographs_are_encoded_in_the_precision_asked_for(name: str) -> None:
    rows, coarse = encoded(name, vae_dtype="float32"), encoded(name)
    vae = AutoencoderKL.from_pretrained(BASES[name].model, subfolder="vae", dtype=torch.float32)
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor
    for row, (_, photo), rough in zip(rows, photographs(3), coarse, strict=True):
        pixels = torch.tensor(np.asarray(photo)).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            expected = (vae.encode(pixels).latent_dist.mean - shift) * scale
        mean = values(row["moments"])[: expected.numel()].reshape(expected.shape)
        torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-4)
        off = values(rough["moments"])[: expected.numel()].reshape(expected.shape) - expected
        assert off.abs().max() > 1e-3, "bfloat16 would not do"
        assert row["embedding"] == rough["embedding"], "captions are read as before"
    if name == "flux_fill":
        around = load_encoder(BASES[name], device=CPU).surroundings(
            [photo for _, photo in photographs(3)], [hole(n) for n in range(3)]
        )
        found = torch.stack([values(row["surroundings"])[: around[0].numel()] for row in rows])
        torch.testing.assert_close(found, around.flatten(1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "clip", "default"), [("sd35m", 77, 256), ("flux_fill", 0, 512)])
def test_t5_reads_as_many_tokens_as_are_asked_for(name: str, clip: int, default: int) -> None:
    own = family(name)
    pipeline = getattr(diffusers, own.pipeline).from_pretrained(BASES[name].model, **own.options)
    # 0 is what was read before the key existed.
    for asked, tokens in ((128, 128), (0, default)):
        texts = ["a red ball on grass", "many words " * 40]
        made: Any = load_encoder(BASES[name], device=CPU, t5_tokens=asked).text_embeddings(texts)
        with torch.no_grad():
            if name == "sd35m":
                expected, _, _, _ = pipeline.encode_prompt(
                    texts,
                    None,
                    None,
                    do_classifier_free_guidance=False,
                    max_sequence_length=tokens,
                )
            else:
                expected, _, _ = pipeline.encode_prompt(texts, max_sequence_length=tokens)
        assert made.sequence_BLD.shape[1] == clip + tokens
        assert torch.equal(made.sequence_BLD, expected)
    rows = encoded(name, t5_tokens=16)
    assert [row["embedding_shape"][0] for row in rows] == [clip + 16] * 3


def test_all_families_with_a_t5_take_its_length() -> None:
    takes = {
        name
        for name in FAMILIES
        if "t5_tokens" in inspect.signature(family(name).text_encoder).parameters
    }
    assert takes == READ_BY_T5


# ------------------------------------------------------------------ fingerprints


def test_older_images_and_latents_stay_valid() -> None:
    before = results_of({"evaluate": GenerateConfig(), "cache": CacheConfig()})
    assert {*before} == {
        f"evaluate.{k}" for k in ("seeds", "seed_mode", "steps", "guidance", "size")
    }
    changed = {"dtype": "float16", "vae_dtype": "float32", "noise_device": "model"}
    other = results_of({"evaluate": GenerateConfig(**changed, rounding="truncate")})
    assert {*other} - {*before} == {f"evaluate.{key}" for key in (*changed, "rounding")}


def latents_of(*overrides: str) -> str:
    return Run(load(RunConfig, "tiny", overrides)).cache.fingerprint


def test_latents_are_made_anew_where_what_is_in_them_changes() -> None:
    assert latents_of("cache.t5_tokens=128") == latents_of(), "the base has no T5"
    assert latents_of("cache.vae_dtype=float16") != latents_of()
    larger = ("base.family=sd35m", f"base.model={small.path('sd3')}")
    assert latents_of(*larger, "cache.t5_tokens=128") != latents_of(*larger)
