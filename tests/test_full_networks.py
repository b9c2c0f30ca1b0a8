"""What a training of all weights hands on: drawn, merged, sampled, shown, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from gpu_sections import counting
from test_fuse import STRONG, card, image
from test_generate import BASE, TINY, Generate, loaded, make_rows, plain_image, plain_pipeline
from test_generate import images as drawn
from test_memory_plan import predicted
from test_sample_draw import BrightnessConfig
from training import denoiser

from raypref.core.config import InputError, Resources, load
from raypref.evaluate.generate import Adapter, GenerateConfig, other_loras
from raypref.evaluate.samples import _steps
from raypref.models import adapters, lora, network
from raypref.models.backbone import load_denoiser
from raypref.models.compiled import repeated_blocks
from raypref.models.fuse import fuse
from raypref.models.lora_config import LoraConfig
from raypref.report.use import snippet
from raypref.run.config import RunConfig
from raypref.run.memory_plan import CARDS, too_large
from raypref.run.model_sizes import SIZES, UNITS
from raypref.run.outlook import outlook
from raypref.run.pipeline import Run
from raypref.sample.config import SamplingConfig
from raypref.sample.draw import DrawChosen

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a training of all weights writes it: the base's UNet, moved."""
    folder = tmp_path_factory.mktemp("whole")
    module = load_denoiser(TINY, device=CPU).module
    generator = torch.Generator().manual_seed(5)
    values = {
        name: value + 0.1 * value.std(correction=0) * torch.randn(value.shape, generator=generator)
        for name, value in module.named_parameters()
    }
    network.write_network(module, values, folder=str(folder), component="unet")
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a LoRA of the same base."""
    folder = tmp_path_factory.mktemp("lora")
    module = load_denoiser(TINY, device=CPU).module
    adapters.attach(module, STRONG, names=("learner",), seed=3)
    learner = adapters.vector(module, "learner").detach()
    noise = torch.randn(learner.shape, generator=torch.Generator().manual_seed(3))
    adapters.fill(module, "learner", learner + 0.1 * noise)
    values = adapters.state(module, "learner")
    lora.save(values, STRONG, folder=str(folder), component="unet")
    return folder


def expected(whole: Path, adapter: Path) -> dict[str, np.ndarray]:
    """The first row's image by plain pipelines, by model."""
    (row, *_) = make_rows([BASE])
    base, other, with_lora = (plain_pipeline() for _ in range(3))
    other.unet = UNet2DConditionModel.from_pretrained(whole, subfolder="unet")
    with_lora.load_lora_weights(str(adapter))
    named = {BASE: base, "whole": other, "lora": with_lora}
    return {name: plain_image(pipeline, row) for name, pipeline in named.items()}


@pytest.mark.parametrize("merged", [False, True])
def test_networks_and_loras_take_turns_in_one_pipeline(
    merged: bool, whole: Path, adapter: Path
) -> None:
    plain = expected(whole, adapter)
    assert np.abs(plain["whole"] - plain[BASE]).mean() > 1
    config = loaded({}).config.model_copy(update={"fuse": merged})
    stage = Generate(TINY, config, loras={"whole": str(whole), "lora": str(adapter)})
    stage.setup()
    for model in ("whole", BASE, "lora", "whole", "lora", BASE):
        (row, *_) = make_rows([model])
        [made] = drawn(stage, [row], batch=1).values()
        assert np.abs(made - plain[model]).max() <= 1, model


def test_the_whole_pipeline_has_the_network(whole: Path, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        fuse(
            TINY, lora=str(whole), dtype=dtype, folder=str(tmp_path / dtype), file="one.safetensors"
        )
        saved = DiffusionPipeline.from_pretrained(
            tmp_path / dtype, torch_dtype=getattr(torch, dtype)
        )
        other = UNet2DConditionModel.from_pretrained(whole, subfolder="unet").state_dict()
        for name, value in saved.unet.state_dict().items():
            assert torch.equal(value, other[name].to(value.dtype)), name
        assert (tmp_path / dtype / "one.safetensors").is_file()
    assert image(DiffusionPipeline.from_pretrained(tmp_path / "float32")).std() > 0


def test_it_is_a_base_network_too(whole: Path) -> None:
    base = TINY.model_copy(update={"network": str(whole)})
    found = load_denoiser(base, device=CPU).module.state_dict()
    for name, value in network.read_network(
        denoiser().module.state_dict(), str(whole), component="unet"
    ).items():
        assert torch.equal(found[name], value)
    config = json.loads((whole / "unet" / "config.json").read_text())
    assert config["_class_name"] == "UNet2DConditionModel" and "_name_or_path" not in config


def test_images_are_sampled_with_it(whole: Path) -> None:
    made: dict[str, Any] = {}
    for name, ref in (("base", ""), ("whole", str(whole))):
        stage = DrawChosen(
            TINY,
            GenerateConfig(steps=2, guidance=1.0, size=64, resources=Resources(batch=1)),
            SamplingConfig(method="plain", rewards={"pickscore": 1.0}),
            rewards={"pickscore": BrightnessConfig()},
            lora=ref,
        )
        stage.setup()
        made[name] = stage.compute(stage.prepare([{"prompt": "a ball", "noise": 3}]))[0]
    assert not np.array_equal(made["base"].pixels_HWC, made["whole"].pixels_HWC)


def test_the_networks_on_the_way_are_found(whole: Path, tmp_path: Path) -> None:
    at = tmp_path / "milestones"
    (at / "step-00000004").mkdir(parents=True)  # of a kill
    (at / "step-00000002" / "unet").mkdir(parents=True)
    (at / "step-00000002" / "unet" / "config.json").write_text("{}")
    assert _steps(str(tmp_path)) == ["step-00000002"]


def test_card_and_code_put_the_network_into_the_pipeline(whole: Path) -> None:
    text = card(lora={"rank": 0, "alpha": 4.0, "targets": ()}, fused=True)
    assert 'unet=UNet2DConditionModel.from_pretrained(".", subfolder="unet"' in text
    assert "load_lora_weights" not in text and "LoRA" not in text and "- lora" not in text
    assert "All weights of the network were trained." in text
    code = snippet(
        TINY, lora=str(whole), prompt="a ball", side=64, steps=2, guidance=2.0, whole=True
    )
    code = code.replace('image.save("image.png")', "")
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["image"].size == (64, 64)
    other = UNet2DConditionModel.from_pretrained(whole, subfolder="unet").state_dict()
    mine = scope["pipe"].unet.state_dict()
    assert all(torch.equal(value.cpu().float(), other[name]) for name, value in mine.items())


# ------------------------------------------------------------------ what is refused


def test_soups_and_weights_of_it_are_refused(whole: Path) -> None:
    trained = {"mine": Adapter(str(whole), "abc", whole=True)}
    for text in ("0.5 * mine", "0.5 * mine + 0.5 * mine"):
        with pytest.raises(InputError, match=r"evaluate.loras.x: mine trained all weights"):
            other_loras({"x": text}, trained)
    with pytest.raises(InputError, match=r"holds a whole network, which goes into base.network"):
        other_loras({"x": str(whole)})


def test_lora_weights_are_no_start_of_all_weights(adapter: Path) -> None:
    with pytest.raises(InputError, match=r"train.stage1.start=.*lora.rank=0.*base.network"):
        load(RunConfig, "tiny", ["lora.rank=0", f"train.stage1.start={adapter}"])


def test_float16_is_refused() -> None:
    from raypref.models import checks

    base = TINY.model_copy(update={"dtype": "float16"})
    with pytest.raises(InputError, match=r"base.dtype=float16: most gradients vanish"):
        checks.check_adapter(base, LoraConfig(rank=0))
    checks.check_adapter(TINY, LoraConfig(rank=0))


# ------------------------------------------------------------------ settings and plans


def test_without_a_rank_alpha_and_targets_are_the_defaults() -> None:
    config = load(RunConfig, "sd35m", ["source.path=p", "lora.rank=0"]).lora
    assert config == LoraConfig(rank=0) == LoraConfig(rank=0, alpha=9.0, targets=("to_q",))


def test_a_dry_run_says_that_all_weights_are_trained(tmp_path: Path) -> None:
    words = ["lora.rank=0", f"storage={tmp_path}", "run=x"]
    lines = outlook(Run(load(RunConfig, "tiny", words)), estimate=lambda *_: None)
    assert any("all weights of the network (lora.rank=0)" in line for line in lines)
    assert len(lines) <= 15


def test_memory_by_hand() -> None:
    """Weights in bfloat16, what is trained in float32, and one more vector while AdamW steps."""
    billions = SIZES["sdxl"].trained
    full = billions * 1e9 * 4 / 2**30
    words = ['trainings=["stage2_alone"]', "lora.rank=0", "train.stage2_alone.micro_batch=1"]
    found = predicted("sdxl", *words)["stage2_alone"]
    assert found == pytest.approx(full * (0.5 + 0.5 + 4 + 1) + 1.5, abs=0.1)
    assert not too_large({"stage2_alone": found}, card=CARDS[80])
    assert too_large({"stage2_alone": found}, card=CARDS[24])
    shared = predicted("sdxl", *words, "train.stage2_alone.resources.workers=2")["stage2_alone"]
    assert shared == pytest.approx(found + full, abs=0.1)
    # A training that starts from another one holds that as its reference.
    second = predicted("sdxl", "lora.rank=0", "train.stage2.micro_batch=1")["stage2"]
    assert second == pytest.approx(found + full, abs=0.1)


def test_memory_of_shared_weights_by_hand() -> None:
    """A part of six vectors and of the weights as loaded; what is gathered is whole."""
    own = ['trainings=["stage2_alone"]', "lora.rank=0", "train.stage2_alone.micro_batch=1"]
    words = [*own, "train.stage2_alone.gradient_checkpointing=true"]
    sharded, size, units = "train.stage2_alone.sharded=true", SIZES["sdxl"], UNITS["sdxl"]
    kept = 2 * 4 * 1.17 * size.recomputed  # two images of 1024x1024
    for workers in (2, 4, 64):
        number = f"train.stage2_alone.resources.workers={workers}"
        batch = f"train.stage2_alone.batch={64 * 4}"
        found = predicted("sdxl", *words, sharded, number, batch)["stage2_alone"]
        part = size.trained * 1e9 / 2**30 / workers
        # Weights and gradients in bfloat16, sums in float32; a block's weights with their buffer.
        gathered = (units.outside * 8 + units.block * (2 * 4 + 2 + 2 * 4)) * 1e9 / 2**30
        most = max(gathered + kept, 4 * part)  # AdamW's step makes a vector of its own
        expected = max(part * (4 * 5 + 2) + most, size.trained * 2e9 / 2**30)  # as loaded
        assert found == pytest.approx(expected + 1.5, abs=0.06), workers
    # One worker shares with none.
    assert predicted("sdxl", *words, sharded) == predicted("sdxl", *words)


@pytest.mark.parametrize("name", ["sd15", "sd35m"])
def test_what_is_gathered_is_counted(name: str) -> None:
    module = counting.on_meta(name).module
    blocks = [sum(p.numel() for p in own.parameters()) for own in repeated_blocks(module)]
    outside = sum(p.numel() for p in module.parameters()) - sum(blocks)
    units = UNITS[name]
    assert units.block == pytest.approx(max(blocks) / 1e9, abs=6e-5)
    assert units.outside == pytest.approx(outside / 1e9, abs=6e-5)
    tables = sum(buffer.numel() for buffer in module.buffers())
    assert units.table == pytest.approx(tables / 1e9, abs=6e-5)


def test_the_document_has_the_predictions() -> None:
    document = (Path(__file__).parents[1] / "docs" / "gpu.md").read_text(encoding="utf-8")
    section = document.split("## All weights")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith(("| `", "| one", "| two"))]
    for row, name in zip(rows, ("stage2_alone", "stage2", "stage1"), strict=True):
        own = [f"train.{name}.micro_batch=4", f"train.{name}.gradient_checkpointing=true"]
        words = ["lora.rank=0", f'trainings=["{name}"]', *own]
        figures = [
            f"{predicted(preset, *words, f'train.{name}.optimizer={optimizer}')[name]:.1f}"
            for optimizer in ("adamw", "adamw8bit")
            for preset in ("sd15", "sdxl")
        ]
        assert [cell.strip() for cell in row.split("|")[2:6]] == figures
    sharded = [
        line.split("|")[1:6] for line in section.splitlines() if line[:3].strip("| ").isdigit()
    ]
    assert [int(row[0]) for row in sharded] == [1, 2, 4, 8]
    for workers, *cells in sharded:
        figures = []
        for name in ("stage2_alone", "stage2"):
            own = f"train.{name}."
            words = [
                f"{own}micro_batch=4",
                f"{own}gradient_checkpointing=true",
                f"{own}sharded=true",
            ]
            words += [f"{own}resources.workers={workers.strip()}", f'trainings=["{name}"]']
            for preset in ("sd15", "sdxl"):
                figures.append(f"{predicted(preset, 'lora.rank=0', *words)[name]:.1f}")
        assert [cell.strip() for cell in cells] == figures
    for name in ("stage2_alone", "stage2"):
        own = f"train.{name}."
        words = [f"{own}micro_batch=1", f"{own}gradient_checkpointing=true", f"{own}sharded=true"]
        words += [f"{own}resources.workers=4", f'trainings=["{name}"]', "lora.rank=0"]
        found = predicted("sdxl", *words)[name]
        assert f"{found:.1f} GiB" in section and not too_large({name: found}, card=CARDS[24])
