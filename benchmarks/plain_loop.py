"""A plain training loop, as the released scripts have it, to time ours against.

It encodes images and captions at every step, runs every policy rollout to its end, and keeps a
second copy of the network as reference. Its pictures lie decoded in memory.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DPMSolverMultistepScheduler
from peft import LoraConfig as PeftLoraConfig
from PIL import Image, ImageFilter
from torch import Tensor

from raypref.demo.photograph import render_scene
from raypref.demo.world import caption, sample_scenes
from raypref.models.backbone import BackboneConfig, load_denoiser, load_pipeline
from raypref.models.lora_config import LoraConfig

ROLLOUT = 20
Pair = tuple[str, Image.Image, Image.Image]


def photographs(count: int, side: int) -> list[Pair]:
    """Caption, photograph and blurred twin of scenes of the demo's world."""
    made = []
    for i, scene in enumerate(sample_scenes(count, 0)):
        photo = Image.fromarray(render_scene(scene, seed=i)).resize((side, side))
        made.append((caption(scene), photo, photo.filter(ImageFilter.GaussianBlur(2))))
    return made


class Plain:
    """The plain loop, for both objectives.

    Args:
        base: the model.
        shape: of the adapters.
        micro: samples through the network at once; their gradients are accumulated.
        device: where it runs.
    """

    def __init__(
        self,
        base: BackboneConfig,
        shape: LoraConfig,
        *,
        micro: int,
        device: torch.device,
    ) -> None:
        self.micro, self.device = micro, device
        self.pipe: Any = load_pipeline(base, device=device)
        self.unet = self.pipe.unet.to(memory_format=torch.channels_last)
        self.unet.requires_grad_(False)
        self.unet.add_adapter(
            PeftLoraConfig(
                r=shape.rank,
                lora_alpha=int(shape.alpha),
                target_modules=list(shape.targets),
                init_lora_weights="gaussian",
            )
        )
        self.weights = [weight for weight in self.unet.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-5)
        copy = load_denoiser(base, device=device)
        self.frozen, self.schedule = copy.module, copy.schedule  # type: ignore[attr-defined]

    def encode(self, images: list[Image.Image]) -> Tensor:
        pixels = self.pipe.image_processor.preprocess(images).to(self.device)
        with torch.no_grad():
            latents = self.pipe.vae.encode(pixels).latent_dist.sample()
        return latents * self.pipe.vae.config.scaling_factor

    def prompts(self, texts: list[str]) -> Tensor:
        with torch.no_grad():
            return self.pipe.encode_prompt(texts, self.device, 1, False)[0]

    def predict(self, x: Tensor, t: Tensor, prompts: Tensor) -> Tensor:
        return self.unet(x, t, prompts).sample

    def reference(self, x: Tensor, t: Tensor, prompts: Tensor) -> Tensor:
        with torch.no_grad():
            return self.frozen(x, t, prompts).sample

    @torch.no_grad()
    def rollout(self, like: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scheduler = DPMSolverMultistepScheduler.from_config(self.schedule.config)
        scheduler.set_timesteps(ROLLOUT, device=self.device)
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
            noise, t = (
                torch.randn_like(photo),
                torch.randint(1000, (len(pairs),), device=self.device),
            )
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
