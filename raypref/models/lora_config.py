"""The shape of a LoRA and the name of its file, known without the libraries that make one."""

from __future__ import annotations

from raypref.core.config import Section, setting

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # the linear layers of an attention block
# Those of a transformer whose text has a stream of its own.
JOINT_ATTENTION = (
    *(f"attn.{name}" for name in ATTENTION),
    *(f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
)
FILE_NAME = "pytorch_lora_weights.safetensors"


class LoraConfig(Section):
    """The shape of the adapter. Rank 4, alpha 4 on attention is the paper's for SD-1.5."""

    rank: int = setting(4, "rank of the update", ge=1)
    alpha: float = setting(4.0, "scale: the update is alpha/rank * B A", gt=0)
    targets: tuple[str, ...] = setting(ATTENTION, "names of the linear layers that get an update")
