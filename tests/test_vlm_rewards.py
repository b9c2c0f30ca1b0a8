"""VQAScore and UnifiedReward against inputs and answers made by hand, one image at a time."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpus import scene
from PIL import Image
from small_vlm import prompt_text, save_hpsv3, save_qwen2_5_vl, save_qwen3_vl
from transformers import AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from raypref.core.config import InputError, results_of
from raypref.curate import photographic
from raypref.curate.photographic import Photographic, PhotographicConfig
from raypref.rewards import hpsv3, vlm
from raypref.rewards.unifiedreward import QUESTION, SHORT_QUESTION, UnifiedRewardConfig, parse
from raypref.rewards.vqascore import VQAScoreConfig

PROMPTS = ["a red ball", "two dogs on a long meadow in the rain", "", "x", "a <|im_end|> sign"]
SIZES = [(64, 64), (112, 64), (64, 128), (90, 90), (56, 112)]
IMAGES = [scene(i, size=size) for i, size in enumerate(SIZES)]
CONFIGS: dict[str, Callable[..., Any]] = {
    "vqascore": VQAScoreConfig,
    "unifiedreward": UnifiedRewardConfig,
}


@pytest.fixture(scope="module")
def qwen2_5(tmp_path_factory) -> Path:
    return save_qwen2_5_vl(tmp_path_factory.mktemp("qwen2_5"))


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory) -> Path:
    return save_qwen3_vl(tmp_path_factory.mktemp("qwen3"))


class ByHand:
    """A model fed one image at a time, without padding."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.images = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def logits(self, image: Image.Image, question: str, *, said: tuple[int, ...] = ()) -> Any:
        """Of the token after the question and what was said."""
        pixels = self.images(images=[image], return_tensors="pt")
        _, rows, columns = pixels["image_grid_thw"][0].tolist()
        text = prompt_text(question, rows // 2 * (columns // 2))
        ids = torch.tensor([[*self.tokenizer(text).input_ids, *said]])
        is_image = (ids == self.tokenizer.convert_tokens_to_ids("<|image_pad|>")).long()
        return self.model(input_ids=ids, mm_token_type_ids=is_image, **pixels).logits[0, -1], ids[0]


@pytest.mark.parametrize("kind", ["qwen2_5", "qwen3"])
def test_vqascore_is_the_probability_of_yes(kind, request):
    folder = request.getfixturevalue(kind)
    reward = VQAScoreConfig(model=str(folder), dtype="float32").load()
    scores = reward.score(IMAGES, PROMPTS)
    by_hand = ByHand(folder)
    yes = by_hand.tokenizer.convert_tokens_to_ids("Yes")
    expected = []
    for image, prompt in zip(IMAGES, PROMPTS, strict=True):
        shown = prompt.replace("<|im_end|>", "< |im_end|>")  # or the question would end there
        asked = f'Does this figure show "{shown}"? Please answer yes or no.'
        expected.append(by_hand.logits(image, asked)[0].softmax(-1)[yes].item())
    assert (scores.dtype, scores.shape) == (np.float32, (5,))
    np.testing.assert_allclose(scores, expected, atol=0, rtol=1e-3)
    assert scores.std() > 0.1 * scores.mean(), "it looks at nothing"


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)])
@pytest.mark.parametrize("kind", ["qwen2_5", "qwen3"])
def test_vqascore_does_not_depend_on_the_batch(kind, dtype, tolerance, request):
    folder = request.getfixturevalue(kind)
    reward = VQAScoreConfig(model=str(folder), dtype=dtype).load()
    together = reward.score(IMAGES, PROMPTS)
    alone = [reward.score([i], [p])[0] for i, p in zip(IMAGES, PROMPTS, strict=True)]
    backwards = reward.score(IMAGES[::-1], PROMPTS[::-1])[::-1]
    np.testing.assert_allclose(np.log(together), np.log(alone), atol=tolerance, rtol=0)
    np.testing.assert_allclose(np.log(together), np.log(backwards), atol=tolerance, rtol=0)


