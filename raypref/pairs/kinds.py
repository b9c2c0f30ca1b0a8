"""The kinds of pairs that `pairs.kind` names: what is known of each, and what makes it."""

from __future__ import annotations

from collections.abc import Callable

from raypref.core.ledger import Place
from raypref.curate.graph import Curation
from raypref.curate.publish import PAIRS as TWIN_PAIRS
from raypref.pairs.candidates import CandidatePairs
from raypref.pairs.columns import CANDIDATE_PAIRS, PAIRS, PROMPT_PAIRS, SINGLE
from raypref.pairs.config import CANDIDATES, PROMPTS, TWINS, PairingConfig
from raypref.pairs.labelled import LabelledPairs
from raypref.pairs.maker import Kind, PairMaker, Terms
from raypref.pairs.prompts import PromptPairs
from raypref.pairs.words import of_choice

_DECIDES = (
    ("with a label", ("unlabelled",)),
    ("confident enough", ("low_confidence",)),
    ("not tied", ("tie",)),
    ("within the limit", ("beyond_limit",)),
)
_REAL_ALIGN = """\
@article{realalign2026,
  title   = {When Preference Labels Fall Short: Aligning Diffusion Models from Real Data},
  author  = {Chen, Weiyan and Deng, Weijian and Xiao, Yao and Tu, Weijie and Dong, Ziyi and
             Radwan, Ibrahim and Lin, Liang and Wei, Pengxu},
  journal = {arXiv preprint arXiv:2605.19839},
  year    = {2026}
}"""
_FOLLOW_YOUR_PREFERENCE = """\
@inproceedings{shen2026followyourpreference,
  title     = {Follow-Your-Preference: Towards Preference-Aligned Image Inpainting},
  author    = {Shen, Yutao and Yuan, Junkun and Aonishi, Toru and Nakayama, Hideki and Ma, Yue},
  booktitle = {ICLR},
  year      = {2026},
  note      = {arXiv:2509.23082}
}"""
_DIFFUSION_DPO = """\
@inproceedings{wallace2024diffusion,
  title     = {Diffusion Model Alignment Using Direct Preference Optimization},
  author    = {Wallace, Bram and Dang, Meihua and Rafailov, Rafael and Zhou, Linqi and Lou, Aaron
               and Purushwalkam, Senthil and Ermon, Stefano and Xiong, Caiming and Joty, Shafiq
               and Naik, Nikhil},
  booktitle = {CVPR},
  year      = {2024}
}"""
_LABELS = Terms(
    input="label",
    images="images",
    data="people's labels",
    table="labels",
    made="pair",
    made_whole="preference pair",
    hold="both images of each label, their prompts and generators' names",
    learned="prefer the images that people chose",
)
KINDS = {
    TWINS: Kind(
        terms=Terms(
            input="photograph",
            images="photographs",
            data="real photographs",
            table="photos",
            made="pair",
            made_whole="preference pair",
            hold="the photographs themselves, their captions and file names",
            learned="prefer your photographs",
        ),
        sections=("saliency", "perturb", "pickscore", "captions", "photographic"),
        limit=("select", "top_k"),
        trainings=("stage1", "stage2", "stage2_alone"),
        columns=TWIN_PAIRS,
        filters=(
            ("distinct", ("duplicate", "near_duplicate")),
            ("above the mean colorfulness", ("low_colorfulness",)),
            ("tried, in order of rank", ("not_needed", "outside_pool")),
            ("visibly degraded", ("negligible_degradation",)),
            ("more colorful than the rejected image", ("less_colorful_than_twin",)),
            ("kept, in order of rank", ("beyond_top_k",)),
        ),
        tags=("real-images",),
        citation=_REAL_ALIGN,
    ),
    CANDIDATES: Kind(
        terms=Terms(
            input="photograph",
            images="photographs",
            data="candidates that rewards ranked",
            table="photos",
            made="pair",
            made_whole="preference pair",
            hold="the photographs themselves, paintings of them, their captions and file names",
            learned="draw what rewards prefer",
        ),
        sections=("saliency", "perturb", "captions", "photographic"),
        limit=("pairs", "limit"),
        # As published: Diffusion-DPO from the base.
        trainings=("stage2_alone",),
        columns=CANDIDATE_PAIRS,
        filters=(
            ("distinct", ("duplicate", "near_duplicate")),
            ("above the mean colorfulness", ("low_colorfulness",)),
            ("within the limit", ("beyond_limit",)),
            ("decided by the rule", ("draw",)),
        ),
        tags=("reward-preferences",),
        citation=_FOLLOW_YOUR_PREFERENCE,
        scored_by=("candidates", "rewards"),
    ),
    "labelled": Kind(
        terms=_LABELS,
        sections=(),
        limit=("pairs", "limit"),
        # Stage 1 learns from photographs; stage 2 starts from it. Alone it is Diffusion-DPO.
        trainings=("stage2_alone",),
        columns=PAIRS,
        filters=_DECIDES,
        tags=("human-preferences",),
        citation=_DIFFUSION_DPO,
    ),
    "images": Kind(
        terms=_LABELS._replace(
            made="image",
            made_whole="labelled image",
            hold="the images, their prompts, scores and generators' names",
            learned="draw what people rated well",
        ),
        sections=(),
        limit=("pairs", "limit"),
        trainings=("kto_images",),
        columns=SINGLE,
        sides=("chosen",),
        filters=_DECIDES,
        tags=("human-preferences",),
        citation=_DIFFUSION_DPO,
    ),
    PROMPTS: Kind(
        terms=Terms(
            input="prompt",
            images="prompts",
            data="rewards of its own images",
            table="prompts",
            made="distinct prompt",
            made_whole="distinct prompt",
            hold="the prompts, without images",
            learned="draw what rewards prefer",
        ),
        sections=(),
        limit=("pairs", "limit"),
        trainings=("nft",),
        columns=PROMPT_PAIRS,
        sides=(),
        filters=(
            ("distinct", ("duplicate",)),
            ("within the limit", ("beyond_limit",)),
        ),
        tags=("reward-preferences",),
        citation="",
    ),
}
MAKERS: dict[str, Callable[..., PairMaker]] = {
    TWINS: Curation,
    CANDIDATES: CandidatePairs,
    "labelled": LabelledPairs,
    "images": LabelledPairs,
    PROMPTS: PromptPairs,
}


def kind_of(config: PairingConfig) -> Kind:
    """What is known of the pairs of a run."""
    kind = KINDS[config.pairs.kind]
    if config.pairs.kind == CANDIDATES:
        return of_choice(kind, config.choice, real=_REAL_ALIGN)
    return kind


def maker_of(config: PairingConfig, *, place: Place) -> PairMaker:
    """What makes the pairs of a run.

    Args:
        config: everything that decides the pairs.
        place: where its ledgers lie.
    """
    return MAKERS[config.pairs.kind](config, place=place)
