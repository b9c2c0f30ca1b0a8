"""The settings of one training stage, and all that a worker of it needs to know."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from raypref.config import Resources, Section, setting
from raypref.diffusion.backbone import BackboneConfig
from raypref.diffusion.lora_config import LoraConfig
from raypref.ledger import Ledger


class StageConfig(Section):
    """One training stage. The defaults common to both stages are the paper's for SD-1.5."""

    objective: Literal["dro", "dpo", "ipo", "hinge", "kto", "dpo_sft", "sft"] = setting(
        "dpo",
        "dro: photograph against policy; sft: photograph alone; others: photograph against twin",
    )
    start: str = setting(
        "base",
        "base, a training that stands before this one in train, or LoRA weights (diffusers or peft "
        "layout): folder, file, OWNER/REPO or OWNER/REPO/FILE on the hub",
    )
    reference: Literal["start", "base"] = setting(
        "start", "the frozen model it is compared with: what it starts from, or the base"
    )
    steps: int = setting(1000, "optimizer steps", ge=1)
    batch: int = setting(256, "samples an optimizer step, over all workers", ge=1)
    micro_batch: int = setting(
        8, "samples a worker sends through the network at once", affects_result=False, ge=1
    )
    lr: float = setting(1e-4, "learning rate of AdamW", gt=0)
    warmup_steps: int = setting(0, "steps of linear warm-up from 0", ge=0)
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "constant", "learning rate after the warm-up; linear and cosine end at 0"
    )
    weight_decay: float = setting(1e-2, "weight decay of AdamW", ge=0)
    clip: float = setting(1.0, "largest gradient norm", gt=0)
    ema_decay: float = setting(0.0, "decay of the weights' moving average; 0 is off", ge=0, lt=1)
    caption_dropout: float = setting(0.2, "share of captions replaced by the empty one", ge=0, le=1)
    flip: float = setting(0.5, "share of samples mirrored, drawn once a pair", ge=0, le=1)
    margin: float = setting(-0.001, "dro: m, where the hinge closes", le=0)
    policy_state: Literal["trajectory", "final"] = setting(
        "trajectory",
        "dro: what the photograph is compared with: a state on the policy's way, as released for "
        "SD-1.5; or its finished image, noised like the photograph, as released for SD-3.5-M",
    )
    rollout_steps: int = setting(20, "dro: solver steps of a whole trajectory", ge=1, le=1000)
    rollout_batch: int = setting(
        32,
        "dro: samples a worker rolls out at once; no gradients are kept, so more than micro_batch",
        affects_result=False,
        ge=1,
    )
    policy_lag: int = setting(
        16,
        "dro: optimizer steps between refreshes of the sampling policy; at 1 it only gates",
        ge=1,
    )
    beta: float = setting(2000.0, "all but dro, sft: strength of the pull to the reference", gt=0)
    sft_weight: float = setting(
        0.1, "dpo_sft: weight of the photograph's own error, in units of the logit", ge=0
    )
    gradient_checkpointing: bool = setting(
        False, "recompute activations in backward to save memory", affects_result=False
    )
    compile: bool = setting(
        False,
        "torch.compile the network: minutes at the start for quicker steps; moves results by "
        "rounding only, as micro_batch does",
        affects_result=False,
    )
    max_error_ratio: float = setting(
        2.0,
        "stop when the error on the photographs is so many times the reference's, over the last "
        "256 samples",
        affects_result=False,
        gt=1,
    )
    max_grad_ratio: float = setting(
        1000.0,
        "stop when the gradient's norm is so many times its median over the last 50 steps",
        affects_result=False,
        gt=1,
    )
    checkpoint_every: int = setting(
        50, "steps between checkpoints: what a kill can cost", affects_result=False, ge=1
    )
    sample_every: int = setting(
        0,
        "steps between two LoRAs kept for the page's samples; 0: none",
        affects_result=False,
        ge=0,
    )
    min_workers: int = setting(
        0,
        "go on with so few workers when hosts are lost; 0: wait for all of resources.workers",
        affects_result=False,
        ge=0,
    )
    resources: Resources = Resources()

    def learning_rate(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 0: a function of it alone."""
        if step < self.warmup_steps:
            return self.lr * step / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        left = {
            "constant": 1.0,
            "linear": max(0.0, 1 - done),
            "cosine": 0.5 * (1 + math.cos(math.pi * min(1.0, done))),
        }
        return self.lr * left[self.schedule]


@dataclass(frozen=True)
class StageJob:
    """All a worker needs to know; paths are absolute, workers have directories of their own.

    `draws` names the stream of random numbers; two stages with the same one see the same samples.
    """

    name: str
    draws: str
    base: BackboneConfig
    lora: LoraConfig
    stage: StageConfig
    cache: Ledger
    folder: str
    start: str | None
    seed: int
