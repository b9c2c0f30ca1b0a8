"""The shape of a LoRA and the name of its file, known without the libraries that make one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from raypref.core.config import Section, setting

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # the linear layers of an attention block
# Those of a transformer whose text has a stream of its own.
JOINT_ATTENTION = (
    *(f"attn.{name}" for name in ATTENTION),
    *(f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
)
FILE_NAME = "pytorch_lora_weights.safetensors"


class LoraConfig(Section):
    """The shape of the adapter. Rank 4, alpha 4 on attention is the paper's for SD-1.5.

    With rank 0 all weights of the network are trained; alpha and targets, which presets set, then
    mean nothing and are as by default.
    """

    rank: int = setting(
        4, "rank of the update; 0: no LoRA, all weights are trained (docs/running.md)", ge=0
    )
    alpha: float = setting(4.0, "scale: the update is alpha/rank * B A", gt=0)
    targets: tuple[str, ...] = setting(ATTENTION, "names of the linear layers that get an update")

    @model_validator(mode="before")
    @classmethod
    def _all_weights_have_no_shape(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("rank") not in (0, "0"):
            return values
        return {key: own for key, own in values.items() if key not in ("alpha", "targets")}
