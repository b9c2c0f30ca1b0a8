"""The objectives by name: one line each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module

from raypref.align.config import TrainingConfig


class Objectives(MutableMapping[str, type[TrainingConfig]]):
    """Objectives by name; each is imported when it is first asked for: a run uses few of them.

    Args:
        places: where each is: `"module:Class"`, a module of this package.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self._found: dict[str, str | type[TrainingConfig]] = {**places}

    def __getitem__(self, name: str) -> type[TrainingConfig]:
        found = self._found[name]
        if isinstance(found, str):
            module, _, kind = found.partition(":")
            found = getattr(import_module(f"raypref.align.objectives.{module}"), kind)
            self._found[name] = found
        return found

    def __setitem__(self, name: str, kind: type[TrainingConfig]) -> None:
        self._found[name] = kind

    def __delitem__(self, name: str) -> None:
        del self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


# By the value of `train.NAME.objective`.
OBJECTIVES = Objectives(
    {
        "dro": "dro:DRO",
        "dpo": "dpo:DPO",
        "ipo": "ipo:IPO",
        "hinge": "hinge:Hinge",
        "capo": "capo:CaPO",
        "kto": "kto:KTO",
        "rwr": "rwr:RWR",
        "raft": "raft:RAFT",
        "dpo_sft": "dpo_sft:DPOSFT",
        "sft": "sft:SFT",
        "cdpo": "noisy_labels:CDPO",
        "rdpo": "noisy_labels:RDPO",
        "smpo": "smpo:SmPO",
        "sdpo": "sdpo:SDPO",
        "dspo": "dspo:DSPO",
        "dmpo": "dmpo:DMPO",
        "fdpo": "fdpo:FDPO",
        "linear_dpo": "linear_dpo:LinearDPO",
        "mapo": "mapo:MaPO",
        "simpo": "simpo:SimPO",
        "spin": "spin:SPIN",
        "arena": "arena:ArenaPO",
        "fixed_margin": "arena:FixedMargin",
        "ddpo": "ddpo:DDPO",
        "dpok": "dpok:DPOK",
        "d3po": "d3po:D3PO",
        "flow_grpo": "flow_grpo:FlowGRPO",
        "mix_grpo": "mix_grpo:MixGRPO",
        "nft": "nft:NFT",
        "awm": "awm:AWM",
        "pref_grpo": "pref_grpo:PrefGRPO",
        "dgpo": "dgpo:DGPO",
        "crd": "crd:CRD",
        "online_dpo": "online_dpo:OnlineDPO",
        "online_rwr": "online_rwr:OnlineRWR",
        "online_raft": "online_raft:OnlineRAFT",
        "refl": "refl:ReFL",
        "draft": "draft:DRaFT",
        "alignprop": "alignprop:AlignProp",
    }
)
