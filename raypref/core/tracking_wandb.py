"""Weights & Biases: one run per run. Only this file knows wandb, which is an optional extra.

Steps are counted per training (`stage1/step`): W&B's own step would have to grow over all of them.
"""

from __future__ import annotations

import io
import logging
import os
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raypref.core.config import InputError
from raypref.core.ledger import absolute
from raypref.core.messages import without_secrets

log = logging.getLogger(__name__)

START_SECONDS = 30.0  # for a server's answer
FINISH_SECONDS = 60.0  # for what is still to be sent; `wandb sync` sends the rest
WITHOUT_KEY = {"offline", "disabled", "dryrun"}  # values of WANDB_MODE


def require_wandb() -> None:
    """See before any work that W&B can be used.

    Raises:
        InputError: it is not installed, or nobody is logged in; says what to do.
    """
    try:
        import wandb
    except ImportError:
        raise InputError(
            "tracking.also: wandb is not installed; pip install 'raypref[wandb]', or leave it out"
        ) from None
    # Without a key it would ask at the terminal and wait.
    if os.environ.get("WANDB_MODE", "") not in WITHOUT_KEY and not wandb.api.api_key:
        raise InputError(
            "tracking.also: wandb has no key; run `wandb login`, set WANDB_API_KEY, or set "
            "WANDB_MODE=offline and send the run later with `wandb sync`"
        )


class WandbRecord:
    """A run of W&B.

    Args:
        project: its project.
        folder: of the run; W&B's own files go there if it is on a local disk.
        name: of the run.
        group: what the run is a part of; empty: of nothing.
        settings: flat settings.
        run_id: the run to continue, if this job was begun before.
    """

    def __init__(
        self,
        project: str,
        *,
        folder: str,
        name: str,
        group: str,
        settings: Mapping[str, Any],
        run_id: str | None,
    ) -> None:
        import wandb

        self.wandb: Any = wandb
        self.id = run_id or uuid.uuid4().hex[:12]
        local = "" if "://" in folder else absolute(folder)
        if local:
            Path(local).mkdir(parents=True, exist_ok=True)
        self.run: Any = wandb.init(
            project=project,
            id=self.id,
            resume="allow",
            name=name,
            group=group or None,
            config={key: without_secrets(str(value)) for key, value in settings.items()},
            dir=local or None,
            # Its copy of the terminal's output would slow every line.
            settings=wandb.Settings(console="off", silent=True, init_timeout=START_SECONDS),
        )
        self.last: dict[str, int] = {}  # the latest step of each training
        if url := getattr(self.run, "url", None):
            log.info("tracking: %s", url)

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Add a point to each curve; a step that was recorded before is left out."""
        for prefix in dict.fromkeys(key.split("/")[0] for key in values):
            axis = f"{prefix}/step"
            if prefix not in self.last:
                self.run.define_metric(f"{prefix}/*", step_metric=axis)
                self.last[prefix] = int(self.run.summary.get(axis, -1))  # of a resumed run
            if step > self.last[prefix]:
                own = {key: v for key, v in values.items() if key.split("/")[0] == prefix}
                self.run.log({**own, axis: step})
                self.last[prefix] = step

    def history(self, rows: Iterable[Mapping[str, float]], *, prefix: str) -> None:
        """Add whole curves; each row has its `step`."""
        for row in rows:
            values = {f"{prefix}/{key}": value for key, value in row.items() if key != "step"}
            self.metrics(values, step=int(row["step"]))

    def numbers(self, values: Mapping[str, float]) -> None:
        """Put them into the summary: the columns that runs are compared by; no charts."""
        self.run.summary.update(dict(values))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add the table."""
        data = [[*row] for row in rows]
        self.run.log({name: self.wandb.Table(columns=[*columns], data=data)})

    def describe(self, text: str) -> None:
        """Set the run's notes."""
        self.run.notes = text

    def images(self, name: str, pictures: Mapping[str, bytes]) -> None:
        """Add the pictures as one panel."""
        from PIL import Image

        opened = [(Image.open(io.BytesIO(data)), caption) for caption, data in pictures.items()]
        self.run.log({name: [self.wandb.Image(image, caption=told) for image, told in opened]})

    def artifact(self, path: str, folder: str = "") -> None:
        """Nothing: files stay in the run's folder, and do not go over the network."""

    def finish(self, status: str) -> None:
        """Send what is left, for a while, and close the run."""
        code = 0 if status == "FINISHED" else 1
        closing = threading.Thread(target=self.run.finish, kwargs={"exit_code": code}, daemon=True)
        closing.start()
        closing.join(FINISH_SECONDS)
        if closing.is_alive():
            log.warning("tracking: W&B is slow; send the rest later with `wandb sync`")