def test_yes_or_no_is_whichever_is_likelier(qwen3):
    reward = VQAScoreConfig(model=str(qwen3), dtype="float32").load()
    by_hand = ByHand(qwen3)
    expected = []
    for image, question in zip(IMAGES, PROMPTS, strict=True):
        shown = question.replace("<|im_end|>", "< |im_end|>")
        logits, _ = by_hand.logits(image, f"{shown} Please answer yes or no.")
        weight = {
            answer: sum(
                logits[token].exp().item()
                for token in {by_hand.tokenizer(way).input_ids[0] for way in ways}
            )
            for answer, ways in {"yes": ("yes", "Yes", "YES"), "no": ("no", "No", "NO")}.items()
        }
        expected.append(weight["yes"] > weight["no"])
    assert reward.says_yes(IMAGES, PROMPTS) == expected


def test_unifiedreward_answers_as_the_model_does_by_itself(qwen2_5):
    """Greedy, with the checkpoint's penalty on repetitions, without a cache and without padding."""
    reward = UnifiedRewardConfig(model=str(qwen2_5), dtype="float32", max_new_tokens=5).load()
    asked = [QUESTION.replace("{prompt}", prompt) for prompt in PROMPTS[:3]]
    answers = reward.vlm.answers(reward.vlm.prepare(IMAGES[:3], asked), max_new_tokens=5)
    by_hand = ByHand(qwen2_5)
    stop = by_hand.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    for image, question, answer in zip(IMAGES, asked, answers, strict=False):
        said: list[int] = []
        while len(said) < 5 and not set(said) & set(stop):
            logits, ids = by_hand.logits(image, question, said=tuple(said))
            seen = ids.unique()
            logits[seen] = torch.where(logits[seen] < 0, logits[seen] * 1.05, logits[seen] / 1.05)
            said.append(int(logits.argmax()))
        assert answer == by_hand.tokenizer.decode(said, skip_special_tokens=True).strip()
    assert len(set(answers)) > 1, "it looks at nothing"


def test_the_question_is_the_official_one():
    """The digest of the text in inference_qwen/image_generation (CodeGoat24/UnifiedReward)."""
    digest = hashlib.sha256(QUESTION.encode()).hexdigest()
    assert digest == "f56f919ce3bc6aab3c173a5f836defe195e17e9614753e8b4c3dc2405bd4975b"


def test_the_short_question_is_the_released_one():
    """The digest of the text in scripts/vllm_client_score.py (shenytzzz/Follow-Your-Preference)."""
    digest = hashlib.sha256(SHORT_QUESTION.encode()).hexdigest()
    assert digest == "bb5823f33a1fda4cd47b46ae294de8e275cd84e0acf25929426dcd9685f9ec49"


def test_the_short_question_reads_its_answer_in_any_case(tmp_path):
    """An answer without a score is none; as -1, as released, it would be a worst candidate."""
    says = ["final", "\u0120score:", "\u01204", ".5"]
    settings = {"model": str(save_qwen2_5_vl(tmp_path / "a", says=says)), "dtype": "float32"}
    short = UnifiedRewardConfig(**settings, question="score").load()
    assert short.score(IMAGES[:2], PROMPTS[:2]).tolist() == [4.5, 4.5]
    assert np.isnan(UnifiedRewardConfig(**settings).load().score(IMAGES[:1], PROMPTS[:1])).all()
    settings["model"] = str(save_qwen2_5_vl(tmp_path / "b", says=["final", "\u0120score:", "none"]))
    short = UnifiedRewardConfig(**settings, question="score").load()
    assert np.isnan(short.score(IMAGES[:1], PROMPTS[:1])).all()


def test_what_is_asked_follows_the_settings(qwen2_5):
    """Older settings ask as before, to the bit; the short question and JPEG change the input."""
    asked = {}
    for name, more in {"": {}, "short": {"question": "score"}, "jpeg": {"jpeg": 30}}.items():
        config = UnifiedRewardConfig(model=str(qwen2_5), dtype="float32", **more)
        asked[name] = config.load().prepare(IMAGES[:1], PROMPTS[:1])
        assert {key for key in results_of({"u": config}) if key in ("u.question", "u.jpeg")} == {
            f"u.{key}" for key in more
        }
    text = {name: inputs["input_ids"].shape[1] for name, inputs in asked.items()}
    assert text["short"] < text[""] == text["jpeg"]
    pixels = {name: inputs["pixel_values"] for name, inputs in asked.items()}
    assert torch.equal(pixels["short"], pixels[""])
    buffer = io.BytesIO()
    IMAGES[0].save(buffer, "JPEG", quality=30)
    by_hand = Qwen2VLImageProcessorPil.from_pretrained(qwen2_5)(
        images=[Image.open(buffer)], return_tensors="pt"
    )["pixel_values"]
    assert torch.equal(pixels["jpeg"], by_hand) and not torch.equal(by_hand, pixels[""])


