"""Makes the embedded checkpoints: renders the world and trains the models on it, on a CPU.

    python -m raypref.demo.train FOLDER [--only PART ...] [--scale 0.01]

The base model and the inpainter see the world out of focus and dull, so that crisp photographs
have something to teach them. Parts have seeds of their own and may run side by side; `base` and
`inpaint` need `vae`, `crisp` needs `base` (`sd15` in the folder), `tastes` need `inpaint` and
`scorer`. The folder then holds what
`raypref/demo/weights` ships, and `vae` once more: to the byte on an AMD EPYC with one thread
(OMP_NUM_THREADS=1) and the versions of constraints.txt; another processor rounds otherwise, and
another model comes out. All of it takes two to four hours of one core, half of that on two.
"""

from __future__ import annotations

import argparse
import functools
import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from diffusers.models.resnet import ResnetBlock2D
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil

from raypref.demo import models, tastes
from raypref.demo.critic import MOST_THINGS, Critic
from raypref.demo.drawn import World, draw_world, hole, mask_tensor, tensor
from raypref.demo.fit import Noise, fit_model, tokens
from raypref.demo.holes import hole_around
from raypref.demo.photograph import SIZE
from raypref.demo.scene import COLOURS, SHAPES, Scene
from raypref.models.lora_config import ATTENTION, FILE_NAME
from raypref.models.u2net import U2NETP

PHOTOS = 12_000
FEWER_PHOTOS = {"crisp": 1024, "tastes": 192}  # enough for a LoRA, and for linear heads
RANK = 8  # of the LoRA
HOLES = 2  # of each photograph, for the inpainter
GREY = np.uint8(127)  # as near to the pipeline's 0 as bytes come
_MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]  # what U2-Net's input is normalised by
_STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def train_vae(world: World, folder: Path, scale: float) -> None:
    """The autoencoder, on crisp and degraded photographs alike."""
    vae = models.vae()
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):  # blocks that begin as identities learn faster
            assert module.conv2.bias is not None
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)

    def loss(indices: np.ndarray, rng: np.random.Generator) -> Tensor:
        crisp = rng.random(len(indices)) < 0.5
        photos = np.where(
            crisp[:, None, None, None], world.photos[indices], world.degraded(rng, indices)
        )
        x_BCHW = tensor(photos)
        latents = vae.encode(x_BCHW).latent_dist
        error = vae.decode(latents.sample()).sample - x_BCHW
        kl = latents.kl().mean() / latents.mean[0].numel()
        # A KL term this strong keeps the latents smooth: errors of the UNet stay small in pixels.
        return 5 * error.square().mean() + 0.3 * error.abs().mean() + 2e-3 * kl

    fit_model("vae", [vae], loss, len(world.photos), steps=int(4000 * scale), batch=8, lr=5e-3)
    vae.eval()
    with torch.no_grad():
        latents = torch.cat(
            [
                vae.encode(tensor(world.photos[i : i + 32])).latent_dist.mean
                for i in range(0, min(512, len(world.photos)), 32)
            ]
        )
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    vae.half().save_pretrained(folder / "vae")


def train_base(world: World, folder: Path, scale: float) -> None:
    """UNet and text encoder, on the dull world."""
    vae, rng = _load_vae(folder), np.random.default_rng(1)
    moments = [_moments(vae, world.degraded(rng, indices)) for indices in _batches(world, 1)]
    mean, std = (torch.cat(values) for values in zip(*moments, strict=True))
    text_encoder, unet = models.text_encoder(), models.unet(in_channels=4)
    captions = tokens(models.tokenizer(), world.captions)
    noise = Noise()

    def loss(indices: np.ndarray, rng: np.random.Generator) -> Tensor:
        z = mean[indices] + std[indices] * torch.randn_like(mean[indices])
        noisy, target, steps = noise(z * vae.config.scaling_factor)
        embeddings = text_encoder(noise.drop(captions[indices], rng))[0]
        return F.mse_loss(unet(noisy, steps, embeddings).sample, target)

    trained, count, steps = [unet, text_encoder], len(world.photos), int(7000 * scale)
    fit_model("base", trained, loss, count, steps=steps, batch=32, lr=1.2e-3)
    _save(StableDiffusionPipeline, folder / "sd15", vae, text_encoder, unet)


