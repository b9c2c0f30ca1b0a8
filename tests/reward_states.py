"""Official checkpoints of reward models: names and shapes written out, random states, forwards.

Independent of the code under test: from open_clip's and BLIP's published architectures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import BertTokenizer, CLIPImageProcessorPil, CLIPModel

from raypref.demo import models, photograph, world

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])

Shapes = dict[str, tuple[int, ...]]
State = dict[str, torch.Tensor]


class OpenClip(NamedTuple):
    """Sizes of an open_clip model, as its JSON names them; the defaults are ViT-H-14."""

    embed_dim: int = 1024
    image_size: int = 224
    patch_size: int = 14
    vision_width: int = 1280
    vision_layers: int = 32
    vision_heads: int = 16  # 1280 / head_width 80
    text_width: int = 1024
    text_layers: int = 24
    text_heads: int = 16
    vocab_size: int = 49408
    context_length: int = 77

    def config(self) -> dict:
        """The same, as transformers' config.json says it."""
        text = {
            "hidden_size": self.text_width,
            "intermediate_size": 4 * self.text_width,
            "num_hidden_layers": self.text_layers,
            "num_attention_heads": self.text_heads,
            "max_position_embeddings": self.context_length,
            "vocab_size": self.vocab_size,
            "hidden_act": "quick_gelu",  # of OpenAI's models; HPSv2 must not follow it
            "projection_dim": self.embed_dim,
            "bos_token_id": self.vocab_size - 2,
            "eos_token_id": self.vocab_size - 1,
            "pad_token_id": self.vocab_size - 1,
        }
        vision = {
            "hidden_size": self.vision_width,
            "intermediate_size": 4 * self.vision_width,
            "num_hidden_layers": self.vision_layers,
            "num_attention_heads": self.vision_heads,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "hidden_act": "quick_gelu",
            "projection_dim": self.embed_dim,
        }
        return {
            "model_type": "clip",
            "text_config": text,
            "vision_config": vision,
            "projection_dim": self.embed_dim,
        }


def small_clip(embed_dim: int) -> OpenClip:
    """All parts, two layers of them; the tiny world's tokenizer."""
    return OpenClip(
        embed_dim=embed_dim,
        image_size=32,
        patch_size=8,
        vision_width=32,
        vision_layers=3,
        vision_heads=4,
        text_width=16,
        text_layers=2,
        text_heads=2,
        vocab_size=len(models.tokenizer()),
    )


