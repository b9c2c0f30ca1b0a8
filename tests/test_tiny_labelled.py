"""Labelled pairs of the tiny world: who prefers what, and generators in the order they claim."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raypref.core.config import InputError
from raypref.demo import checkpoints, labelled, scheme, world
from raypref.demo.labelled import GENERATORS, TEMPERATURE, choices
from raypref.images.decode import encode_png
from raypref.models.lora_config import ATTENTION, FILE_NAME


@pytest.fixture(scope="module")
def drawn():
    """Images of the base and of a good generator for eight prompts."""
    few = {name: GENERATORS[name] for name in ("base", "crisp-60")}
    return labelled.draw_images(labelled.training_prompts(8), few)


def images(count: int, groups: int = 64) -> tuple[list[str], np.ndarray]:
    """Groups and scores of simulated images."""
    rng = np.random.default_rng(4)
    names = [f"group {i % groups}" for i in range(count)]
    return names, rng.normal(25, 4, count)


def test_every_image_is_in_one_pair_of_its_group():
    groups, scores = images(64 * 10)
    found = choices(groups, scores, temperature=3.0, seed=1)
    used = [image for choice in found for image in (choice.chosen, choice.rejected)]
    assert sorted(used) == list(range(640))
    assert all(groups[c.chosen] == groups[c.rejected] for c in found)


def test_a_group_has_its_pairs_whatever_other_groups_there_are():
    groups, scores = images(640)
    whole = choices(groups, scores, temperature=3.0, seed=1)
    part = [i for i, group in enumerate(groups) if group == "group 7"]
    own = choices([groups[i] for i in part], scores[part], temperature=3.0, seed=1)
    assert [(part[c.chosen], part[c.rejected]) for c in own] == [
        (c.chosen, c.rejected) for c in whole if groups[c.chosen] == "group 7"
    ]


def test_labels_without_noise_follow_the_scores():
    groups, scores = images(640)
    found = choices(groups, scores, temperature=0.0, seed=1)
    assert all(scores[c.chosen] > scores[c.rejected] for c in found)
    assert {c.vote_share for c in found} == {1.0}


def test_upsets_are_as_frequent_as_the_logistic_distribution_says():
    groups, scores = images(64 * 200)
    found = choices(groups, scores, temperature=3.0, seed=1)
    gaps = np.array([scores[c.chosen] - scores[c.rejected] for c in found])
    expected = 1 / (1 + np.exp(np.abs(gaps) / 3.0))  # of an upset
    upsets, spread = (gaps < 0).sum(), math.sqrt((expected * (1 - expected)).sum())
    assert abs(upsets - expected.sum()) < 4 * spread
    np.testing.assert_allclose([c.gap for c in found], np.abs(gaps), atol=1e-4)
    share = 1 / (1 + np.exp(-gaps / 3.0))
    np.testing.assert_allclose([c.vote_share for c in found], share, atol=1e-4)


def test_training_prompts_are_none_of_the_evaluations():
    prompts = labelled.training_prompts(labelled.PROMPTS)
    assert len(set(prompts)) == labelled.PROMPTS
    assert not set(prompts) & set(world.held_out_prompts(world.MOST_PROMPTS))
    assert labelled.training_prompts(5) == prompts[:5]


def test_a_larger_scale_of_the_lora_is_a_better_generator(drawn):
    base, better = (
        np.mean([row["score"] for row in drawn if row["model"] == name])
        for name in ("base", "crisp-60")
    )
    assert better > base + 1.5


def test_images_and_scores_do_not_depend_on_threads_or_company(drawn):
    threads = torch.get_num_threads()
    name = "crisp-60"
    try:
        torch.set_num_threads(threads % 2 + 1)
        again = labelled.draw_images(labelled.training_prompts(2), {name: GENERATORS[name]})
    finally:
        torch.set_num_threads(threads)
    before = {(row["prompt"], row["seed"]): row for row in drawn if row["model"] == name}
    for row in again:
        same = before[row["prompt"], row["seed"]]
        assert encode_png(row["image"]) == encode_png(same["image"])
        assert row["score"] == same["score"]


def test_labels_and_ratings_are_files_of_the_same_images(monkeypatch, tmp_path):
    """With drawing replaced: two prompts in grey."""
    from PIL import Image

    monkeypatch.setenv("RAYPREF_CACHE", str(tmp_path))
    rows = [
        {
            "prompt_id": prompt,
            "prompt": f"prompt {prompt}",
            "seed": seed,
            "model": model,
            "image": Image.new("L", (8, 8), 10 * prompt + seed).convert("RGB"),
            "score": round(20 + 2 * scale + prompt, 4),
        }
        for model, scale in GENERATORS.items()
        for prompt in range(2)
        for seed in labelled.SEEDS
    ]
    monkeypatch.setattr(labelled, "draw_images", lambda prompts, generators: rows)
    labels, ratings = scheme.photographs("labelled"), scheme.photographs("ratings")
    pairs = [json.loads(line) for line in (labels / "labels.jsonl").read_text().splitlines()]
    scored = [json.loads(line) for line in (ratings / "ratings.jsonl").read_text().splitlines()]
    assert [*pairs[0]] == [
        *("prompt", "chosen", "rejected", "chosen_model", "rejected_model", "vote_share", "gap")
    ]
    assert len(scored) == len(rows) == 2 * len(pairs)
    score = {row["image"]: row["score"] for row in scored}
    for pair in pairs:
        difference = score[pair["chosen"]] - score[pair["rejected"]]
        assert pair["gap"] == pytest.approx(abs(difference))
        assert pair["vote_share"] == pytest.approx(
            1 / (1 + math.exp(-difference / TEMPERATURE)), abs=1e-4
        )
    for folder in (labels, ratings):
        assert sum(1 for _ in folder.glob("images/*/*.png")) == len(rows)
    for pair in pairs:
        assert pair["chosen_model"] != pair["rejected_model"]
        assert (labels / pair["chosen"]).read_bytes() == (ratings / pair["chosen"]).read_bytes()


def test_other_names_are_refused_with_those_there_are():
    with pytest.raises(InputError, match=r"tiny:world, tiny:labelled, tiny:ratings"):
        scheme.photographs("labels")


def test_the_lora_is_small_of_rank_8_and_of_attention_alone():
    file = checkpoints.path("crisp") / FILE_NAME
    assert file.stat().st_size < 300_000
    state = load_file(file)
    assert {len(value) for name, value in state.items() if ".lora_A." in name} == {8}
    layers = {name.removeprefix("unet.").rpartition(".lora_")[0] for name in state}
    assert all(layer.endswith(ATTENTION) for layer in layers)