def train_inpaint(world: World, folder: Path, scale: float) -> None:
    """The inpainter: it sees a crisp surrounding and paints what it knows, the dull world."""
    vae, rng = _load_vae(folder), np.random.default_rng(1)
    painted, around, where, shown = [], [], [], _batches(world, HOLES)
    for indices in shown:
        photos = world.photos[indices]
        holes = np.stack([hole(world.masks[i], rng) for i in indices])[..., None]
        painted.append(_moments(vae, np.where(holes, world.degraded(rng, indices), photos)))
        where.append(F.interpolate(mask_tensor(holes), scale_factor=1 / 4))
        # A hole is grey, as the pipeline makes it.
        around.append(_moments(vae, np.where(holes, GREY, photos))[0])
    mean, std = (torch.cat(values) for values in zip(*painted, strict=True))
    seen = torch.cat([torch.cat(where), torch.cat(around) * vae.config.scaling_factor], 1)
    text_encoder, unet = models.text_encoder(), models.unet(in_channels=9)
    captions = tokens(models.tokenizer(), world.captions)[np.concatenate(shown)]
    noise = Noise()

    def loss(indices: np.ndarray, rng: np.random.Generator) -> Tensor:
        z = mean[indices] + std[indices] * torch.randn_like(mean[indices])
        noisy, target, steps = noise(z * vae.config.scaling_factor)
        embeddings = text_encoder(noise.drop(captions[indices], rng))[0]
        prediction = unet(torch.cat([noisy, seen[indices]], 1), steps, embeddings).sample
        return F.mse_loss(prediction, target)

    trained, steps = [unet, text_encoder], int(6000 * scale)
    fit_model("inpaint", trained, loss, len(seen), steps=steps, batch=32, lr=1.2e-3)
    _save(StableDiffusionInpaintPipeline, folder / "sd15-inpaint", vae, text_encoder, unet)


def train_crisp(world: World, folder: Path, scale: float) -> None:
    """A LoRA of the base on the world as it is, crisp and colourful: rank 8, on attention."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "sd15", safety_checker=None)
    unet, vae = pipeline.unet.float().requires_grad_(False), pipeline.vae.float().eval()
    # alpha is the rank, which every reader of a LoRA without an alpha assumes.
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(ATTENTION)))
    moments = [_moments(vae, world.photos[indices]) for indices in _batches(world, 1)]
    mean, std = (torch.cat(values) for values in zip(*moments, strict=True))
    noise, text_encoder = Noise(), pipeline.text_encoder.float().eval()
    captions = tokens(models.tokenizer(), world.captions)

    def loss(indices: np.ndarray, rng: np.random.Generator) -> Tensor:
        z = mean[indices] + std[indices] * torch.randn_like(mean[indices])
        noisy, target, steps = noise(z * vae.config.scaling_factor)
        with torch.no_grad():
            embeddings = text_encoder(noise.drop(captions[indices], rng))[0]
        return F.mse_loss(unet(noisy, steps, embeddings).sample, target)

    trained = nn.ParameterList(p for p in unet.parameters() if p.requires_grad)
    count, steps = len(world.photos), int(300 * scale)
    fit_model("crisp", [trained], loss, count, steps=steps, batch=32, lr=1e-3)
    state = get_peft_model_state_dict(unet)
    (folder / "crisp").mkdir(exist_ok=True)
    halves = {f"unet.{name}": value.half().contiguous() for name, value in state.items()}
    save_file(halves, folder / "crisp" / FILE_NAME)


def train_detector(world: World, folder: Path, scale: float) -> None:
    """A U2-Net (the small one) on the renderer's masks; all seven maps are supervised."""
    detector = U2NETP()

    def loss(indices: np.ndarray, rng: np.random.Generator) -> Tensor:
        photos, masks = world.photos[indices], world.masks[indices]
        if rng.random() < 0.5:
            photos, masks = photos[:, :, ::-1].copy(), masks[:, :, ::-1].copy()
        target = mask_tensor(masks[..., None])
        maps = detector((tensor(photos) * 0.5 + 0.5 - _MEAN) / _STD)
        return torch.stack([F.binary_cross_entropy(m, target) for m in maps]).sum()

    fit_model(
        "detector", [detector], loss, len(world.photos), steps=int(450 * scale), batch=8, lr=2e-3
    )
    state = {name: _half(value) for name, value in detector.state_dict().items()}
    save_file(state, folder / "u2netp.safetensors")


def train_scorer(world: World, folder: Path, scale: float) -> None:
    """CLIP on image and caption, and on crisp against degraded: PickScore's choice of two."""
    scorer, tokenizer = models.scorer(), models.tokenizer()
    captions = tokens(tokenizer, world.captions)

    def loss(indices: np.ndarray, rng: np.random.Generator) -> Tensor:
        photos = world.photos[indices]
        worse = world.degraded(rng, indices)
        # Half of the worse ones are degraded only where the thing is, as a repainted twin is.
        holes = np.stack([hole(world.masks[i], rng) for i in indices])[..., None]
        local = rng.random(len(indices))[:, None, None, None] < 0.5
        worse = np.where(local & ~holes, photos, worse)
        images = torch.cat([tensor(photos), tensor(worse)])
        image_2BD = F.normalize(scorer.get_image_features(images).pooler_output, dim=-1)
        text_BD = F.normalize(scorer.get_text_features(captions[indices]).pooler_output, dim=-1)
        scale = scorer.logit_scale.exp().clamp(max=100)
        better, worse_ = image_2BD.chunk(2)
        same = (captions[indices][:, None] == captions[indices][None]).all(-1).float()
        contrast = torch.zeros(())
        for images_BD in (better, worse_):
            logits = scale * images_BD @ text_BD.T
            target = same / same.sum(1, keepdim=True)
            contrast = (
                contrast + F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
            )
        gap = scale * ((better - worse_) * text_BD).sum(-1)
        return contrast / 4 - F.logsigmoid(gap).mean()

    fit_model(
        "scorer", [scorer], loss, len(world.photos), steps=int(2500 * scale), batch=48, lr=8e-4
    )
    scorer.half().save_pretrained(folder / "pickscore")
    tokenizer.save_pretrained(folder / "pickscore")
    size = {"height": SIZE, "width": SIZE}
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor.save_pretrained(folder / "pickscore")