def test_an_answer_does_not_depend_on_the_batch(qwen2_5):
    reward = UnifiedRewardConfig(model=str(qwen2_5), dtype="float32").load()
    together = reward.vlm.answers(reward.vlm.prepare(IMAGES, PROMPTS), max_new_tokens=8)
    for image, prompt, answer in zip(IMAGES, PROMPTS, together, strict=True):
        asked = reward.vlm.prepare([image], [prompt])
        assert reward.vlm.answers(asked, max_new_tokens=8) == [answer]


def logits_of(model: Any, work: Callable[[], object]) -> list[tuple[int, ...]]:
    """Shapes that the output layer makes during some work."""
    shapes: list[tuple[int, ...]] = []
    hook = model.lm_head.register_forward_hook(lambda *args: shapes.append(tuple(args[2].shape)))
    try:
        work()
    finally:
        hook.remove()
    return shapes


def test_only_the_last_position_gets_logits(qwen2_5, qwen3):
    """Of a batch of 64 with 300 tokens all would be 5.4 GiB at Qwen's 151,936 words."""
    score = VQAScoreConfig(model=str(qwen3), dtype="float32").load()
    words = len(score.vlm.read.tokenizer)
    asked = score.prepare(IMAGES, PROMPTS)
    assert logits_of(score.vlm.model, lambda: score.compute(asked)) == [(5, 1, words)]
    writes = UnifiedRewardConfig(model=str(qwen2_5), dtype="float32", max_new_tokens=4).load()
    questions = writes.prepare(IMAGES, PROMPTS)
    shapes = logits_of(writes.vlm.model, lambda: writes.compute(questions))
    assert {*shapes} == {(5, 1, words)} and 1 <= len(shapes) <= 4
    artworks = Photographic(PhotographicConfig(model=str(qwen3), dtype="float32"))
    artworks.setup()
    seen = artworks.inputs(IMAGES)
    assert logits_of(artworks.model, lambda: artworks.compute(seen)) == [(5, 1, words)]


@pytest.mark.parametrize("name", ["vqascore", "unifiedreward", "hpsv3", "photographic"])
def test_weights_go_straight_to_the_device(name, qwen2_5, qwen3, tmp_path, monkeypatch):
    """A device that holds no bytes stands for a GPU: weights of the host would be seen."""
    elsewhere = torch.device("meta")
    for module in (vlm, hpsv3, photographic):
        monkeypatch.setattr(module, "pick_device", lambda num_gpus: elsewhere)
    moves: list[object] = []
    monkeypatch.setattr(PreTrainedModel, "to", lambda self, *args, **_: moves.append(args) or self)
    if name == "photographic":
        stage = Photographic(PhotographicConfig(model=str(qwen3), dtype="float32"))
        stage.setup()
        model = stage.model
    elif name == "hpsv3":
        base, file = save_hpsv3(tmp_path)
        config = hpsv3.HPSv3Config(model=str(file), base=str(base), dtype="float32")
        model = config.load().backbone
    else:
        folder = qwen3 if name == "vqascore" else qwen2_5
        model = CONFIGS[name](model=str(folder), dtype="float32").load().vlm.model
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert not moves, "moved as a whole"


def test_unifiedreward_reads_the_score(tmp_path, caplog):
    says = ["ball", "\u0120(object):", "1", "\u0120Final", "\u0120Score:", "\u01204", ".5"]
    folder = save_qwen2_5_vl(tmp_path, says=says)
    reward = UnifiedRewardConfig(model=str(folder), dtype="float32", max_new_tokens=20).load()
    with caplog.at_level(logging.WARNING):
        scores = reward.score(IMAGES[:3], PROMPTS[:3])
    assert (scores.dtype, scores.tolist()) == (np.float32, [4.5, 4.5, 4.5])
    assert not [entry for entry in caplog.records if entry.name.startswith("raypref")]


