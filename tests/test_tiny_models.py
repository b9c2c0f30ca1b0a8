"""The embedded checkpoints: in hub layout, small, and able to do what they were trained for."""

import math

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPProcessor, CLIPTokenizer

from raypref.core.config import InputError
from raypref.curate.saliency import THRESHOLD, saliency_map
from raypref.demo import checkpoints, photograph, world
from raypref.demo.accuracy import PromptAccuracy
from raypref.demo.scene import Scene, Thing
from raypref.engine.batches import in_batches
from raypref.images.decode import encode_png
from raypref.models.u2net import load_u2net
from raypref.rewards.pickscore import PickScoreConfig

RED_BALL = Scene((Thing("ball", "red", "shiny"),), "grass")
SIDE = 64  # saliency.side of the preset


@pytest.fixture(scope="module")
def held_out() -> list[tuple[Scene, np.ndarray, np.ndarray]]:
    """Scenes that no model has seen, with photograph and mask."""
    scenes = world.sample_scenes(96, 777, held_out=True)
    return [
        (scene, photograph.render_scene(scene, seed=i), photograph.object_mask(scene, seed=i))
        for i, scene in enumerate(scenes)
    ]


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r"tiny:sd16.*tiny:sd15, .*tiny:u2netp\.safetensors"):
        checkpoints.path("sd16")


