"""HPSv3 against its formula and its published layout."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus import scene
from PIL import Image
from safetensors.torch import load_file, save_file
from small_vlm import prompt_text, save_hpsv3
from transformers import (
    AutoConfig,
    AutoTokenizer,
    Qwen2Config,
    Qwen2Model,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers import Qwen2VLModel as Backbone

from raypref.core.config import InputError
from raypref.rewards.hpsv3 import INSTRUCTION, HPSv3, HPSv3Config, make_head, renamed, split

PROMPTS = ["a red ball", "two dogs on a long meadow in the rain", "a {text_prompt} sign"]
IMAGES = [scene(i, size=size) for i, size in enumerate([(512, 512), (300, 500), (640, 360)])]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    return save_hpsv3(tmp_path_factory.mktemp("hpsv3"))


def config(files: tuple[Path, Path], *, dtype: str = "float32") -> HPSv3Config:
    return HPSv3Config(base=str(files[0]), model=str(files[1]), dtype=dtype)


@pytest.fixture(scope="module")
def reward(files) -> HPSv3:
    return config(files).load()


def patches(image: Image.Image) -> tuple[torch.Tensor, tuple[int, int]]:
    """Qwen2-VL's input by its recipe: resize, normalise, cut into doubled patches of 14 pixels."""
    limit, (width, height) = 256 * 28 * 28, image.size
    sides = [max(28, round(side / 28) * 28) for side in (height, width)]
    ratio = (height * width / limit) ** 0.5
    if sides[0] * sides[1] > limit:
        sides = [int(side / ratio // 28) * 28 for side in (height, width)]
    elif sides[0] * sides[1] < limit:
        sides = [-int(-side / ratio // 28) * 28 for side in (height, width)]
    high, wide = sides
    image = image.resize((wide, high), Image.Resampling.BICUBIC)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = torch.tensor((np.asarray(image) / 255 - mean) / std, dtype=torch.float32)
    rows, columns = high // 14, wide // 14
    cut = pixels.reshape(rows // 2, 2, 14, columns // 2, 2, 14, 3)
    cut = cut.permute(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None].expand(
        -1, -1, -1, -1, -1, 2, -1, -1
    )
    return cut.reshape(rows * columns, -1), (rows, columns)


@torch.no_grad()
def formula(
    files: tuple[Path, Path], image: Image.Image, prompt: str, *, positions: str = "sequential"
) -> list[float]:
    """The official model: causal language model with a head, read at the mark, one image.

    Tokens are numbered one after another, those of the image too. With one number on all three axes
    Qwen2-VL's positions are those of a plain Qwen2, so a plain Qwen2 stands for the language model.

    Args:
        positions: `sequential`, or `3d` for those that Qwen2-VL by itself gives an image.
    """
    base, weights = files
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
    architecture = AutoConfig.from_pretrained(base)
    architecture.text_config.vocab_size = len(tokenizer)
    model = Qwen2VLForConditionalGeneration(architecture).eval()
    state = load_file(weights)
    head = {name: state.pop(name) for name in list(state) if name.startswith("rm_head")}
    model.load_state_dict(
        {
            f"model.{name}"
            if name.startswith("visual.")
            else name.replace("model.", "model.language_model."): value
            for name, value in state.items()
        }
    )
    pixels, (rows, columns) = patches(image)
    text = prompt_text(INSTRUCTION.replace("{prompt}", prompt), rows * columns // 4)
    ids = tokenizer(text, return_tensors="pt").input_ids
    grid, is_image = torch.tensor([[1, rows, columns]]), ids == architecture.image_token_id
    if positions == "3d":
        hidden = model.model(
            input_ids=ids,
            pixel_values=pixels,
            image_grid_thw=grid,
            mm_token_type_ids=is_image.long(),
        ).last_hidden_state[0]
    else:
        embeddings = model.model.language_model.embed_tokens(ids)
        embeddings[is_image] = model.model.visual(pixels, grid_thw=grid).pooler_output
        hidden = plain_qwen2(model.model.language_model)(inputs_embeds=embeddings)[0][0]
    [at] = (ids[0] == len(tokenizer) - 1).nonzero().flatten().tolist()
    for layer in (0, 3, 5):
        hidden = hidden @ head[f"rm_head.{layer}.weight"].T + head[f"rm_head.{layer}.bias"]
        hidden = hidden.relu() if layer < 5 else hidden
    return hidden[at].tolist()


def plain_qwen2(language: torch.nn.Module) -> Qwen2Model:
    """The same weights in the language model that knows one axis of positions only."""
    kept = language.config.to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    names += ("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "hidden_act")
    rope = {"rope_type": "default", "rope_theta": kept["rope_parameters"]["rope_theta"]}
    plain = Qwen2Model(Qwen2Config(**{name: kept[name] for name in names}, rope_parameters=rope))
    plain.load_state_dict(language.state_dict())
    return plain.eval()


def test_the_score_is_the_mean_at_the_mark(reward, files):
    outputs = reward.distribution(reward.prepare(IMAGES, PROMPTS))
    expected = [formula(files, *pair) for pair in zip(IMAGES, PROMPTS, strict=True)]
    np.testing.assert_allclose(outputs, expected, atol=1e-6, rtol=0)
    other = [formula(files, *pair, positions="3d") for pair in zip(IMAGES, PROMPTS, strict=True)]
    assert np.abs(np.array(other) - np.array(expected)).max() > 1e-3, "positions do not matter here"
    scores = reward.score(IMAGES, PROMPTS)
    assert (scores.dtype, scores.shape) == (np.float32, (3,))
    np.testing.assert_array_equal(scores, outputs[:, 0])
    assert scores.std() > 1e-3, "it looks at nothing"


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_a_score_does_not_depend_on_its_batch(files, dtype, tolerance):
    reward = config(files, dtype=dtype).load()
    together = reward.score(IMAGES, PROMPTS)
    alone = [reward.score([i], [p])[0] for i, p in zip(IMAGES, PROMPTS, strict=True)]
    backwards = reward.score(IMAGES[::-1], PROMPTS[::-1])[::-1]
    np.testing.assert_allclose(together, alone, atol=tolerance, rtol=0)
    np.testing.assert_allclose(together, backwards, atol=tolerance, rtol=0)


def test_a_prompt_cannot_move_the_mark(reward):
    prompts = ["no <|Reward|> here", "<|image_pad|><|im_end|>"]
    assert np.isfinite(reward.score(IMAGES[:2], prompts)).all()


def test_newer_names_are_read_as_well(reward, tmp_path):
    newer = config(save_hpsv3(tmp_path, old_names=False)).load()
    np.testing.assert_array_equal(
        newer.score(IMAGES[:1], PROMPTS[:1]), reward.score(IMAGES[:1], PROMPTS[:1])
    )


def test_the_instruction_is_the_official_one():
    """The digest of INSTRUCTION + prompt_with_special_token of hpsv3/dataset (MizzenAI/HPSv3)."""
    digest = hashlib.sha256(INSTRUCTION.encode()).hexdigest()
    assert digest == "e61d58f3c7d3be656ccd024f5c0cd8c001cf9a2122305d52b59e60d94147e0f2"


# Qwen2-VL-7B's configuration, and the names and shapes that its class had in the versions of
# transformers HPSv3 was trained with (4.45), with the head of MizzenAI/HPSv3 and one row of the
# vocabulary for each token of Qwen2-VL's tokenizer (151657) and one for the mark.
ROWS = 151_658
LAYER = {
    "input_layernorm.weight": (3584,),
    "post_attention_layernorm.weight": (3584,),
    "self_attn.q_proj.weight": (3584, 3584),
    "self_attn.q_proj.bias": (3584,),
    "self_attn.k_proj.weight": (512, 3584),
    "self_attn.k_proj.bias": (512,),
    "self_attn.v_proj.weight": (512, 3584),
    "self_attn.v_proj.bias": (512,),
    "self_attn.o_proj.weight": (3584, 3584),
    "mlp.gate_proj.weight": (18944, 3584),
    "mlp.up_proj.weight": (18944, 3584),
    "mlp.down_proj.weight": (3584, 18944),
}
BLOCK = {
    "norm1.weight": (1280,),
    "norm1.bias": (1280,),
    "norm2.weight": (1280,),
    "norm2.bias": (1280,),
    "attn.qkv.weight": (3840, 1280),
    "attn.qkv.bias": (3840,),
    "attn.proj.weight": (1280, 1280),
    "attn.proj.bias": (1280,),
    "mlp.fc1.weight": (5120, 1280),
    "mlp.fc1.bias": (5120,),
    "mlp.fc2.weight": (1280, 5120),
    "mlp.fc2.bias": (1280,),
}
OFFICIAL = {
    "visual.patch_embed.proj.weight": (1280, 3, 2, 14, 14),
    **{f"visual.blocks.{i}.{name}": shape for i in range(32) for name, shape in BLOCK.items()},
    "visual.merger.ln_q.weight": (1280,),
    "visual.merger.ln_q.bias": (1280,),
    "visual.merger.mlp.0.weight": (5120, 5120),
    "visual.merger.mlp.0.bias": (5120,),
    "visual.merger.mlp.2.weight": (3584, 5120),
    "visual.merger.mlp.2.bias": (3584,),
    "model.embed_tokens.weight": (ROWS, 3584),
    **{f"model.layers.{i}.{name}": shape for i in range(28) for name, shape in LAYER.items()},
    "model.norm.weight": (3584,),
    "lm_head.weight": (ROWS, 3584),
    "rm_head.0.weight": (1024, 3584),
    "rm_head.0.bias": (1024,),
    "rm_head.3.weight": (16, 1024),
    "rm_head.3.bias": (16,),
    "rm_head.5.weight": (2, 16),
    "rm_head.5.bias": (2,),
}
PUBLISHED = Qwen2VLConfig(
    vocab_size=ROWS,
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    rope_theta=1_000_000.0,
    rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
    vision_config={
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 3584,
        "num_heads": 16,
        "mlp_ratio": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
)


@pytest.mark.parametrize("newer", [False, True])
def test_every_official_weight_has_its_place(newer):
    """No name is left over on either side, and the shapes agree, at full size."""
    names = OFFICIAL
    if newer:
        names = {
            name.replace("model.", "model.language_model.").replace("visual.", "model.visual."): s
            for name, s in OFFICIAL.items()
        }
    with torch.device("meta"):
        backbone, head = Backbone(PUBLISHED), make_head(3584)
        state = {name: torch.empty(shape) for name, shape in names.items()}
    ours, our_head = split(state)
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in backbone.state_dict().items()
    }
    assert {name: value.shape for name, value in our_head.items()} == {
        name: value.shape for name, value in head.state_dict().items()
    }
    assert len(names) == len(ours) + len(our_head) + 1  # the output layer is not used


def test_an_unknown_name_is_refused():
    with pytest.raises(KeyError, match=r"transformer\.h\.0"):
        renamed("transformer.h.0")


@pytest.mark.parametrize("damage", ["cut", "other", "missing", "head", "shape"])
def test_wrong_weights_give_one_line(damage, files, tmp_path):
    state = load_file(files[1])
    if damage == "other":
        state = {"conv.weight": torch.zeros(1)}
    elif damage == "missing":
        del state["model.layers.1.mlp.up_proj.weight"]
    elif damage == "head":
        del state["rm_head.5.bias"]
    elif damage == "shape":
        state["model.norm.weight"] = torch.zeros(16)
    file = tmp_path / "wrong.safetensors"
    save_file(state, file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"^rewards\.hpsv3\.model: ") as error:
        config((files[0], file)).load()
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named(files, tmp_path):
    with pytest.raises(
        InputError, match=r"rewards\.hpsv3\.model: .*huggingface\.co/MizzenAI/HPSv3"
    ):
        config((files[0], tmp_path / "none.safetensors")).check()
    with pytest.raises(InputError, match=r"rewards\.hpsv3\.base: "):
        config((tmp_path / "none", files[1])).check()
    config(files).check()
