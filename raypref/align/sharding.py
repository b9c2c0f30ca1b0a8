"""Which trainings workers can do with the weights shared among them (`sharded=true`)."""

from __future__ import annotations

from raypref.align.config import TrainingConfig


def why_unsharded(training: TrainingConfig, *, rank: int) -> str:
    """Why a training cannot be sharded and what to change, or "".

    Every forward and backward gathers weights from all workers, so all have to make equally many.

    Args:
        training: its settings.
        rank: of the LoRA; 0: all weights are trained.
    """
    if rank:
        return "a LoRA is not sharded, all weights are; set lora.rank=0, or leave sharded out"
    workers = max(1, training.resources.workers)
    if not training.shares_weights:
        return (
            f"with {training.objective} some workers call the network more often than others, and "
            "each call needs all of them; leave sharded out"
        )
    if training.optimizer != "adamw":
        return f"the moments of {training.optimizer} are not sharded; set optimizer=adamw"
    if training.compile:
        return "the network's blocks cannot be compiled then; leave compile out"
    if training.min_workers:
        return "the batch is split evenly over all workers; leave min_workers out"
    if training.pairs_per_step % workers:
        each = training.samples_per_draw * training.draws_per_pair
        return (
            f"the {workers} workers take equal parts of a batch; batch={training.batch} is no "
            f"multiple of {workers * each}"
        )
    return ""
