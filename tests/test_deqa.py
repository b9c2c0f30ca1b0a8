"""DeQA with a stand-in of its repository: code, weights and tokenizer on disk."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus import scene
from deqa_standin import MODEL, WORDS, save_deqa
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file
from test_architecture import MODULES, own_imports

from raypref.core.config import InputError
from raypref.models.hub import hub_id
from raypref.rewards.deqa import PINS, DeQA, DeQAConfig

IMAGES = [scene(i, size=size) for i, size in enumerate([(60, 60), (90, 40), (40, 91), (28, 28)])]
PROMPTS = [""] * 4
PROMPT_END = "ASSISTANT : The quality of the image is"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_deqa(tmp_path_factory.mktemp("deqa"))


@pytest.fixture(scope="module")
def reward(folder) -> DeQA:
    return DeQAConfig(model=str(folder), allow_code=True, dtype="float32").load()


@torch.no_grad()
def formula(folder: Path, image: Image.Image) -> float:
    """Pad, resize, normalise, run the layers, and take the expectation over the five words."""
    side, grey = max(image.size), (122, 116, 104)  # 255 times the mean, rounded down
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:] = grey
    top, left = (side - image.height) // 2, (side - image.width) // 2
    canvas[top : top + image.height, left : left + image.width] = np.asarray(image)
    small = Image.fromarray(canvas).resize((28, 28), Image.Resampling.BICUBIC)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = torch.tensor((np.asarray(small) / 255 - mean) / std, dtype=torch.float32)
    state = load_file(folder / "model.safetensors")
    seen = torch.nn.functional.conv2d(
        pixels.permute(2, 0, 1)[None], state["eye.weight"], state["eye.bias"], stride=7
    )
    texts = "<s> USER : How would you rate the quality of this image ?", PROMPT_END
    words = [state["words.weight"][[WORDS.index(w) for w in text.split()]] for text in texts]
    mixer = torch.nn.GRU(16, 16, batch_first=True)
    mixer.load_state_dict({k.removeprefix("mixer."): v for k, v in state.items() if "mixer" in k})
    read = mixer(torch.cat([words[0], seen[0].flatten(1).T, words[1]])[None])[0][0, -1]
    logits = state["lm_head.weight"] @ read
    weight = {w: logits[WORDS.index(w)].exp().item() for w in WORDS[-5:]}
    worth = {"excellent": 5, "good": 4, "fair": 3, "poor": 2, "bad": 1}
    return sum(worth[w] * weight[w] for w in worth) / sum(weight.values())


def test_the_score_is_the_expected_level(reward, folder):
    scores = reward.score(IMAGES, PROMPTS)
    assert (scores.dtype, scores.shape) == (np.float32, (4,))
    np.testing.assert_allclose(scores, [formula(folder, i) for i in IMAGES], atol=1e-4, rtol=0)
    assert scores.std() > 1e-3, "it looks at nothing"
    assert ((scores >= 1) & (scores <= 5)).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_a_score_does_not_depend_on_its_batch(folder, dtype, tolerance):
    reward = DeQAConfig(model=str(folder), allow_code=True, dtype=dtype).load()
    alone = [reward.score([image], [""])[0] for image in IMAGES]
    np.testing.assert_allclose(reward.score(IMAGES, PROMPTS), alone, atol=tolerance, rtol=0)


def test_code_runs_only_when_it_is_allowed(folder):
    config = DeQAConfig(model=str(folder))
    for attempt in (config.check, config.load):
        with pytest.raises(InputError, match=r"rewards\.deqa\.allow_code=true"):
            attempt()


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(InputError, match=r"^rewards\.deqa\.model: .*none"):
        DeQAConfig(model=str(tmp_path / "none"), allow_code=True).check()


def test_code_that_needs_another_transformers_says_so_in_a_line(tmp_path):
    """As DeQA's own: a name of the Llama module that is gone."""
    folder = save_deqa(tmp_path / "old")
    gone = "from transformers.models.llama.modeling_llama import LlamaFlashAttention2\n"
    (folder / "modeling_mplug_owl2.py").write_text(gone + MODEL)
    with pytest.raises(
        InputError, match=r"rewards\.deqa\.model: .*transformers==4\.36\.1"
    ) as error:
        DeQAConfig(model=str(folder), allow_code=True).load()
    assert importlib.metadata.version("transformers") in str(error.value)
    assert "\n" not in str(error.value)


def test_its_workers_get_their_own_environment(folder):
    assert DeQAConfig().runtime_env == {"pip": list(PINS)}


def test_code_of_the_hub_is_run_at_a_named_commit_only(tmp_path, monkeypatch):
    """RealAlign evaluates with the default; a branch may hold other code tomorrow."""
    named = hub_id(DeQAConfig().model)
    assert named == ("zhiyuanyou/DeQA-Score-Mix3", "f37ba4273ad8d7548e21ac2fa58353c517e4df49", "")
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--someone--deqa"
    save_deqa(repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for ref in ("someone/deqa", "someone/deqa@main"):
        with pytest.raises(InputError, match=f"name the commit .*someone/deqa@{commit}"):
            DeQAConfig(model=ref, allow_code=True).load()
    pinned = DeQAConfig(model=f"someone/deqa@{commit}", allow_code=True)
    pinned.check()
    assert pinned.folder() == pinned.model


def test_the_module_needs_little_of_the_project():
    """It must come up where transformers is too old for the other models."""
    needed, new = set(), {"rewards.deqa"}
    while new:
        needed |= new
        new = {name for module in new for name in own_imports(MODULES[module])} - needed
    few = {"config", "device", "errors", "layers", "messages", "schemes", "values"}
    mine = {"rewards.deqa", "rewards.config", "models.hub"}
    assert needed <= mine | {f"core.{name}" for name in few}
