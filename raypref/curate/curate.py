"""The curation graph on one screen: photographs in, preference pairs out.

    index -> measure (decode, colorfulness) -> mean -> crop, saliency, inpaint, PickScore
          -> gap, top K -> photos, rejects, pairs

Every input ends exactly once: as a pair, as a photograph not selected, or as a reject.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property

import pyarrow as pa

from raypref.config import InputError, Section, results_of, setting
from raypref.curate.colorfulness import ColorConfig
from raypref.curate.perturb import Inpaint, PerturbConfig
from raypref.curate.photos import Crop, Measure
from raypref.curate.saliency import Saliency, SaliencyConfig
from raypref.curate.select import SelectConfig, drop_duplicates, mean_colorfulness, rank_pairs
from raypref.curate.sources import SourceConfig, digest, read_index
from raypref.images import ImageConfig
from raypref.ledger import Ledger, join, write_bytes
from raypref.progress import Work
from raypref.rewards.base import Score
from raypref.rewards.pickscore import PickScoreConfig
from raypref.rows import IMAGE, INDEX, REJECT, Row
from raypref.streaming import StreamConfig, stream

log = logging.getLogger(__name__)

PHOTOS = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.string()),
        ("uri", pa.string()),
        ("caption", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("colorfulness", pa.float64()),
        ("pickscore", pa.float32()),
        ("status", pa.string()),  # pair, not_selected or rejected
        ("reason", pa.string()),  # null for a pair
    ]
)
REJECTS = pa.schema([(name, pa.string()) for name in ("id", "uri", "stage", "reason", "message")])
PAIRS = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.string()),
        ("prompt", pa.string()),
        ("chosen", IMAGE),  # the photograph
        ("rejected", IMAGE),  # its degraded twin
        ("mask", IMAGE),  # where it was repainted, for people
        ("pickscore_chosen", pa.float32()),
        ("pickscore_rejected", pa.float32()),
        ("colorfulness", pa.float64()),
        ("rank", pa.int32()),
    ]
)
PAIRS_A_PART = 64

# What the second pass over the retained photographs starts from.
RETAINED = pa.schema(
    [INDEX.field(name) for name in ("id", "uri", "member", "caption")]
    + [Measure.writes.field(name) for name in ("key", "colorfulness")]
)


class CurateConfig(Section):
    """Everything that decides the pairs."""

    source: SourceConfig
    seed: int = setting(0, "seed of everything random")
    images: ImageConfig = ImageConfig()
    color: ColorConfig = ColorConfig()
    saliency: SaliencyConfig = SaliencyConfig()
    perturb: PerturbConfig = PerturbConfig()
    pickscore: PickScoreConfig = PickScoreConfig()
    select: SelectConfig = SelectConfig()


class Curation:
    """One run's curation: its ledgers and how they are filled.

    Args:
        config: everything that decides the pairs.
        folder: the run's folder, local or URI.
    """

    def __init__(self, config: CurateConfig, *, folder: str) -> None:
        self.config = config
        self.folder = folder

    @cached_property
    def index(self) -> pa.Table:
        """What the source lists."""
        return read_index(self.config.source)

    @cached_property
    def measured(self) -> Ledger:
        """Facts of every input."""
        c = self.config
        parts = {"source.digest": digest(self.index), "source": c.source, "images": c.images}
        return self._ledger("curate/measured", parts)

    @cached_property
    def candidates(self) -> Ledger:
        """Photographs above the threshold, with twin and scores."""
        c = self.config
        parts = {
            **self.measured.settings,
            "color": c.color,
            "saliency": c.saliency,
            "perturb": c.perturb,
            "pickscore": c.pickscore,
            "seed": c.seed,
        }
        return self._ledger("curate/candidates", parts)

    @cached_property
    def pairs(self) -> Ledger:
        """The selected pairs."""
        return self._ledger("pairs", {**self.candidates.settings, "select": self.config.select})

    @cached_property
    def ledgers(self) -> tuple[Ledger, ...]:
        """All ledgers of curation, in the order in which they are filled."""
        return (self.measured, self.candidates, self._photos, self._rejects, self.pairs)

    @cached_property
    def _photos(self) -> Ledger:
        return Ledger(join(self.folder, "photos"), self.pairs.settings)

    @cached_property
    def _rejects(self) -> Ledger:
        return Ledger(join(self.folder, "rejects"), self.pairs.settings)

    def _ledger(self, name: str, parts: Mapping[str, object]) -> Ledger:
        return Ledger(join(self.folder, name), results_of(parts))

    def run(self, streaming: StreamConfig) -> Work:
        """Curate; skips and resumes what is done.

        Raises:
            InputError: not one pair was left; says where the photographs were lost.
        """
        c = self.config
        measured = stream(
            self.index,
            stages=[Measure(c.source, c.images)],
            ledger=self.measured,
            keep=["uri", "member", "caption", *Measure.writes.names],
            config=streaming,
        )
        facts = self.measured.table().to_pylist()
        photos = [row for row in facts if row["reject_reason"] is None]
        repeated = drop_duplicates(photos)
        photos = [row for row in photos if row["id"] not in repeated]
        threshold = mean_colorfulness(photos) if c.color.enabled else float("-inf")
        retained = [row for row in photos if row["colorfulness"] > threshold]
        log.info(
            "colorfulness: %d of %d photographs are above %.2f",
            len(retained),
            len(photos),
            threshold,
        )
        scored = stream(
            pa.Table.from_pylist(retained, schema=RETAINED),
            stages=[
                Crop(c.source, c.images),
                Saliency(c.saliency),
                Inpaint(c.perturb, seed=c.seed),
                Score(
                    c.pickscore,
                    columns={"chosen": "pickscore_chosen", "rejected": "pickscore_rejected"},
                    prompt="caption",
                ),
            ],
            ledger=self.candidates,
            keep=[
                *("key", "caption", "colorfulness", "chosen", "rejected", "mask"),
                *("pickscore_chosen", "pickscore_rejected"),
            ],
            config=streaming,
        )
        outcomes = self._outcomes(facts, repeated, {row["id"] for row in retained})
        counts = self._publish(outcomes)
        log.info("pairs: %d of %d inputs", counts["pair"], len(outcomes))
        return Work(len(outcomes), "inputs", measured.busy + scored.busy)

    def _outcomes(
        self, facts: list[Row], repeated: dict[str, str], retained: set[str]
    ) -> list[Row]:
        """What became of every input: its facts, `status`, `reason` and, for a pair, `rank`."""
        scores = ("pickscore_chosen", "pickscore_rejected")
        candidates = {
            row["id"]: row for row in self.candidates.table([*scores, *REJECT.names]).to_pylist()
        }
        scored = [row for row in candidates.values() if row["reject_reason"] is None]
        ranks = rank_pairs(scored, self.config.select)
        outcomes = []
        for fact in facts:
            id_ = fact["id"]
            row = {**fact, **candidates.get(id_, {})}
            row["pickscore"] = row.get("pickscore_chosen")
            rank = ranks.get(id_)
            if row["reject_reason"] is not None:
                row |= {"status": "rejected", "reason": row["reject_reason"]}
            elif id_ in repeated:
                row |= {"status": "not_selected", "reason": "duplicate"}
            elif id_ not in retained:
                row |= {"status": "not_selected", "reason": "low_colorfulness"}
            elif isinstance(rank, str):
                row |= {"status": "not_selected", "reason": rank}
            else:
                row |= {"status": "pair", "reason": None, "rank": rank}
            outcomes.append(row)
        return outcomes

    def _publish(self, outcomes: list[Row]) -> Counter[str]:
        """Write the tables people read: photos, rejects, pairs."""
        counts = Counter(row["reason"] or row["status"] for row in outcomes)
        rejects = [
            {
                "id": row["id"],
                "uri": row["uri"],
                "stage": row["reject_stage"],
                "reason": row["reject_reason"],
                "message": row["reject_message"],
            }
            for row in outcomes
            if row["status"] == "rejected"
        ]
        _fill(self._photos, [pa.Table.from_pylist(outcomes, schema=PHOTOS)], counts)
        _fill(self._rejects, [pa.Table.from_pylist(rejects, schema=REJECTS)], counts)
        ranks = {row["id"]: row["rank"] for row in outcomes if row["status"] == "pair"}
        if not ranks:
            raise InputError(
                "no pair was left: " + ", ".join(f"{n} {reason}" for reason, n in counts.items())
            )
        self.pairs.begin()
        write_bytes(join(self.pairs.path, "README.md"), _card(self.config, counts).encode())
        _fill(self.pairs, self._pair_tables(ranks), counts)
        return counts

    def _pair_tables(self, ranks: dict[str, int]) -> Iterator[pa.Table]:
        schema = PAIRS.with_metadata({"huggingface": json.dumps(_features())})
        waiting: list[Row] = []
        for row in self.candidates.rows():
            if row["id"] in ranks:
                images = {
                    name: {"bytes": row[name], "path": f"{row['key'][:16]}_{name}.png"}
                    for name in ("chosen", "rejected", "mask")
                }
                waiting.append(
                    {**row, **images, "prompt": row["caption"], "rank": ranks[row["id"]]}
                )
            if len(waiting) == PAIRS_A_PART:
                yield pa.Table.from_pylist(waiting, schema=schema)
                waiting = []
        if waiting:
            yield pa.Table.from_pylist(waiting, schema=schema)


def _fill(
    ledger: Ledger, tables: Iterator[pa.Table] | list[pa.Table], counts: Counter[str]
) -> None:
    ledger.begin()
    rows = 0
    for table in tables:
        rows += table.num_rows
        ledger.write_part(table)
    ledger.commit(expected=rows, counts=counts)


def _features() -> dict[str, object]:
    """Tells `datasets` which columns are images."""
    kinds = {pa.string(): "string", pa.float32(): "float32", pa.float64(): "float64"}
    features: dict[str, object] = {}
    for field in PAIRS:
        if field.type == IMAGE:
            features[field.name] = {"_type": "Image"}
        else:
            features[field.name] = {"dtype": kinds.get(field.type, "int32"), "_type": "Value"}
    return {"info": {"features": features}}


def _card(config: CurateConfig, counts: Counter[str]) -> str:
    """The dataset card beside the pairs."""
    lines = [f"| {reason} | {number} |" for reason, number in sorted(counts.items())]
    return "\n".join(
        [
            "---",
            "configs:",
            "- config_name: default",
            '  data_files: "*.parquet"',
            "task_categories: [text-to-image]",
            "---",
            "",
            "# Preference pairs from real photographs",
            "",
            "`chosen` is a photograph, `rejected` the same photograph with its salient region",
            "(`mask`) repainted from its caption by",
            f"`{config.perturb.model}`. Scores are PickScore (`{config.pickscore.model}`).",
            "Method: *When Preference Labels Fall Short* (arXiv 2605.19839), section 3.2.",
            "The photographs keep their own licences.",
            "",
            f"What became of the {sum(counts.values())} inputs:",
            "",
            "| outcome | inputs |",
            "|---|---|",
            *lines,
            "",
        ]
    )
