"""Configuration: loading, overriding, explaining; and the presets themselves."""

import re
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from raypref.core.config import (
    InputError,
    Resources,
    Section,
    build,
    flatten,
    load,
    presets,
    results_of,
    setting,
    to_toml,
)
from raypref.core.fingerprints import changed_keys, fingerprint
from raypref.core.key_help import describe
from raypref.core.messages import public_name, without_secrets
from raypref.run.config import RunConfig

REQUIRED = {
    "tiny": [],
    "sd15": ["source.path=photos", "evaluate.prompts=prompts.txt"],
    "sd35m": ["source.path=photos", "evaluate.prompts=prompts.txt"],
    "sdxl": ["source.path=photos", "evaluate.prompts=prompts.txt"],
    "flux": ["source.path=photos", "evaluate.prompts=prompts.txt"],
    "z_image": ["source.path=photos", "evaluate.prompts=prompts.txt"],
    "flux2_klein": ["source.path=photos", "evaluate.prompts=prompts.txt"],
    "qwen_image": ["source.path=photos", "evaluate.prompts=prompts.txt"],
    "fyp_tiny": [],
    "fyp_sd15": ["source.path=photos", "evaluate.holes=holes"],
    "fyp_flux": ["source.path=photos", "evaluate.holes=holes"],
}

# docs/method.md, SD-1.5; the numbers are the paper's and its released code's.
PAPER_SD15 = {
    "images.size": 512,
    "color.enabled": True,
    "perturb.kind": "sd15",
    "perturb.model": "stable-diffusion-v1-5/stable-diffusion-inpainting",
    "perturb.steps": 50,
    "perturb.guidance": 7.5,
    "perturb.strength": 1.0,
    "pickscore.model": "yuvalkirstain/PickScore_v1",
    "pickscore.processor": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "select.min_gap": 0.02,
    "select.top_k": 512,
    "base.family": "sd15",
    "base.model": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "lora.rank": 4,
    "lora.alpha": 4,
    "lora.targets": ("to_q", "to_k", "to_v", "to_out.0"),
    "train.stage1.objective": "dro",
    "train.stage1.start": "base",
    "train.stage1.steps": 1600,
    "train.stage1.batch": 256,
    "train.stage1.lr": 1e-4,
    "train.stage1.warmup_steps": 0,
    "train.stage1.weight_decay": 1e-2,
    "train.stage1.clip": 1.0,
    "train.stage1.caption_dropout": 0.2,
    "train.stage1.flip": 0.5,
    "train.stage1.margin": -0.001,
    "train.stage1.rollout_steps": 20,
    "train.stage1.policy_lag": 16,
    "train.stage2.objective": "dpo",
    "train.stage2.start": "stage1",
    "train.stage2.steps": 1000,
    "train.stage2.batch": 256,
    "train.stage2.lr": 2.56e-6,
    "train.stage2.warmup_steps": 125,
    "train.stage2.weight_decay": 1e-2,
    "train.stage2.clip": 1.0,
    "train.stage2.ema_decay": 0.0,
    "train.stage2.flip": 0.5,
    "train.stage2.beta": 2000.0,
    "evaluate.seeds": (42, 123, 456, 789, 1000),
    "evaluate.steps": 50,
    "evaluate.guidance": 7.5,
    "evaluate.size": 512,
}


class Inner(Section):
    """A group."""

    rate: float = setting(0.5, "learning rate", gt=0)
    kind: Literal["a", "b"] = setting("a", "which kind")
    fast: bool = setting(False, "go fast", affects_result=False)
    resources: Resources = Resources(batch=3)


class Outer(Section):
    """The top."""

    name: str = setting("x", "a name")
    path: str = setting(..., "a required path")
    sizes: tuple[int, ...] = setting((1, 2), "sizes")
    inner: Inner = Inner(rate=0.25)


def outer(*overrides: str, file: str = 'path = "p"\n', tmp_path: Path) -> Outer:
    """`Outer` read from a file and overrides."""
    (tmp_path / "own.toml").write_text(file)
    return load(Outer, str(tmp_path / "own.toml"), overrides)