def open_clip_names(size: OpenClip) -> Shapes:
    """Every name and shape of an open_clip checkpoint (`attn_mask` is not saved)."""

    def norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{name}.{leaf}", (width,)) for leaf in ("weight", "bias"))

    def block(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from norm(f"{name}.ln_1", width)
        yield f"{name}.attn.in_proj_weight", (3 * width, width)
        yield f"{name}.attn.in_proj_bias", (3 * width,)
        yield f"{name}.attn.out_proj.weight", (width, width)
        yield f"{name}.attn.out_proj.bias", (width,)
        yield from norm(f"{name}.ln_2", width)
        yield f"{name}.mlp.c_fc.weight", (4 * width, width)
        yield f"{name}.mlp.c_fc.bias", (4 * width,)
        yield f"{name}.mlp.c_proj.weight", (width, 4 * width)
        yield f"{name}.mlp.c_proj.bias", (width,)

    seen, read = size.vision_width, size.text_width
    places = (size.image_size // size.patch_size) ** 2 + 1
    names: Shapes = {
        "positional_embedding": (size.context_length, read),
        "text_projection": (read, size.embed_dim),
        "logit_scale": (),
        "visual.class_embedding": (seen,),
        "visual.positional_embedding": (places, seen),
        "visual.proj": (seen, size.embed_dim),
        "visual.conv1.weight": (seen, 3, size.patch_size, size.patch_size),
        "token_embedding.weight": (size.vocab_size, read),
    }
    for name, width in (("visual.ln_pre", seen), ("visual.ln_post", seen), ("ln_final", read)):
        names.update(norm(name, width))
    for i in range(size.vision_layers):
        names.update(block(f"visual.transformer.resblocks.{i}", seen))
    for i in range(size.text_layers):
        names.update(block(f"transformer.resblocks.{i}", read))
    return names


class Blip(NamedTuple):
    """Sizes of an ImageReward checkpoint; the defaults are the released one (ViT-L/16, BERT)."""

    image_size: int = 224
    patch_size: int = 16
    vision_width: int = 1024
    vision_layers: int = 24
    text_width: int = 768
    text_layers: int = 12
    vocab_size: int = 30524
    positions: int = 512


def small_blip() -> Blip:
    """All parts, two or three layers of them; the vocabulary of `bert_vocabulary`."""
    return Blip(
        image_size=32,
        patch_size=8,
        vision_width=128,
        vision_layers=3,
        text_width=64,
        text_layers=2,
        vocab_size=len(bert_vocabulary()) + 2,
        positions=40,
    )


def image_reward_names(size: Blip) -> Shapes:
    """Every name and shape of ImageReward.pt, those that the score does not use at the end."""
    names: Shapes = {}

    def linear(name: str, inside: int, out: int) -> None:
        names[f"{name}.weight"], names[f"{name}.bias"] = (out, inside), (out,)

    def norm(name: str, width: int) -> None:
        names[f"{name}.weight"] = names[f"{name}.bias"] = (width,)

    seen, read, patch = size.vision_width, size.text_width, size.patch_size
    vit, bert = "blip.visual_encoder", "blip.text_encoder"
    names[f"{vit}.cls_token"] = (1, 1, seen)
    names[f"{vit}.pos_embed"] = (1, (size.image_size // patch) ** 2 + 1, seen)
    names[f"{vit}.patch_embed.proj.weight"] = (seen, 3, patch, patch)
    names[f"{vit}.patch_embed.proj.bias"] = (seen,)
    for i in range(size.vision_layers):
        norm(f"{vit}.blocks.{i}.norm1", seen)
        linear(f"{vit}.blocks.{i}.attn.qkv", seen, 3 * seen)
        linear(f"{vit}.blocks.{i}.attn.proj", seen, seen)
        norm(f"{vit}.blocks.{i}.norm2", seen)
        linear(f"{vit}.blocks.{i}.mlp.fc1", seen, 4 * seen)
        linear(f"{vit}.blocks.{i}.mlp.fc2", 4 * seen, seen)
    norm(f"{vit}.norm", seen)
    names[f"{bert}.embeddings.word_embeddings.weight"] = (size.vocab_size, read)
    names[f"{bert}.embeddings.position_embeddings.weight"] = (size.positions, read)
    norm(f"{bert}.embeddings.LayerNorm", read)
    for i in range(size.text_layers):
        layer = f"{bert}.encoder.layer.{i}"
        for attention, width in (("attention", read), ("crossattention", seen)):
            linear(f"{layer}.{attention}.self.query", read, read)
            linear(f"{layer}.{attention}.self.key", width, read)
            linear(f"{layer}.{attention}.self.value", width, read)
            linear(f"{layer}.{attention}.output.dense", read, read)
            norm(f"{layer}.{attention}.output.LayerNorm", read)
        linear(f"{layer}.intermediate.dense", read, 4 * read)
        linear(f"{layer}.output.dense", 4 * read, read)
        norm(f"{layer}.output.LayerNorm", read)
    widths = (read, 1024, 128, 64, 16, 1)
    for place, inside, out in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        linear(f"mlp.layers.{place}", inside, out)
    linear("blip.vision_proj", seen, 256)
    linear("blip.text_proj", read, 256)
    names[f"{bert}.embeddings.position_ids"] = (1, size.positions)
    return names


def random_state(names: Shapes, seed: int = 0) -> State:
    """Random numbers of a size that keeps signals, and differences between images, alive."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in names.items():
        if name.endswith("position_ids"):
            state[name] = torch.arange(shape[1])[None]
            continue
        values = torch.randn(shape, generator=generator)
        norm = any(part in name for part in ("ln_", "norm", "LayerNorm"))
        if norm and name.endswith("weight"):
            state[name] = 1 + 0.1 * values
        elif len(shape) > 1 and "embed" not in name and "cls" not in name:
            state[name] = values / values[0].numel() ** 0.5
        else:
            state[name] = 0.3 * values
    return state


# ------------------------------------------------------------------ forwards, one image at a time


def _layer_norm(s: State, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    mean = x.mean(-1, keepdim=True)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (var + eps).sqrt() * s[f"{name}.weight"] + s[f"{name}.bias"]


def _linear(s: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, hidden: torch.Tensor | None
) -> torch.Tensor:
    """Of tokens [T, D] to tokens [S, D]; `hidden` [T, S] is true where T must not look."""
    q, k, v = (x.view(len(x), heads, -1).transpose(0, 1) for x in (q, k, v))
    weights = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    if hidden is not None:
        weights = weights.masked_fill(hidden, float("-inf"))
    return (weights.softmax(-1) @ v).transpose(0, 1).flatten(1)


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def _patches(weight: torch.Tensor, image_CHW: torch.Tensor) -> torch.Tensor:
    return F.conv2d(image_CHW[None], weight, stride=weight.shape[-1])[0].flatten(1).T


def _open_clip_block(
    s: State, name: str, x: torch.Tensor, heads: int, hidden: torch.Tensor | None
) -> torch.Tensor:
    y = _layer_norm(s, f"{name}.ln_1", x, 1e-5)
    qkv = y @ s[f"{name}.attn.in_proj_weight"].T + s[f"{name}.attn.in_proj_bias"]
    y = _attend(*qkv.split(x.shape[-1], dim=-1), heads, hidden)
    x = x + _linear(s, f"{name}.attn.out_proj", y)
    y = _gelu(_linear(s, f"{name}.mlp.c_fc", _layer_norm(s, f"{name}.ln_2", x, 1e-5)))
    return x + _linear(s, f"{name}.mlp.c_proj", y)


def open_clip_cosine(s: State, size: OpenClip, image_CHW: torch.Tensor, ids: list[int]) -> float:
    """Cosine of one prepared image and one prompt's token ids, with the start and end token."""
    s = {name: tensor.double() for name, tensor in s.items()}
    x = _patches(s["visual.conv1.weight"], image_CHW.double())
    x = torch.cat([s["visual.class_embedding"][None], x]) + s["visual.positional_embedding"]
    x = _layer_norm(s, "visual.ln_pre", x, 1e-5)
    for i in range(size.vision_layers):
        x = _open_clip_block(s, f"visual.transformer.resblocks.{i}", x, size.vision_heads, None)
    image = _layer_norm(s, "visual.ln_post", x[0], 1e-5) @ s["visual.proj"]

    count = len(ids)
    x = s["token_embedding.weight"][ids] + s["positional_embedding"][:count]
    later = torch.ones(count, count).triu(1).bool()
    for i in range(size.text_layers):
        x = _open_clip_block(s, f"transformer.resblocks.{i}", x, size.text_heads, later)
    end = int(np.argmax(ids))  # open_clip's end token has the highest id
    text = _layer_norm(s, "ln_final", x[end], 1e-5) @ s["text_projection"]
    return float(image @ text / image.norm() / text.norm())


def image_reward_first_token(
    s: State, size: Blip, image_CHW: torch.Tensor, ids: list[int]
) -> torch.Tensor:
    """The text tower's output at the first token, for one prepared image and unpadded ids."""
    s = {name: tensor.double() for name, tensor in s.items()}
    vit = "blip.visual_encoder"
    x = _patches(s[f"{vit}.patch_embed.proj.weight"], image_CHW.double())
    x = x + s[f"{vit}.patch_embed.proj.bias"]
    x = torch.cat([s[f"{vit}.cls_token"][0], x]) + s[f"{vit}.pos_embed"][0]
    for i in range(size.vision_layers):
        name = f"{vit}.blocks.{i}"
        y = _linear(s, f"{name}.attn.qkv", _layer_norm(s, f"{name}.norm1", x, 1e-6))
        y = _attend(*y.split(x.shape[-1], dim=-1), size.vision_width // 64, None)
        x = x + _linear(s, f"{name}.attn.proj", y)
        y = _gelu(_linear(s, f"{name}.mlp.fc1", _layer_norm(s, f"{name}.norm2", x, 1e-6)))
        x = x + _linear(s, f"{name}.mlp.fc2", y)
    patches = _layer_norm(s, f"{vit}.norm", x, 1e-6)

    bert = "blip.text_encoder"
    x = s[f"{bert}.embeddings.word_embeddings.weight"][ids]
    x = x + s[f"{bert}.embeddings.position_embeddings.weight"][: len(ids)]
    x = _layer_norm(s, f"{bert}.embeddings.LayerNorm", x, 1e-12)
    for i in range(size.text_layers):
        layer = f"{bert}.encoder.layer.{i}"
        for attention in ("attention", "crossattention"):
            seen = x if attention == "attention" else patches
            name = f"{layer}.{attention}"
            q = _linear(s, f"{name}.self.query", x)
            k, v = (_linear(s, f"{name}.self.{part}", seen) for part in ("key", "value"))
            y = _attend(q, k, v, size.text_width // 64, None)
            y = _linear(s, f"{name}.output.dense", y)
            x = _layer_norm(s, f"{name}.output.LayerNorm", x + y, 1e-12)
        y = _linear(s, f"{layer}.output.dense", _gelu(_linear(s, f"{layer}.intermediate.dense", x)))
        x = _layer_norm(s, f"{layer}.output.LayerNorm", x + y, 1e-12)
    return x[0]


# ------------------------------------------------------------------ inputs and folders


def tiny_world(count: int) -> tuple[list[Image.Image], list[str]]:
    """Images of 64 x 64 and their prompts."""
    scenes = world.sample_scenes(count, seed=11)
    images = [
        Image.fromarray(photograph.render_scene(scene, seed=i)) for i, scene in enumerate(scenes)
    ]
    return images, [world.caption(scene) for scene in scenes]


def wide(image: Image.Image) -> Image.Image:
    """The same, half as high: what a recipe does with the sides can be seen."""
    return image.crop((0, 16, image.width, 48))


def clip_pixels(image: Image.Image, side: int) -> torch.Tensor:
    """CLIP's recipe: shortest side, bicubic by Pillow; centre crop; normalise. [3, side, side]."""
    short = min(image.size)
    width, height = (int(length * side / short) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    pixels = (np.asarray(image) / 255 - MEAN) / STD
    return torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)


def write_base(folder: Path, size: OpenClip) -> Path:
    """Configuration, image processor and tokenizer of a CLIP model, without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(size.config()), encoding="utf-8")
    models.tokenizer().save_pretrained(folder)
    side = size.image_size
    CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    ).save_pretrained(folder)
    return folder


def bert_vocabulary() -> list[str]:
    """BERT's special tokens and words of the tiny world."""
    prompts = [world.caption(scene) for scene in world.sample_scenes(40, seed=11)]
    words = sorted({word for prompt in prompts for word in prompt.lower().split()})
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]


def write_bert_tokenizer(folder: Path) -> None:
    """A lower-case WordPiece tokenizer of that vocabulary."""
    ids = {token: i for i, token in enumerate(bert_vocabulary())}
    BertTokenizer(vocab=ids, do_lower_case=True).save_pretrained(folder)


def write_clip(folder: Path, size: OpenClip, seed: int = 0) -> Path:
    """A whole CLIP model in hub layout, with random weights."""
    write_base(folder, size)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        config = CLIPModel.config_class.from_pretrained(folder)
        CLIPModel(config).save_pretrained(folder)
    return folder
