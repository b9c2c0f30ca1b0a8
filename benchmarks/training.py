"""Training steps/s: our loop against a plain loop, in one process and one run, interleaved.

The plain loop does what the released scripts do: it encodes images and captions at every step,
runs every policy rollout to its end, and keeps a second copy of the network as reference. Ours
reads the cache and stops each rollout where it is asked. Both do the same optimizer steps.

    python benchmarks/training.py [STEPS] [ROUNDS]
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image, ImageFilter
from torch import Tensor

from raypref.align.cache import FLIPS, PairData
from raypref.align.loop import Alone, train
from raypref.align.objectives import Errors, denoising_error, dpo_loss, dro_loss
from raypref.align.stage import StageConfig
from raypref.diffusion import lora
from raypref.diffusion.backbone import BackboneConfig, load_denoiser, load_encoder, load_pipeline
from raypref.diffusion.lora import LoraConfig
from raypref.tiny.photograph import render
from raypref.tiny.world import caption, sample_scenes

BASE = BackboneConfig(model="tiny:sd15")
LORA = LoraConfig()
CPU = torch.device("cpu")
BATCH, ROLLOUT = 8, 20


def photographs(count: int) -> list[tuple[str, Image.Image, Image.Image]]:
    made = []
    for i, scene in enumerate(sample_scenes(count, 0)):
        photo = Image.fromarray(render(scene, seed=i))
        made.append((caption(scene), photo, photo.filter(ImageFilter.GaussianBlur(2))))
    return made


def cached(pairs: list[tuple[str, Image.Image, Image.Image]]) -> PairData:
    encoder = load_encoder(BASE, device=CPU)
    images = [
        side
        for _, photo, twin in pairs
        for image in (photo, twin)
        for side in (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    ]
    moments = encoder.image_moments(images)
    return PairData(
        moments=moments.reshape(len(pairs), 2, FLIPS, *moments.shape[1:]),
        embeddings=encoder.text_embeddings([text for text, _, _ in pairs]),
        unconditional=encoder.text_embeddings([""])[0],
    )


class Plain:
    """The plain loop, for both objectives."""

    def __init__(self) -> None:
        self.pipe: StableDiffusionPipeline = load_pipeline(BASE, device=CPU)
        self.unet = self.pipe.unet
        lora.attach(self.unet, LORA, names=("learner",), seed=0)
        lora.activate(self.unet, "learner", train=True)
        self.weights = lora.parameters(self.unet, "learner")
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-5)
        base = load_denoiser(BASE, device=CPU)
        self.frozen, self.schedule = base.module, base.schedule  # type: ignore[attr-defined]

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
    def rollout(self, prompts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scheduler = DPMSolverMultistepScheduler.from_config(self.schedule.config)
        scheduler.set_timesteps(ROLLOUT)
        x, seen = torch.randn(len(prompts), 4, 8, 8), []
        for t in scheduler.timesteps:
            eps = self.predict(x, t.expand(len(x)), prompts)
            seen.append((x, eps, t))
            x = scheduler.step(eps, t, x).prev_sample
        x, eps, t = seen[int(torch.randint(ROLLOUT, ()))]
        return x, eps, t.expand(len(prompts))

    def step(self, objective: str, pairs: list[tuple[str, Image.Image, Image.Image]]) -> None:
        prompts = self.prompts([text for text, _, _ in pairs])
        photo = self.encode([photo for _, photo, _ in pairs])
        noise = torch.randn_like(photo)
        if objective == "dro":
            loser, loser_target, t = self.rollout(prompts)
        else:
            t = torch.randint(1000, (len(pairs),))
            twin = self.encode([twin for _, _, twin in pairs])
            loser, loser_target = self.schedule.add_noise(twin, noise, t), noise
        x = torch.cat([self.schedule.add_noise(photo, noise, t), loser])
        target, tt = torch.cat([noise, loser_target]), torch.cat([t, t])
        both = prompts.repeat(2, 1, 1)
        reference = denoising_error(self.reference(x, tt, both), target)
        learner = denoising_error(self.predict(x, tt, both), target)
        errors = Errors(*learner.chunk(2), *reference.chunk(2))
        loss = dro_loss(errors, margin=-0.001) if objective == "dro" else dpo_loss(errors, beta=10)
        loss[0].mean().backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def time_plain(
    objective: str, pairs: list[tuple[str, Image.Image, Image.Image]], steps: int
) -> float:
    loop = Plain()
    loop.step(objective, pairs[:BATCH])  # warm-up
    began = time.perf_counter()
    for i in range(steps):
        loop.step(objective, [pairs[(i * BATCH + j) % len(pairs)] for j in range(BATCH)])
    return steps / (time.perf_counter() - began)


def time_ours(objective: str, data: PairData, steps: int) -> float:
    stage = StageConfig(
        objective=objective,  # type: ignore[arg-type]
        steps=steps + 1,
        batch=BATCH,
        micro_batch=BATCH,
        rollout_steps=ROLLOUT,
        checkpoint_every=10**6,
    )
    with tempfile.TemporaryDirectory() as folder:
        history = train(
            load_denoiser(BASE, device=CPU),
            data,
            stage,
            LORA,
            name="bench",
            seed=0,
            folder=folder,
            start=None,
            group=Alone(),
            on_step=lambda metrics: None,
        )
    return steps / sum(metrics["seconds"] for metrics in history[1:])


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    pairs = photographs(32)
    data = cached(pairs)
    print(
        f"tiny SD-1.5, batch {BATCH}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s)"
    )
    for objective in ("dro", "dpo"):
        ours, theirs = [], []
        for _ in range(rounds):
            theirs.append(time_plain(objective, pairs, steps))
            ours.append(time_ours(objective, data, steps))
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        print(
            f"  {objective}: plain {statistics.median(theirs):.2f} steps/s, "
            f"ours {statistics.median(ours):.2f} steps/s, ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}, {rounds} rounds of {steps} steps)"
        )


if __name__ == "__main__":
    main()
