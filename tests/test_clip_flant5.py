"""CLIP-FlanT5's VQAScore against its parts put together by hand, one image at a time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus import scene
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from raypref.core.config import InputError, results_of
from raypref.rewards.vqascore import VQAScoreConfig

PROMPTS = ["a red ball", "two dogs on a long meadow in the rain", "", "x"]
IMAGES = [scene(i, size=size) for i, size in enumerate([(64, 64), (96, 64), (48, 64), (33, 32)])]
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: "
)
CLIP = CLIPVisionConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=32,
    patch_size=8,
)
TOWER = "vision_tower.vision_tower.vision_model."


def tokenizer() -> T5Tokenizer:
    letters = sorted({*SYSTEM, *"Does this figure show Please answer yes or no. ASSISTANT:", *'"?'})
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", "\u2581Yes", "\u2581yes", "\u2581no", "\u2581No"]
    own = [*pieces, *(x for x in [*letters, *"bclmxwjkz"] if x != " ")]
    vocabulary = [(piece, -float(len(piece) < 4) - 1) for piece in dict.fromkeys(own)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0)


def save_clip_flant5(folder: Path) -> dict[str, str]:
    """The published layout: names of the release's class, its aliases, parts in three folders."""
    words = tokenizer()
    words.save_pretrained(folder / "tokenizer")
    CLIP.save_pretrained(folder / "vision")
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder / "vision")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        t5 = T5ForConditionalGeneration(
            T5Config(
                vocab_size=len(words) + 9,  # rows to spare, as published
                d_model=24,
                d_kv=8,
                d_ff=48,
                num_layers=2,
                num_heads=3,
                feed_forward_proj="gated-gelu",
                tie_word_embeddings=False,
                decoder_start_token_id=0,
                initializer_factor=1.0,
            )
        )
        t5.lm_head.weight.data *= 0.3  # so that no answer is very unlikely
        clip = CLIPVisionModel(CLIP)
        state = {f"mm_projector.0.{n}": t for n, t in torch.nn.Linear(32, 24).state_dict().items()}
        state |= {f"mm_projector.2.{n}": t for n, t in torch.nn.Linear(24, 24).state_dict().items()}
    state |= t5.state_dict()
    state["embed_tokens.weight"] = state["encoder.embed_tokens.weight"]
    state |= {TOWER + n.removeprefix("vision_model."): t for n, t in clip.state_dict().items()}
    state[f"{TOWER}embeddings.position_ids"] = torch.arange(17)[None]
    (folder / "model").mkdir()
    save_file(
        {n: t.clone() for n, t in state.items()},
        folder / "model" / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = json.loads(t5.config.to_json_string()) | {
        "model_type": "clip_t5",
        "architectures": ["CLIPT5ForConditionalGeneration"],
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_vision_select_layer": -2,
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 32,
    }
    (folder / "model" / "config.json").write_text(json.dumps(config))
    return {name: str(folder / name) for name in ("model", "tokenizer", "vision")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    return save_clip_flant5(tmp_path_factory.mktemp("clip_flant5"))


class ByHand:
    """Parts of their own, fed one image, without padding."""

    def __init__(self, folders: dict[str, str]) -> None:
        state = load_file(Path(folders["model"]) / "model.safetensors")
        config = T5Config.from_json_file(Path(folders["model"]) / "config.json")
        self.t5 = T5ForConditionalGeneration(config).eval()
        self.t5.load_state_dict({n: state[n] for n in self.t5.state_dict()})
        self.clip = CLIPVisionModel(CLIP).eval()
        own = {n: state[TOWER + n.removeprefix("vision_model.")] for n in self.clip.state_dict()}
        self.clip.load_state_dict(own)
        self.state = state
        self.words = tokenizer()

    @torch.no_grad()
    def answered(self, image: Image.Image, question: str, said: list[int]) -> torch.Tensor:
        side = max(image.size)
        square = Image.new("RGB", (side, side), (122, 116, 104))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        pixels = np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC)) / 255
        pixels = (pixels - [0.48145466, 0.4578275, 0.40821073]) / [
            0.26862954,
            0.26130258,
            0.27577711,
        ]
        x = torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None]
        x = self.clip(x, output_hidden_states=True).hidden_states[-2][0, 1:]
        x = x @ self.state["mm_projector.0.weight"].T + self.state["mm_projector.0.bias"]
        x = torch.nn.functional.gelu(x)
        x = x @ self.state["mm_projector.2.weight"].T + self.state["mm_projector.2.bias"]
        before = self.words(SYSTEM).input_ids
        after = self.words(f"\n{question} ASSISTANT: ").input_ids
        shared = self.state["shared.weight"]
        read = torch.cat([shared[before], x, shared[after]])[None]
        decoder = torch.tensor([[0, *said]])
        return self.t5(inputs_embeds=read, decoder_input_ids=decoder).logits[0].log_softmax(-1)


