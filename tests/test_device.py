"""A GPU that was asked for is used, or the reason why not is told."""

import pytest
import torch

from raypref.core import device


def test_nobody_asks_for_a_gpu_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.pick_device(0).type == "cpu"
    assert device.pick_device(0.5).type == "cuda"


def test_a_driver_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 11040).\nMore"
        )

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(device, "_driver_version", lambda: "470.129.06")
    with pytest.raises(RuntimeError) as refused:
        device.pick_device(1)
    said = str(refused.value)
    assert "built for CUDA 13.0, driver 470.129.06: The NVIDIA driver on your system is" in said
    assert "\n" not in said


def test_a_build_without_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(RuntimeError, match="is built without CUDA"):
        device.pick_device(1)
