"""Alignment: trainings of a LoRA on pairs or on the policy's own samples."""
