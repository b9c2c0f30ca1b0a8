"""A trained LoRA in plain diffusers: the same prompts and seeds before and after."""

import sys
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image

from raypref.demo.world import held_out_prompts
from raypref.models.hub import model_folder

# The folder of a training: it holds pytorch_lora_weights.safetensors.
lora = sys.argv[1] if len(sys.argv) > 1 else "runs/my-photos/stage1"
prompts = held_out_prompts(6)  # no photograph of the training shows these combinations

# For the preset sd15 this is "stable-diffusion-v1-5/stable-diffusion-v1-5".
base = model_folder("tiny:sd15", key="base.model", probe="model_index.json")
pipe = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32, safety_checker=None)
pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
pipe.set_progress_bar_config(disable=True)


def pictures() -> list[Image.Image]:
    """One image per prompt; image i always begins with the noise of seed i."""
    noise = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    return pipe(
        prompts, generator=noise, num_inference_steps=15, guidance_scale=2.5, height=64, width=64
    ).images


before = pictures()
pipe.load_lora_weights(lora)
after = pictures()

sheet = Image.new("RGB", (64 * len(prompts), 128))
for position, (old, new) in enumerate(zip(before, after, strict=True)):
    sheet.paste(old, (64 * position, 0))
    sheet.paste(new, (64 * position, 64))
target = Path(lora, "before-and-after.png")
sheet.resize((sheet.width * 3, sheet.height * 3), Image.Resampling.NEAREST).save(target)
print(f"above without, below with the LoRA: {target}")
