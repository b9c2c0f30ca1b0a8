"""Both stages, on both families, are the paper's: equal to a plain implementation, step by step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from plain_training import SD3, SD15, Plain
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook
from training import BASES, LORAS, denoiser, photographs, run, training, twin

from raypref.align.residuals import LEARNER
from raypref.models import adapters

FAMILIES = {"sd15": SD15, "sd35m": SD3}
COMMON = {"steps": 8, "batch": 3, "micro_batch": 2, "ema_decay": 0.9, "warmup_steps": 3}
DRO = training(
    objective="dro", lr=2e-3, rollout_steps=3, policy_lag=4, margin=-0.02, clip=0.05, **COMMON
)
DPO = training(objective="dpo", lr=1e-3, beta=100, clip=0.5, **COMMON)
FINAL = DRO.model_copy(update={"policy_state": "final"})
CASES = {
    "sd15-dro": ("sd15", DRO),
    # As many as tell one flat vector from matrices of every layer with an optimizer of their own.
    "sd15-dpo": ("sd15", DPO.model_copy(update={"steps": 20})),
    "sd35m-dro": ("sd35m", FINAL),
    "sd35m-dpo": ("sd35m", DPO),
    # The forms that are not a family's own.
    "sd15-dro-final": ("sd15", FINAL.model_copy(update={"steps": 5})),
    "sd15-dro-two-stops": (
        "sd15",
        DRO.model_copy(update={"rollout_stops": 2, "batch": 6, "micro_batch": 4, "steps": 5}),
    ),
    "sd35m-dro-trajectory": ("sd35m", DRO.model_copy(update={"steps": 5})),
}


@pytest.mark.parametrize("case", CASES)
def test_values_gradients_and_updates_equal_a_plain_implementation(
    case: str, tmp_path: Path
) -> None:
    family, stage = CASES[case]
    network, gradients, weights = denoiser(family), [], []

    def learner() -> list[torch.Tensor]:
        return adapters.matrices(network.module, LEARNER)

    def note(metrics: dict[str, float]) -> None:
        weights.append([p.detach().clone() for p in learner()])

    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: gradients.append(
            [p.grad.clone() for p in optimizer.param_groups[0]["params"]]
        )
    )
    try:
        history = run(stage, str(tmp_path), network=network, on_step=note, family=family)
    finally:
        hook.remove()

    config = LORAS[family]
    plain = Plain(
        FAMILIES[family](BASES[family].model),
        [(caption, photo, twin(photo)) for caption, photo in photographs(10)],
        stage,
        targets=config.targets,
        rank=config.rank,
        alpha=config.alpha,
        seed=0,
        name=f"test-{stage.objective}",
    )
    for i in range(stage.steps):
        plain.step()
        assert history[i]["loss"] == pytest.approx(plain.losses[i], abs=1e-6)
        assert history[i]["grad_norm"] == pytest.approx(plain.norms[i], abs=1e-6)
        for ours, theirs in ((gradients[i], plain.clipped[i]), (weights[i], plain.weights[i])):
            one, other = (torch.cat([part.flatten() for part in parts]) for parts in (ours, theirs))
            assert (one - other).abs().max() < 1e-6

    saved = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    ours, scale = dict(zip(_names(plain), plain.shadow, strict=True)), config.alpha / config.rank
    assert len(saved) == len(ours)
    for key, value in saved.items():
        up = key.endswith((".lora_B.weight", ".lora.up.weight"))
        layer = key.removeprefix(f"{network.component}.").partition(".lora")[0]
        expected = ours[layer, up] * (scale if up else 1)
        assert (value - expected).abs().max() < 1e-6, key

    # The example exercises what it claims to: steps with and without clipping, open and closed
    # hinges, weights that moved.
    assert max(plain.norms) > stage.clip
    if stage.objective == "dro" and stage.steps == COMMON["steps"]:
        active = sum(metrics["hinge_active"] for metrics in history)
        assert 0 < active < stage.steps
    moved = [(a - b).abs().max() > 1e-4 for a, b in zip(weights[-1], weights[0], strict=True)]
    # Nothing reads the text's queries of SD-3.5's last block: those alone stand still.
    assert sum(moved) >= len(moved) - 2


def _names(plain: Plain) -> list[tuple[str, bool]]:
    return [(name, up) for name in plain.layers for up in (False, True)]
