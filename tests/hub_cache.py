"""A cache as the client of the hub keeps it: folders of commits, and names that stand for them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants

from raypref.models import hub


def commit(letter: str) -> str:
    """A commit's name."""
    return letter * 40


class HubCache:
    """Where repositories are put."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, repo: str, name: str, files: Path | dict[str, bytes]) -> Path:
        """One commit: a folder's files, or these."""
        snapshot = self._folder(repo) / "snapshots" / name
        if isinstance(files, Path):
            return Path(shutil.copytree(files, snapshot))
        for file, data in files.items():
            (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / file).write_bytes(data)
        return snapshot

    def point(self, repo: str, revision: str, to: str) -> None:
        """Let a branch or tag stand for a commit, for processes that ask from now on."""
        ref = self._folder(repo) / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(to)
        forget()

    def _folder(self, repo: str) -> Path:
        return self.root / f"models--{repo.replace('/', '--')}"


def forget() -> None:
    """As in a new process."""
    hub._fetch.cache_clear()
    hub._commit.cache_clear()
    hub.file_names.cache_clear()
    hub._found.clear()


@contextmanager
def made_in(root: Path) -> Iterator[HubCache]:
    """The cache that the hub's client uses meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(root))
        patch.setenv(hub.COMMITS, "{}")
        forget()
        yield HubCache(root)
        forget()