def test_every_preset_is_covered_here():
    assert presets() == sorted(REQUIRED)


@pytest.mark.parametrize("name", REQUIRED)
def test_a_preset_comes_back_from_the_toml_it_resolves_to(name, tmp_path):
    config = load(RunConfig, name, REQUIRED[name])
    written = tmp_path / "config.toml"
    written.write_text(to_toml(config))
    assert load(RunConfig, str(written)) == config


# Where SD-3.5-M differs (docs/method.md).
PAPER_SD35M = {
    "base.family": "sd35m",
    "base.model": "stabilityai/stable-diffusion-3.5-medium",
    "lora.rank": 32,
    "lora.alpha": 64,
    "train.stage1.steps": 3200,
    "train.stage1.lr": 2e-4,
    "train.stage1.policy_state": "final",
    "train.stage1.policy_lag": 1,
    "train.stage1.rollout_steps": 10,
    "train.stage2.steps": 500,
    "train.stage2.lr": 2.56e-6,
    "train.stage2.warmup_steps": 0,
    "train.stage2.beta": 100,
    "evaluate.steps": 40,
    "evaluate.guidance": 4.5,
}
SAME = (
    *("images.size", "perturb.", "select."),
    *("train.stage1.batch", "train.stage2.batch", "train.stage1.margin", "evaluate.seeds"),
)


def test_sd15_is_the_papers_setting():
    preset = flatten(load(RunConfig, "sd15", REQUIRED["sd15"]))
    assert preset == preset | PAPER_SD15


def test_sd35m_is_the_papers_setting():
    preset = flatten(load(RunConfig, "sd35m", REQUIRED["sd35m"]))
    assert preset == preset | PAPER_SD35M
    same = {key: value for key, value in PAPER_SD15.items() if key.startswith(SAME)}
    assert preset == preset | same
    assert len(preset["lora.targets"]) == 8
    assert all(target.startswith("attn.") for target in preset["lora.targets"])


def test_sd15_asks_for_what_only_the_user_has():
    with pytest.raises(InputError, match=r"add source\.path=VALUE"):
        load(RunConfig, "sd15")


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("inner.rate=2", "inner.rate", 2.0),
        ("inner.rate=1e-4", "inner.rate", 1e-4),
        ("inner.rate = 0.5", "inner.rate", 0.5),
        ("sizes=[4, 5]", "sizes", (4, 5)),
        ("inner.fast=true", "inner.fast", True),
        ("name=plain text", "name", "plain text"),
        ('name="quoted"', "name", "quoted"),
        ("name=", "name", ""),
        ("name=a=b", "name", "a=b"),
        ("name=2024", "name", "2024"),
        ("name=007", "name", "007"),
        ("name=1.50", "name", "1.50"),
        ("name=0x10", "name", "0x10"),
        ("name=1_000", "name", "1_000"),
        ("name=1e3", "name", "1e3"),
        ("name=true", "name", "true"),
        ("name=2024-05-01", "name", "2024-05-01"),
        ("name=[draft]", "name", "[draft]"),
        ("name=a # b", "name", "a # b"),
        ("name=1 # b", "name", "1 # b"),
        (r"name=C:\new", "name", r"C:\new"),
        ("path=s3://bucket/runs", "path", "s3://bucket/runs"),
        ("inner.resources.batch=7", "inner.resources.batch", 7),
    ],
)
def test_an_override_sets_its_key_alone(override, key, value, tmp_path):
    before = flatten(outer(tmp_path=tmp_path))
    after = flatten(outer(override, tmp_path=tmp_path))
    assert after == before | {key: value}
    assert type(after[key]) is type(value)


