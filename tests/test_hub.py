"""Where models come from, and what is said when they are not there. No network is touched."""

from __future__ import annotations

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import constants

from raypref.core.config import InputError
from raypref.core.messages import first_line
from raypref.demo import checkpoints
from raypref.models.hub import from_pretrained, model_folder, weight_file

ORIGIN = "https://example.org/u2net"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    assert os.environ["HF_HUB_OFFLINE"] == "1"

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"network access: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """A hub cache that holds two files of `someone/model`."""
    cache = tmp_path / "hub"
    repo = cache / "models--someone--model"
    snapshot = repo / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(snapshot.name)
    (snapshot / "model_index.json").write_text("{}")
    (snapshot / "u2net.pth").write_bytes(b"weights")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return snapshot


def folder(ref: str, probe: str = "model_index.json") -> str:
    return model_folder(ref, key="base.model", probe=probe)


def file(ref: str) -> Path:
    return weight_file(ref, key="saliency.weights", origin=ORIGIN)


def said(resolve, ref: str) -> str:
    """The one line a person sees."""
    with pytest.raises(InputError) as caught:
        resolve(ref)
    message = str(caught.value)
    assert "\n" not in message
    assert ref in message or "/" in ref
    return message


# ------------------------------------------------------------------ folders


def test_a_local_folder(tmp_path, monkeypatch):
    (tmp_path / "my" / "model").mkdir(parents=True)
    (tmp_path / "my" / "model" / "model_index.json").write_text("{}")
    assert folder(str(tmp_path / "my" / "model")) == str(tmp_path / "my" / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder("~/my/model") == str(tmp_path / "my" / "model")
    monkeypatch.chdir(tmp_path)
    assert folder("my/model") == "my/model"  # before the hub's repository of that name
    assert folder("./my/model") == str(Path("my/model"))


def test_a_folder_that_holds_something_else(tmp_path):
    (tmp_path / "README.md").write_text("photographs")
    message = said(folder, str(tmp_path))
    assert message == (
        f"base.model: the folder '{tmp_path}' has no model_index.json; is it a model folder?"
    )


def test_the_embedded_folders():
    assert folder("tiny:sd15") == str(checkpoints.path("sd15"))
    processor = folder("tiny:pickscore", "preprocessor_config.json")
    assert (Path(processor) / "config.json").is_file()


def test_an_unknown_embedded_model_names_the_key_and_the_known_ones():
    for resolve, key in ((folder, "base.model"), (file, "saliency.weights")):
        message = said(resolve, "tiny:sd16")
        assert message.startswith(f"{key}: no embedded model 'tiny:sd16'")
        assert "tiny:sd15" in message


def test_an_embedded_model_of_another_kind():
    assert "has no model_index.json" in said(folder, "tiny:pickscore")
    assert said(folder, "tiny:u2netp.safetensors").startswith("base.model: no model folder")
    assert said(file, "tiny:sd15").startswith("saliency.weights: the file 'tiny:sd15' is missing")


@pytest.mark.parametrize(
    "ref", ["/no/such/place", "./no/such", "../no", "~/no-such", "one-word", "a/b/c"]
)
def test_neither_folder_nor_hub_id(ref):
    message = said(folder, ref)
    assert message == f"base.model: no model folder '{ref}', and it is not a hub id (OWNER/REPO)"


def test_a_hub_id_from_the_cache(hub_cache):
    assert folder("someone/model") == f"someone/model@{hub_cache.name}"


@pytest.mark.parametrize("ref", ["someone/else", "someone/a bad name", "no--such/--repo"])
def test_a_hub_id_that_cannot_be_fetched(hub_cache, ref):
    message = said(folder, ref)
    assert message.startswith(f"base.model: model_index.json of '{ref}' is missing")
    assert f"hf download {ref}" in message
    assert "set base.model=/path/to/" in message


def test_a_hub_id_without_the_file(hub_cache):
    with pytest.raises(InputError, match=r"config\.json of 'someone/model' is missing"):
        folder("someone/model", "config.json")


# ------------------------------------------------------------------ weight files


def test_a_local_file(tmp_path, monkeypatch):
    (tmp_path / "u2net.pth").write_bytes(b"weights")
    assert file(str(tmp_path / "u2net.pth")) == tmp_path / "u2net.pth"
    monkeypatch.chdir(tmp_path)
    assert file("u2net.pth") == Path("u2net.pth")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert file("~/u2net.pth") == tmp_path / "u2net.pth"


def test_the_embedded_file():
    assert file("tiny:u2netp.safetensors") == checkpoints.path("u2netp.safetensors")


@pytest.mark.parametrize(
    "ref", ["u2net.pth", "/no/such/u2net.pth", "./u2net.pth", "~/u2net.pth", "a/u2net.pth"]
)
def test_a_missing_file_says_where_to_get_it(tmp_path, monkeypatch, ref):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert said(file, ref) == (
        f"saliency.weights: the file '{ref}' is missing; get it from {ORIGIN} and set "
        "saliency.weights=/path/to/it"
    )


def test_a_file_of_a_hub_repository(hub_cache):
    assert file("someone/model/u2net.pth").read_bytes() == b"weights"


def test_a_file_of_a_hub_repository_that_cannot_be_fetched(hub_cache):
    message = said(file, "someone/model/other.pth")
    assert message.startswith("saliency.weights: other.pth of 'someone/model' is missing")
    assert ORIGIN in message
    assert "set saliency.weights=/path/to/it" in message


def test_threads_load_one_after_another(tmp_path):
    """Libraries replace functions while they load, and put back what they found: see `_LOADING`."""

    class Library:
        tie = "its own"

        @classmethod
        def from_pretrained(cls, source: str) -> str:
            before, cls.tie = cls.tie, "nothing"
            time.sleep(0.02)
            cls.tie = before
            return source

    with ThreadPoolExecutor(4) as threads:
        for _ in range(4):
            found = threads.map(lambda _: from_pretrained(Library, str(tmp_path)), range(4))
            assert list(found) == [str(tmp_path)] * 4
    assert Library.tie == "its own"


# ------------------------------------------------------------------ what libraries say


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (TimeoutError(), "TimeoutError"),  # libraries raise some without a word
        (OSError("  \n"), "OSError"),
        (ValueError("first\nsecond"), "ValueError: first"),
        (ValueError("x" * 200), "ValueError: " + "x" * 160),
    ],
)
def test_an_exception_becomes_one_line(error, line):
    assert first_line(error) == line
