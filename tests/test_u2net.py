"""U2-Net: official names and shapes, each block by hand, strict and safe loading."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from u2net_states import BATCH_NORM, narrow, published, random_state

from raypref.core.config import InputError
from raypref.models.u2net import FULL, SMALL, ResidualU, U2Net, load_u2net


@pytest.mark.parametrize(
    ("size", "plan", "parameters"), [("full", FULL, 44_009_869), ("small", SMALL, 1_131_181)]
)
def test_names_and_shapes_are_the_published_ones(size, plan, parameters):
    with torch.device("meta"):
        network = U2Net(plan)
    assert {k: tuple(v.shape) for k, v in network.state_dict().items()} == published(size)
    assert len(published(size)) == 798
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_spot_names_of_the_official_code():
    with torch.device("meta"):
        state = U2Net(FULL).state_dict()
    assert state["stage1.rebnconvin.conv_s1.weight"].shape == (64, 3, 3, 3)
    assert state["stage1.rebnconv7.bn_s1.running_var"].shape == (32,)
    assert state["stage1.rebnconv6d.conv_s1.weight"].shape == (32, 64, 3, 3)
    assert state["stage5.rebnconv4.conv_s1.bias"].shape == (256,)
    assert state["stage1d.rebnconv1d.conv_s1.weight"].shape == (64, 32, 3, 3)
    assert "stage5.rebnconv4d.conv_s1.weight" not in state


def test_dilations_of_the_official_code():
    with torch.device("meta"):
        model = U2Net(FULL)

    def dilation(name: str) -> int:
        conv = model.get_submodule(f"{name}.conv_s1")
        assert conv.padding == conv.dilation
        return conv.dilation[0]

    for stage in ("stage5", "stage6", "stage5d"):
        names = ("in", "1", "2", "3", "4", "3d", "2d", "1d")
        assert [dilation(f"{stage}.rebnconv{n}") for n in names] == [1, 1, 2, 4, 8, 4, 2, 1]
    for stage, levels in {"stage1": 7, "stage2": 6, "stage3": 5, "stage4": 4, "stage1d": 7}.items():
        names = ["in", *map(str, range(1, levels + 1)), *(f"{i}d" for i in range(1, levels))]
        assert [dilation(f"{stage}.rebnconv{n}") for n in names] == [
            2 if n == str(levels) else 1 for n in names
        ]


def conv_norm_relu(state: dict, name: str, x: torch.Tensor, dilation: int = 1) -> torch.Tensor:
    weight, bias = state[f"{name}.conv_s1.weight"], state[f"{name}.conv_s1.bias"]
    x = F.conv2d(x, weight, bias, padding=dilation, dilation=dilation)
    gamma, beta, mean, var = (state[f"{name}.bn_s1.{leaf}"] for leaf in BATCH_NORM)
    shape = (1, -1, 1, 1)
    x = (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
    return (x * gamma.view(shape) + beta.view(shape)).clamp(min=0)


def random_block(*, dilated: bool) -> tuple[ResidualU, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    block = ResidualU(3, 4, 6, depth=4, dilated=dilated).double().eval()
    for name, buffer in block.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return block, block.state_dict()


def test_pooled_block_step_by_step():
    block, s = random_block(dilated=False)
    x = torch.randn(2, 3, 32, 24, dtype=torch.float64)

    def up(y: torch.Tensor) -> torch.Tensor:
        return F.interpolate(y, scale_factor=2, mode="bilinear")

    inside = conv_norm_relu(s, "rebnconvin", x)
    one = conv_norm_relu(s, "rebnconv1", inside)
    two = conv_norm_relu(s, "rebnconv2", F.max_pool2d(one, 2))
    three = conv_norm_relu(s, "rebnconv3", F.max_pool2d(two, 2))
    four = conv_norm_relu(s, "rebnconv4", three, 2)
    three_up = conv_norm_relu(s, "rebnconv3d", torch.cat((four, three), 1))
    two_up = conv_norm_relu(s, "rebnconv2d", torch.cat((up(three_up), two), 1))
    one_up = conv_norm_relu(s, "rebnconv1d", torch.cat((up(two_up), one), 1))
    torch.testing.assert_close(block(x), one_up + inside)


def test_dilated_block_step_by_step():
    block, s = random_block(dilated=True)
    x = torch.randn(2, 3, 20, 17, dtype=torch.float64)
    inside = conv_norm_relu(s, "rebnconvin", x)
    one = conv_norm_relu(s, "rebnconv1", inside, 1)
    two = conv_norm_relu(s, "rebnconv2", one, 2)
    three = conv_norm_relu(s, "rebnconv3", two, 4)
    four = conv_norm_relu(s, "rebnconv4", three, 8)
    three_up = conv_norm_relu(s, "rebnconv3d", torch.cat((four, three), 1), 4)
    two_up = conv_norm_relu(s, "rebnconv2d", torch.cat((three_up, two), 1), 2)
    one_up = conv_norm_relu(s, "rebnconv1d", torch.cat((two_up, one), 1), 1)
    torch.testing.assert_close(block(x), one_up + inside)


def test_whole_network_step_by_step():
    model = narrow().double()
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)

    def up(y: torch.Tensor, factor: int = 2) -> torch.Tensor:
        return F.interpolate(y, scale_factor=factor, mode="bilinear")

    s1 = model["stage1"](x)
    s2 = model["stage2"](F.max_pool2d(s1, 2))
    s3 = model["stage3"](F.max_pool2d(s2, 2))
    s4 = model["stage4"](F.max_pool2d(s3, 2))
    s5 = model["stage5"](F.max_pool2d(s4, 2))
    s6 = model["stage6"](F.max_pool2d(s5, 2))
    d5 = model["stage5d"](torch.cat((up(s6), s5), 1))
    d4 = model["stage4d"](torch.cat((up(d5), s4), 1))
    d3 = model["stage3d"](torch.cat((up(d4), s3), 1))
    d2 = model["stage2d"](torch.cat((up(d3), s2), 1))
    d1 = model["stage1d"](torch.cat((up(d2), s1), 1))
    sides = [model["side1"](d1)]
    for i, feature in enumerate((d2, d3, d4, d5, s6), start=2):
        sides.append(up(model[f"side{i}"](feature), 2 ** (i - 1)))
    expected = [torch.sigmoid(y) for y in (model["outconv"](torch.cat(sides, 1)), *sides)]
    maps = model(x)
    assert len(maps) == 7
    for got, want in zip(maps, expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("height,width", [(320, 320), (65, 33), (100, 77)])
def test_maps_have_the_size_of_the_input(height, width):
    with torch.inference_mode():
        maps = narrow()(torch.randn(2, 3, height, width))
    assert {tuple(m.shape) for m in maps} == {(2, 1, height, width)}
    assert all(m.min() >= 0 and m.max() <= 1 for m in maps)


@pytest.mark.parametrize("kind", ["zip.pth", "legacy.pth", "safetensors", "no_counters.pth"])
def test_official_layout_loads_strictly(tmp_path, kind):
    state = random_state("small")
    path = tmp_path / f"u2netp.{kind}"
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "legacy.pth":  # the published files are that old
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif kind == "no_counters.pth":
        torch.save({k: v for k, v in state.items() if "num_batches" not in k}, path)
    else:
        torch.save(state, path)
    model = load_u2net(path)
    assert not model.training
    loaded = model.state_dict()
    assert loaded.keys() == state.keys()
    for name in state:
        if "num_batches" not in name:
            assert torch.equal(loaded[name], state[name]), name


def test_half_precision_weights_run_in_single(tmp_path):
    path = tmp_path / "half.pth"
    state = random_state("small")
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)
    assert {p.dtype for p in load_u2net(path).parameters()} == {torch.float32}


def test_full_size_is_told_by_the_shapes(tmp_path):
    path = tmp_path / "any_name.pth"
    torch.save(random_state("full"), path)
    assert sum(p.numel() for p in load_u2net(path).parameters()) == 44_009_869


def wrong_files() -> dict[str, object]:
    extra = {**random_state("small"), "stage7.conv.weight": torch.zeros(1)}
    missing = random_state("small")
    del missing["outconv.bias"]
    odd = {**random_state("small"), "side1.weight": torch.zeros(1, 63, 3, 3)}
    giant = random_state("small")  # 5 kB that claim a layer of 36 TB
    giant["stage6.rebnconv1.conv_s1.weight"] = torch.zeros(1).expand(1_000_000, 64, 3, 3)
    return {
        "giant": giant,
        "another_model": {"layer1.weight": torch.zeros(3, 3)},
        "one_more": extra,
        "one_less": missing,
        "odd_shape": odd,
        "a_list": [torch.zeros(2)],
        "a_tensor": torch.zeros(2),
        "numbers": dict.fromkeys(random_state("small"), 1.0),
    }


@pytest.mark.parametrize("name", wrong_files())
def test_another_models_checkpoint_is_refused_by_name(tmp_path, name):
    path = tmp_path / f"{name}.pth"
    torch.save(wrong_files()[name], path)
    with pytest.raises(InputError, match=r"saliency\.weights: .* is no U2-Net checkpoint") as info:
        load_u2net(path)
    assert str(path) in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", ["empty.pth", "page.pth", "cut.pth", "cut.safetensors"])
def test_damaged_files_are_refused_by_name(tmp_path, name):
    path = tmp_path / name
    torch.save(narrow().state_dict(), path)
    whole = path.read_bytes()
    damaged = {"empty": b"", "page": b"<html>404</html>", "cut": whole[: len(whole) // 2]}
    path.write_bytes(damaged[name.split(".")[0]])
    with pytest.raises(InputError, match="is no U2-Net checkpoint"):
        load_u2net(path)


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_not_run(tmp_path, legacy):
    target, path = tmp_path / "owned", tmp_path / "u2net.pth"
    state = {**random_state("small"), "outconv.bias": Malicious(target)}
    if legacy:
        path.write_bytes(pickle.dumps(state, protocol=2))
    else:
        torch.save(state, path)
    with pytest.raises(InputError, match="is no U2-Net checkpoint"):
        load_u2net(path)
    assert not target.exists()
