"""The cache: drawing from stored moments is encoding again; a flip mirrors the image itself."""

from pathlib import Path

import pyarrow as pa
import small
import torch
from diffusers import StableDiffusionPipeline
from PIL import ImageOps
from training import BASE, CPU, photographs, rows_of

from raypref.align.latents import UNCONDITIONAL, CacheConfig, Encode, rows_to_encode
from raypref.align.pair_data import PairData, read_pairs
from raypref.core.config import Resources
from raypref.core.ledger import Ledger
from raypref.curate.publish import PAIRS
from raypref.engine.batches import in_batches
from raypref.images.decode import encode_png
from raypref.models.backbone import load_encoder

FLOAT32 = BASE.model_copy(update={"dtype": "float32"})


def write_pairs(folder: Path, count: int) -> Ledger:
    """A pairs table of photographs and their mirror images as twins, ids in reverse order."""
    ledger = Ledger(str(folder), {})
    ledger.begin()
    rows = [
        {
            "id": f"{count - i:02d}",
            "prompt": caption,
            "chosen": {"bytes": encode_png(photo), "path": None},
            "rejected": {"bytes": encode_png(ImageOps.mirror(photo)), "path": None},
        }
        for i, (caption, photo) in enumerate(photographs(count))
    ]
    ledger.write_part(pa.Table.from_pylist(rows, schema=PAIRS))
    ledger.commit(expected=count, counts={})
    return ledger


def encoded(folder: Path, count: int = 3) -> PairData:
    pairs = write_pairs(folder / "pairs", count)
    stage = Encode(FLOAT32, CacheConfig())
    stage.setup()
    rows = rows_of(rows_to_encode(pairs))
    in_batches(stage, rows)
    cache = Ledger(str(folder / "cache"), {})
    cache.begin()
    columns = {name: [row.get(name) for row in rows] for name in ["id", *stage.writes.names]}
    schema = pa.schema([("id", pa.string()), *stage.writes])
    cache.write_part(pa.table(columns, schema=schema))
    return read_pairs(cache, FLOAT32)


def test_drawing_from_the_moments_equals_encoding_again(tmp_path: Path) -> None:
    data = encoded(tmp_path)
    pipe = StableDiffusionPipeline.from_pretrained(small.path("sd15"), safety_checker=None)
    images = [photo for _, photo in reversed(photographs(3))]  # ids are in reverse order
    pixels = pipe.image_processor.preprocess(images)
    with torch.no_grad():
        posterior = pipe.vae.encode(pixels).latent_dist
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = (posterior.mean + posterior.std * noise) * pipe.vae.config.scaling_factor
    got = data.latents([0, 1, 2], [False] * 3, noise, which=0)
    assert (got - expected).abs().max() < 2e-5


def test_the_flipped_moments_are_those_of_the_mirrored_image(tmp_path: Path) -> None:
    data = encoded(tmp_path)
    noise = torch.randn(3, 4, 8, 8)
    indices = [0, 1, 2]
    # The twin of the test data is the mirrored photograph.
    mirrored = data.latents(indices, [True] * 3, noise, which=0)
    twin = data.latents(indices, [False] * 3, noise, which=1)
    assert (mirrored - twin).abs().max() < 1e-5
    straight = data.latents(indices, [False] * 3, noise, which=0)
    assert (straight - mirrored).abs().max() > 0.01


def test_embeddings_are_the_pipelines(tmp_path: Path) -> None:
    data = encoded(tmp_path)
    pipe = StableDiffusionPipeline.from_pretrained(small.path("sd15"), safety_checker=None)
    prompts = [caption for caption, _ in reversed(photographs(3))]
    with torch.no_grad():
        expected, empty = pipe.encode_prompt(prompts, "cpu", 1, True, negative_prompt=[""] * 3)
    assert torch.equal(data.embeddings.sequence_BLD, expected)
    assert torch.equal(data.unconditional.sequence_BLD, empty[0])
    mixed = data.prompts([1, 2], [True, False], [False] * 2).sequence_BLD
    assert torch.equal(mixed, torch.stack([empty[0], expected[2]]))


def test_a_long_caption_is_cut_at_77_tokens() -> None:
    encoder = load_encoder(FLOAT32, device=CPU)
    embeddings = encoder.text_embeddings(["a red ball " * 200, "a red ball"])
    assert embeddings.sequence_BLD.shape[:2] == (2, 77)


def test_the_empty_caption_has_a_row_of_its_own(tmp_path: Path) -> None:
    rows = rows_of(rows_to_encode(write_pairs(tmp_path / "pairs", 2)))
    assert {row["id"] for row in rows[:2]} == {"01", "02"}
    assert rows[-1]["id"] == UNCONDITIONAL
    assert rows[-1]["prompt"] == ""
    assert rows[-1]["chosen"] is None


def test_no_image_of_the_pairs_is_read_before_the_workers_do(tmp_path: Path) -> None:
    rows = rows_to_encode(write_pairs(tmp_path / "pairs", 2))
    assert rows.count() == 3
    assert rows.also is not None
    assert rows.also["chosen"].null_count == rows.also.num_rows == 1


def test_what_a_pair_is_encoded_to_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    stage = Encode(FLOAT32, CacheConfig(resources=Resources(batch=4)))
    stage.setup()
    pairs = write_pairs(tmp_path / "pairs", 3)
    together, alone = rows_of(rows_to_encode(pairs)), rows_of(rows_to_encode(pairs))
    in_batches(stage, together)
    for row in alone:
        in_batches(stage, [row])
    for name in stage.writes.names:
        assert [row.get(name) for row in together] == [row.get(name) for row in alone], name
