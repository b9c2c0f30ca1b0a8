"""A model is loaded once while somebody holds it, and gone when nobody does."""

import gc

from raypref.engine.loaded import shared, used_by
from raypref.rewards.clipscore import ClipScoreConfig


class Model:
    pass


class Holder:
    def __init__(self, config: object) -> None:
        self.config = config


def test_equal_settings_share_a_model_and_others_do_not() -> None:
    settings = ClipScoreConfig(model="one")
    first = shared(settings, Model)
    assert shared(ClipScoreConfig(model="one"), Model) is first
    assert shared(ClipScoreConfig(model="other"), Model) is not first
    assert used_by([Holder(settings), object()]) == [first]


def test_a_model_that_nobody_holds_is_loaded_again() -> None:
    loads: list[int] = []

    def load() -> Model:
        loads.append(1)
        return Model()

    held = shared("settings", load)
    assert shared("settings", load) is held and len(loads) == 1
    del held
    gc.collect()
    assert used_by([Holder("settings")]) == []
    shared("settings", load)
    assert len(loads) == 2
