"""The settings `[rewards.NAME]` of a run: a section for each reward of the registry."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from raypref.core.config import InputError, Tables, build
from raypref.rewards.config import RewardConfig
from raypref.rewards.pickscore import PickScoreConfig
from raypref.rewards.registry import REWARDS


def sections() -> dict[str, type[RewardConfig]]:
    """The rewards with a section in `[rewards]`; PickScore's is `[pickscore]`: curation uses it."""
    return {name: kind for name, kind in REWARDS.items() if kind is not PickScoreConfig}


def rewards_of(given: Any) -> dict[str, RewardConfig]:
    """The settings of every reward from those that are given, nested by name.

    Raises:
        InputError: a name or key is unknown or a value is wrong; names the key.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"rewards={given!r} is a value, not a group of settings")
    kinds = sections()
    for name, values in given.items():
        if name not in kinds:
            (near,) = difflib.get_close_matches(name, kinds, n=1, cutoff=0.0)
            raise InputError(
                f"unknown key 'rewards.{name}'; the nearest reward is '{near}' (--help lists all)"
            )
        if not isinstance(values, Mapping | RewardConfig):
            raise InputError(f"rewards.{name}={values!r} is a value, not a group of settings")
    found: dict[str, RewardConfig] = {}
    for name, kind in kinds.items():
        values = given.get(name, {})
        known = isinstance(values, RewardConfig)
        found[name] = values if known else build(kind, values, prefix=f"rewards.{name}.")
    return found


# Built when settings are read: rewards may be registered until then.
Rewards = Annotated[
    dict[str, SerializeAsAny[RewardConfig]], BeforeValidator(rewards_of), Tables("", sections)
]


def reward(
    name: str, pickscore: PickScoreConfig, others: Mapping[str, RewardConfig]
) -> RewardConfig:
    """The settings of one reward of the registry."""
    return pickscore if REWARDS[name] is PickScoreConfig else others[name]
