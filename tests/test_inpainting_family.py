"""A family that inpaints: what its network reads beside the noise, from pairs to a LoRA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import small
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image, ImageOps
from training import BASES, CPU, LORAS, photographs, rows_of, training, twin

from raypref.align.latents import CacheConfig, Encode, rows_to_encode
from raypref.align.loop import Alone, train
from raypref.align.pair_data import PairData, read_pairs
from raypref.core.config import InputError, Resources
from raypref.core.ledger import Ledger
from raypref.core.rows import IMAGE, Row
from raypref.curate.publish import PAIRS
from raypref.engine.batches import in_batches
from raypref.evaluate.generate import Generate, GenerateConfig
from raypref.images.decode import as_image, encode_png
from raypref.models.backbone import load_denoiser, load_encoder
from raypref.models.families.conditioning import unpacked

FOLDER = small.path("sd15-inpaint")
BASE = BASES["sd15_inpaint"].model_copy(update={"dtype": "float32"})
COUNT = 3


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionInpaintPipeline:
    """As someone without this project loads it."""
    return StableDiffusionInpaintPipeline.from_pretrained(FOLDER, safety_checker=None)


def mask(number: int) -> Image.Image:
    """A soft map, left and right unlike."""
    levels = np.linspace(0, 255, 64) * np.linspace(0.4, 1, 64)[:, None]
    return Image.fromarray(np.roll(levels, 7 * number, axis=1).astype(np.uint8))


def around(
    pipeline: StableDiffusionInpaintPipeline, images: list[Image.Image], masks: list[Image.Image]
) -> torch.Tensor:
    """Mask and surroundings by the pipeline's own code, [B, 5, 8, 8]; the latents' mean."""
    size = {"height": 64, "width": 64}
    paint = pipeline.mask_processor.preprocess(masks, **size)
    masked = pipeline.image_processor.preprocess(images, **size) * (paint < 0.5)
    with torch.no_grad():
        latents = pipeline.vae.encode(masked).latent_dist.mode()
        latents = latents * pipeline.vae.config.scaling_factor
    # Given latents, it encodes nothing.
    kept = (paint, latents, len(images), 64, 64, torch.float32, CPU, None, False)
    return torch.cat(pipeline.prepare_mask_latents(*kept), dim=1)


def rows() -> list[Row]:
    return [
        {
            "id": f"{number}",
            "prompt": caption,
            "chosen": {"bytes": encode_png(photo), "path": None},
            "rejected": {"bytes": encode_png(twin(photo)), "path": None},
            "mask": {"bytes": encode_png(mask(number)), "path": None},
        }
        for number, (caption, photo) in enumerate(photographs(COUNT))
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PairData:
    """Pairs through the ledgers of pairs and of latents; batches of two, so the last is padded."""
    folder = tmp_path_factory.mktemp("pairs")
    pairs = Ledger(str(folder / "pairs"), {})
    pairs.begin()
    pairs.write_part(pa.Table.from_pylist(rows(), schema=PAIRS))
    pairs.commit(expected=COUNT, counts={})
    stage = Encode(BASE, CacheConfig(resources=Resources(batch=2)))
    stage.setup()
    encoded = rows_of(rows_to_encode(pairs, stage.reads))
    in_batches(stage, encoded)
    ledger = Ledger(str(folder / "encoded"), {})
    ledger.begin()
    schema = pa.schema([("id", pa.string()), *stage.writes])
    ledger.write_part(
        pa.table({n: [row.get(n) for row in encoded] for n in schema.names}, schema=schema)
    )
    return read_pairs(ledger, BASE)


@pytest.mark.parametrize("flipped", [False, True])
def test_the_network_gets_what_the_pipeline_would_give_it(
    flipped: bool, data: PairData, pipeline: StableDiffusionInpaintPipeline
) -> None:
    images = [photo for _, photo in photographs(COUNT)]
    masks = [mask(number) for number in range(COUNT)]
    if flipped:
        images, masks = [[ImageOps.mirror(each) for each in some] for some in (images, masks)]
    expected = around(pipeline, images, masks)
    assert 0.1 < expected[:, 0].mean() < 0.9
    prompts = data.prompts(range(COUNT), [False, True, False], [flipped] * COUNT)
    torch.testing.assert_close(prompts.surroundings_BKHW, expected, atol=1e-5, rtol=0)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(COUNT, 4, 8, 8, generator=generator)
    timesteps = torch.tensor([900, 500, 20])
    texts = [caption for caption, _ in photographs(COUNT)]
    texts[1] = ""  # its caption is dropped, not its mask
    with torch.no_grad():
        states = load_encoder(BASE, device=CPU).text_embeddings(texts).sequence_BLD  # type: ignore[attr-defined]
        plain = pipeline.unet(torch.cat([x, expected], dim=1), timesteps, states).sample
        ours = load_denoiser(BASE, device=CPU).predict(x, timesteps, prompts)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("objective", ["dro", "dpo", "sft"])
def test_its_lora_loads_in_plain_diffusers_and_draws(
    objective: str, data: PairData, pipeline: StableDiffusionInpaintPipeline, tmp_path: Path
) -> None:
    stage = training(objective, steps=2, batch=4, micro_batch=2, lr=0.05)
    history = train(
        *(load_denoiser(BASE, device=CPU), data, stage, LORAS["sd15_inpaint"]),
        name="test",
        draws="test",
        seed=0,
        folder=str(tmp_path),
        start=None,
        group=Alone(),
        on_step=lambda metrics: None,
    )
    assert all(np.isfinite(list(metrics.values())).all() for metrics in history)
    config = GenerateConfig(prompts="tiny:prompts", steps=2, size=64, guidance=4.5)
    drawing = Generate(BASE, config, loras={"ours": str(tmp_path)})
    drawing.setup()
    made = [{"model": name, "prompt": "a red ball", "noise": 42} for name in ("base", "ours")]
    in_batches(drawing, made)
    images = [np.asarray(as_image(row["image"])).astype(int) for row in made]
    assert np.abs(images[0] - images[1]).max() > 0
    pipeline.load_lora_weights(str(tmp_path))
    [plain] = pipeline(
        "a red ball",
        image=Image.new("RGB", (64, 64)),
        mask_image=Image.new("L", (64, 64), 255),
        height=64,
        width=64,
        num_inference_steps=2,
        guidance_scale=4.5,
        generator=torch.Generator().manual_seed(42),
    ).images
    pipeline.unload_lora_weights()
    assert np.abs(np.asarray(plain).astype(int) - images[1]).max() <= 1


def test_a_pair_without_a_mask_is_refused_by_name() -> None:
    stage = Encode(BASE, CacheConfig())
    stage.setup()
    with pytest.raises(InputError, match="pair '1' has no mask, which sd15_inpaint reads"):
        in_batches(stage, [row | ({"mask": None} if row["id"] == "1" else {}) for row in rows()])


def test_surroundings_come_from_the_source_where_pairs_name_one(tmp_path: Path) -> None:
    """Candidates of a hole, where the release gives each side its own surroundings."""
    photos = [photo for _, photo in photographs(2 * COUNT)]
    sourced = [
        row | {"source": {"bytes": encode_png(photos[COUNT + n]), "path": None} if n != 1 else None}
        for n, row in enumerate(rows())
    ]
    pairs = Ledger(str(tmp_path / "pairs"), {})
    pairs.begin()
    schema = PAIRS if "source" in PAIRS.names else PAIRS.append(pa.field("source", IMAGE))
    pairs.write_part(pa.Table.from_pylist(sourced, schema=schema))
    pairs.commit(expected=COUNT, counts={})
    stage = Encode(BASE, CacheConfig(), side=64)
    stage.setup()
    encoded = rows_of(rows_to_encode(pairs, stage.reads))
    in_batches(stage, encoded)
    seen = [photos[COUNT], photos[1], photos[COUNT + 2]]  # that of the second is its chosen image
    expected = load_encoder(BASE, device=CPU).surroundings(seen, [mask(n) for n in range(COUNT)])
    for n in range(COUNT):
        [row] = [row for row in encoded if row["id"] == f"{n}"]
        both = unpacked(row["surroundings"], row["surroundings_shape"])
        torch.testing.assert_close(both[0], expected[n])

    for column, image, says in (
        ("source", photos[0].resize((32, 32)), "the source image of pair '0' is 32x32, and images"),
        ("mask", mask(0).resize((64, 32)), "the mask of pair '0' is 64x32, and its image is 64x64"),
    ):
        wrong = sourced[0] | {column: {"bytes": encode_png(image), "path": None}}
        with pytest.raises(InputError, match=says):
            stage.prepare([wrong])
