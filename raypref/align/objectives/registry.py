"""The objectives by name: one line each.

Settings are read where torch is not: a file imports it in its functions.
"""

from raypref.align.config import TrainingConfig
from raypref.align.objectives.arena import ArenaPO, FixedMargin
from raypref.align.objectives.dpo import DPO
from raypref.align.objectives.dpo_sft import DPOSFT
from raypref.align.objectives.dro import DRO
from raypref.align.objectives.hinge import Hinge
from raypref.align.objectives.ipo import IPO
from raypref.align.objectives.kto import KTO
from raypref.align.objectives.raft import RAFT
from raypref.align.objectives.rwr import RWR
from raypref.align.objectives.sft import SFT

# By the value of `train.NAME.objective`.
OBJECTIVES: dict[str, type[TrainingConfig]] = {
    "dro": DRO,
    "dpo": DPO,
    "ipo": IPO,
    "hinge": Hinge,
    "kto": KTO,
    "rwr": RWR,
    "raft": RAFT,
    "dpo_sft": DPOSFT,
    "sft": SFT,
    "arena": ArenaPO,
    "fixed_margin": FixedMargin,
}
