"""Models that others aligned, as tables take them: networks and LoRAs, told apart beforehand."""

import json
from pathlib import Path

import numpy as np
import pytest
from hub_cache import commit, made_in
from safetensors.numpy import save_file

from raypref import cli
from raypref.ablate.plan import AblateConfig, PlannedRow, load_config, planned_rows
from raypref.ablate.table import read_table
from raypref.core.config import replaced

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
PAIR = {"lora_A.weight": np.ones((4, 8), np.float32), "lora_B.weight": np.ones((8, 4), np.float32)}


def diffusers(folder: Path) -> Path:
    save_file(
        {f"unet.{LAYER}.{end}": value for end, value in PAIR.items()},
        folder / "pytorch_lora_weights.safetensors",
    )
    return folder


def peft(folder: Path) -> Path:
    save_file(
        {f"base_model.model.{LAYER}.{end}": value for end, value in PAIR.items()},
        folder / "adapter_model.safetensors",
    )
    told = {"peft_type": "LORA", "lora_alpha": 4, "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder


def kohya(folder: Path) -> Path:
    name = f"lora_unet_{LAYER.replace('.', '_')}"
    ends = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    save_file({f"{name}.{end}": PAIR[own] for end, own in ends.items()}, folder / "a.safetensors")
    return folder / "a.safetensors"


def rows(table: str, **ablate: object) -> dict[str, PlannedRow]:
    given = {f"ablate.{key}": str(ref) for key, ref in ablate.items()}
    config = replaced(load_config("tiny", ["storage=runs"]), given)
    return {row.row.name: row for row in planned_rows(table, read_table(table), config)}


def settings(row: PlannedRow) -> AblateConfig:
    assert row.config is not None, row.problem
    return row.config


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("layout", [diffusers, peft, kohya])
def test_a_lora_is_drawn_with_where_it_is_shown_and_trained_from_where_a_row_trains(
    layout, tmp_path
):
    (tmp_path / "dpo").mkdir()
    ref = layout(tmp_path / "dpo")
    found = rows("figure5", diffusion_dpo=ref)
    shown, both = found["diffusion_dpo"], found["diffusion_dpo_both"]
    assert settings(shown).evaluate.loras == {"diffusion_dpo": str(ref)}
    assert shown.model == "diffusion_dpo"
    assert [step.name for step in shown.steps if step.trains] == []
    assert {*shown.run.evaluation.images.ledgers} == {"base", "diffusion_dpo"}
    base = found["base"].run.evaluation.images.ledgers["base"]
    assert shown.run.evaluation.images.ledgers["base"].path == base.path  # drawn once for all rows
    assert settings(both).train["stage1"].start == str(ref)
    assert [step.name for step in both.steps][2:] == ["start", "stage1", "stage2", "evaluation"]
    assert settings(both).base.network == settings(shown).base.network == ""
    assert settings(both).evaluate.loras == {}


@pytest.mark.parametrize("inside", ["unet/", ""])
def test_a_network_takes_the_networks_place_as_before(inside, tmp_path):
    (tmp_path / "dpo" / inside).mkdir(parents=True)
    (tmp_path / "dpo" / inside / "config.json").write_text("{}")
    for name, row in rows("figure5", diffusion_dpo="dpo").items():
        if name.startswith("diffusion_dpo"):
            assert settings(row).base.network == str(tmp_path / "dpo")
            assert settings(row).evaluate.loras == {}


def wrong(case: str, folder: Path) -> str:
    """A reference that is no aligned model."""
    (folder / "x" / "transformer").mkdir(parents=True)
    (folder / "x" / "transformer" / "config.json").write_text("{}")  # of another family
    save_file({"conv_in.weight": np.ones(3, np.float32)}, folder / "network.safetensors")
    (folder / "text.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0hello")
    return case


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("x", "'x' holds neither a network (unet/config.json) nor a LoRA (pytorch_lora_weights."),
        ("./nowhere", "no folder or file './nowhere', and it is not a hub id"),
        ("network.safetensors", "'network.safetensors' is no safetensors file with the tensors of"),
        ("text.safetensors", "'text.safetensors' is no safetensors file with the tensors of a"),
    ],
)
def test_what_is_neither_is_named_by_the_dry_run(case, says, tmp_path, capsys):
    words = [f"ablate.diffusion_dpo={wrong(case, tmp_path)}", "storage=runs"]
    assert cli.console(["ablate", "table1a", "tiny", *words, "--dry-run"]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "Diffusion-DPO" in x]
    assert f"ablate.diffusion_dpo: {says}" in line
    assert not (tmp_path / "runs").exists()


def test_a_repository_is_told_by_its_files(tmp_path):
    diffusers(tmp_path)
    weights = (tmp_path / "pytorch_lora_weights.safetensors").read_bytes()
    with made_in(tmp_path / "hub") as hub:
        for repo, files in {
            "me/lora": {"pytorch_lora_weights.safetensors": weights},
            "me/network": {"unet/config.json": b"{}"},
            "me/words": {"README.md": b""},
        }.items():
            hub.add(repo, commit("a"), files)
            hub.point(repo, "main", commit("a"))
        row = {ref: rows("table1a", diffusion_dpo=ref)["diffusion_dpo"] for ref in (
            "me/lora", "me/network", "me/words", "me/unknown"
        )}  # fmt: skip
    assert settings(row["me/lora"]).evaluate.loras == {"diffusion_dpo": "me/lora"}
    assert settings(row["me/network"]).base.network == "me/network"
    assert "ablate.diffusion_dpo: 'me/words' holds neither" in row["me/words"].problem
    assert settings(row["me/unknown"]).base.network == "me/unknown"  # looked for before the run
