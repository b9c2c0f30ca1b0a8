"""The settings `[rewards.NAME]` of a run: a section for each reward of the registry, and heads."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, WrapSerializer

from raypref.core.config import NAME, InputError, Tables, build
from raypref.rewards.config import RewardConfig
from raypref.rewards.heads import HEADS, HeadConfig, heads_of
from raypref.rewards.pickscore import PickScoreConfig
from raypref.rewards.registry import REWARDS, reward_names

_HEAD = f"{HEADS}."  # before a head's name among the rewards of a run


def sections() -> dict[str, type[RewardConfig]]:
    """The rewards with a section in `[rewards]`; PickScore's is `[pickscore]`: curation uses it."""
    return {name: kind for name, kind in REWARDS.items() if kind is not PickScoreConfig}


def rewards_of(given: Any) -> dict[str, RewardConfig]:
    """The settings of every reward from those that are given, nested by name.

    Returns:
        By name; that of a head is `heads.NAME`.

    Raises:
        InputError: a name or key is unknown or a value is wrong; names the key.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"rewards={given!r} is a value, not a group of settings")
    kinds = sections()
    own = {name: values for name, values in given.items() if not name.startswith(_HEAD)}
    heads = own.pop(HEADS, {})
    for name, values in own.items():
        if name not in kinds:
            (near,) = difflib.get_close_matches(name, [*kinds, HEADS], n=1, cutoff=0.0)
            raise InputError(
                f"unknown key 'rewards.{name}'; the nearest reward is '{near}' (--help lists all)"
            )
        if not isinstance(values, Mapping | RewardConfig):
            raise InputError(f"rewards.{name}={values!r} is a value, not a group of settings")
    found: dict[str, RewardConfig] = {}
    for name, kind in kinds.items():
        values = own.get(name, {})
        known = isinstance(values, RewardConfig)
        found[name] = values if known else build(kind, values, prefix=f"rewards.{name}.")
    if isinstance(heads, Mapping):  # those that were built before are named in full
        built = {n.removeprefix(_HEAD): v for n, v in given.items() if n.startswith(_HEAD)}
        heads = {**built, **heads}
    return found | {f"{_HEAD}{name}": head for name, head in heads_of(heads).items()}


def _nested(rewards: dict[str, RewardConfig], dump: Any) -> dict[str, Any]:
    """As a file has them: heads in a table of their own."""
    dumped: dict[str, Any] = dump(rewards)
    nested = {name: values for name, values in dumped.items() if not name.startswith(_HEAD)}
    if heads := {n.removeprefix(_HEAD): v for n, v in dumped.items() if n.startswith(_HEAD)}:
        nested[HEADS] = heads
    return nested


def _documented() -> dict[str, type[RewardConfig]]:
    return {**sections(), f"{_HEAD}{NAME}": HeadConfig}


# Built when settings are read: rewards may be registered until then.
Rewards = Annotated[
    dict[str, SerializeAsAny[RewardConfig]],
    BeforeValidator(rewards_of),
    WrapSerializer(_nested),
    Tables("", _documented),
]


def reward(
    name: str, pickscore: PickScoreConfig, others: Mapping[str, RewardConfig]
) -> RewardConfig:
    """The settings of one reward: of the registry, or a head."""
    if name not in REWARDS:
        return others[f"{_HEAD}{name}"]
    return pickscore if REWARDS[name] is PickScoreConfig else others[name]


def reward_section(name: str) -> str:
    """Where the settings of a reward are: `pickscore`, `rewards.NAME` or `rewards.heads.NAME`."""
    if name not in REWARDS:
        return f"rewards.{_HEAD}{name}"
    return name if REWARDS[name] is PickScoreConfig else f"rewards.{name}"


def require_rewards(key: str, chosen: Sequence[str], others: Mapping[str, RewardConfig]) -> None:
    """Refuse names that are no rewards of a run, and one that is named twice.

    Args:
        key: the setting that names them, for the error.
        chosen: the names.
        others: settings of the rewards, which tell the heads.

    Raises:
        InputError: names the key, and all names that there are.
    """
    heads = [name.removeprefix(_HEAD) for name in others if name.startswith(_HEAD)]
    known = [*reward_names(), *heads]
    if len({*chosen} & {*known}) < len(chosen):
        raise InputError(
            f"{key}={list(chosen)!r}: each is named once and is one of: {', '.join(known)}; a name "
            "of your own wants rewards.heads.NAME.head=FILE"
        )
