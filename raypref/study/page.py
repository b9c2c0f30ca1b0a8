"""The page that raters see: one file with style and script inside, served or by itself."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from raypref.study.folder import Study

HERE = Path(__file__).parent
ORDERS = 100  # of a page without a server; the rater's code picks one


def served_page(study: Study) -> str:
    """The page that asks the server for everything but its words."""
    return _filled(study, "")


def static_page(study: Study) -> str:
    """The page that holds all images and needs no server; votes are saved as a file.

    It has a hundred orders of the tasks, of which the rater's code picks one.
    """
    tasks: dict[str, int] = {}
    told: list[list[str]] = []
    orders = []
    for number in range(ORDERS):
        order = []
        for asked in study.order(f"order {number}"):
            place = tasks.setdefault(asked.task, len(tasks))
            if place == len(told):
                sides = sorted((asked.left, asked.right))
                told.append([asked.task, asked.prompt, *sides])
            order.append(place if asked.left == told[place][2] else -place - 1)
        orders.append(order)
    images = {
        name: base64.b64encode(study.image(name).read_bytes()).decode()
        for name in dict.fromkeys(name for task in told for name in task[2:])
    }
    data = {"study": study.id, "tasks": told, "orders": orders, "images": images}
    # In a script element `</script` and `<!--` would end or change it.
    return _filled(study, json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"))


def policy(*, served: bool) -> str:
    """The security policy of a page: its own style and script, nothing from elsewhere."""
    style, script = (
        base64.b64encode(hashlib.sha256(_own(name).encode()).digest()).decode()
        for name in ("page.css", "page.js")
    )
    rules = [
        "default-src 'none'",
        "img-src 'self' data:" if served else "img-src data:",
        f"script-src 'sha256-{script}'",
        f"style-src 'sha256-{style}'",
        *(["connect-src 'self'", "frame-ancestors 'none'"] if served else []),
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join(rules)


def _own(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _filled(study: Study, data: str) -> str:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        style=Markup(_own("page.css")),
        script=Markup(_own("page.js")),
        data=Markup(data),
        policy=policy(served=False) if data else "",
        title=study.title,
        question=study.question,
        ties=study.ties,
    )
