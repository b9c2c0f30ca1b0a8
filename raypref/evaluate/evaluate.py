"""The evaluation graph on one screen: models and prompts in, images, scores and a table out.

Images are stored once, so another reward can score them later without generating again.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import pandas as pd
import pyarrow as pa

from raypref.config import Resources, Section, results_of, setting
from raypref.curate.colorfulness import colorfulness
from raypref.diffusion.backbone import BackboneConfig
from raypref.evaluate import tables
from raypref.evaluate.generate import BASE, Generate, GenerateConfig, rows_to_generate
from raypref.evaluate.metrics import texture_detail
from raypref.images import open_png
from raypref.ledger import Ledger, join, write_bytes, write_table
from raypref.rewards.base import Score
from raypref.rewards.pickscore import PickScoreConfig
from raypref.rows import Row
from raypref.streaming import StreamConfig, stream

METRICS = ("pickscore", "texture_detail", "colorfulness")


class TableConfig(Section):
    """How scores become a table."""

    resamples: int = setting(2000, "bootstrap samples of an interval", ge=100)
    published: str = setting("", "table of the paper to print beside ours, such as table3")


class PixelMetrics:
    """Stage: the metrics that need no model (paper, Figure 2a; colorfulness as in curation)."""

    name = "pixels"
    reads: tuple[str, ...] = ("image",)
    writes = pa.schema([("texture_detail", pa.float32()), ("colorfulness", pa.float32())])
    resources = Resources(workers=0, batch=8)

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, rows: list[Row]) -> None:
        """Fill the columns."""
        for row in rows:
            image = open_png(row["image"])
            row["texture_detail"] = texture_detail(image)
            row["colorfulness"] = colorfulness(image)


class Evaluation:
    """One run's evaluation: its ledgers and how they are filled.

    Args:
        base: the model that was aligned.
        generate: prompts, seeds and sampler settings.
        pickscore: the reward model.
        table: how scores become a table.
        loras: model name to the ledger of the stage that trained it.
        folder: the evaluation's folder, local or URI.
    """

    def __init__(
        self,
        base: BackboneConfig,
        generate: GenerateConfig,
        pickscore: PickScoreConfig,
        table: TableConfig,
        *,
        loras: Mapping[str, Ledger],
        folder: str,
    ) -> None:
        self.base = base
        self.generate = generate
        self.pickscore = pickscore
        self.table = table
        self.loras = loras
        self.folder = folder

    @cached_property
    def prompts(self) -> list[str]:
        """The prompts."""
        return self.generate.read()

    @cached_property
    def images(self) -> Ledger:
        """The generated images."""
        parts = {
            "base": self.base,
            "evaluate": self.generate,
            "prompts": self.prompts,
            **{f"{name}.lora": ledger.fingerprint for name, ledger in self.loras.items()},
        }
        return Ledger(join(self.folder, "images"), results_of(parts))

    @cached_property
    def scores(self) -> Ledger:
        """Their scores."""
        parts = {**self.images.settings, "pickscore": self.pickscore}
        return Ledger(join(self.folder, "scores"), results_of(parts))

    def run(self, streaming: StreamConfig) -> int:
        """Generate and score; skips and resumes what is done. Returns the number of images."""
        models = [BASE, *self.loras]
        rows = rows_to_generate(self.prompts, self.generate.seeds, models)
        loras = {name: ledger.path for name, ledger in self.loras.items()}
        facts = ["model", "prompt_id", "prompt", "seed"]
        stream(
            rows,
            stages=[Generate(self.base, self.generate, loras=loras)],
            ledger=self.images,
            keep=[*facts, "image"],
            config=streaming,
        )
        stream(
            self.images,
            stages=[
                Score(self.pickscore, columns={"image": "pickscore"}, prompt="prompt"),
                PixelMetrics(),
            ],
            ledger=self.scores,
            keep=[*facts, *METRICS],
            config=streaming,
        )
        return rows.num_rows

    def summary(self) -> pd.DataFrame:
        """The table's numbers from the finished scores."""
        return tables.summarise(self._long(), base=BASE, resamples=self.table.resamples)

    def published(self) -> dict[tuple[str, str], float] | None:
        """The paper's numbers to print beside ours, if asked for."""
        name = self.table.published
        return tables.published(name, self.base.family) if name else None

    def _long(self) -> pd.DataFrame:
        wide = self.scores.table().to_pandas()
        facts = ["prompt", "prompt_id", "seed", "model"]
        return wide.melt(facts, list(METRICS), var_name="metric", value_name="score")

    def tabulate(self) -> pd.DataFrame:
        """Write scores and table where people look for them; returns the table's numbers."""
        summary, paper = self.summary(), self.published()
        scores = pa.Table.from_pandas(self._long(), preserve_index=False)
        write_table(join(self.folder, "scores.parquet"), scores)
        markdown = tables.markdown(summary, published=paper)
        write_bytes(join(self.folder, "table.md"), markdown.encode())
        write_bytes(join(self.folder, "table.csv"), tables.csv(summary, published=paper).encode())
        return summary
