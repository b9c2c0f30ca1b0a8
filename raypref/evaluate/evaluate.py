"""The evaluation graph on one screen: models and prompts in, images, scores and a table out.

Images are stored once, so another reward can score them later without generating again.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from raypref.config import Location, Resources, Section, results_of, setting
from raypref.curate.colorfulness import colorfulness
from raypref.diffusion.backbone import BackboneConfig
from raypref.evaluate import tables
from raypref.evaluate.accuracy import PromptAccuracy
from raypref.evaluate.distance import cmmd_summary
from raypref.evaluate.generate import BASE, Generate, GenerateConfig, rows_to_generate
from raypref.evaluate.metrics import texture_detail
from raypref.images import open_png
from raypref.ledger import Ledger, Place, join, placed, write_bytes, write_table
from raypref.progress import Work
from raypref.rewards.base import Embed, Score
from raypref.rewards.pickscore import PickScoreConfig
from raypref.rows import Row, Stage
from raypref.streaming import Selection, StreamConfig, stream

METRICS = ("pickscore", "texture_detail", "colorfulness")  # of a single image


class MetricsConfig(Section):
    """What is measured besides PickScore, texture detail and colorfulness."""

    distance: bool = setting(True, "CMMD to the photographs of the pairs, in PickScore's embedding")
    critic: Location = setting(
        "", "classifier that judges prompt accuracy; there is one for the tiny world only"
    )


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
        metrics: what else is measured.
        table: how scores become a table.
        pairs: whose photographs are the reference of the distance.
        loras: model name to the ledger of the stage that trained it.
        folder: where people look for its tables, local or URI.
        place: where its ledgers lie.
    """

    def __init__(
        self,
        base: BackboneConfig,
        generate: GenerateConfig,
        pickscore: PickScoreConfig,
        metrics: MetricsConfig,
        table: TableConfig,
        *,
        pairs: Ledger,
        loras: Mapping[str, Ledger],
        folder: str,
        place: Place,
    ) -> None:
        self.base = base
        self.generate = generate
        self.pickscore = pickscore
        self.metrics = metrics
        self.table = table
        self.pairs = pairs
        self.loras = loras
        self.folder = folder
        self.place = place

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
        return placed(self.place, "evaluation/images", results_of(parts))

    @cached_property
    def scores(self) -> Ledger:
        """Their scores."""
        parts = {**self.images.settings, "pickscore": self.pickscore, "metrics": self.metrics}
        return placed(self.place, "evaluation/scores", results_of(parts))

    @cached_property
    def reference(self) -> Ledger:
        """Embeddings of the photographs of the pairs."""
        parts = {"pairs": self.pairs.fingerprint, "pickscore": self.pickscore}
        return placed(self.place, "evaluation/reference", results_of(parts))

    @property
    def ledgers(self) -> tuple[Ledger, ...]:
        """All that `run` fills."""
        distance = (self.reference,) if self.metrics.distance else ()
        return (self.images, self.scores, *distance)

    def run(self, streaming: StreamConfig) -> Work:
        """Generate and score; skips and resumes what is done."""
        busy = 0.0
        models = [BASE, *self.loras]
        rows = rows_to_generate(self.prompts, self.generate.seeds, models)
        loras = {name: ledger.path for name, ledger in self.loras.items()}
        facts = ["model", "prompt_id", "prompt", "seed"]
        busy += stream(
            rows,
            stages=[Generate(self.base, self.generate, loras=loras)],
            ledger=self.images,
            keep=[*facts, "image"],
            config=streaming,
        ).busy
        stages: list[Stage] = [
            Score(self.pickscore, columns={"image": "pickscore"}, prompt="prompt"),
            PixelMetrics(),
        ]
        columns = [*METRICS]
        if self.metrics.critic:
            stages.append(PromptAccuracy(self.metrics.critic))
            columns.append("prompt_accuracy")
        if self.metrics.distance:
            stages.append(Embed(self.pickscore, column="image"))
            columns.append("embedding")
            photographs = self.pairs.table(["chosen"])
            busy += stream(
                photographs.select(["id"]).append_column(
                    "image", pc.struct_field(photographs["chosen"], "bytes")
                ),
                stages=stages[-1:],
                ledger=self.reference,
                keep=["embedding"],
                config=streaming,
            ).busy
        busy += stream(
            Selection(self.images),
            stages=stages,
            ledger=self.scores,
            keep=[*facts, *columns],
            config=streaming,
        ).busy
        return Work(rows.num_rows, "images", busy)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """The table's numbers. The scores must be complete."""
        resamples = self.table.resamples
        summary = tables.summarise(self._long(), base=BASE, resamples=resamples)
        if not self.metrics.distance:
            return summary
        embeddings = self.scores.table(["model", "prompt_id", "embedding"]).to_pandas()
        reference = np.stack(self.reference.table(["embedding"])["embedding"].to_numpy())
        cmmd = cmmd_summary(embeddings, reference, base=BASE, resamples=resamples)
        return pd.concat([summary, cmmd], ignore_index=True)

    def published(self) -> dict[tuple[str, str], float] | None:
        """The paper's numbers to print beside ours, if asked for."""
        name = self.table.published
        return tables.published(name, self.base.family) if name else None

    def _long(self) -> pd.DataFrame:
        facts = ["prompt", "prompt_id", "seed", "model"]
        metrics = [*METRICS, *(["prompt_accuracy"] if self.metrics.critic else [])]
        wide = self.scores.table([*facts, *metrics]).to_pandas()
        return wide.melt(facts, metrics, var_name="metric", value_name="score")

    def tabulate(self) -> pd.DataFrame:
        """Write scores and table where people look for them; returns the table's numbers."""
        summary, paper = self.summary, self.published()
        scores = pa.Table.from_pandas(self._long(), preserve_index=False)
        write_table(join(self.folder, "scores.parquet"), scores)
        markdown = tables.markdown(summary, published=paper)
        write_bytes(join(self.folder, "table.md"), markdown.encode())
        write_bytes(join(self.folder, "table.csv"), tables.csv(summary, published=paper).encode())
        return summary
