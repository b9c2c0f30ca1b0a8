"""PE-Core against a plain forward in NumPy: towers, rotations, pooling, input, published sizes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from perception_states import B16, G14, L14, SMALL, VOCABULARY, Published, names, random_state
from PIL import Image
from reward_states import tiny_world, wide

from raypref.core.config import InputError
from raypref.demo import models
from raypref.models.perception_encoder import PerceptionEncoder, size_of
from raypref.rewards.perception import Perception, PerceptionConfig, load_perception


class Plain:
    """One image, one prompt, one head at a time, float64; rotations as complex numbers."""

    def __init__(self, state: dict[str, torch.Tensor], size: Published) -> None:
        self.s = {name: tensor.double().numpy() for name, tensor in state.items()}
        self.size = size

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.s[f"{name}.weight"].T + self.s[f"{name}.bias"]

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return x * self.s[f"{name}.weight"] + self.s[f"{name}.bias"]

    def mlp(self, name: str, x: np.ndarray) -> np.ndarray:
        x = self.linear(f"{name}.c_fc", x)
        return self.linear(f"{name}.c_proj", x * 0.5 * (1 + np.vectorize(math.erf)(x / 2**0.5)))

    def attend(self, name, asking, asked, heads, *, turns=None, causal=False) -> np.ndarray:
        w, b = (
            np.split(self.s[f"{name}.in_proj_weight"], 3),
            np.split(self.s[f"{name}.in_proj_bias"], 3),
        )
        q, k, v = asking @ w[0].T + b[0], asked @ w[1].T + b[1], asked @ w[2].T + b[2]
        out = []
        for q1, k1, v1 in zip(*(np.split(x, heads, axis=1) for x in (q, k, v)), strict=True):
            if turns is not None:
                q1, k1 = (self.turn(x, turns) for x in (q1, k1))
            logits = q1 @ k1.T / q1.shape[1] ** 0.5
            if causal:
                logits[np.triu(np.ones_like(logits), 1) > 0] = -np.inf
            weights = np.exp(logits - logits.max(1, keepdims=True))
            out.append(weights / weights.sum(1, keepdims=True) @ v1)
        return self.linear(f"{name}.out_proj", np.concatenate(out, axis=1))

    @staticmethod
    def turn(x: np.ndarray, turns: np.ndarray) -> np.ndarray:
        pairs = (x[:, 0::2] + 1j * x[:, 1::2]) * turns
        return np.stack([pairs.real, pairs.imag], axis=-1).reshape(x.shape)

    def turns(self) -> np.ndarray:
        """By place: across in the first half of a head's pairs, down in the second."""
        grid, pairs = (
            self.size.image_size // self.size.patch_size,
            self.size.width // self.size.heads // 2,
        )
        rows = [np.ones(pairs, complex)] if self.size.cls else []
        for y in range(grid):
            for x in range(grid):
                row = []
                for place in (x + self.size.cls, y + self.size.cls):
                    for i in range(pairs // 2):
                        row.append(np.exp(1j * place / 10000 ** (2 * i / pairs)))
                rows.append(np.array(row))
        return np.array(rows)

    def image(self, pixels: np.ndarray) -> np.ndarray:
        """Of pixels [H, W, 3] in -1..1."""
        p, size = self.size.patch_size, self.size
        kernel = self.s["visual.conv1.weight"].reshape(size.width, -1)
        x = np.array(
            [
                kernel @ pixels[top : top + p, left : left + p].transpose(2, 0, 1).reshape(-1)
                for top in range(0, size.image_size, p)
                for left in range(0, size.image_size, p)
            ]
        )
        if size.cls:
            x = np.concatenate([self.s["visual.class_embedding"][None], x])
        x = self.norm("visual.ln_pre", x + self.s["visual.positional_embedding"])
        for i in range(size.layers):
            name = f"visual.transformer.resblocks.{i}"
            y = self.norm(f"{name}.ln_1", x)
            x = x + self.attend(f"{name}.attn", y, y, size.heads, turns=self.turns())
            x = x + self.mlp(f"{name}.mlp", self.norm(f"{name}.ln_2", x))
        x = self.norm("visual.ln_post", x)
        x = self.attend("visual.attn_pool.attn", self.s["visual.attn_pool.probe"][0], x, 8)
        x = x + self.mlp("visual.attn_pool.mlp", self.norm("visual.attn_pool.layernorm", x))
        return x[0] @ self.s["visual.proj"]

    def text(self, ids: list[int]) -> np.ndarray:
        """Of the tokens from the start token to the end token, without padding."""
        x = self.s["token_embedding.weight"][ids] + self.s["positional_embedding"][: len(ids)]
        for i in range(self.size.text_layers):
            name = f"transformer.resblocks.{i}"
            y = self.norm(f"{name}.ln_1", x)
            x = x + self.attend(f"{name}.attn", y, y, self.size.text_heads, causal=True)
            x = x + self.mlp(f"{name}.mlp", self.norm(f"{name}.ln_2", x))
        return self.norm("ln_final", x)[-1] @ self.s["text_projection"]

    def score(self, image: Image.Image, prompt: str) -> float:
        tokenizer, side = models.tokenizer(), self.size.image_size
        ids = tokenizer(prompt).input_ids
        if len(ids) > self.size.context:
            ids = [*ids[: self.size.context - 1], ids[-1]]
        squashed = image.resize((side, side), Image.Resampling.BILINEAR)
        a, b = self.image((np.asarray(squashed) / 255 - 0.5) / 0.5), self.text(ids)
        return float(
            np.exp(self.s["logit_scale"]) * (a @ b) / np.linalg.norm(a) / np.linalg.norm(b)
        )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    models.tokenizer().save_pretrained(folder)
    return folder


def written(folder: Path, tokenizer: Path, state: object) -> PerceptionConfig:
    torch.save(state, folder / "PE.pt")
    return PerceptionConfig(model=str(folder / "PE.pt"), tokenizer=str(tokenizer))


@pytest.mark.parametrize("kind", SMALL)
def test_scores_are_those_of_the_plain_forward(kind: str, tmp_path: Path, tokenizer: Path) -> None:
    size = SMALL[kind]
    state = random_state(size)
    config = written(tmp_path, tokenizer, state)
    config.check()
    reward: Perception = config.load()
    images, prompts = tiny_world(4)
    images[1], prompts[2], prompts[3] = wide(images[1]), "ball", " ".join(prompts * 3)
    scores = reward.score(images, prompts)
    plain = Plain(state, size)
    expected = [plain.score(i, p) for i, p in zip(images, prompts, strict=True)]
    assert (scores.dtype, scores.shape) == (np.float32, (4,))
    np.testing.assert_allclose(scores, expected, atol=2e-4)
    assert scores.std() > 0.1
    alone = [reward.score([i], [p])[0] for i, p in zip(images, prompts, strict=True)]
    np.testing.assert_allclose(scores, alone, atol=1e-4)


def test_a_state_dict_within_a_checkpoint_is_found(tmp_path: Path, tokenizer: Path) -> None:
    images, prompts = tiny_world(2)
    state = random_state(SMALL["class token"])
    plain = written(tmp_path, tokenizer, state).load().score(images, prompts)
    packed = {"weights": {f"module.{name}": tensor for name, tensor in state.items()}}
    again = written(tmp_path, tokenizer, packed).load().score(images, prompts)
    np.testing.assert_array_equal(plain, again)


@pytest.mark.parametrize(
    ("size", "parameters"), [(G14, 2.42e9), (L14, 0.671e9), (B16, 0.448e9)], ids=["G", "L", "B"]
)
def test_the_published_sizes(size: Published, parameters: float) -> None:
    """Every name and shape of the release, none left; heads, which no shape tells."""
    expected = names(size)
    state = {name: torch.empty(shape, device="meta") for name, shape in expected.items()}
    found = size_of(state)
    with torch.device("meta"):
        model = PerceptionEncoder(found)
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == expected
    assert (found.image.heads, found.text.heads) == (size.heads, size.text_heads)
    assert (found.grid * found.patch, found.context) == (size.image_size, size.context)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.01)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"visual.ln_post.bias": None}, "missing: visual.ln_post.bias)"),
        ({"visual.proj": None}, "missing: visual.proj)"),
        ({"extra": torch.zeros(1)}, "unexpected: extra)"),
        ({"ln_final.bias": torch.zeros(3)}, "mismatched: ln_final.bias [3] instead of [128])"),
        ({"visual.conv1.weight": torch.zeros(3)}, "is not a PE-Core"),
        ({"transformer.resblocks.0.mlp.c_fc.weight": torch.zeros(8, 100)}, "no heads of 64"),
        (
            {"transformer.resblocks.9.ln_1.bias": torch.zeros(1)},
            "missing: transformer.resblocks.2.",
        ),
    ],
)
def test_wrong_weights_are_named_in_one_line(tmp_path: Path, change: dict, said: str) -> None:
    state = random_state(SMALL["class token"]) | change
    torch.save({n: t for n, t in state.items() if t is not None}, tmp_path / "PE.pt")
    with pytest.raises(InputError) as caught:
        load_perception(tmp_path / "PE.pt")
    assert str(caught.value).startswith("rewards.perception.model: ")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    size = SMALL["class token"]._replace(vocab=VOCABULARY + 1)
    with pytest.raises(InputError, match=r"^rewards\.perception\.tokenizer: .* tokens, the model"):
        written(tmp_path, tokenizer, random_state(size)).load()
    with pytest.raises(InputError, match=r"^rewards\.perception\.tokenizer: "):
        written(tmp_path, tmp_path / "nowhere", {}).check()
