"""Models of the hub at a branch, tag or commit: found, loaded, told to workers, recorded."""

from __future__ import annotations

import ast
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import small
import torch
from hub_cache import HubCache, commit, forget, made_in
from PIL import Image
from safetensors.torch import load_file, save_file
from test_architecture import MODULES

from raypref.align import plan
from raypref.core.config import InputError, load, results_of
from raypref.curate.perturb import PerturbConfig
from raypref.engine.cluster import PASSED_ON
from raypref.models import hub, lora_formats
from raypref.models.backbone import BackboneConfig, load_denoiser, load_encoder, load_pipeline
from raypref.models.checks import check_adapter, check_base, check_side
from raypref.models.lora_config import FILE_NAME, LoraConfig
from raypref.report.collect import _facts
from raypref.rewards.pickscore import PickScoreConfig
from raypref.rewards.vlm import VisionLanguage, checked_folder
from raypref.run.config import RunConfig
from raypref.run.execute import _open_record
from raypref.run.pipeline import Run

OLD, NEW, NEWEST = commit("a"), commit("b"), commit("c")
CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path) -> Iterator[HubCache]:
    """`some/model`: the head is NEW, the tag v1 and the branch pr/1 are OLD."""
    with made_in(tmp_path / "hub") as cache:
        for name in (OLD, NEW):
            files = {"config.json": b'{"at": "%s"}' % name.encode(), "w/net.pth": name.encode()}
            cache.add("some/model", name, files)
        cache.point("some/model", "main", NEW)
        cache.point("some/model", "v1", OLD)
        cache.point("some/model", "pr/1", OLD)
        yield cache


def folder(ref: str) -> str:
    return hub.model_folder(ref, key="base.model", probe="config.json")


REVISIONS = {"": NEW, "@main": NEW, "@v1": OLD, "@pr%2F1": OLD, f"@{OLD}": OLD, f"@{NEW}": NEW}


@pytest.mark.parametrize(("revision", "at"), REVISIONS.items())
def test_a_revision_is_a_commit_and_everything_is_read_there(cache, revision, at):
    ref = f"some/model{revision}"
    assert folder(ref) == f"some/model@{at}"
    assert hub.read_json(folder(ref), "config.json", key="base.model") == {"at": at}
    file = f"{ref}/w/net.pth"
    assert hub.weight_file(file, key="k", origin="o").read_text() == at
    assert hub.first_file(file, ("none", "w/net.pth"), key="k").read_text() == at
    assert hub.commits([ref, file, "other", 3, None]) == {ref: at, file: at}


@pytest.mark.parametrize("ref", ["some/model@v2", f"some/model@{commit('d')}"])
def test_a_revision_that_is_not_there_is_named(cache, ref):
    with pytest.raises(InputError) as caught:
        folder(ref)
    assert str(caught.value).startswith(f"base.model: config.json of '{ref}' is missing")
    assert f"hf download some/model --revision {ref.partition('@')[2]}" in str(caught.value)


