"""A study under load: 50 simulated raters, 10,000 votes; how long a vote takes, which are lost.

python benchmarks/study.py [RATERS] [VOTES_PER_RATER]

The server is `raypref study serve` in a process of its own, the raters are threads of this one, on
the same cores. Each vote is on the disk before it is answered. Every tenth is sent twice, as after
a lost answer. Last comes what the votes' file holds.
"""

from __future__ import annotations

import http.client
import json
import secrets
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from raypref.core.config import build
from raypref.study.config import StudyConfig
from raypref.study.folder import Study
from raypref.study.make import make_study
from raypref.study.votes import CHOICES, VoteStore

SIDE = 64  # px


def study_of(folder: Path, pairs: int) -> Study:
    """A study of random images."""
    rng = np.random.default_rng(0)
    for model in ("one", "other"):
        (folder / model).mkdir()
        for number in range(pairs):
            pixels = rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)
            Image.fromarray(pixels).save(folder / model / f"{number}.png")
    config = build(StudyConfig, {"out": str(folder / "study"), "prompts": 0})
    return make_study([str(folder / "one"), str(folder / "other")], config).study


class Rater(threading.Thread):
    """Votes as quickly as it is answered, and sees the images before."""

    def __init__(self, study: Study, port: int, code: str) -> None:
        super().__init__()
        self.study, self.code = study, code
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.seconds: list[float] = []
        self.pictures: list[float] = []
        self.acknowledged: set[str] = set()

    def run(self) -> None:
        """Vote on everything."""
        rng = np.random.default_rng(int(self.code))
        for number, asked in enumerate(self.study.order(self.code)):
            for image in (asked.left, asked.right):
                began = time.perf_counter()
                self.ask("GET", f"images/{image}.webp")
                self.pictures.append(time.perf_counter() - began)
            about = {"task": asked.task, "left": asked.left, "right": asked.right}
            vote = {"id": secrets.token_hex(16), "rater": self.code, **about}
            vote["choice"] = CHOICES[rng.integers(3)]
            for _ in range(2 if number % 10 == 0 else 1):
                began = time.perf_counter()
                if self.ask("POST", "vote", json.dumps(vote)) == 200:
                    self.acknowledged.add(str(vote["id"]))
                    self.seconds.append(time.perf_counter() - began)

    def ask(self, method: str, what: str, body: str | None = None) -> int:
        """One request; its status."""
        headers = {"Content-Type": "application/json"} if body else {}
        self.connection.request(method, f"/{self.study.token}/{what}", body, headers)
        answer = self.connection.getresponse()
        answer.read()
        return answer.status


def milliseconds(seconds: list[float]) -> str:
    """Median, 95th percentile and the longest."""
    shares = 1000 * np.quantile(seconds, [0.5, 0.95, 1.0])
    return "median {:.1f} ms, p95 {:.1f} ms, longest {:.1f} ms".format(*shares)


def main(raters: int, votes: int) -> None:
    """Measure once."""
    with TemporaryDirectory() as folder:
        study = study_of(Path(folder), votes)
        command = [sys.executable, "-m", "raypref", "study", "serve", str(study.folder)]
        words = ["--port=0", "--rate=100000"]  # as quick as it can
        server = subprocess.Popen([*command, *words], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        port = int(server.stdout.readline().split(":")[3].split("/")[0])
        people = [Rater(study, port, f"{number:03d}") for number in range(raters)]
        began = time.perf_counter()
        for each in people:
            each.start()
        for each in people:
            each.join()
        took = time.perf_counter() - began
        server.kill()  # as a crash would
        server.wait()
        store = VoteStore(study.folder)
        kept = store.all()
        store.close()
    acknowledged = set().union(*(each.acknowledged for each in people))
    seconds = [value for each in people for value in each.seconds]
    pictures = [value for each in people for value in each.pictures]
    print(f"raters, votes                {raters}, {len(acknowledged):,} of {raters * votes:,}")
    print(f"votes per second             {len(seconds) / took:.0f}, and twice as many images")
    print(f"a vote, until it is answered {milliseconds(seconds)}")
    print(f"an image                     {milliseconds(pictures)}")
    lost = acknowledged - {vote.id for vote in kept}
    doubled = len(kept) - len({(vote.rater, vote.task) for vote in kept})
    print(f"lost, doubled                {len(lost)}, {doubled}")


if __name__ == "__main__":
    main(*(int(word) for word in (sys.argv[1:] or ["50", "200"])))
