"""A study's folder: what is asked, which model made which image, each rater's order.

FOLDER/study.json      what is asked, and which model made which image: not for raters
FOLDER/images/         what raters see, under names drawn at random
FOLDER/page.html       the page that needs no server, where it was asked for
FOLDER/votes.sqlite    the votes
FOLDER/votes.parquet, votes.csv, pairs.csv    what `raypref study votes` makes of them
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from raypref.core.config import InputError
from raypref.core.ledger import write_bytes
from raypref.core.rows import seed_of

FILE, IMAGES, PAGE = "study.json", "images", "page.html"
VERSION = 1
APART = 5  # pairs between a pair and its repeat, where there are as many
DAMAGED = "damaged"  # stands for a model: the scrambled side of an attention check
Kind = Literal["item", "repeat", "check"]


class StudyImage(NamedTuple):
    """One of the two images of an item."""

    image: str  # its file's name, drawn at random
    model: str


class Item(NamedTuple):
    """Two images of a prompt."""

    id: str  # drawn at random
    prompt_id: str
    prompt: str
    category: str
    sides: tuple[StudyImage, StudyImage]


class Task(NamedTuple):
    """An item that raters are asked about; one that is repeated has two tasks."""

    id: str  # drawn at random
    item: str
    kind: Kind


class AskedPair(NamedTuple):
    """A task as one rater sees it."""

    task: str
    prompt: str
    left: str  # names of images
    right: str


class Study(NamedTuple):
    """A study, as `study.json` holds it."""

    folder: Path
    id: str
    token: str  # stands in the address
    title: str
    question: str
    ties: bool
    per_rater: int  # items per rater; 0: all
    seed: int
    items: Mapping[str, Item]
    tasks: Mapping[str, Task]

    def order(self, rater: str) -> list[AskedPair]:
        """What a rater is asked, in order: it depends on the study and the rater's code alone.

        Attention checks are spread evenly. A repeat comes `APART` pairs after its item, where
        there are as many, with the sides exchanged.
        """

        def draw(what: str, task: str) -> int:
            return seed_of(self.seed, "study", what, rater, task)

        def share(task: str) -> float:
            return draw("position", task) / 2**63

        by_kind: dict[str, list[str]] = {"item": [], "repeat": [], "check": []}
        for own in self.tasks.values():
            by_kind[own.kind].append(own.id)
        first = sorted(by_kind["item"], key=lambda task: draw("order", task))
        first = first[: self.per_rater or None]
        at = {task: float(number) for number, task in enumerate(first)}
        of_item = {self.tasks[task].item: task for task in first}
        checks = sorted(by_kind["check"], key=lambda task: draw("order", task))
        for number, task in enumerate(checks):
            at[task] = (number + share(task)) * len(first) / len(checks) - 0.5
        flipped = {task: bool(draw("sides", task) & 1) for task in (*first, *checks)}
        for task in by_kind["repeat"]:
            if original := of_item.get(self.tasks[task].item):
                lowest = min(at[original] + APART, len(first))
                at[task] = lowest + share(task) * (len(first) - lowest) + 0.5
                flipped[task] = not flipped[original]
        return [self._asked(task, flipped[task]) for task in sorted(at, key=lambda t: (at[t], t))]

    def _asked(self, task: str, flipped: bool) -> AskedPair:
        item = self.items[self.tasks[task].item]
        left, right = reversed(item.sides) if flipped else item.sides
        return AskedPair(task, item.prompt, left.image, right.image)

    def sides(self, task: str) -> dict[str, str]:
        """The models of a task, by the names of their images."""
        return {side.image: side.model for side in self.items[self.tasks[task].item].sides}

    def image(self, name: str) -> Path:
        """The file of an image."""
        return self.folder / IMAGES / f"{name}.webp"


def write_study(study: Study, made_of: Mapping[str, Any]) -> None:
    """Write `study.json`; it is the last that is written of a study.

    Args:
        study: what is asked.
        made_of: settings and sources, for people.
    """
    told = study._asdict() | {"version": VERSION, "made_of": dict(made_of)}
    del told["folder"]
    for name in ("items", "tasks"):
        told[name] = [each._asdict() for each in told[name].values()]
    for item in told["items"]:
        item["sides"] = [side._asdict() for side in item["sides"]]
    text = json.dumps(told, indent=1, ensure_ascii=False)
    write_bytes(str(study.folder / FILE), text.encode())
    (study.folder / FILE).chmod(0o600)  # it says which model made which image


def read_study(folder: str) -> Study:
    """The study in a folder.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    at = Path(folder).expanduser().absolute()
    try:
        told = json.loads((at / FILE).read_text(encoding="utf-8"))
        items = [
            Item(**{**item, "sides": tuple(StudyImage(**side) for side in item["sides"])})
            for item in told["items"]
        ]
        tasks = [Task(**task) for task in told["tasks"]]
        names = [name for name in Study._fields if name not in ("folder", "items", "tasks")]
        return Study(
            folder=at,
            **{name: told[name] for name in names},
            items={item.id: item for item in items},
            tasks={task.id: task for task in tasks},
        )
    except FileNotFoundError:
        said = f"there is no study in {folder}; raypref study make RUN out={folder} makes one"
        raise InputError(said) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{at / FILE} cannot be read: {type(error).__name__}: {error}") from None


def evenly(prompts: Mapping[str, tuple[str, str]], *, count: int, seed: int) -> list[str]:
    """The ids of `count` prompts, as evenly over the categories as they allow; 0 takes all.

    Which of a category are taken depends on the seed and their text, not on the others.

    Args:
        prompts: text and category by id.
        count: how many, at most.
        seed: of the draw.
    """
    groups: dict[str, list[str]] = {}
    for id_, (_, category) in prompts.items():
        groups.setdefault(category, []).append(id_)
    ranked: list[tuple[int, int, str]] = []
    for category, ids in groups.items():
        drawn = sorted(ids, key=lambda id_: (seed_of(seed, "study", prompts[id_][0], id_), id_))
        first = seed_of(seed, "study", "category", category)
        ranked += [(rank, first, id_) for rank, id_ in enumerate(drawn)]
    return [id_ for _, _, id_ in sorted(ranked)][: count or None]


def every_two(models: Sequence[str], versus: str) -> list[tuple[str, str]]:
    """The pairs of models that are compared.

    Raises:
        InputError: `versus` is none of the models.
    """
    if versus and versus not in models:
        raise InputError(f"versus: there is no '{versus}'; there are {', '.join(models)}")
    return [
        (one, other)
        for number, one in enumerate(models)
        for other in models[number + 1 :]
        if versus in ("", one, other)
    ]
