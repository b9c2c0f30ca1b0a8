"""Names that mean the same file: other Unicode forms, backslashes, another letter case.

macOS hands names on decomposed (e and an accent), tables have them composed; Windows writes
backslashes and does not tell `A.JPG` from `a.jpg`. Spreadsheets leave spaces around a name.
"""

from __future__ import annotations

import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable


def one_form(name: str) -> str:
    """A name in the form in which names are compared: composed, with slashes."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def no_case(name: str) -> str:
    """That form, without regard to letter case and to spaces at either end."""
    return unicodedata.normalize("NFC", one_form(name).casefold()).strip()


class Alike:
    """Finds the name that is meant: the exact one, or else the only one like it.

    Args:
        names: those that there are.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)
        self._by_form: list[tuple[Callable[[str], str], dict[str, list[str]]]] = []

    def find(self, name: str) -> str | None:
        """The name meant; None where there is none, or where it could be several."""
        if name in self._names:
            return name
        if not self._by_form:
            self._by_form = [(form, self._grouped(form)) for form in (one_form, no_case)]
        for form, groups in self._by_form:
            if found := groups.get(form(name)):
                return found[0] if len(found) == 1 else None
        return None

    def _grouped(self, form: Callable[[str], str]) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = defaultdict(list)
        for name in self._names:
            groups[form(name)].append(name)
        return dict(groups)


def walk_to(name: str, listing: Callable[[str], Alike]) -> str | None:
    """The name meant, found folder by folder; None where there is none.

    Args:
        name: relative; one that leads up is never found.
        listing: the names in a folder, the first one being "".
    """
    for way in dict.fromkeys((name, name.replace("\\", "/"))):
        parts = posixpath.normpath(way).split("/")
        if not way.startswith("/") and ".." not in parts:
            found = _descend(parts, listing)
            if found is not None:
                return found
    return None


def _descend(parts: list[str], listing: Callable[[str], Alike]) -> str | None:
    folder = ""
    for part in parts:
        found = listing(folder).find(part)
        if found is None:
            return None
        folder = posixpath.join(folder, found)
    return folder
