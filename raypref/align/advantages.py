"""Rewards to advantages: how much better an image is than others of its prompt, or of its batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

SMALL = 1e-6  # deviations below it, of the size of rewards, are rounding: no image is better
KEPT = 32  # rewards of a prompt that its statistics are of
FEWEST = 16  # with fewer, those of the step's images


def within_groups(reward_NG: Tensor, how: str) -> Tensor:
    """Advantages of the images of N groups among those of their group, [N, G].

    Args:
        reward_NG: float64, without NaN.
        how: `group`, less the mean and divided by the (biased) deviation; `mean`, less the mean;
            `rank`, evenly from -1 for the worst to 1 for the best, equal rewards sharing the mean
            of their ranks; `win_rate`, as `group` of the share of the others that an image beats,
            ties counting half (Pref-GRPO, arXiv 2508.20751).
    """
    if how in ("rank", "win_rate"):
        beats = (reward_NG[:, :, None] > reward_NG[:, None, :]).to(reward_NG.dtype)
        rank = (beats - beats.transpose(1, 2)).sum(2) / (reward_NG.shape[1] - 1)
        if how == "rank":
            return rank
        reward_NG = rank / 2
    centred = reward_NG - reward_NG.mean(1, keepdim=True)
    if how == "mean":
        return centred
    return _divided(centred, centred.square().mean(1, keepdim=True).sqrt(), of=reward_NG)


def within_batch(reward_N: Tensor, all_M: Tensor) -> Tensor:
    """Advantages of N images among all M of a step: less the mean, divided by the deviation."""
    deviation = (all_M - all_M.mean()).square().mean().sqrt()
    return _divided(reward_N - all_M.mean(), deviation, of=all_M)


def _divided(centred: Tensor, deviation: Tensor, *, of: Tensor) -> Tensor:
    differ = deviation > SMALL * of.abs().amax(-1, keepdim=True)
    safe = torch.where(differ, deviation, torch.ones_like(deviation))
    return torch.where(differ, centred / safe, torch.zeros_like(centred))


class PromptStatistics:
    """The last rewards of every prompt (DDPO, arXiv 2305.13301, per-prompt tracking).

    Equal on all ranks, and part of the checkpoint.
    """

    def __init__(self) -> None:
        self.of: dict[int, list[float]] = {}
        self.block = -1  # the last that was added

    def add(self, block: int, prompts: Sequence[int], rewards: Sequence[float]) -> None:
        """Add the rewards of all images of a block. Added once: a block may be made again."""
        if block == self.block:
            return
        self.block = block
        for prompt, value in zip(prompts, rewards, strict=True):
            self.of[prompt] = [*self.of.get(prompt, []), value][-KEPT:]

    def advantages(self, reward_N: Tensor, prompts: Sequence[int], all_M: Tensor) -> Tensor:
        """Advantages of N images among their prompt's last ones, `all_M` where those are few."""
        found = []
        for value, prompt in zip(reward_N, prompts, strict=True):
            seen = self.of.get(prompt, [])
            among = reward_N.new_tensor(seen) if len(seen) >= FEWEST else all_M
            found.append(within_batch(value[None], among))
        return torch.cat(found)

    def state(self) -> dict[str, Tensor]:
        """As tensors: prompts, how many rewards each has, the rewards, the block."""
        values = [value for seen in self.of.values() for value in seen]
        return {
            "prompts": torch.tensor([*self.of], dtype=torch.int64),
            "counts": torch.tensor([len(seen) for seen in self.of.values()], dtype=torch.int64),
            "rewards": torch.tensor(values, dtype=torch.float64),
            "block": torch.tensor(self.block),
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """What `state` gave."""
        pieces = tensors["rewards"].split(tensors["counts"].tolist())
        keys = tensors["prompts"].tolist()
        self.of = {key: piece.tolist() for key, piece in zip(keys, pieces, strict=True)}
        self.block = int(tensors["block"])
