"""Models that are loaded once per process and shared by the stages that hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from weakref import WeakValueDictionary

M = TypeVar("M")

_models: WeakValueDictionary[str, Any] = WeakValueDictionary()  # by the text of their settings


def shared(settings: object, load: Callable[[], M]) -> M:
    """The model of some settings: the loaded one while anybody holds it, else a new one.

    Args:
        settings: whose `repr` tells all that decides the model.
        load: loads it.
    """
    model: M | None = _models.get(repr(settings))
    if model is None:
        model = _models[repr(settings)] = load()
    return model


def used_by(stages: Iterable[Any]) -> list[Any]:
    """The loaded models that stages will share, by their attribute `config`."""
    keys = {repr(stage.config) for stage in stages if hasattr(stage, "config")}
    return [model for key, model in _models.items() if key in keys]
