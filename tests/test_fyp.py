"""Presets and published values of Follow-Your-Preference."""

import pytest

from raypref.core.config import flatten, load
from raypref.evaluate import tables
from raypref.run.config import RunConfig

GIVEN = ["source.path=photos", "evaluate.holes=holes"]
# Of Follow-Your-Preference's run of BrushNet, as far as it carries over to a LoRA.
PUBLISHED_FYP = {
    "pairs.kind": "candidates",
    "candidates.count": 16,
    "choice.by": "ensemble",
    "choice.candidates": 0,
    "choice.chosen": "best",
    "choice.rejected": "worst",
    "perturb.paste": False,
    "perturb.guidance": 7.5,
    "base.family": "sd15_inpaint",
    "train.stage2_alone.objective": "dpo",
    "train.stage2_alone.region": "hole",
    "train.stage2_alone.region_mean": "image",
    "train.stage2_alone.steps": 2000,
    "train.stage2_alone.batch": 64,
    "train.stage2_alone.beta": 8000.0,
    "train.stage2_alone.warmup_steps": 0,
    "train.stage2_alone.weight_decay": 1e-2,
    "train.stage2_alone.clip": 1.0,
    "train.stage2_alone.caption_dropout": 0.0,
    "train.stage2_alone.flip": 0.0,
    "evaluate.seeds": (42,),
    "evaluate.seed_mode": "released",
    "evaluate.blend": True,
}
# Of its run of FLUX.1 Fill.
PUBLISHED_FYP_FLUX = PUBLISHED_FYP | {
    "perturb.kind": "flux_fill",
    "perturb.steps": 20,
    "perturb.guidance": 30.0,
    "base.family": "flux_fill",
    "train.stage2_alone.batch": 8,
    "train.stage2_alone.beta": 2000.0,
    "train.stage2_alone.lr": 1e-5,
    "evaluate.steps": 20,
    "evaluate.guidance": 30.0,
}


@pytest.mark.parametrize(
    ("name", "published"), [("fyp_sd15", PUBLISHED_FYP), ("fyp_flux", PUBLISHED_FYP_FLUX)]
)
def test_a_preset_of_follow_your_preference_has_what_is_published(name, published):
    preset = flatten(load(RunConfig, name, GIVEN))
    assert preset == preset | published


def test_published_values_are_those_of_the_notes():
    """ImageReward is printed times ten."""
    found = tables.published("fyp_editbench", "flux_fill")
    rows = {"base": (4.910, 24.076, 2.470, 66.979), "stage2_alone": (7.707, 25.972, 4.230, 72.307)}
    for row, (imagereward, *others) in rows.items():
        values = [found[row, metric] for metric in ("imagereward", "hpsv2", "hpsv3", "rubric")]
        assert values == [pytest.approx(imagereward / 10), *others]
    assert tables.published("fyp_brushbench", "sd15_inpaint") == {}
