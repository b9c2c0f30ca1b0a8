"""The objectives by name: one line each.

Settings are read where torch is not: a file imports it in its functions.
"""

from raypref.align.config import TrainingConfig
from raypref.align.objectives.alignprop import AlignProp
from raypref.align.objectives.arena import ArenaPO, FixedMargin
from raypref.align.objectives.awm import AWM
from raypref.align.objectives.capo import CaPO
from raypref.align.objectives.crd import CRD
from raypref.align.objectives.d3po import D3PO
from raypref.align.objectives.ddpo import DDPO
from raypref.align.objectives.dgpo import DGPO
from raypref.align.objectives.dmpo import DMPO
from raypref.align.objectives.dpo import DPO
from raypref.align.objectives.dpo_sft import DPOSFT
from raypref.align.objectives.dpok import DPOK
from raypref.align.objectives.draft import DRaFT
from raypref.align.objectives.dro import DRO
from raypref.align.objectives.dspo import DSPO
from raypref.align.objectives.fdpo import FDPO
from raypref.align.objectives.flow_grpo import FlowGRPO
from raypref.align.objectives.hinge import Hinge
from raypref.align.objectives.ipo import IPO
from raypref.align.objectives.kto import KTO
from raypref.align.objectives.linear_dpo import LinearDPO
from raypref.align.objectives.mapo import MaPO
from raypref.align.objectives.mix_grpo import MixGRPO
from raypref.align.objectives.nft import NFT
from raypref.align.objectives.noisy_labels import CDPO, RDPO
from raypref.align.objectives.online_dpo import OnlineDPO
from raypref.align.objectives.online_raft import OnlineRAFT
from raypref.align.objectives.online_rwr import OnlineRWR
from raypref.align.objectives.pref_grpo import PrefGRPO
from raypref.align.objectives.raft import RAFT
from raypref.align.objectives.refl import ReFL
from raypref.align.objectives.rwr import RWR
from raypref.align.objectives.sdpo import SDPO
from raypref.align.objectives.sft import SFT
from raypref.align.objectives.simpo import SimPO
from raypref.align.objectives.smpo import SmPO
from raypref.align.objectives.spin import SPIN

# By the value of `train.NAME.objective`.
OBJECTIVES: dict[str, type[TrainingConfig]] = {
    "dro": DRO,
    "dpo": DPO,
    "ipo": IPO,
    "hinge": Hinge,
    "capo": CaPO,
    "kto": KTO,
    "rwr": RWR,
    "raft": RAFT,
    "dpo_sft": DPOSFT,
    "sft": SFT,
    "cdpo": CDPO,
    "rdpo": RDPO,
    "smpo": SmPO,
    "sdpo": SDPO,
    "dspo": DSPO,
    "dmpo": DMPO,
    "fdpo": FDPO,
    "linear_dpo": LinearDPO,
    "mapo": MaPO,
    "simpo": SimPO,
    "spin": SPIN,
    "arena": ArenaPO,
    "fixed_margin": FixedMargin,
    "ddpo": DDPO,
    "dpok": DPOK,
    "d3po": D3PO,
    "flow_grpo": FlowGRPO,
    "mix_grpo": MixGRPO,
    "nft": NFT,
    "awm": AWM,
    "pref_grpo": PrefGRPO,
    "dgpo": DGPO,
    "crd": CRD,
    "online_dpo": OnlineDPO,
    "online_rwr": OnlineRWR,
    "online_raft": OnlineRAFT,
    "refl": ReFL,
    "draft": DRaFT,
    "alignprop": AlignProp,
}
