"""Imports with the garbage collector off: it comes on again, and loading leaves it no weights."""

from __future__ import annotations

import gc

import pytest
import small
import torch
from training import BASES, CPU

from raypref.core.imports import quick_imports
from raypref.models.backbone import load_denoiser, load_encoder
from raypref.rewards.pickscore import PickScoreConfig


def test_it_is_off_inside_and_on_again_whatever_happens() -> None:
    assert gc.isenabled()
    with quick_imports():
        assert not gc.isenabled()
        with quick_imports():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), quick_imports():
        raise ImportError("no such library")
    assert gc.isenabled()


def test_where_it_was_off_it_stays_off() -> None:
    gc.disable()
    try:
        with quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("family", ["sd15", "sd35m", "qwen_image"])
def test_loading_models_leaves_no_weights_for_it(family: str) -> None:
    """Else loading a large model would take more memory without it."""
    pickscore = str(small.path("pickscore"))

    def load() -> list[object]:
        return [
            load_denoiser(BASES[family], device=CPU),
            load_encoder(BASES[family], device=CPU),
            PickScoreConfig(model=pickscore, processor=pickscore).load(),
        ]

    load()  # what is imported and cached once
    gc.collect()
    with quick_imports():
        held = load()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            gc.collect()
            left = [each for each in gc.garbage if isinstance(each, torch.Tensor)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
    assert held and left == []