def test_it_is_the_likelihood_of_yes_and_of_the_end(folders: dict[str, str]) -> None:
    config = VQAScoreConfig(**folders, dtype="float32")
    config.check()
    reward = config.load()
    scores = reward.score(IMAGES, PROMPTS)
    by_hand = ByHand(folders)
    yes = by_hand.words.convert_tokens_to_ids("\u2581Yes")
    expected = []
    for image, prompt in zip(IMAGES, PROMPTS, strict=True):
        asked = f'Does this figure show "{prompt}"? Please answer yes or no.'
        log = by_hand.answered(image, asked, [yes])
        expected.append(((log[0, yes] + log[1, 1]) / 2).exp().item())
    assert (scores.dtype, scores.shape) == (np.float32, (4,))
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert scores.std() > 0.005 * scores.mean(), "it looks at nothing"
    alone = [reward.score([i], [p])[0] for i, p in zip(IMAGES, PROMPTS, strict=True)]
    np.testing.assert_allclose(scores, alone, rtol=1e-4)


def test_shards_of_the_published_form_are_read(folders: dict[str, str], tmp_path) -> None:
    model = Path(folders["model"])
    state = load_file(model / "model.safetensors")
    files = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    where = {name: files[number % 2] for number, name in enumerate(state)}
    for file in files:
        torch.save({n: t for n, t in state.items() if where[n] == file}, tmp_path / file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    scores = []
    for at in (model, tmp_path):
        config = VQAScoreConfig(**{**folders, "model": str(at)}, dtype="float32")
        scores.append(config.load().score(IMAGES, PROMPTS))
    np.testing.assert_array_equal(*scores)


def test_it_answers_the_questions_of_dpg_bench(folders: dict[str, str]) -> None:
    reward = VQAScoreConfig(**folders, dtype="float32").load()
    by_hand = ByHand(folders)
    ways = {
        way: [by_hand.words(w).input_ids[0] for w in (way, way.title(), way.upper())]
        for way in ("yes", "no")
    }
    expected = []
    for image, question in zip(IMAGES, PROMPTS, strict=True):
        log = by_hand.answered(image, f"{question} Please answer yes or no.", [])[0]
        yes, no = (log[sorted(set(ids))].logsumexp(-1) for ids in ways.values())
        expected.append(bool(yes > no))
    assert reward.says_yes(IMAGES, PROMPTS) == expected


def test_settings_of_other_models_are_as_before() -> None:
    assert {*results_of({"v": VQAScoreConfig()})} == {"v.model", "v.question", "v.dtype"}


def test_what_is_missing_or_of_another_make_is_named(folders: dict[str, str], tmp_path) -> None:
    gone = str(tmp_path / "gone")
    for name in ("model", "tokenizer", "vision"):
        with pytest.raises(InputError, match=rf"^rewards\.vqascore\.{name}: "):
            VQAScoreConfig(**{**folders, name: gone}).check()
    copy = tmp_path / "model"
    copy.mkdir()
    state = load_file(Path(folders["model"]) / "model.safetensors")
    config = json.loads((Path(folders["model"]) / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"mm_projector_type": "linear"}))
    wrong = VQAScoreConfig(**{**folders, "model": str(copy)}, dtype="float32")
    with pytest.raises(
        InputError, match=r"^rewards\.vqascore\.model: .*mm_projector_type='linear'"
    ):
        wrong.load()
    (copy / "config.json").write_text(json.dumps(config))
    for lost in (
        "mm_projector.2.bias",
        f"{TOWER}post_layernorm.bias",
    ):
        file = copy / "model.safetensors"
        save_file({n: t for n, t in state.items() if n != lost}, file, metadata={"format": "pt"})
        with pytest.raises(InputError, match=r"^rewards\.vqascore\.model: 1 weights are missing"):
            wrong.load()