def test_the_last_override_counts(tmp_path):
    assert outer("name=a", "name=b", tmp_path=tmp_path).name == "b"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("inner.rat=1", ["'inner.rat'", "'inner.rate'"]),
        ("inner.rate=fast", ["inner.rate='fast'"]),
        ("inner.rate=0", ["inner.rate=0", "greater than 0"]),
        ("inner.kind=c", ["inner.kind='c'", "'a' or 'b'"]),
        ("sizes=[1, x]", ["sizes"]),
        ("inner=3", ["inner=3"]),
        ("name.x=3", ["name"]),
        ("no equals sign", ["no equals sign", "key=value"]),
        ("=3", ["key=value"]),
    ],
)
def test_a_wrong_override_is_named(override, says, tmp_path):
    with pytest.raises(InputError) as caught:
        outer(override, tmp_path=tmp_path)
    message = str(caught.value)
    assert all(part in message for part in says), message
    assert "\n" not in message


def test_two_mistakes_are_told_at_once(tmp_path):
    with pytest.raises(InputError, match=r"inner\.rate=-1.*; unknown key 'nam'"):
        outer("nam=1", "inner.rate=-1", tmp_path=tmp_path)


def test_a_missing_key_within_a_group_is_named_in_full():
    class Photos(Section):
        path: str = setting(..., "where")

    class Top(Section):
        source: Photos

    with pytest.raises(InputError, match=r"'source\.path' is required: add source\.path=VALUE"):
        build(Top, {})


def test_a_file_extends_another_and_both_group_by_group(tmp_path):
    (tmp_path / "base.toml").write_text(
        'path = "p"\nname = "base"\n[inner]\nrate = 3\nkind = "b"\n'
    )
    file = f'extends = "{(tmp_path / "base.toml").as_posix()}"\nname = "own"\n[inner]\nrate = 4\n'
    config = outer(file=file, tmp_path=tmp_path)
    assert (config.path, config.name) == ("p", "own")
    assert (config.inner.rate, config.inner.kind) == (4, "b")


def test_a_file_extends_a_preset(tmp_path):
    (tmp_path / "own.toml").write_text('extends = "tiny"\n[train.stage2]\nbeta = 7\n')
    own, tiny = load(RunConfig, str(tmp_path / "own.toml")), load(RunConfig, "tiny")
    assert changed_keys(flatten(tiny), flatten(own)) == [
        "train.kto_images.beta: 2000.0 -> 7.0",  # which is like the last one
        "train.stage2.beta: 2000.0 -> 7.0",
        "train.stage2_alone.beta: 2000.0 -> 7.0",  # which is like stage 2
    ]


def test_a_file_extends_the_one_beside_it_from_any_directory(tmp_path, monkeypatch):
    (tmp_path / "base.toml").write_text('path = "beside"\n')
    monkeypatch.chdir("/")
    assert outer(file='extends = "base.toml"\n', tmp_path=tmp_path).path == "beside"


def test_files_that_extend_each_other_end_as_an_error(tmp_path):
    ring = (tmp_path / "own.toml").as_posix()
    with pytest.raises(InputError, match="extends"):
        outer(file=f'extends = "{ring}"\n', tmp_path=tmp_path)


def test_extends_must_be_text(tmp_path):
    with pytest.raises(InputError, match="extends"):
        outer(file="extends = 3\n", tmp_path=tmp_path)


@pytest.mark.parametrize("content", [b"name = \n", b"[inner\n", b"name = '\xff'\n"])
def test_broken_toml_names_the_file(content, tmp_path):
    (tmp_path / "broken.toml").write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.toml is not valid TOML"):
        load(Outer, str(tmp_path / "broken.toml"))


@pytest.mark.parametrize("source", ["sd51", "absent.toml", "."])
def test_an_unknown_source_lists_the_presets(source):
    with pytest.raises(InputError, match=", ".join(presets())) as caught:
        load(RunConfig, source)
    assert f"'{source}'" in str(caught.value)