def test_an_answer_without_a_score_is_counted_and_told(tmp_path, caplog):
    folder = save_qwen2_5_vl(tmp_path, says=["nice", "\u0120picture"])
    reward = UnifiedRewardConfig(model=str(folder), dtype="float32").load()
    with caplog.at_level(logging.WARNING):
        assert np.isnan(reward.score(IMAGES[:2], PROMPTS[:2])).all()
        assert np.isnan(reward.score(IMAGES[:1], PROMPTS[:1])).all()
    assert (reward.asked, reward.unreadable) == (3, 3)
    assert "3 of 3 answers" in caplog.messages[-1]
    assert "nice picture" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("dog (animal): 1\nFinal Score: 4", 4),
        ("Final Score: 3.5", 3.5),
        ("**Final Score:** 2", 2),
        ("Final Score: [5]", 5),
        ("Final Score:1.0.", 1),
        ("Final Score: 2\n... Final Score: 3", 3),
        ("Final Score: 4/5", 4),
        ("Final Score: 0", math.nan),
        ("Final Score: 6", math.nan),
        ("Final Score: 45", math.nan),
        ("Final Score: good", math.nan),
        ("Final Score:", math.nan),
        ("The image scores 4.", math.nan),
        ("", math.nan),
    ],
)
def test_what_counts_as_a_score(answer, score):
    assert parse(answer) == pytest.approx(score, nan_ok=True)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("dog (animal): 1\nFinal Score: 4", 4),
        ("Final Score: 3.5", 3.5),
        ("**Final Score:** 2", math.nan),  # bold
        ("Final Score: [5]", math.nan),
        ("Final Score:1.0.", 1),
        ("Final Score: 2\n... Final Score: 3", 2),
        ("Final Score: 4/5", 4),
        ("Final Score: 0", math.nan),
        ("Final Score: 6", math.nan),
        ("Final Score: 45", 4),
        ("Final Score: 5.9", 5.9),
        ("Final Score: 7 or Final Score: 3", 3),  # the first that can be read
        ("Final Score: good", math.nan),
        ("final score: 4", math.nan),
    ],
)
def test_what_counts_as_the_first_score(answer, score):
    """The released rule read aloud: after the words, spaces, then a digit from 1 to 5."""
    assert parse(answer, first=True) == pytest.approx(score, nan_ok=True)
    if answer.startswith("final"):
        assert parse(answer, first=True, any_case=True) == 4


def test_an_answer_without_a_score_is_0_if_asked(tmp_path, caplog):
    folder = save_qwen2_5_vl(tmp_path, says=["**Final", "\u0120Score:**", "\u01202"])
    config = UnifiedRewardConfig(model=str(folder), dtype="float32")
    before = results_of({"unifiedreward": config})
    assert not {key for key in before if key.endswith(("reading", "unreadable"))}
    first = config.model_copy(update={"reading": "first"})
    zero = first.model_copy(update={"unreadable": "zero"})
    assert len({json.dumps(results_of({"u": c})) for c in (config, first, zero)}) == 3
    images, prompts = IMAGES[:2], PROMPTS[:2]
    assert config.load().score(images, prompts).tolist() == [2, 2]
    assert np.isnan(first.load().score(images, prompts)).all()
    with caplog.at_level(logging.WARNING):
        scores = zero.load().score(images, prompts)
    assert (scores.dtype, scores.tolist()) == (np.float32, [0, 0])
    assert "2 of 2 answers" in caplog.messages[-1], "they are counted all the same"


@pytest.mark.parametrize("name", CONFIGS)
def test_a_missing_model_is_named(name, tmp_path):
    with pytest.raises(InputError, match=rf"^rewards\.{name}\.model: .*none") as error:
        CONFIGS[name](model=str(tmp_path / "none")).check()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_of_another_kind_is_named(name, tmp_path):
    for file in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        (tmp_path / file).write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match=rf"rewards\.{name}\.model: .*bert.*qwen2_5_vl"):
        CONFIGS[name](model=str(tmp_path)).check()


def test_a_question_without_the_prompt_is_refused(qwen3):
    with pytest.raises(InputError, match=r"rewards\.vqascore\.question"):
        VQAScoreConfig(model=str(qwen3), question="Is it good?").check()


@pytest.mark.parametrize("damage", ["gone", "cut", "part"])
def test_wrong_weights_give_one_line(damage, tmp_path):
    folder = save_qwen2_5_vl(tmp_path / "model")
    file = folder / "model.safetensors"
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        from safetensors.torch import load_file, save_file

        state = load_file(file)
        state.pop(next(name for name in state if "layers.1.mlp" in name))
        save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"^rewards\.unifiedreward\.model: ") as error:
        UnifiedRewardConfig(model=str(folder)).load()
    assert "\n" not in str(error.value)
