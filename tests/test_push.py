"""A run goes to the hub with its cards, as it was shown, and each refusal ends in one line."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from fake_hub import FakeHub, Repository, fake_hub
from huggingface_hub import DatasetCard, ModelCard, constants
from published import curation
from test_fuse import card as model_card

from raypref.cli import console
from raypref.core.config import load, to_toml
from raypref.core.ledger import Ledger
from raypref.run.config import RunConfig

PAIRS, LORA = "datasets/me/aligned", "models/me/aligned"
WEIGHTS = b"weights of stage 2"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage") / "my-run"
    curation(folder)
    lora = Ledger(str(folder / "stage2"), {})
    lora.begin()
    files = {
        "pytorch_lora_weights.safetensors": WEIGHTS,
        "run-stage2.safetensors": b"the same for others",
        "metrics.parquet": b"nobody asked for it",
        "README.md": model_card(photographs="cc-by-4.0").encode(),
    }
    for name, data in files.items():
        (folder / "stage2" / name).write_bytes(data)
    lora.commit(expected=0, counts={})
    config = load(RunConfig, "tiny", ["source.license=cc-by-4.0"])
    (folder / "config.toml").write_text(to_toml(config), encoding="utf-8")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the fake speaks plain LFS
        monkeypatch.setenv("HF_TOKEN", served.token)
        yield served


def push(run: Path, *words: str) -> int:
    return console(["push", str(run), "--repo", "me/aligned", *words])


def test_all_of_a_run_goes_where_it_opens_again(run, hub, capsys, tmp_path):
    assert push(run, "--yes") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-2:] == [
        f"Pushed: {hub.address}/datasets/me/aligned",
        f"Pushed: {hub.address}/me/aligned",
    ]
    assert hub.token not in out + err
    pairs, lora = hub.repositories[PAIRS], hub.repositories[LORA]
    assert pairs.private and lora.private
    assert sorted(pairs.files) == ["README.md", "part-000000.parquet"]
    assert sorted(lora.files) == [
        "README.md",
        "pytorch_lora_weights.safetensors",
        "run-stage2.safetensors",
    ]
    assert lora.files["pytorch_lora_weights.safetensors"] == WEIGHTS
    for name, data in pairs.files.items():
        (tmp_path / name).write_bytes(data)
    data = datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(data) == 3 and data[0]["chosen"].size == (120, 80)
    assert DatasetCard(pairs.files["README.md"].decode()).data.license == "cc-by-4.0"
    text = lora.files["README.md"].decode()
    assert 'load_lora_weights("me/aligned", weight_name=' in text
    assert ModelCard(text).data.datasets == ["me/aligned"]


def test_what_goes_is_shown_before_anything_does(run, hub, capsys, monkeypatch):
    shown = []

    class Person(io.StringIO):
        def isatty(self) -> bool:
            return True

        def readline(self, *limits: int) -> str:
            shown.append(capsys.readouterr().out)
            assert not hub.sent, "asked after it was sent"
            return "n\n"

    monkeypatch.setattr("sys.stdin", Person())
    assert push(run) == 1
    assert capsys.readouterr().out == "nothing was pushed\n"
    assert not hub.sent
    (text,) = shown
    size = (run / "pairs" / "part-000000.parquet").stat().st_size
    assert f"{size / 1000:.1f} kB" in text
    for said in (
        "dataset me/aligned (private): 2 files",
        "model me/aligned (private): 3 files",
        "pytorch_lora_weights.safetensors               18 B",
        "Licence of the photographs: cc-by-4.0",
        "The pairs hold the photographs themselves",
    ):
        assert said in text
    assert text.endswith("Push? [y/N] ")


def test_a_dry_run_shows_and_asks_nobody(run, hub, capsys):
    assert push(run, "--dry-run", "--public", "--what", "lora") == 0
    text = capsys.readouterr().out
    assert "model me/aligned (public, everybody may read it): 3 files" in text
    assert "dataset" not in text and not hub.sent


def test_without_a_terminal_it_is_not_assumed(run, hub, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert push(run) == 2
    assert "--yes pushes without asking" in capsys.readouterr().err
    assert not hub.sent


def test_parts_of_an_earlier_push_do_not_stay(run, hub):
    old = {"part-000000.parquet": b"old", "part-000001.parquet": b"old", "notes.md": b"mine"}
    hub.repositories[PAIRS] = Repository(private=True, files=old)
    assert push(run, "--yes", "--what", "pairs") == 0
    files = hub.repositories[PAIRS].files
    assert sorted(files) == ["README.md", "notes.md", "part-000000.parquet"]
    assert files["part-000000.parquet"] == (run / "pairs" / "part-000000.parquet").read_bytes()
    assert LORA not in hub.repositories


@pytest.mark.parametrize("public", [False, True])
def test_a_repository_of_the_other_visibility_is_left_alone(run, hub, capsys, public):
    hub.repositories[PAIRS] = Repository(private=public)
    words = ["--public"] if public else []
    assert push(run, "--yes", *words) == 2
    there, fix = ("private", "leave --public out") if public else ("public", "say --public")
    said = f"error: dataset me/aligned is there and {there}; {fix}, or take another --repo\n"
    assert capsys.readouterr().err == said
    assert not hub.repositories[PAIRS].files


def test_a_licence_that_nobody_named_is_asked_for(run, hub, capsys, tmp_path):
    copy = tmp_path / "unknown"
    copy.mkdir()
    (copy / "config.toml").write_text(to_toml(load(RunConfig, "tiny", [])), encoding="utf-8")
    for name in ("pairs", "stage2"):
        (copy / name).symlink_to(run / name)
    assert push(copy, "--yes") == 2
    assert "the licence of the photographs is not known" in capsys.readouterr().err
    assert not hub.sent
    assert push(copy, "--yes", "--license", "cc0-1.0") == 0
    assert (
        DatasetCard(hub.repositories[PAIRS].files["README.md"].decode()).data.license == "cc0-1.0"
    )
    assert b"Licence of the photographs: cc0-1.0." in hub.repositories[LORA].files["README.md"]


@pytest.mark.parametrize(
    ("route", "status", "says"),
    [
        (
            "create",
            401,
            "the hub answered 401; no, not with Bearer ***; it does not know the token",
        ),
        ("create", 403, "the hub answered 403; no, not with Bearer ***; the token may not write"),
        ("preupload", 403, "the token may not write there; it needs the write role"),
        ("batch", 400, "the hub answered 400; no, not with Bearer ***"),
        ("commit", 409, "the hub answered 409; no, not with Bearer ***; another commit came in"),
        (
            "commit",
            500,
            "the hub answered 500; no, not with Bearer ***; run the same command again",
        ),
    ],
)
def test_a_refusal_is_one_line_without_the_token(run, hub, capsys, route, status, says):
    hub.refuse[route] = status
    assert push(run, "--yes", "--what", "pairs") == 1
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: dataset me/aligned: ") and says in line
    assert hub.token not in out + err and "Traceback" not in err
    if route != "create":
        assert not hub.repositories[PAIRS].files, "half a push is visible"


def test_a_hub_that_is_gone_is_one_line(run, hub, capsys, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert push(run, "--yes") == 1
    err = capsys.readouterr().err
    assert err.count("error: ") == 1 and "Traceback" not in err
    assert "dataset me/aligned: the hub cannot be reached or broke off (ConnectError" in err


def test_without_network_or_token_nobody_is_asked(run, hub, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert push(run) == 2
    said = "there is no token for the hub; `hf auth login` keeps one, or set HF_TOKEN"
    assert capsys.readouterr().err == f"error: {said}\n"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert push(run) == 2
    assert capsys.readouterr().err == "error: HF_HUB_OFFLINE is set; unset it to push\n"
    assert not hub.sent


def test_a_run_is_found_by_its_name(run, hub, capsys, monkeypatch, tmp_path):
    (tmp_path / "runs").symlink_to(run.parent)
    monkeypatch.chdir(tmp_path)
    assert console(["push", "my-run", "--repo", "me/x", "--dry-run"]) == 0
    assert f"From {tmp_path}/runs/my-run to {hub.address}:" in capsys.readouterr().out
    assert console(["push", "other", "--repo", "me/x", "--dry-run"]) == 2
    assert "there is no run 'other'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["x"], "the following arguments are required: --repo; see raypref push --help"),
        (["x", "--repo", "aligned"], "'aligned' is not OWNER/NAME"),
        (["x", "--repo", "a/b", "--what", "page"], "invalid choice: 'page'"),
        (["x", "--repo", "a/b", "--license", "My Own"], "'My Own' is not spelled as on the hub"),
    ],
)
def test_a_wrong_word_is_one_line(words, says, capsys):
    assert console(["push", *words]) == 2
    err = capsys.readouterr().err
    assert says in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "fix"), [("pairs", "raypref curate"), ("stage2", "raypref align")]
)
def test_what_is_not_complete_does_not_go(run, hub, capsys, tmp_path, name, fix):
    copy = tmp_path / "half"
    copy.mkdir()
    (copy / "config.toml").write_text((run / "config.toml").read_text(), encoding="utf-8")
    for other in {"pairs", "stage2"} - {name}:
        (copy / other).symlink_to(run / other)
    assert push(copy, "--yes") == 2
    err = capsys.readouterr().err
    assert f"{copy}/{name} is not complete" in err and fix in err
    assert not hub.sent


def test_pairs_of_another_version_go_without_its_other_settings(run, hub, capsys, tmp_path):
    copy = tmp_path / "old"
    copy.mkdir()
    text = '[source]\nlicense = "cc-by-4.0"\n[stage1]\nlr = 1\n'  # keys of before
    (copy / "config.toml").write_text(text, encoding="utf-8")
    for name in ("pairs", "stage2"):
        (copy / name).symlink_to(run / name)
    assert push(copy, "--yes", "--what", "pairs") == 0
    assert push(copy, "--yes") == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(err) == 1 and "config.toml: " in err[0] and "stage1" in err[0]
