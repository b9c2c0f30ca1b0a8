"""Checkpoints in one file: read as the folder they came from, or refused; written for ComfyUI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import small
import torch
from safetensors.torch import load_file, save_file
from training import run, training

from raypref.core.config import InputError, load
from raypref.models.backbone import BackboneConfig
from raypref.models.checks import check_base
from raypref.models.families.registry import family
from raypref.models.fuse import fuse
from raypref.models.original_layout import checkpoint
from raypref.report.use import snippet
from raypref.run.config import RunConfig

SMALL = {
    "sd15": "sd15",
    "sd15_inpaint": "sd15-inpaint",
    "sdxl": "sdxl",
    "sdxl_inpaint": "sdxl-inpaint",
}
# Layers as ComfyUI's and A1111's own checkpoints name them.
NAMED = {
    "sd15": (
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "model.diffusion_model.out.2.bias",
        "first_stage_model.encoder.mid.attn_1.q.weight",
        "first_stage_model.decoder.up.3.block.0.norm1.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
    ),
    "sdxl": (
        "model.diffusion_model.label_emb.0.2.weight",
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight",
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight",
        "conditioner.embedders.1.model.text_projection",
    ),
}


@pytest.fixture(scope="module")
def sources() -> dict[str, Path]:
    """Folders of small checkpoints, which stay in the tests' own cache."""
    return {name: small.path(kept) for name, kept in SMALL.items()}


@pytest.fixture(autouse=True)
def _own_cache(sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYPREF_CACHE", str(tmp_path / "cache"))


def pipeline(name: str, source: Path | str, **more: Any) -> Any:
    own = family(name)
    return getattr(diffusers, own.pipeline).from_pretrained(source, **own.options, **more)


def weights(found: Any) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": value
        for part in ("unet", "vae", "text_encoder", "text_encoder_2")
        for name, value in getattr(getattr(found, part, None), "state_dict", dict)().items()
    }


def written(name: str, source: Path, file: Path, dtype: Any = torch.float32) -> BackboneConfig:
    """A checkpoint in one file."""
    save_file(checkpoint(pipeline(name, source, dtype=dtype)), file)
    return BackboneConfig(family=name, model=str(file), config=str(source))


@pytest.mark.parametrize("name", SMALL)
def test_a_checkpoint_in_one_file_is_the_folder_it_came_from(
    name: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    base = written(name, sources[name], tmp_path / "mine.safetensors")
    check_base(base)
    one = weights(pipeline(name, sources[name]))
    other = weights(pipeline(name, base.folder()))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert {*NAMED.get(name, ())} <= load_file(base.model).keys()


def test_it_is_brought_into_folders_once_in_its_own_precision(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    base = written("sd15", sources["sd15"], tmp_path / "half.safetensors", torch.float16)
    folder = Path(base.folder())
    [file] = (folder / "unet").glob("*.safetensors")
    assert {value.dtype for value in load_file(file).values()} == {torch.float16}
    file.unlink()
    assert Path(base.folder()) == folder and not file.exists(), "made once"
    written("sd15", sources["sd15"], tmp_path / "half.safetensors")
    assert Path(base.folder()) != folder, "another file of the same name"


def test_what_is_no_whole_checkpoint_is_refused(sources: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    base = written("sd15", sources["sd15"], file)
    whole = load_file(file)

    def says(message: str, tensors: dict[str, torch.Tensor] | None, **changes: Any) -> None:
        if tensors is not None:
            save_file(tensors, file)
        with pytest.raises(InputError, match=message):
            base.model_copy(update=changes).folder()

    no_vae = {n: v for n, v in whole.items() if not n.startswith("first_stage_model.")}
    eight = {n: v.to(torch.float8_e4m3fn) if v.dim() > 1 else v for n, v in whole.items()}
    says("has no autoencoder of sd15", no_vae)
    says("has weights of type F8_E4M3, which are quantised", eight)
    says("is a LoRA", {"lora_unet_mid_block.lora_down.weight": torch.ones(1, 1)})
    says("has no text encoder of sdxl; set base.family=sd15", whole, family="sdxl")
    says("one file is taken for sd15, .*, sdxl_inpaint; sd35m needs", None, family="sd35m")
    says("no checkpoint of sd15 that fits base.config", None, config=str(sources["sdxl"]))
    says("base.config: the folder .* has no model_index.json", None, config=str(tmp_path))
    says("the file .* is missing", None, model=str(tmp_path / "other.safetensors"))
    file.write_bytes(b"no tensors")
    says("is not a safetensors file", None)


def test_a_configuration_beside_another_model_is_refused() -> None:
    says = r"base\.config='mine': .*base\.model='stable.* has its own"
    with pytest.raises(InputError, match=says):
        load(RunConfig, "sd15", ["base.config=mine"])


def test_the_code_of_the_page_loads_it(tmp_path: Path) -> None:
    how = {"lora": "/l", "prompt": "p", "side": 64, "steps": 2, "guidance": 2.0}
    code = snippet(BackboneConfig(model="/m/a.safetensors", config="/m/folder"), **how)
    assert 'from_single_file("/m/a.safetensors", dtype=dtype, config="/m/folder")' in code
    code = snippet(BackboneConfig(model="a/b@v1/c.safetensors"), **how)
    assert 'from_single_file("https://huggingface.co/a/b/blob/v1/c.safetensors", ' in code


def test_a_merged_pipeline_is_written_as_one_file_too(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    run(training("dpo", steps=1, batch=1, lr=0.1), str(tmp_path / "lora"))
    base = BackboneConfig(model=str(sources["sd15"]))
    folder = tmp_path / "fused"
    options = {"dtype": "float32", "folder": str(folder), "file": "mine.safetensors"}
    fuse(base, lora=str(tmp_path / "lora"), **options)
    one = base.model_copy(
        update={"model": str(folder / "mine.safetensors"), "config": str(sources["sd15"])}
    )
    merged, again = weights(pipeline("sd15", folder)), weights(pipeline("sd15", one.folder()))
    assert all(torch.equal(value, again[key]) for key, value in merged.items())
    plain = weights(pipeline("sd15", sources["sd15"]))
    assert any(not torch.equal(value, plain[key]) for key, value in merged.items())


def test_where_it_cannot_be_written_the_settings_are_refused() -> None:
    with pytest.raises(InputError, match="set fused=true too"):
        load(RunConfig, "tiny", ["model.fused_file=true"])
    words = ["model.fused=true", "model.fused_file=true", "source.path=p", "evaluate.prompts=p"]
    with pytest.raises(InputError, match=r"base\.family=sd35m has no such layout"):
        load(RunConfig, "sd35m", words)