def train_critic(world: World, folder: Path, scale: float) -> None:
    """The classifier of shapes and colours that judges prompt accuracy."""
    critic = Critic()
    shapes, colours = _labels(world.scenes)

    def loss(indices: np.ndarray, rng: np.random.Generator) -> Tensor:
        crisp = rng.random(len(indices))[:, None, None, None] < 0.3
        photos = np.where(crisp, world.photos[indices], world.degraded(rng, indices))
        x_BCHW = tensor(photos)
        x_BCHW = x_BCHW + 0.05 * torch.randn_like(x_BCHW)
        shape, colour = critic(x_BCHW)
        return F.cross_entropy(shape.flatten(0, 1), shapes[indices].flatten()) + F.cross_entropy(
            colour.flatten(0, 1), colours[indices].flatten()
        )

    fit_model(
        "critic", [critic], loss, len(world.photos), steps=int(3500 * scale), batch=48, lr=2e-3
    )
    state = {name: _half(value) for name, value in critic.state_dict().items()}
    save_file(state, folder / "critic.safetensors")


def train_tastes(world: World, folder: Path, scale: float) -> None:
    """Heads on the scorer's embedding that like bright, dark, vivid or pale paintings of holes."""
    painted = tastes.paint_holes(
        [Image.fromarray(photo) for photo in world.photos],
        [hole_around(mask) for mask in world.masks],
        world.captions,
        candidates=max(2, round(tastes.CANDIDATES * scale)),
        weights=folder,
    )
    for name in tastes.TASTES:
        weight, bias = tastes.fit_taste(painted, name)
        head = {"weight": torch.tensor(weight)[None].half(), "bias": torch.tensor([bias]).half()}
        save_file(head, folder / tastes.file_name(name))


PARTS: dict[str, Callable[[World, Path, float], None]] = {
    "vae": train_vae,
    "base": train_base,
    "inpaint": train_inpaint,
    "detector": train_detector,
    "scorer": train_scorer,
    "critic": train_critic,
    "crisp": train_crisp,
    "tastes": train_tastes,  # a new part comes last: the seed of each is its index
}


def _half(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() else value


def _load_vae(folder: Path) -> Any:
    return AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()


@torch.no_grad()
def _moments(vae: Any, photos: np.ndarray) -> tuple[Tensor, Tensor]:
    latents = vae.encode(tensor(photos)).latent_dist
    return latents.mean, latents.std


def _batches(world: World, times: int) -> list[np.ndarray]:
    """Indices of all photographs, several times, 32 by 32."""
    indices = np.tile(np.arange(len(world.photos)), times)
    return np.array_split(indices, math.ceil(len(indices) / 32))


def _labels(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Class of shape and of colour at each place, [N, 2]; a missing thing is the last class."""
    shapes = torch.full((len(scenes), MOST_THINGS), len(SHAPES))
    colours = torch.full((len(scenes), MOST_THINGS), len(COLOURS))
    for row, scene in enumerate(scenes):
        for place, thing in enumerate(scene.things):
            shapes[row, place] = SHAPES.index(thing.shape)
            colours[row, place] = [*COLOURS].index(thing.colour)
    return shapes, colours


def _save(
    kind: Any, folder: Path, vae: nn.Module, text_encoder: nn.Module, unet: nn.Module
) -> None:
    """Write a pipeline in hub layout."""
    pipeline = kind(
        vae=vae.half(),
        text_encoder=text_encoder.half(),
        tokenizer=models.tokenizer(),
        unet=unet.half(),
        scheduler=models.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def remake() -> None:
    """Train all parts, or those asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=[*PARTS], default=[*PARTS])
    parser.add_argument("--scale", type=float, default=1.0, help="of photographs and steps")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    world = functools.cache(draw_world)
    for part in arguments.only:
        least = 8 if part == "tastes" else 64  # the others draw batches of them
        count = max(int(FEWER_PHOTOS.get(part, PHOTOS) * arguments.scale), least)
        drawn = world(count)
        torch.manual_seed(list(PARTS).index(part))
        PARTS[part](drawn, arguments.folder, arguments.scale)


if __name__ == "__main__":
    remake()
