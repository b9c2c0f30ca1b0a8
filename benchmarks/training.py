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
from typing import Any

import proportions
import torch
import torch.nn.functional as F
from diffusers import DPMSolverMultistepScheduler
from peft import LoraConfig as PeftLoraConfig
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from raypref.align.latents import FLIPS, PairData
from raypref.align.loop import Alone, train
from raypref.align.objectives.registry import OBJECTIVES
from raypref.demo.photograph import SIZE, render_scene
from raypref.demo.world import caption, sample_scenes
from raypref.models.backbone import BackboneConfig, load_denoiser, load_encoder, load_pipeline
from raypref.models.families.conditioning import Conditioning
from raypref.models.lora_config import LoraConfig

LORA = LoraConfig()
CPU = torch.device("cpu")
ROLLOUT = 20
PAIRS = 32
Pair = tuple[str, Image.Image, Image.Image]


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


def photographs(side: int) -> list[Pair]:
    made = []
    for i, scene in enumerate(sample_scenes(PAIRS, 0)):
        photo = Image.fromarray(render_scene(scene, seed=i)).resize((side, side))
        made.append((caption(scene), photo, photo.filter(ImageFilter.GaussianBlur(2))))
    return made


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


class Plain:
    """The plain loop, for both objectives."""

    def __init__(self, what: Case) -> None:
        base, self.micro = what.base, what.micro
        self.pipe: Any = load_pipeline(base, device=CPU)
        self.unet = self.pipe.unet.to(memory_format=torch.channels_last)
        self.unet.requires_grad_(False)
        self.unet.add_adapter(
            PeftLoraConfig(
                r=LORA.rank,
                lora_alpha=int(LORA.alpha),
                target_modules=list(LORA.targets),
                init_lora_weights="gaussian",
            )
        )
        self.weights = [weight for weight in self.unet.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-5)
        copy = load_denoiser(base, device=CPU)
        self.frozen, self.schedule = copy.module, copy.schedule  # type: ignore[attr-defined]

    def encode(self, images: list[Image.Image]) -> Tensor:
        pixels = self.pipe.image_processor.preprocess(images)
        with torch.no_grad():
            latents = self.pipe.vae.encode(pixels).latent_dist.sample()
        return latents * self.pipe.vae.config.scaling_factor

    def prompts(self, texts: list[str]) -> Tensor:
        with torch.no_grad():
            return self.pipe.encode_prompt(texts, CPU, 1, False)[0]

    def predict(self, x: Tensor, t: Tensor, prompts: Tensor) -> Tensor:
        return self.unet(x, t, prompts).sample

    def reference(self, x: Tensor, t: Tensor, prompts: Tensor) -> Tensor:
        with torch.no_grad():
            return self.frozen(x, t, prompts).sample

    @torch.no_grad()
    def rollout(self, like: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scheduler = DPMSolverMultistepScheduler.from_config(self.schedule.config)
        scheduler.set_timesteps(ROLLOUT)
        x, seen = torch.randn_like(like), []
        for t in scheduler.timesteps:
            eps = self.predict(x, t.expand(len(x)), prompts)
            seen.append((x, eps, t))
            x = scheduler.step(eps, t, x).prev_sample
        x, eps, t = seen[int(torch.randint(ROLLOUT, ()))]
        return x, eps, t.expand(len(prompts))

    def step(self, objective: str, pairs: list[Pair]) -> None:
        for first in range(0, len(pairs), self.micro):
            some = pairs[first : first + self.micro]
            (self.loss(objective, some) * len(some) / len(pairs)).backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self, objective: str, pairs: list[Pair]) -> Tensor:
        prompts = self.prompts([text for text, _, _ in pairs])
        if objective == "dro":
            photo = self.encode([photo for _, photo, _ in pairs])
            noise = torch.randn_like(photo)
            rejected, rejected_target, t = self.rollout(photo, prompts)
        else:
            both_images = [photo for _, photo, _ in pairs] + [twin for _, _, twin in pairs]
            photo, twin = self.encode(both_images).chunk(2)
            noise, t = torch.randn_like(photo), torch.randint(1000, (len(pairs),))
            rejected, rejected_target = self.schedule.add_noise(twin, noise, t), noise
        x = torch.cat([self.schedule.add_noise(photo, noise, t), rejected])
        target, tt = torch.cat([noise, rejected_target]), torch.cat([t, t])
        both = prompts.repeat(2, 1, 1)
        reference = (self.reference(x, tt, both) - target).square().mean((1, 2, 3))
        learner = (self.predict(x, tt, both) - target).square().mean((1, 2, 3))
        chosen, rejected = (learner - reference).chunk(2)
        if objective == "dro":
            return (chosen - rejected).clamp(min=-0.001).mean()
        return -F.logsigmoid(-5 * (chosen - rejected)).mean()


def time_plain(what: Case, objective: str, pairs: list[Pair]) -> float:
    loop, batch, steps = Plain(what), what.batch, what.steps[objective]
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
    loop, some = Plain(what), pairs[: what.batch]
    images = [photo for _, photo, _ in some] + [twin for _, _, twin in some]
    encoding = flops(lambda: (loop.encode(images), loop.prompts([text for text, _, _ in some])))
    return encoding / flops(lambda: loop.step("dpo", some))


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for name in sys.argv[2:] or ("tiny", "proportions"):
        assert torch.get_num_threads() == 1, "set OMP_NUM_THREADS=1"
        what = case(name)
        pairs = photographs(what.side)
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
