"""The family of docs/extending.md: one file outside the package and one line, and it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from training import CPU, photographs, rows_of, training, twin
from worked_examples import example

from raypref.align.latents import CacheConfig, Encode, rows_to_encode
from raypref.align.loop import Alone, train
from raypref.align.pair_data import PairData, read_pairs
from raypref.core.config import InputError, load
from raypref.core.ledger import Ledger
from raypref.curate.publish import PAIRS
from raypref.engine.batches import in_batches
from raypref.evaluate.generate import Generate, GenerateConfig
from raypref.images.decode import as_image, encode_png
from raypref.models.backbone import BackboneConfig, load_denoiser
from raypref.models.checks import check_adapter, check_base, check_side
from raypref.models.families.conditioning import to_row
from raypref.models.families.registry import FAMILIES
from raypref.models.lora_config import FILE_NAME, LoraConfig
from raypref.run.config import RunConfig

LORA = LoraConfig(rank=2, alpha=2)

# On top of the document's: the UNet is told which tokens are padding, by a field of the family's.
MASKED = """
from dataclasses import dataclass, replace

from torch import Tensor

from my_family import FAMILY as MINE, MyDenoiser, MyTextEncoder
from raypref.models.families.conditioning import Conditioning


@dataclass(frozen=True)
class Masked(Conditioning):
    sequence_BLD: Tensor
    text_mask_BL: Tensor


class Encoder(MyTextEncoder):
    def text_embeddings(self, prompts):
        tokens = self.tokenizer(list(prompts), padding="max_length", return_tensors="pt")
        sequence_BLD = super().text_embeddings(prompts).sequence_BLD
        return Masked(sequence_BLD, tokens.attention_mask.to(sequence_BLD))


class Denoiser(MyDenoiser):
    def predict(self, x_BCHW, timesteps_B, conditioning):
        sequence_BLD, mask_BL = conditioning.sequence_BLD, conditioning.text_mask_BL.bool()
        return self.module(
            x_BCHW, timesteps_B, sequence_BLD, encoder_attention_mask=mask_BL
        ).sample


FAMILY = replace(MINE, text_encoder=Encoder, denoiser=Denoiser, conditioning=Masked)
"""


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: Any) -> None:
    """Both families, in files that the package does not know."""
    (tmp_path / "my_family.py").write_text(example("Add a model family"))
    (tmp_path / "my_masked_family.py").write_text(MASKED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(FAMILIES, "mine", "my_family")
    monkeypatch.setitem(FAMILIES, "masked", "my_masked_family")


def base(family: str) -> BackboneConfig:
    settings = load(RunConfig, "tiny", [f"base.family={family}", "base.model=tiny:sd15"])
    return settings.base


def encoded(base: BackboneConfig, folder: Path) -> tuple[Ledger, PairData]:
    """Two pairs through the ledgers of pairs and of latents."""
    pairs = Ledger(str(folder / "pairs"), {})
    pairs.begin()
    rows = [
        {
            "id": f"{number}",
            "prompt": caption,
            "chosen": {"bytes": encode_png(photo), "path": None},
            "rejected": {"bytes": encode_png(twin(photo)), "path": None},
        }
        for number, (caption, photo) in enumerate(photographs(2))
    ]
    pairs.write_part(pa.Table.from_pylist(rows, schema=PAIRS))
    pairs.commit(expected=2, counts={})
    stage = Encode(base, CacheConfig())
    stage.setup()
    done = rows_of(rows_to_encode(pairs))
    in_batches(stage, done)
    ledger = Ledger(str(folder / "encoded"), {})
    ledger.begin()
    schema = pa.schema([("id", pa.string()), *stage.writes])
    columns = {name: [row.get(name) for row in done] for name in schema.names}
    ledger.write_part(pa.table(columns, schema=schema))
    return ledger, read_pairs(ledger, base)


def trained(base: BackboneConfig, data: PairData, folder: Path, *, objective: str) -> bytes:
    """The LoRA after one step, as written."""
    own = {"rollout_steps": 2} if objective == "dro" else {}
    stage = training(objective, steps=1, batch=2, micro_batch=2, **own)
    train(
        *(load_denoiser(base, device=CPU), data, stage, LORA),
        name="test",
        draws="test",
        seed=0,
        folder=str(folder),
        start=None,
        group=Alone(),
        on_step=lambda metrics: None,
    )
    return (folder / FILE_NAME).read_bytes()


def test_the_documents_family_does_what_sd15_does(registered: None, tmp_path: Path) -> None:
    mine, ours = base("mine"), base("sd15")
    check_base(mine)
    check_side(mine, 64, key="images.size")
    check_adapter(mine, LORA)
    ledger, data = encoded(mine, tmp_path / "mine")
    known, expected = encoded(ours, tmp_path / "ours")
    assert ledger.table().equals(known.table())
    x = torch.randn(2, *data.latent_shape, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([700, 30])
    predictions = [
        load_denoiser(which, device=CPU).predict(x, timesteps, of.embeddings)
        for which, of in ((mine, data), (ours, expected))
    ]
    torch.testing.assert_close(*predictions, atol=1e-5, rtol=0)  # SD-1.5's is channels last

    config = GenerateConfig(prompts="tiny:prompts", steps=2, size=64)
    images = []
    for which in (mine, ours):
        drawing = Generate(which, config, loras={})
        drawing.setup()
        row = {"model": "base", "prompt": "a photo of a red ball", "noise": 42}
        in_batches(drawing, [row])
        images.append(np.asarray(as_image(row["image"])))
    assert (images[0] == images[1]).all()
    assert images[0].std() > 10


@pytest.mark.parametrize("objective", ["dro", "dpo"])
def test_a_family_with_a_field_of_its_own_is_trained(
    objective: str, registered: None, tmp_path: Path
) -> None:
    masked, mine = base("masked"), base("mine")
    ledger, data = encoded(masked, tmp_path / "masked")
    assert ledger.table()["text_mask_shape"].to_pylist() == [[77]] * 3
    # Nothing of a caption is lost on its way through the ledger.
    for row in ledger.table().to_pylist():
        single = data.unconditional if row["id"] == "" else data.embeddings[int(row["id"])]
        assert to_row(single).items() <= row.items()
    mask = data.prompts([0, 1], [False, True], [False] * 2).text_mask_BL  # type: ignore[attr-defined]
    lengths = mask.sum(dim=1).tolist()
    assert 2 == lengths[1] < lengths[0] < 77  # the empty caption: begin and end
    # The network reads it: the same pairs give another LoRA than without.
    lora = trained(masked, data, tmp_path / "lora", objective=objective)
    _, unmasked = encoded(mine, tmp_path / "mine")
    assert lora != trained(mine, unmasked, tmp_path / "other", objective=objective)


def test_a_name_that_is_not_registered_lists_those_that_are(registered: None) -> None:
    with pytest.raises(InputError, match=r"base\.family='other'.*sd15, .*mine, masked"):
        base("other")