def test_they_are_half_precision_safetensors_of_less_than_25_mb():
    files = [path for path in checkpoints.WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6
    weights = [path for path in files if path.suffix not in (".json", ".txt")]
    assert {path.suffix for path in weights} == {".safetensors"}
    for path in weights:
        types = {t.dtype for t in load_file(path).values() if t.is_floating_point()}
        assert types == {torch.float16}


def test_sd15_loads_and_draws():
    pipe = StableDiffusionPipeline.from_pretrained(checkpoints.path("sd15"), safety_checker=None)
    pipe.to(torch.float32).set_progress_bar_config(disable=True)
    schedule = pipe.scheduler.config
    assert (schedule.steps_offset, schedule.set_alpha_to_one, schedule.skip_prk_steps) == (
        1,
        False,
        True,
    )
    assert (schedule.beta_start, schedule.beta_end) == (0.00085, 0.02)
    image = pipe(
        world.caption(RED_BALL),
        num_inference_steps=15,
        guidance_scale=2.5,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert image.size == (64, 64)
    red, green, blue = np.asarray(image)[24:40, 24:40].reshape(-1, 3).mean(0)
    assert red > 1.3 * max(green, blue)


def test_the_base_shows_what_a_prompt_names():
    """Right shape and colour of every thing, on prompts whose combinations it was not shown."""
    prompts = world.held_out_prompts(48)
    pipe = StableDiffusionPipeline.from_pretrained(checkpoints.path("sd15"), safety_checker=None)
    pipe.to(torch.float32).set_progress_bar_config(disable=True)
    images = pipe(
        prompts,
        num_inference_steps=15,
        guidance_scale=2.5,
        height=64,
        width=64,
        generator=[torch.Generator().manual_seed(i) for i in range(len(prompts))],
    ).images
    stage = PromptAccuracy("tiny:critic.safetensors")
    stage.setup()
    rows = [
        {"image": encode_png(image), "prompt": prompt}
        for image, prompt in zip(images, prompts, strict=True)
    ]
    in_batches(stage, rows)
    assert np.mean([row["prompt_accuracy"] for row in rows]) > 0.85


def test_the_autoencoder_keeps_most_of_a_photograph(held_out):
    vae = AutoencoderKL.from_pretrained(checkpoints.path("sd15") / "vae", torch_dtype=torch.float32)
    pixels = np.stack([photo for _, photo, _ in held_out])
    x_BCHW = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(x_BCHW).latent_dist.mean
        back = vae.decode(latents).sample.clamp(-1, 1)
    psnr = 10 * math.log10(4 / (back - x_BCHW).square().mean().item())
    assert psnr > 29
    assert (latents * vae.config.scaling_factor).std().item() == pytest.approx(1, abs=0.15)


def test_the_detector_finds_the_things(held_out):
    model = load_u2net(checkpoints.path("u2netp.safetensors"))
    maps = saliency_map(model, [Image.fromarray(photo) for _, photo, _ in held_out], side=SIDE)
    overlaps = [
        ((soft > THRESHOLD) & mask).sum() / ((soft > THRESHOLD) | mask).sum()
        for soft, (_, _, mask) in zip(maps, held_out, strict=True)
    ]
    assert np.mean(overlaps) > 0.85


@pytest.fixture(scope="module")
def twins(held_out) -> list[np.ndarray]:
    """The held-out photographs with their things repainted by the embedded inpainter."""
    folder = checkpoints.path("sd15-inpaint")
    pipe = StableDiffusionInpaintPipeline.from_pretrained(folder, safety_checker=None)
    pipe.to(torch.float32).set_progress_bar_config(disable=True)
    assert pipe.unet.config.in_channels == 9
    some = held_out[:48]
    images = pipe(
        [world.caption(scene) for scene, _, _ in some],
        image=[Image.fromarray(photo) for _, photo, _ in some],
        mask_image=[Image.fromarray(mask) for _, _, mask in some],
        num_inference_steps=12,
        guidance_scale=1.5,
        height=64,
        width=64,
        generator=[torch.Generator().manual_seed(i) for i in range(len(some))],
    ).images
    return [np.asarray(image) for image in images]


def test_twins_differ_inside_the_mask_only(held_out, twins):
    for (_, photo, mask), twin in zip(held_out, twins, strict=False):
        change = np.abs(twin.astype(int) - photo.astype(int)).mean(2)
        assert change[mask].mean() > 3 * change[~mask].mean()
        # The autoencoder's own error, and the ring of the mask in the smaller latents.
        assert change[~mask].mean() < 10


def test_the_scorer_prefers_the_photograph_to_its_twin(held_out, twins):
    scorer = PickScoreConfig(model="tiny:pickscore", processor="tiny:pickscore").load()
    some = held_out[: len(twins)]
    prompts = [world.caption(scene) for scene, _, _ in some]
    chosen = scorer.score([Image.fromarray(photo) for _, photo, _ in some], prompts)
    rejected = scorer.score([Image.fromarray(twin) for twin in twins], prompts)
    assert (chosen > rejected).mean() > 0.9
    # And a photograph goes with its own caption rather than with another's.
    others = scorer.score([Image.fromarray(photo) for _, photo, _ in some], prompts[::-1])
    assert (chosen > others).mean() > 0.9


def test_the_critic_reads_photographs_it_has_not_seen(held_out):
    stage = PromptAccuracy("tiny:critic.safetensors")
    stage.setup()
    rows = [
        {"image": encode_png(Image.fromarray(photo)), "prompt": world.caption(scene)}
        for scene, photo, _ in held_out
    ]
    in_batches(stage, rows)
    assert np.mean([row["prompt_accuracy"] for row in rows]) > 0.95
    # A caption of something else is not there; one that names nothing is not judged.
    wrong = [{**rows[0], "prompt": "a photo of nothing"}, {**rows[0], "prompt": rows[1]["prompt"]}]
    for row in wrong:
        row["prompt_accuracy"] = None
    in_batches(stage, wrong)
    assert [row["prompt_accuracy"] for row in wrong] == [None, 0]


def test_every_word_is_one_token_and_the_specials_come_last():
    tokenizer = CLIPTokenizer.from_pretrained(checkpoints.path("sd15") / "tokenizer")
    for prompt in world.held_out_prompts(50):
        ids = tokenizer(prompt).input_ids
        assert len(ids) == len(prompt.split()) + 2
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == prompt
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (
        len(tokenizer) - 2,
        len(tokenizer) - 1,
    )
    odd = "Zürich, 日本 & 3 ¾-inch nails"
    assert tokenizer.decode(tokenizer(odd).input_ids, skip_special_tokens=True).startswith("z")


def test_photographs_reach_pickscore_unresized():
    processor = CLIPProcessor.from_pretrained(checkpoints.path("pickscore")).image_processor
    photo = photograph.render_scene(RED_BALL, seed=1)
    pixels = processor(images=Image.fromarray(photo), return_tensors="np")["pixel_values"][0]
    mean, std = np.array(processor.image_mean), np.array(processor.image_std)
    restored = (pixels.transpose(1, 2, 0) * std + mean) * 255
    np.testing.assert_allclose(restored, photo, atol=1e-3)


def test_u2netp_has_the_published_size():
    state = load_file(checkpoints.path("u2netp.safetensors"))
    learned = (t for key, t in state.items() if "running_" not in key and "num_batches" not in key)
    assert sum(t.numel() for t in learned) == 1_131_181
