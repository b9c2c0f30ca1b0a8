"""Small studies for tests: folders of images of two models, a study of them, a server."""

import contextlib
import http.client
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from raypref.core.config import build
from raypref.study.config import StudyConfig
from raypref.study.folder import Study, read_study
from raypref.study.make import make_study

ROOT = Path(__file__).parents[1]
MODELS = ("secret_alpha", "secret_beta")
CATEGORIES = ("anime", "photo")


def folders(at: Path, count: int = 8) -> list[str]:
    """Images of two models in two categories, in other formats, with the model in the metadata."""
    rng = np.random.default_rng(0)
    for model in MODELS:
        told = PngImagePlugin.PngInfo()
        told.add_text("parameters", f"made by {model}")
        for number in range(count):
            pixels = rng.integers(0, 255, (3, 3, 3), np.uint8)
            image = Image.fromarray(pixels).resize((24, 24), Image.Resampling.NEAREST)
            path = at / model / CATEGORIES[number % 2] / f"{number:03d}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if model == MODELS[0]:
                image.save(path.with_suffix(".png"), pnginfo=told)
                path.with_suffix(".txt").write_text(f"prompt <{number}> & more")
            else:
                image.save(path.with_suffix(".jpg"), comment=model.encode())
    return [str(at / model) for model in MODELS]


def made(at: Path, count: int = 8, **settings: Any) -> Study:
    """A study of such folders."""
    own = build(StudyConfig, {"out": str(at / "study"), **settings})
    make_study(folders(at / "images", count), own)
    return read_study(str(at / "study"))


def answer(study: Study, rater: str, number: int, choice: str = "left") -> dict[str, Any]:
    """What a page sends of the task with this number of a rater."""
    asked = study.order(rater)[number]
    about = {"task": asked.task, "left": asked.left, "right": asked.right}
    return {"id": secrets.token_hex(16), "rater": rater, **about, "choice": choice, "seconds": 1.5}


class Served:
    """A study served by a process of its own."""

    def __init__(self, study: Study, process: subprocess.Popen[str], port: int) -> None:
        self.study, self.process, self.port = study, process, port
        self.url = f"http://127.0.0.1:{port}/{study.token}/"

    def post(self, what: str, told: Any) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"}
            connection.request("POST", f"/{self.study.token}/{what}", json.dumps(told), headers)
            given = connection.getresponse()
            return given.status, json.loads(given.read())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def served(study: Study, *words: str, port: int = 0) -> Iterator[Served]:
    """The study behind `raypref study serve`."""
    command = [sys.executable, "-m", "raypref", "study", "serve", str(study.folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, f"--port={port}", *words], stdout=subprocess.PIPE, env=environment, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Study: http://127.0.0.1:"), line
        yield Served(study, process, int(line.split(":")[3].split("/")[0]))
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
