"""Models that are loaded once per process and shared by the stages that hold them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar
from weakref import WeakValueDictionary

M = TypeVar("M")

_models: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()


def shared(settings: Hashable, load: Callable[[], M]) -> M:
    """The model of some settings: the loaded one while anybody holds it, else a new one.

    Args:
        settings: hashable; equal settings mean the same model.
        load: loads it.
    """
    model: M | None = _models.get(settings)
    if model is None:
        model = _models[settings] = load()
    return model


def used_by(stages: Iterable[Any]) -> list[Any]:
    """The loaded models that stages will share, by their attribute `config`."""
    settings = [getattr(stage, "config", None) for stage in stages]
    return [_models[key] for key in settings if key is not None and key in _models]
