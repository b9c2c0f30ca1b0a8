"""What goes with the package: what a wheel holds, who to cite, what is checked before a commit."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Builds as pip does, without the environment of its own that pip would download.
BUILD = """
import sys
from setuptools import build_meta
print(build_meta.build_wheel(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel of what git would commit."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    source, built = folder / "source", folder / "built"
    source.mkdir()
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a checkout")
    with tarfile.open(folder / "source.tar", "w") as tar:
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                tar.add(ROOT / name, name)
    with tarfile.open(folder / "source.tar") as tar:
        tar.extractall(source, filter="data")
    subprocess.run([sys.executable, "-c", BUILD, str(built)], cwd=source, check=True)
    (file,) = built.glob("*.whl")
    return zipfile.ZipFile(file)


def test_a_wheel_holds_every_file_of_the_package(wheel):
    held = {name for name in wheel.namelist() if name.startswith("raypref/")}
    there = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "raypref").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == there
    assert "raypref/py.typed" in held


def test_a_wheel_installs_the_command(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    text = wheel.read(name).decode()
    assert text.split() == ["[console_scripts]", "raypref", "=", "raypref.cli:console"]


def test_the_installed_command_is_there():
    ((name, target),) = PROJECT["project"]["scripts"].items()
    module, _, function = target.partition(":")
    assert name == "raypref"
    assert callable(getattr(import_module(module), function))


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = PROJECT["project"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys(), "what CFF requires"
    assert citation["title"] == project["name"]
    assert str(citation["version"]) == project["version"]
    assert citation["license"] == project["license"]
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert paper["url"] == project["urls"]["Method"]
    assert paper["title"] in " ".join((ROOT / "README.md").read_text().split())


def test_a_commit_is_checked_as_make_lint_does():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (local,) = config["repos"]
    assert local["repo"] == "local", "nothing is downloaded"
    hooks = [hook["entry"].removeprefix(".venv/bin/").split()[:2] for hook in local["hooks"]]
    lint = (ROOT / "Makefile").read_text().split("lint: setup")[1].split("\n\n")[0]
    lines = re.findall(r"\$\(BIN\)/(.*)", lint)
    apart = ("--check", ".", "-n", "2")  # what only says how, or on what
    told = [[word for word in line.split() if word not in apart] for line in lines]
    assert hooks == told
    assert all(hook["language"] == "system" for hook in local["hooks"])


def test_contributing_names_files_that_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    surfaces = text.split("## Frozen surfaces")[1].split("\n## ")[0]
    named = re.findall(r"`((?:raypref|tests)/[\w./]*)`", surfaces)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []
