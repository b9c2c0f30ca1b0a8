"""A training through the loop beside the plain one, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from plain_inpainting import family_of
from plain_objectives import ENTRIES, Rows
from plain_training import Plain
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook
from training import BASES, LORAS, denoiser, facts_of, hole, photographs, run, twin

from raypref.align.config import TrainingConfig
from raypref.align.pair_data import PairData
from raypref.align.residuals import LEARNER
from raypref.align.watch import StepMetrics
from raypref.models import adapters
from raypref.models.families.base import Denoiser
from raypref.models.families.registry import family as of_name


def compare(
    family: str,
    stage: TrainingConfig,
    folder: Path,
    *,
    photos: Sequence[tuple[str, Image.Image]] = (),
    data: PairData | None = None,
    network: Denoiser | None = None,
    model: str = "",
) -> tuple[list[StepMetrics], Plain]:
    """Train both ways; losses, gradients, weights of every step and the file are equal to 1e-6.

    Args:
        family: of the model.
        stage: the training.
        folder: where ours goes.
        photos: ten captions and photographs; by default those of `photographs`.
        data: the same, encoded with their twins.
        network: ours, if not the family's.
        model: folder of the plain one, if not the family's.

    Returns:
        The metrics of every step, and the plain training at its end.
    """
    network, gradients, weights = network or denoiser(family), [], []

    def learner() -> list[torch.Tensor]:
        return adapters.matrices(network.module, LEARNER)

    def note(metrics: StepMetrics) -> None:
        weights.append([p.detach().clone() for p in learner()])

    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: gradients.append(
            [p.grad.clone() for p in optimizer.param_groups[0]["params"]]
        )
    )
    try:
        history = run(stage, str(folder), network=network, on_step=note, family=family, data=data)
    finally:
        hook.remove()

    config, photos = LORAS[family], photos or photographs(10)
    rows = Rows(
        [(caption, photo, twin(photo)) for caption, photo in photos],
        {name: values.tolist() for name, values in facts_of(stage).items()},
    )
    if stage.objective in ENTRIES:
        rows = ENTRIES[stage.objective].rows(stage, rows)
    masks = [hole(number, photo.size) for number, (_, photo) in enumerate(photos)]
    plain = Plain(
        family_of(family, model or BASES[family].model),
        rows.pairs,
        stage,
        targets=config.targets,
        rank=config.rank,
        alpha=config.alpha,
        seed=0,
        name=f"test-{stage.objective}",
        facts=rows.facts,
        masks=masks if of_name(family).inpaints else [],
    )
    for i in range(stage.steps):
        plain.step()
        assert history[i]["loss"] == pytest.approx(plain.losses[i], abs=1e-6)
        assert history[i]["grad_norm"] == pytest.approx(plain.norms[i], abs=1e-6)
        for ours, theirs in ((gradients[i], plain.clipped[i]), (weights[i], plain.weights[i])):
            one, other = (torch.cat([part.flatten() for part in parts]) for parts in (ours, theirs))
            assert (one - other).abs().max() < 1e-6

    saved = load_file(folder / "pytorch_lora_weights.safetensors")
    names = [(name, up) for name in plain.layers for up in (False, True)]
    values = plain.shadow if stage.ema_decay else plain.parameters
    ours, scale = dict(zip(names, values, strict=True)), config.alpha / config.rank
    assert len(saved) == len(ours)
    for key, value in saved.items():
        up = key.endswith((".lora_B.weight", ".lora.up.weight"))
        layer = key.removeprefix(f"{network.component}.").partition(".lora")[0]
        expected = ours[layer, up] * (scale if up else 1)
        assert (value - expected).abs().max() < 1e-6, key

    moved = [(a - b).abs().max() > 1e-4 for a, b in zip(weights[-1], weights[0], strict=True)]
    # Nothing reads the text's queries of SD-3.5's last block: those alone stand still. Qwen-Image's
    # last block has an output for its text too, which nothing reads either.
    assert sum(moved) >= len(moved) - (4 if family == "qwen_image" else 2)
    return history, plain
