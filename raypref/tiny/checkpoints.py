"""Small checkpoints in hub layout, built on first use: the embedded default needs no network.

They have the structure of the published models (files, keys, schedules) and random weights, and
are the same bytes on every machine with the same versions of torch, diffusers and transformers.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypref.config import InputError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

# The libraries are imported where something is built: to resolve a path must not cost seconds.

VERSION = 2  # of everything in the cache; to bump when a build changes
SPECIALS = ("<|startoftext|>", "<|endoftext|>")

# The seed under which random towers score the world's photographs most like trained ones: about
# 22 on average, and some degraded twins above their photograph and some below.
_PICKSCORE_SEED = 32

_BUILDING = threading.Lock()  # a build seeds torch's global generator


def path(name: str) -> Path:
    """The local folder or file of an embedded checkpoint, built when it is not in the cache.

    Args:
        name: `sd15` (StableDiffusionPipeline), `sd15-inpaint` (StableDiffusionInpaintPipeline),
            `pickscore` (CLIPModel with its CLIPProcessor) or `u2netp.pth` (state dict of U2NETP).

    Raises:
        InputError: there is no such checkpoint.
    """
    if name not in _BUILDERS:
        known = ", ".join(f"tiny:{known}" for known in _BUILDERS)
        raise InputError(f"no embedded model 'tiny:{name}'; there are: {known}")

    def build(target: Path) -> None:
        with _isolated():
            _BUILDERS[name](target)

    return cached(name, build)


def cached(name: str, build: Callable[[Path], object]) -> Path:
    """The cache entry `name`, made by `build(path)` when it is missing.

    The cache is `$RAYPREF_CACHE` or `~/.cache/raypref`. An entry appears whole or not at all;
    when two processes build it at once, both succeed and the first one's stays.

    Args:
        name: of a file or folder in the cache.
        build: writes the file or folder at the path it is given; the parent folder exists.

    Raises:
        InputError: the cache cannot be written.
    """
    root = Path(os.environ.get("RAYPREF_CACHE") or "~/.cache/raypref").expanduser().absolute()
    entry = root / f"tiny-{VERSION}" / name
    with _BUILDING:
        if entry.exists():
            return entry
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            workshop = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=entry.parent))
        except OSError as error:
            raise InputError(
                f"the cache {root} cannot be written ({error.strerror}); "
                "set RAYPREF_CACHE to a folder that can"
            ) from None
        try:
            build(workshop / name)
            (workshop / name).rename(entry)
        except OSError:
            # Renaming a folder onto one that another process finished in the meantime.
            if not entry.exists():
                raise
        finally:
            shutil.rmtree(workshop, ignore_errors=True)
    return entry


@contextmanager
def _isolated() -> Iterator[None]:
    """Build quietly and from a fixed seed, and leave the caller's global state as it was."""
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    logs = (diffusers_logging, transformers_logging)
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    dtype = torch.get_default_dtype()
    try:
        for log in logs:
            log.set_verbosity_error()
            log.disable_progress_bar()
        torch.set_default_dtype(torch.float32)
        # devices=[] and the CPU generator alone: torch.manual_seed would reseed the GPUs as well.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(dtype)
        for log, (verbosity, bars) in zip(logs, before, strict=True):
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()


def _build_sd15(folder: Path) -> None:
    from diffusers import StableDiffusionPipeline

    _save_pipeline(StableDiffusionPipeline, folder, in_channels=4)


def _build_sd15_inpaint(folder: Path) -> None:
    from diffusers import StableDiffusionInpaintPipeline

    # Noisy latents, the mask, latents of the masked image.
    _save_pipeline(StableDiffusionInpaintPipeline, folder, in_channels=4 + 1 + 4)


def _save_pipeline(kind: Any, folder: Path, *, in_channels: int) -> None:
    pipeline = kind(
        vae=_vae(),
        text_encoder=_text_encoder(),
        tokenizer=_tokenizer(),
        unet=_unet(in_channels=in_channels),
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def _build_pickscore(folder: Path) -> None:
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPVisionConfig

    side = 64  # of the world's photographs: they are scored as they are, not resized
    vision = CLIPVisionConfig(
        image_size=side,
        patch_size=8,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
    )
    config = CLIPConfig(
        text_config=_text_config().to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=32,
        logit_scale_init_value=math.log(100),  # as trained: scores are 100 x cosine
    )
    torch.default_generator.manual_seed(_PICKSCORE_SEED)
    CLIPModel(config).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    size = {"height": side, "width": side}
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=size).save_pretrained(folder)


def _build_u2netp(file: Path) -> None:
    import torch

    from raypref.curate.u2net import U2NETP

    torch.save(U2NETP().state_dict(), file)


_BUILDERS: dict[str, Callable[[Path], None]] = {
    "sd15": _build_sd15,
    "sd15-inpaint": _build_sd15_inpaint,
    "pickscore": _build_pickscore,
    "u2netp.pth": _build_u2netp,
}


def _vae() -> AutoencoderKL:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.18215,
    )


def _unet(*, in_channels: int) -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )


def _scheduler() -> PNDMScheduler:
    from diffusers import PNDMScheduler

    return PNDMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )


def _text_encoder() -> CLIPTextModel:
    from transformers import CLIPTextModel

    return CLIPTextModel(_text_config())


def _text_config() -> CLIPTextConfig:
    from transformers import CLIPTextConfig

    size = len(_vocabulary()[0])
    return CLIPTextConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=32,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )


def _tokenizer() -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    vocabulary, merges = _vocabulary()
    # Annotated as text, taken as pairs.
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)  # type: ignore[arg-type]


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens and merges of CLIP's byte-level encoding that make each word of the world one token.

    The specials come last, as in the published vocabulary: the text model pools at the highest id.
    """
    from raypref.tiny import world

    letters = _byte_letters()
    tokens = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters)])
    merges: list[tuple[str, str]] = []
    for word in world.words():
        parts = [*word[:-1], f"{word[-1]}</w>"]
        for pair in merges:  # what the words before this one do to it
            parts = _merge(parts, pair)
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            parts = _merge(parts, pair)
            merges.append(pair)
            tokens["".join(pair)] = None
    tokens.update(dict.fromkeys(SPECIALS))
    return {token: index for index, token in enumerate(tokens)}, merges


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte, in the order of CLIP's vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(hidden))]
