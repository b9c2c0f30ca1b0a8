"""First scores read by tasks, against those of photographs read in the workers."""

from __future__ import annotations

from pathlib import Path

import pytest
import small
from corpus import write_folder

from raypref.core.config import InputError, build
from raypref.core.rows import Row, Transform, is_rejected
from raypref.curate.config import CurateConfig
from raypref.curate.photographic import PhotographicConfig
from raypref.curate.scoring import scoring_stages
from raypref.curate.transforms import MeasurePhotograph
from raypref.engine.batches import PooledTransform, in_batches
from raypref.images.decode import ImageConfig
from raypref.rewards.pickscore import PickScoreConfig
from raypref.sources.index import SourceConfig, entries

IMAGES = ImageConfig(size=32)
PICKSCORE = {"model": str(small.path("pickscore")), "processor": str(small.path("pickscore"))}


@pytest.fixture
def source(tmp_path: Path) -> SourceConfig:
    write_folder(tmp_path / "photos", good=6)
    return SourceConfig(path=str(tmp_path / "photos"))


def photographs(source: SourceConfig) -> list[Row]:
    """The sound ones, of which one is changed and one is gone since."""
    measure = MeasurePhotograph(source, IMAGES)
    measure.setup()
    rows = list(entries(source))
    measure(rows)
    sound = [row for row in rows if not is_rejected(row)]
    first, second = (Path(source.path, row["uri"]) for row in sound[:2])
    first.write_bytes(second.read_bytes())
    second.unlink()
    return sound


def through(stages: list[Transform], rows: list[Row]) -> list[Row]:
    own = [dict(row) for row in rows]
    for stage in stages:
        stage.setup()
        in_batches(stage, [row for row in own if not is_rejected(row)])
    return [{name: row.get(name) for name in KEPT} for row in own]


KEPT = ("id", "pickscore", "reject_stage", "reject_reason", "reject_message")


@pytest.mark.parametrize("quick", ["off", "tf32", "bfloat16"])
def test_a_pool_gives_the_scores_and_reasons_of_workers_to_the_bit(quick, source) -> None:
    rows, made = photographs(source), {}
    for readers in ("worker", "pool"):
        config = PickScoreConfig(**PICKSCORE, quick=quick, readers=readers)
        config = config.model_copy(
            update={"resources": config.resources.model_copy(update={"batch": 4})}
        )
        stages = scoring_stages(source, IMAGES, PhotographicConfig(), config, quick=quick != "off")
        assert isinstance(stages[-1], PooledTransform) == (readers == "pool")
        made[readers] = through(stages, rows)
    assert made["pool"] == made["worker"]
    assert [row["reject_reason"] for row in made["pool"][:2]] == ["changed", "missing_file"]
    assert sum(row["pickscore"] is not None for row in made["pool"]) >= 4


def test_a_pool_is_refused_beside_the_filter_of_photographs() -> None:
    given = {"source": {"path": "x"}, "photographic": {"enabled": True}}
    with pytest.raises(InputError, match=r"^pickscore.readers=pool sends .* set pickscore.readers"):
        build(CurateConfig, {**given, "pickscore": {"readers": "pool"}})
    build(CurateConfig, given)
