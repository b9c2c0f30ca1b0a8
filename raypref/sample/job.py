"""The job of `raypref sample`: what is drawn, where it lies, and what it says at its end."""

from __future__ import annotations

import io
import logging
import re
from functools import cached_property
from typing import TYPE_CHECKING

from pyarrow import fs as pafs

from raypref.core.config import InputError, results_of
from raypref.core.job_lock import only_job_in
from raypref.core.ledger import (
    Ledger,
    absolute,
    filesystem,
    in_folder,
    join,
    placed,
    read_bytes,
    write_bytes,
)
from raypref.core.progress import counted
from raypref.engine.cluster import start_ray
from raypref.engine.kept import released_after
from raypref.engine.stream import stream
from raypref.evaluate.generate import Adapter, other_loras, rows_to_generate
from raypref.evaluate.tables import plain_csv
from raypref.models import checks, hub
from raypref.models.families.registry import family
from raypref.models.soups import write_soup
from raypref.rewards.config import RewardConfig
from raypref.rewards.rewards import reward
from raypref.run.pipeline import Run
from raypref.sample.config import SampleJobConfig
from raypref.sample.draw import DrawChosen, check_gradients, score_column

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

FOLDER = "sample"
NONE = "none"
CSV = "images.csv"


class Sampling:
    """One result folder of `raypref sample`.

    Args:
        config: all settings.
    """

    def __init__(self, config: SampleJobConfig) -> None:
        self.config = config
        self.run = Run(config)
        self.folder = join(self.run.folder, FOLDER, config.sample.folder)

    @cached_property
    def rewards(self) -> dict[str, RewardConfig]:
        """Settings of the rewards by name."""
        c = self.config
        return {name: reward(name, c.pickscore.exactly(), c.rewards) for name in c.sample.rewards}

    @cached_property
    def lora(self) -> Adapter | None:
        """The LoRA of the images, or the network of a training of all weights."""
        named = self.config.sample.loras
        if named == NONE:
            return None
        if not named:
            final = self.run.trained.get(self.run.alignment.final)
            if final is None or final.state() != "complete":
                return None
            return self.run.made[self.run.alignment.final]
        return self._found(named, key="loras")

    @cached_property
    def negative(self) -> Adapter | None:
        """The LoRA that is added on the unconditional side."""
        named = self.config.sample.negative
        return self._found(named, key="negative") if named else None

    def _found(self, named: str, *, key: str) -> Adapter:
        trained = {name: self.run.made[name] for name in self.run.trained}
        missing = [n for n, own in self.run.trained.items() if own.state() != "complete"]
        named_here = {part.rpartition("*")[2].strip() for part in named.split(" + ")}
        if lacking := sorted(named_here & {*missing}):
            raise InputError(
                f"sample.{key}: the run has not trained {lacking[0]} yet; run it first, or name a "
                "folder"
            )
        if named in trained:
            return trained[named]
        return other_loras({key: named}, trained, key="sample.")[key]

    @cached_property
    def ledger(self) -> Ledger:
        """The images."""
        c = self.config
        parts: dict[str, object] = {
            "base": c.base,
            "evaluate": c.evaluate,
            "prompts": self.run.evaluation.set.identity,
            "sample": c.sample,
            "lora": self.lora.fingerprint if self.lora else "",
            "negative": self.negative.fingerprint if self.negative else "",
            **{f"reward.{name}": own for name, own in self.rewards.items()},
        }
        parts = results_of(parts)
        for key in ("sample.loras", "sample.negative"):  # their content is there
            parts.pop(key, None)
        return placed(in_folder(self.folder), "chosen", parts)

    def check(self) -> None:
        """Raises InputError for what is missing or cannot work."""
        c = self.config
        if c.sample.method == "reno":
            check_gradients(self.rewards)
        for own, key in ((self.lora, "merged"), (self.negative, "negative")):
            if own and own.whole and getattr(c.sample, key):
                raise InputError(
                    f"sample.{key}: it takes a LoRA, and the run trained all weights (lora.rank=0)"
                )
        for judge in self.rewards.values():
            judge.check()
        checks.check_base(c.base)
        checks.check_side(c.base, c.evaluate.size, key="evaluate.size")
        if self.run.evaluation.set.holes is not None:
            raise InputError("evaluate.holes: raypref sample draws from prompts; leave it out")

    def outlook(self) -> list[str]:
        """What the job would do."""
        c = self.config
        images = counted(len(self.run.evaluation.texts) * len(c.evaluate.seeds), "image")
        lora = self.lora.folder if self.lora else "no LoRA"
        return [
            f"sample: {images} by {c.sample.method}, {lora}, judged by {', '.join(self.rewards)}",
            f"about {forwards_of(c):,} network forwards per image, "
            f"{c.evaluate.steps} steps, guidance {c.evaluate.guidance:g}",
            f"into {self.folder}",
        ]

    def make(self, *, redo: bool = False) -> pd.DataFrame:
        """Draw what is missing and write files, table and page; returns the table of images."""
        if self.ledger.state() == "stale":
            if not redo:
                raise InputError(
                    f"{self.folder} was made with other settings "
                    f"({', '.join(self.ledger.changes())}); take another sample.name, or --redo"
                )
            self.ledger.clear()
        with only_job_in(self.folder):
            if self.ledger.state() != "complete":
                self._draw()
            images = self._write_images()
            if self.config.sample.merged and self.lora:
                component = family(self.config.base.family).component
                key, where = "sample.loras", join(self.folder, "lora")
                write_soup(self.lora.folder, key=key, component=component, folder=where)
            self._write_page(images)
        return images

    def _draw(self) -> None:
        c = self.config
        stage = DrawChosen(
            c.base,
            c.evaluate,
            c.sample,
            rewards=self.rewards,
            lora=self.lora.folder if self.lora else "",
            negative=self.negative.folder if self.negative else "",
        )
        rows = rows_to_generate(self.run.evaluation.texts, c.evaluate, [FOLDER])
        size = min(c.stream.block_rows, c.evaluate.resources.batch)
        streaming = c.stream.model_copy(update={"block_rows": size})
        keep = ["prompt_id", "prompt", "seed", *stage.writes.names]
        hub.tell_workers()
        start_ray()
        with released_after():
            stream(rows, stages=[stage], ledger=self.ledger, keep=keep, config=streaming)

    def _write_images(self) -> pd.DataFrame:
        """PNG files and `images.csv`."""
        import pandas as pd

        scores = [score_column(name) for name in self.rewards]
        columns = ["prompt_id", "prompt", "seed", "reward", "forwards", "seen", *scores]
        rows = sorted(
            self.ledger.table([*columns, "image"]).to_pylist(),
            key=lambda row: (row["prompt_id"], row["seed"]),
        )
        for row in rows:
            row["file"] = png_name(row["prompt_id"], row["prompt"], row["seed"])
            path = join(self.folder, "images", row["file"])
            if read_bytes(path) != row["image"]:
                write_bytes(path, row["image"])
        images = pd.DataFrame(rows, columns=["file", *columns])
        images.insert(0, "method", self.config.sample.method)
        write_bytes(join(self.folder, CSV), plain_csv(images).encode())
        return images

    def _write_page(self, images: pd.DataFrame) -> None:
        from raypref.report.sampled import render

        shown = [
            (row.prompt, row.seed, row.reward, _small(read_bytes(self._path(row.file)) or b""))
            for row in images.head(48).itertuples()
        ]
        text = render(name=self.config.sample.folder, costs=self.costs(), shown=shown)
        write_bytes(join(self.folder, "index.html"), text.encode())

    def _path(self, file: str) -> str:
        return join(self.folder, "images", file)

    def costs(self) -> pd.DataFrame:
        """Reward against forwards, a row per result of the run: name, method, images, means."""
        import pandas as pd

        beside = absolute(join(self.run.folder, FOLDER))
        fs, root = filesystem(beside)
        selector = pafs.FileSelector(root, allow_not_found=True)
        found = []
        for name in sorted(info.base_name for info in fs.get_file_info(selector)):
            data = read_bytes(join(beside, name, CSV))
            if data is None:
                continue
            own = pd.read_csv(io.BytesIO(data))
            found.append(
                {
                    "name": name,
                    "method": own["method"][0],
                    "images": len(own),
                    "forwards": own["forwards"].mean(),
                    "reward": own["reward"].mean(),
                }
            )
        return pd.DataFrame(found).sort_values(["forwards", "name"], ignore_index=True)


def forwards_of(config: SampleJobConfig) -> int:
    """Network forwards per image, those of guidance counted apart."""
    own, steps = config.sample, config.evaluate.steps
    images = {
        "plain": 1,
        "best_of": own.candidates,
        "fk_steering": own.candidates,
        "noise_search": 1 + own.rounds * own.candidates,
        "reno": own.ascents + 1,
    }[own.method]
    return images * steps * (2 if config.evaluate.guidance > 1 else 1)


def png_name(number: int, prompt: str, seed: int) -> str:
    """Of an image: the prompt's number, some of its words, the seed."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
    return f"{number:05d}-{words or 'prompt'}-{seed}.png"


def _small(png: bytes) -> bytes:
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        image.thumbnail((192, 192))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