def test_describe_lists_each_leaf_once_with_type_default_and_meaning():
    texts = describe(Outer)
    assert [text.split()[0] for text in texts] == [
        "name",
        "path",
        "sizes",
        "inner.rate",
        "inner.kind",
        "inner.fast",
        *(f"inner.resources.{name}" for name in Resources.model_fields),
    ]
    assert texts[0] == "name  (text, default x)\n    a name"
    assert texts[1] == "path  (text, required)\n    a required path"
    assert texts[2].startswith("sizes  (list of integer, ")
    # The group's own default, not the one of its class.
    assert texts[3] == "inner.rate  (number, default 0.25)\n    learning rate"
    assert texts[4] == "inner.kind  (a|b, default a)\n    which kind"
    assert texts[5].startswith("inner.fast  (true|false, default ")
    assert texts[7].startswith("inner.resources.batch  (integer, default 3)\n")


def test_describe_of_a_run_says_what_flatten_says():
    texts = describe(RunConfig)
    config = load(RunConfig, "sd15", REQUIRED["sd15"])
    own = [re.sub(r"^train\.\w+\.", "train.NAME.", key) for key in flatten(config)]
    told = [text.split()[0] for text in texts]
    assert set(own) <= set(told)
    assert [k for k in told if "NAME" not in k] == [k for k in own if "NAME" not in k]
    # Those of all objectives, with the objectives that have them.
    (margin,) = [text for text in texts if text.startswith("train.NAME.margin ")]
    assert " dro: m: samples that beat" in margin
    assert all(text.partition("\n")[2].strip() for text in texts), "a setting without a meaning"


def test_results_leave_out_how_the_work_is_done():
    config = load(RunConfig, "tiny", ["train.stage1.lr=0.25", "train.stage2.batch=6"])
    parts: dict[str, Any] = {f"train.{n}": config.train[n] for n in ("stage1", "stage2")}
    parts |= {"perturb": config.perturb, "seed": 3}
    found = results_of(parts)
    assert found["train.stage1.lr"] == 0.25
    assert found["train.stage2.batch"] == 6  # of the objective, not of a worker
    assert found["seed"] == 3
    assert not [key for key in found if "resources" in key]
    assert "train.stage1.micro_batch" not in found
    assert "train.stage1.checkpoint_every" not in found


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("train.stage1.resources.workers=4", True),
        ("train.stage1.resources.batch=2", True),
        ("train.stage1.micro_batch=1", True),
        ("train.stage1.lr=0.125", False),
        ("train.stage1.batch=77", False),
    ],
)
def test_the_fingerprint_of_a_stage_is_that_of_its_results(override, same):
    before, after = load(RunConfig, "tiny"), load(RunConfig, "tiny", [override])
    prints = [fingerprint(results_of({"stage1": c.train["stage1"]})) for c in (before, after)]
    assert (prints[0] == prints[1]) is same


def test_names_and_passwords_of_addresses_are_left_out():
    text = 'a = "s3://key:se%2Fcret@bucket/x"\nb = "hf://datasets/a/b@main"\nc = "gs://me@bucket"'
    assert without_secrets(text) == text.replace("key:se%2Fcret@", "***@")


def test_sections_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Inner().rate = 1.0


def test_a_group_given_in_part_keeps_the_rest_of_its_own_default():
    given = {
        "source": {"path": "p"},
        "evaluate": {"prompts": "p"},
        "train": {"stage1": {"lr": 1.0}},
    }
    stage1 = build(RunConfig, given).train["stage1"]
    assert (stage1.lr, stage1.objective, stage1.steps) == (1.0, "dro", 1600)


def test_a_token_alone_is_a_secret_too() -> None:
    assert without_secrets("https://hf_abc@host/x@y") == "https://***@host/x@y"
    assert without_secrets("s3://bucket/a@b OWNER/REPO@main") == "s3://bucket/a@b OWNER/REPO@main"


def test_of_a_local_path_the_last_name_is_public() -> None:
    names = {"/home/me/models/inpaint/": "inpaint", "s3://k:s@b/x/y": "y", "tiny:sd15": "tiny:sd15"}
    assert {ref: public_name(ref) for ref in names} == names
    assert public_name("OWNER/REPO@main") == "OWNER/REPO@main"
