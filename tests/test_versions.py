"""The reported commit is the project's own, or none."""

import shutil
import subprocess
from pathlib import Path

import pytest

from raypref import __version__
from raypref.core import versions


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    command = ["git", "-C", str(folder), *who, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The module in an environment below a checkout of something else, not tracked there."""
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("env/\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "theirs")
    module = tmp_path / "env" / "versions.py"
    module.parent.mkdir()
    shutil.copy(versions.__file__, module)
    monkeypatch.setattr(versions, "__file__", str(module))
    return module


def test_no_commit_of_another_project(installed: Path):
    assert versions.commit() == ""
    assert versions.own_version() == __version__


def test_the_commit_of_a_checkout(installed: Path):
    git(installed.parent, "add", "-f", installed.name)
    git(installed.parent, "commit", "-qm", "ours")
    commit = git(installed.parent, "rev-parse", "--short=12", "HEAD")
    assert versions.commit() == commit
    assert versions.own_version() == f"{__version__} (commit {commit})"
    installed.write_text("")
    assert versions.commit() == f"{commit}-dirty"


def test_no_git_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert versions.commit() == ""
