"""Single labelled images from a ledger written by hand to trained LoRAs; images of pairs."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from training import BASE, CPU, LORA, denoiser, pairs, photographs, rows_of, training, twin

from raypref.align.config import TrainingConfig
from raypref.align.latents import CacheConfig, Encode, rows_to_encode
from raypref.align.loop import Alone, train
from raypref.align.pair_data import PairData, read_pairs
from raypref.align.watch import StepMetrics
from raypref.core.config import InputError
from raypref.core.ledger import Ledger
from raypref.core.rows import IMAGE, Row
from raypref.engine.batches import in_batches
from raypref.images.decode import encode_png
from raypref.models.backbone import load_encoder

IMAGES = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.string()),
        ("prompt", pa.string()),
        ("chosen", IMAGE),
        ("rejected", IMAGE),
        ("chosen_model", pa.string()),
        ("score", pa.float64()),
    ]
)


def image(made: object) -> dict[str, object]:
    return {"bytes": encode_png(made), "path": None}  # type: ignore[arg-type]


def labelled(count: int = 4) -> list[Row]:
    """Photographs, which are good, and their twins, which are not: two images per prompt."""
    rows = []
    for i, (caption, photo) in enumerate(photographs(count)):
        for j, (picture, score) in enumerate(((photo, 1.0), (twin(photo), 0.0))):
            rows.append(
                {"id": f"{i}-{j}", "prompt": caption, "chosen": image(picture), "score": score}
            )
    return rows


def ledger_of(rows: Sequence[Row], folder: Path) -> Ledger:
    ledger = Ledger(str(folder), {})
    ledger.begin()
    ledger.write_part(pa.Table.from_pylist(list(rows), schema=IMAGES))
    ledger.commit(expected=len(rows), counts={})
    return ledger


def encoded(ledger: Ledger, folder: Path, batch: int = 100) -> Ledger:
    """What the step that encodes makes of a ledger."""
    stage = Encode(BASE, CacheConfig())
    stage.setup()
    rows = rows_of(rows_to_encode(ledger))
    for first in range(0, len(rows), batch):
        in_batches(stage, rows[first : first + batch])
    cache = Ledger(str(folder), {})
    cache.begin()
    schema = pa.schema([("id", pa.string()), *stage.writes])
    columns = {name: [row.get(name) for row in rows] for name in schema.names}
    cache.write_part(pa.table(columns, schema=schema))
    return cache


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ledger, Ledger]:
    """The ledger of single images and that of their latents."""
    folder = tmp_path_factory.mktemp("images")
    images = ledger_of(labelled(), folder / "pairs")
    return images, encoded(images, folder / "latents")


def read(made: tuple[Ledger, Ledger], stage: TrainingConfig) -> PairData:
    """As a worker reads them."""
    images, cache = made
    return read_pairs(cache, BASE, pairs=images, facts=stage.columns, scores=stage.labelled)


def trained(data: PairData, stage: TrainingConfig, folder: Path) -> list[StepMetrics]:
    about = {"name": "mine", "draws": "d", "seed": 0, "folder": str(folder), "start": None}
    return train(
        denoiser(), data, stage, LORA, group=Alone(), on_step=lambda metrics: None, **about
    )


def test_the_prompts_are_read_as_written_where_rewards_need_them(
    made: tuple[Ledger, Ledger],
) -> None:
    images, cache = made
    data = read_pairs(cache, BASE, pairs=images, texts=True)
    written = {row["id"]: row["prompt"] for row in labelled()}
    assert data.texts == tuple(written[id_] for id_ in sorted(written))
    assert len(data.texts) == len(data) and read(made, KTO).texts == ()


KTO = training("kto", sample="image", steps=2, batch=8, micro_batch=3, lr=1e-3)
COMMON = {"steps": 2, "batch": 4, "lr": 1e-3}


def test_single_images_have_one_side_and_the_latents_of_the_pairs_images(
    made: tuple[Ledger, Ledger],
) -> None:
    data = read(made, KTO)
    assert data.single
    assert data.moments.shape == (8, 1, 2, 2, 4, 8, 8)
    assert data.facts["score"].tolist() == [1.0, 0.0] * 4
    encoder = load_encoder(BASE, device=CPU)
    for n, (_, photo) in enumerate(photographs(4)):
        wanted = encoder.image_moments([photo, twin(photo)]).float()
        got = data.moments[2 * n : 2 * n + 2, 0, 0]
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
    captions = encoder.text_embeddings([text for text, _ in photographs(4)]).sequence_BLD
    torch.testing.assert_close(
        data.embeddings.sequence_BLD, captions.repeat_interleave(2, 0).float(), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    "stage",
    [
        KTO,
        training("rwr", **COMMON),
        training("raft", **COMMON),
    ],
    ids=lambda stage: stage.objective,
)
def test_they_are_trained_on(
    stage: TrainingConfig, made: tuple[Ledger, Ledger], tmp_path: Path
) -> None:
    first, last = trained(read(made, stage), stage, tmp_path)
    assert first["grad_norm"] > 0
    assert last["lora_norm"] > 0
    assert (tmp_path / "pytorch_lora_weights.safetensors").exists()
    if stage is KTO:
        assert first["desirable"] == 0.5, "one epoch has every image once"


@pytest.mark.parametrize("name", ["dpo", "ipo", "kto"])
def test_an_objective_that_compares_two_images_says_what_to_take(
    name: str, made: tuple[Ledger, Ledger], tmp_path: Path
) -> None:
    stage = training(name, **COMMON)
    with pytest.raises(InputError, match=r"^the pairs are single labelled images, .*kto with samp"):
        trained(read(made, stage), stage, tmp_path)


def test_pairs_and_single_images_are_not_mixed(tmp_path: Path) -> None:
    mixed = labelled(2)
    mixed[1]["rejected"] = mixed[0]["chosen"]
    ledger = ledger_of(mixed, tmp_path / "pairs")
    with pytest.raises(InputError, match=r"^pair '0-0' has no rejected image, but others have one"):
        encoded(ledger, tmp_path / "a")
    cache = encoded(ledger, tmp_path / "b", batch=1)  # no batch shows it
    with pytest.raises(InputError, match=r"pair '0-1' has 2 images, others have 1"):
        read_pairs(cache, BASE)


@pytest.mark.parametrize("score", [None, float("nan")])
def test_an_image_without_a_score_is_named(score: float | None, tmp_path: Path) -> None:
    rows = labelled(1)
    rows[1]["score"] = score
    ledger = ledger_of(rows, tmp_path / "pairs")
    made = ledger, encoded(ledger, tmp_path / "latents")
    with pytest.raises(InputError, match=f"score of pair '0-1' is {score}, not a number"):
        read(made, KTO)
    read(made, training("sft"))  # does not ask for it


# ------------------------------------------------------------------ images of pairs


def test_every_image_of_a_pair_is_a_row_with_its_caption_and_score() -> None:
    whole = pairs()
    data = whole.images()
    assert len(data) == 2 * len(whole)
    assert data.moments.data_ptr() == whole.moments.data_ptr(), "nothing is copied"
    noise = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    for which in (0, 1):
        ours = data.latents([6 + which, 2 + which], [True, False], noise, which=0)
        assert torch.equal(ours, whole.latents([3, 1], [True, False], noise, which=which))
    dropped, flips = [False, False, True], [False] * 3
    ours, theirs = data.prompts([6, 7, 2], dropped, flips), whole.prompts([3, 3, 1], dropped, flips)
    assert torch.equal(ours.sequence_BLD, theirs.sequence_BLD)
    assert data.facts["score"].tolist() == [1.0, 0.0] * 10
    assert data.images() is data


def test_some_rows_keep_their_captions() -> None:
    data = pairs().images().only(torch.tensor([1, 6]))
    assert data.facts["score"].tolist() == [0.0, 1.0]
    assert torch.equal(data.moments[1, 0], pairs().moments[3, 0])
    got = data.prompts([0, 1], [False] * 2, [False] * 2).sequence_BLD
    assert torch.equal(got, pairs().embeddings.sequence_BLD[[0, 3]])


def with_facts(**facts: list[float]) -> PairData:
    """Single images with these numbers."""
    columns = {name: torch.tensor(values, dtype=torch.float64) for name, values in facts.items()}
    count = len(next(iter(columns.values())))
    moments = torch.arange(float(count)).view(-1, 1, 1, 1, 1, 1, 1).expand(-1, 1, 2, 2, 4, 8, 8)
    return PairData(moments, pairs().embeddings, pairs().unconditional, facts=columns)


def kept(best: int, **facts: list[float]) -> list[int]:
    data = training("raft", best=best).prepared(with_facts(**facts), key="train.x")
    return data.moments.flatten(1)[:, 0].int().tolist()


def test_raft_keeps_the_best_per_prompt() -> None:
    prompt = [0, 1, 0, 1, 2, 1]
    assert kept(1, prompt=prompt, score=[0.2, 5, 0.3, 7, -1, 6]) == [2, 3, 4]
    assert kept(2, prompt=prompt, score=[0.2, 5, 0.3, 7, -1, 6]) == [0, 2, 3, 4, 5]
    assert kept(1, prompt=prompt, score=[1, 0, 1, 0, 1, 0]) == [0, 1, 4], "of equals the first"


def test_raft_refuses_to_leave_nothing_out() -> None:
    with pytest.raises(
        InputError, match=r"train\.x\.best=2: no prompt has more than 2 images.*sft"
    ):
        kept(2, prompt=[0, 0, 1], score=[1, 2, 3])


def weights(scores: list[float], **settings: object) -> list[float]:
    data = training("rwr", **settings).prepared(with_facts(score=scores), key="train.x")
    return data.facts["weight"].tolist()


def test_rwr_weights_average_1_over_the_data_and_do_not_overflow() -> None:
    # exp(0) : exp(1) : exp(2), times 3 over their sum.
    raised = [1.0, 2.718281828459045, 7.38905609893065]
    wanted = [3 * each / sum(raised) for each in raised]
    assert weights([0.0, 0.5, 1.0], temperature=0.5) == pytest.approx(wanted, rel=1e-12)
    assert weights([1000.0, 1000.5, 1001.0], temperature=0.5) == pytest.approx(wanted, rel=1e-12)
    assert weights([0.0, 1.0, 2.0], weighting="cutoff", cutoff=1.0) == [0.0, 1.0, 1.0]
    assert weights([0.0, 1.0, 2.0], weighting="score") == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("scores", "settings", "told"),
    [
        ([-1.0, 2.0], {"weighting": "score"}, r"^train\.x\.weighting=score: scores go down to -1"),
        (
            [0.0, 2.0],
            {"weighting": "cutoff", "cutoff": 3.0},
            r"go from 0 to 2, train\.x\.cutoff is",
        ),
    ],
)
def test_rwr_refuses_scores_that_make_no_weights(
    scores: list[float], settings: dict[str, object], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        weights(scores, **settings)
