"""Alignment: trainings of a LoRA or all weights, on pairs or on the policy's own samples."""