def test_a_local_folder_may_have_an_at_in_its_name(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("some/model@v1", "a@b"):
        Path(name).mkdir(parents=True)
        Path(name, "config.json").write_text("{}")
        assert folder(name) == name
    assert hub.commits(["some/model@v1"]) == {"some/model@v1": "local"}


@pytest.mark.parametrize("ref", ["some@v1", "some/model@", "some/model@v1/x", "/a/b@c", "a/b@c@d"])
def test_what_has_not_the_form_is_no_model_folder(cache, ref):
    with pytest.raises(InputError, match="it is not a hub id"):
        folder(ref)


# ------------------------------------------------------------------ who is asked


@pytest.fixture
def asked(cache, monkeypatch) -> list[tuple[str, str | None]]:
    """A hub that answers, with a head that moved on; what it was asked."""
    questions = []

    def info(self: object, repo: str, *, revision: str | None, timeout: float) -> SimpleNamespace:
        questions.append((repo, revision))
        return SimpleNamespace(sha=NEWEST)

    def download(repo: str, name: str, *, revision: str | None) -> str:
        questions.append((f"{repo}/{name}", revision))
        return str(cache.add(repo, NEWEST, {name: b'{"at": "newest"}'}) / name)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return questions


def test_the_hub_says_what_the_head_is_and_is_asked_once(asked):
    for _ in range(3):
        assert folder("some/model") == f"some/model@{NEWEST}"
    # The file by its name, so that the cache knows the new head without network too.
    assert asked == [("some/model", None), ("some/model/config.json", None)]
    asked.clear()
    assert folder(f"some/model@{OLD}") == f"some/model@{OLD}"
    assert asked == []


def test_workers_load_what_their_driver_found(asked, cache, monkeypatch):
    assert hub.COMMITS in PASSED_ON
    cache.add("some/model", NEWEST, {"config.json": b"{}"})
    folder("some/model")
    hub.tell_workers()
    forget()  # a worker begins, with the variables of its driver
    asked.clear()
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", None)
    assert folder("some/model") == f"some/model@{NEWEST}"
    assert asked == []
    # On a host without the file: that very commit is fetched, whatever the head is by now.
    assert hub.read_json(folder("some/model"), "more.json", key="k") == {"at": "newest"}
    assert asked == [("some/model/more.json", NEWEST)]


# ------------------------------------------------------------------ loaders


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Iterator[HubCache]:
    """Whole models, each at OLD as they are (tag v1) and at NEW with other weights (the head)."""
    with made_in(tmp_path_factory.mktemp("hub")) as cache:
        for name in ("sd15", "sd3", "pickscore", "qwen3-vl"):
            cache.add(f"some/{name}", OLD, small.path(name))
            snapshot = cache.add(f"some/{name}", NEW, small.path(name))
            for file in snapshot.rglob("*.safetensors"):
                values = {
                    n: v * 1.5 if v.is_floating_point() else v for n, v in load_file(file).items()
                }
                save_file(values, file, metadata={"format": "pt"})
            cache.point(f"some/{name}", "main", NEW)
            cache.point(f"some/{name}", "v1", OLD)
        yield cache


def numbers_of_base(model: str, family: str) -> list[np.ndarray]:
    """Of every part that a base is loaded in."""
    base = BackboneConfig(family=family, model=model)
    image = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
    encoder = load_encoder(base, device=CPU)
    pipeline, denoiser = load_pipeline(base, device=CPU), load_denoiser(base, device=CPU)
    component = pipeline.components[denoiser.component]
    return [
        encoder.image_moments([image]).numpy(),
        encoder.text_embeddings(["a ball"]).sequence_BLD.numpy(),
        *(p.detach().numpy() for p in [*component.parameters()][:3]),
        *(p.detach().numpy() for p in [*denoiser.module.parameters()][:3]),
        *(p.detach().numpy() for p in [*pipeline.vae.parameters()][:3]),
    ]


def numbers_of_network(model: str, family: str) -> list[np.ndarray]:
    base = BackboneConfig(family=family, model=str(small.path("sd15")), network=model)
    check_base(base)
    return [p.detach().numpy() for p in load_denoiser(base, device=CPU).module.parameters()]


def numbers_of_pickscore(model: str, family: str) -> list[np.ndarray]:
    reward = PickScoreConfig(model=model, processor=model).load()
    return [p.numpy() for p in reward.model.parameters()]


def numbers_of_vlm(model: str, family: str) -> list[np.ndarray]:
    folder = checked_folder(model, key="k")
    vlm = VisionLanguage(folder, key="k", dtype="float32", num_gpus=0)
    return [p.numpy() for p in vlm.model.parameters()]


@pytest.mark.parametrize(
    ("name", "family", "numbers"),
    [
        ("sd15", "sd15", numbers_of_base),
        ("sd3", "sd35m", numbers_of_base),
        ("sd15", "sd15", numbers_of_network),
        ("pickscore", "", numbers_of_pickscore),
        ("qwen3-vl", "", numbers_of_vlm),
    ],
)
def test_every_part_is_that_of_the_revision(real, name, family, numbers):
    plain = numbers(str(small.path(name)), family)
    at_tag, at_commit, at_head = (
        numbers(f"some/{name}{revision}", family) for revision in ("@v1", f"@{OLD}", "")
    )
    for ours in (at_tag, at_commit):
        assert all(np.array_equal(a, b) for a, b in zip(ours, plain, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(at_head, plain, strict=True) if a.any())


def test_the_checks_read_the_revision(real, tmp_path):
    base = BackboneConfig(model="some/sd15@v1")
    check_base(base)
    check_side(base, 64, key="images.size")
    check_adapter(base, LoraConfig(targets=("to_q", "ff.net.2")))
    with pytest.raises(InputError, match=r"perturb\.model: 'some/sd15@v1' is no model for"):
        PerturbConfig(kind="pixart", model="some/sd15@v1").check(64)
    PerturbConfig(kind="text2image", model="some/sd15@v1").check(64)


def test_a_lora_to_start_from(cache):
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora"
    for name, value in ((OLD, 1.0), (NEW, 2.0)):
        snapshot = cache.add("some/lora", name, {})
        snapshot.mkdir(parents=True)
        parts = {"A": torch.full((2, 8), value), "B": torch.full((8, 2), value)}
        save_file(
            {f"{layer}_{part}.weight": tensor for part, tensor in parts.items()},
            snapshot / FILE_NAME,
        )
    cache.point("some/lora", "main", NEW)
    cache.point("some/lora", "v1", OLD)
    for ref, value in {
        "some/lora": 2.0,
        "some/lora@v1": 1.0,
        f"some/lora@v1/{FILE_NAME}": 1.0,
        f"some/lora@{OLD}": 1.0,
    }.items():
        found = lora_formats.read_lora(ref, key="train.stage1.start", component="unet")
        assert {v.unique().item() for v in found.values.values()} == {value}, ref
        assert lora_formats.identity(ref, key="train.stage1.start") == ref
        assert plan.is_weights(ref, ())


def test_nothing_is_loaded_past_the_revision():
    """The libraries' `from_pretrained` is called in hub.py, and where demo models are made."""
    calls = {
        name
        for name, file in MODULES.items()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "from_pretrained"
    }
    assert calls == {"models.hub", "demo.train"}


# ------------------------------------------------------------------ settings and records


def test_a_revision_is_part_of_the_fingerprint():
    plain, tagged = (BackboneConfig(model=f"some/model{rev}") for rev in ("", "@v1"))
    assert results_of({"base": plain}) != results_of({"base": tagged})


def config(tmp_path: Path, *more: str) -> RunConfig:
    given = [f"storage={tmp_path}", "tracking.uri=none", "base.model=some/model", *more]
    return load(RunConfig, "tiny", given)


def test_the_record_has_the_commits_and_a_moved_head_is_said(cache, tmp_path, caplog):
    caplog.set_level(logging.INFO)

    def record(*more: str) -> dict[str, str]:
        """Of a run that looks for its base and its saliency weights."""
        run = Run(config(tmp_path, *more))
        hub.model_folder(run.config.base.model, key="base.model", probe="config.json")
        run.config.saliency.file()
        _open_record(run, None)[0].finish("FINISHED")
        return json.loads(Path(run.folder, "run.json").read_text())["models"]

    saliency = {config(tmp_path).saliency.weights: "local"}
    assert record() == {"some/model": NEW} | saliency
    assert record() == {"some/model": NEW} | saliency
    assert not [r for r in caplog.records if "commit" in r.message]
    cache.point("some/model", "main", OLD)
    assert record() == {"some/model": OLD} | saliency
    [said] = [r.message for r in caplog.records if "commit" in r.message]
    assert said == (
        f"some/model is now commit {OLD} and was {NEW} in this folder; some/model@{NEW} keeps it"
    )
    caplog.clear()
    assert record(f"base.model=some/model@{OLD}") == {f"some/model@{OLD}": OLD} | saliency
    assert not [r for r in caplog.records if "commit" in r.message]


def test_a_model_that_no_step_needs_any_more_stays_in_the_record(cache, tmp_path):
    run = Run(config(tmp_path))
    folder("some/model")
    for _ in range(2):
        _open_record(run, None)[0].finish("FINISHED")
        record = json.loads(Path(run.folder, "run.json").read_text())
        assert record["models"] == {"some/model": NEW}
        forget()  # and nothing looks for it the second time


def test_a_weight_file_is_kept_by_its_own_reference():
    [line] = hub.moved_heads({"o/r@b/f.pth": OLD}, {"o/r@b/f.pth": NEW, "x/y": NEW})
    assert line.endswith(f"o/r@{OLD}/f.pth keeps it")
    assert hub.moved_heads({"o/r": "local", "p/q": OLD}, {"o/r": NEW, "p/q": "local"}) == []


def test_the_page_names_commits_beside_versions():
    record = {
        "versions": {"torch": "2.13", "commit": ""},
        "models": {"some/model": OLD, "tiny:sd15": "local"},
    }
    assert _facts(record) == [("torch", "2.13"), ("some/model", OLD)]
