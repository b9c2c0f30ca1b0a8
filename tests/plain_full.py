"""Trainings of all weights written out plainly: copies of the network, AdamW on each tensor."""

from __future__ import annotations

import copy

import torch
from plain_training import Plain


class PlainFull(Plain):
    """As `Plain`, with every parameter of the network trained and no LoRA."""

    def __post_init__(self) -> None:
        self.learner = copy.deepcopy(self.family.pipe.components[self.family.component]).eval()
        self.learner.requires_grad_(True)
        self.reference, self.policy = copy.deepcopy(self.learner), copy.deepcopy(self.learner)
        self.parameters = [*self.learner.parameters()]
        self.shadow = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.stage.lr, weight_decay=self.stage.weight_decay
        )
