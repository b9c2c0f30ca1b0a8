"""Training steps/s: our loop against a plain loop, in one process and one run, interleaved.

Seconds are the process's own on the processor, for what else runs on a shared machine does not
count then; with one thread that is how long a step takes on a core of its own.

The plain loop does what the released scripts do: it encodes images and captions at every step,
runs every policy rollout to its end, and keeps a second copy of the network as reference. Ours
reads the cache and stops each rollout where it is asked. Both do the same optimizer steps, with
the same network, adapter, batch and precision. Not charged to the plain loop: decoding files (its
pictures lie decoded in memory), and the copy of its network that samples (it samples with the
network it trains). Not charged to ours: filling the cache, once a run; the last column says how
many steps of the plain loop that takes for 512 pairs. Of DRO's forwards four a sample are not
rollouts, which take 20 in the plain loop and 10.5 of ours in the mean.

    python benchmarks/training.py [ROUNDS] [MODEL ...]        # tiny, proportions
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import proportions
import torch
from PIL import Image
from plain_loop import ROLLOUT, Pair, Plain, photographs
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from raypref.align.latents import FLIPS
from raypref.align.loop import Alone, train
from raypref.align.objectives.registry import OBJECTIVES
from raypref.align.pair_data import PairData
from raypref.demo.photograph import SIZE
from raypref.models.backbone import BackboneConfig, load_denoiser, load_encoder
from raypref.models.families.conditioning import Conditioning
from raypref.models.lora_config import LoraConfig

LORA = LoraConfig()
CPU = torch.device("cpu")
PAIRS = 32


@dataclass(frozen=True)
class Case:
    """A model and how it is trained here."""

    title: str
    base: BackboneConfig
    side: int  # of its pictures
    batch: int  # samples an optimizer step
    micro: int  # of them through the network at once; their gradients are accumulated
    steps: dict[str, int]  # timed in a round, by objective


def case(name: str) -> Case:
    if name == "tiny":
        base = BackboneConfig(model="tiny:sd15")
        return Case("embedded SD-1.5", base, SIZE, 16, 8, {"dro": 3, "dpo": 5})
    base = BackboneConfig(model=proportions.sd15_in_proportion())
    title = f"SD-1.5, all layers, widths / {proportions.NARROWER}"
    return Case(title, base, proportions.SIZE, 16, 4, {"dro": 1, "dpo": 1})


def cached(base: BackboneConfig, pairs: list[Pair]) -> PairData:
    encoder = load_encoder(base, device=CPU)
    moments = []
    for _, photo, twin in pairs:
        sides = [
            side
            for image in (photo, twin)
            for side in (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        ]
        moments.append(encoder.image_moments(sides))
    shape = moments[0].shape[1:]
    return PairData(
        moments=torch.stack(moments).reshape(len(pairs), 2, FLIPS, *shape),
        embeddings=encoder.text_embeddings([text for text, _, _ in pairs]),
        unconditional=encoder.text_embeddings([""])[0],
    )


def time_plain(what: Case, objective: str, pairs: list[Pair]) -> float:
    loop = Plain(what.base, LORA, micro=what.micro, device=CPU)
    batch, steps = what.batch, what.steps[objective]
    loop.step(objective, pairs[:batch])  # warm-up
    began = time.process_time()
    for i in range(steps):
        loop.step(objective, [pairs[(i * batch + j) % len(pairs)] for j in range(batch)])
    return steps / (time.process_time() - began)


def time_ours(what: Case, objective: str, data: PairData, *, seed: int) -> tuple[float, float]:
    """Steps/s, and forwards per sample: their number is drawn with each rollout's stop."""
    steps = what.steps[objective]
    rollout = {"rollout_steps": ROLLOUT} if objective == "dro" else {}
    training = OBJECTIVES[objective](
        objective=objective,
        steps=steps + 1,
        batch=what.batch,
        micro_batch=what.micro,
        checkpoint_every=10**6,
        **rollout,
    )
    network, forwards = load_denoiser(what.base, device=CPU), 0
    predict = network.predict

    def counted(x: Tensor, t: Tensor, prompts: Conditioning) -> Tensor:
        nonlocal forwards
        forwards += len(x) if clock else 0
        return predict(x, t, prompts)

    network.predict = counted  # type: ignore[method-assign, assignment]
    clock: list[float] = []  # after each step; the first is the warm-up
    with tempfile.TemporaryDirectory() as folder:
        train(
            network,
            data,
            training,
            LORA,
            name="bench",
            draws="bench",
            seed=seed,  # other stopping steps in every round
            folder=folder,
            start=None,
            group=Alone(),
            on_step=lambda metrics: clock.append(time.process_time()),
        )
    return steps / (clock[-1] - clock[0]), forwards / (steps * what.batch)


def flops(call: Callable[[], object]) -> float:
    # Of attention's kernels the counter knows the plain one only.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops()


def encoding_share(what: Case, pairs: list[Pair]) -> float:
    """Operations of VAE and text encoder in a plain DPO step; 0.31 in the published SD-1.5."""
    loop = Plain(what.base, LORA, micro=what.micro, device=CPU)
    some = pairs[: what.batch]
    images = [photo for _, photo, _ in some] + [twin for _, _, twin in some]
    encoding = flops(lambda: (loop.encode(images), loop.prompts([text for text, _, _ in some])))
    return encoding / flops(lambda: loop.step("dpo", some))


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for name in sys.argv[2:] or ("tiny", "proportions"):
        assert torch.get_num_threads() == 1, "set OMP_NUM_THREADS=1"
        what = case(name)
        pairs = photographs(PAIRS, what.side)
        began = time.process_time()
        data = cached(what.base, pairs)
        a_pair = (time.process_time() - began) / PAIRS
        print(
            f"{what.title}, {what.side}x{what.side}, batch {what.batch} in parts of {what.micro}, "
            f"{os.cpu_count()} cores, one thread; encoding is {encoding_share(what, pairs):.0%} "
            "of a plain DPO step's operations",
            flush=True,
        )
        for objective, steps in what.steps.items():
            ours, theirs, forwards = [], [], []
            for seed in range(rounds):
                theirs.append(time_plain(what, objective, pairs))
                speed, drawn = time_ours(what, objective, data, seed=seed)
                ours.append(speed)
                forwards.append(drawn)
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            print(
                f"  {objective}: plain {statistics.median(theirs):.3f} steps/s, "
                f"ours {statistics.median(ours):.3f} steps/s, "
                f"ratio {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f}, {rounds} rounds of {steps} steps), "
                f"{statistics.mean(forwards):.1f} forwards per sample; "
                f"cache of 512 pairs: {512 * a_pair * statistics.median(theirs):.0f} plain steps",
                flush=True,
            )


if __name__ == "__main__":
    main()
