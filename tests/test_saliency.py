"""U2-Net under its published names, and the saliency stage around it."""

from __future__ import annotations

import csv
import os
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path

import corpus
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from raypref.config import InputError
from raypref.curate.saliency import Saliency, SaliencyConfig, saliency_map
from raypref.curate.u2net import DECODERS, STAGES, U2NET, U2NETP, ResidualU, U2Net, load_u2net
from raypref.images import ImageConfig, center_square, decode, encode_png, open_png
from raypref.rows import is_rejected

NARROW = dict.fromkeys((*STAGES, *DECODERS), (2, 4))


def rebnconv(name: str, channels_in: int, channels_out: int) -> Iterator[tuple[str, tuple]]:
    """Names and shapes of one convolution with its batch norm, as the checkpoints have them."""
    yield f"{name}.conv_s1.weight", (channels_out, channels_in, 3, 3)
    for leaf in ("conv_s1.bias", *(f"bn_s1.{x}" for x in BATCH_NORM)):
        yield f"{name}.{leaf}", (channels_out,)
    yield f"{name}.bn_s1.num_batches_tracked", ()


BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def rsu(name: str, levels: int, inp: int, mid: int, out: int) -> Iterator[tuple[str, tuple]]:
    yield from rebnconv(f"{name}.rebnconvin", inp, out)
    yield from rebnconv(f"{name}.rebnconv1", out, mid)
    for i in range(2, levels + 1):
        yield from rebnconv(f"{name}.rebnconv{i}", mid, mid)
    for i in range(levels - 1, 1, -1):
        yield from rebnconv(f"{name}.rebnconv{i}d", 2 * mid, mid)
    yield from rebnconv(f"{name}.rebnconv1d", 2 * mid, out)


def published(size: str) -> dict[str, tuple]:
    """All 798 names and shapes of the official networks, from their published layout."""
    full = [
        ("stage1", 7, 3, 32, 64),
        ("stage2", 6, 64, 32, 128),
        ("stage3", 5, 128, 64, 256),
        ("stage4", 4, 256, 128, 512),
        ("stage5", 4, 512, 256, 512),
        ("stage6", 4, 512, 256, 512),
        ("stage5d", 4, 1024, 256, 512),
        ("stage4d", 4, 1024, 128, 256),
        ("stage3d", 5, 512, 64, 128),
        ("stage2d", 6, 256, 32, 64),
        ("stage1d", 7, 128, 16, 64),
    ]
    names: dict[str, tuple] = {}
    for name, levels, inp, mid, out in full:
        if size == "small":
            inp = 3 if name == "stage1" else 128 if name.endswith("d") else 64
            mid, out = 16, 64
        names.update(rsu(name, levels, inp, mid, out))
    sides = (64, 64, 128, 256, 512, 512) if size == "full" else (64,) * 6
    for i, channels in enumerate(sides, start=1):
        names.update({f"side{i}.weight": (1, channels, 3, 3), f"side{i}.bias": (1,)})
    names.update({"outconv.weight": (1, 6, 1, 1), "outconv.bias": (1,)})
    return names


def random_state(size: str) -> dict[str, torch.Tensor]:
    """A checkpoint of the published layout with random numbers that keep signals alive."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in published(size).items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            state[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            state[name] = torch.randn(shape, generator=generator) * 0.1
    return state


def narrow(seed: int = 0) -> U2Net:
    torch.manual_seed(seed)
    return U2Net(NARROW).eval()


@pytest.mark.parametrize(
    ("size", "model", "parameters"), [("full", U2NET, 44_009_869), ("small", U2NETP, 1_131_181)]
)
def test_names_and_shapes_are_the_published_ones(size, model, parameters):
    with torch.device("meta"):
        network = model()
    assert {k: tuple(v.shape) for k, v in network.state_dict().items()} == published(size)
    assert len(published(size)) == 798
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_spot_names_of_the_official_code():
    with torch.device("meta"):
        state = U2NET().state_dict()
    assert state["stage1.rebnconvin.conv_s1.weight"].shape == (64, 3, 3, 3)
    assert state["stage1.rebnconv7.bn_s1.running_var"].shape == (32,)
    assert state["stage1.rebnconv6d.conv_s1.weight"].shape == (32, 64, 3, 3)
    assert state["stage5.rebnconv4.conv_s1.bias"].shape == (256,)
    assert state["stage1d.rebnconv1d.conv_s1.weight"].shape == (64, 32, 3, 3)
    assert "stage5.rebnconv4d.conv_s1.weight" not in state


def test_dilations_of_the_official_code():
    with torch.device("meta"):
        model = U2NET()

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


def test_a_map_has_the_size_of_its_image_and_the_full_range():
    sizes = [(320, 320), (512, 512), (200, 120)]
    maps = saliency_map(narrow(), [corpus.scene(i, size=size) for i, size in enumerate(sizes)])
    assert [m.shape for m in maps] == [(height, width) for width, height in sizes]
    assert all(m.dtype == np.uint8 for m in maps)
    assert (maps[0].min(), maps[0].max()) == (0, 255)  # 320x320 is not resized back


def test_a_map_does_not_depend_on_its_neighbours():
    model = narrow()
    images = [corpus.scene(i, size=(128, 128)) for i in range(5)]
    alone = [saliency_map(model, [image])[0] for image in images]
    together = saliency_map(model, images)
    backwards = saliency_map(model, images[::-1])[::-1]
    for one, two, three in zip(alone, together, backwards, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


class FirstOf(torch.nn.Module):
    """Stands for the network: records its input, returns a given map first and another second."""

    def __init__(self, fused: torch.Tensor) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.fused = fused
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.seen.append(x)
        return self.fused, 1 - self.fused


def test_normalisation_by_hand():
    fused = torch.full((1, 1, 320, 320), 0.3)
    fused[..., :160] = 0.4
    fused[..., :80] = 0.36
    model = FirstOf(fused)
    image = Image.new("RGB", (320, 320), (255, 0, 51))
    (soft,) = saliency_map(model, [image])
    assert (soft[:, :80] == 153).all()
    assert (soft[:, 80:160] == 255).all()
    assert (soft[:, 160:] == 0).all()
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    assert model.seen[0].shape == (1, 3, 320, 320)
    np.testing.assert_allclose(model.seen[0][0, :, 7, 9], expected, rtol=1e-5)


def test_a_constant_map_is_all_zero():
    model = FirstOf(torch.full((1, 1, 320, 320), 0.7))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy only warns of a division by zero
        (soft,) = saliency_map(model, [corpus.scene(size=(64, 64))])
    assert soft.shape == (64, 64)
    assert not soft.any()


def row(image: Image.Image, id_: str = "a") -> dict:
    return {"id": id_, "chosen": encode_png(center_square(image, 128)), "reject_reason": None}


@pytest.fixture
def stage(tmp_path) -> Saliency:
    path = tmp_path / "narrow.pth"
    torch.save(narrow().state_dict(), path)
    return Saliency(SaliencyConfig(weights=str(path)))


def test_the_stage_adds_soft_map_and_mask(stage):
    stage = pickle.loads(pickle.dumps(stage))
    stage.setup()
    rows = [row(corpus.scene(i), str(i)) for i in range(3)]
    stage(rows)
    for i, done in enumerate(rows):
        assert not is_rejected(done)
        assert set(stage.writes.names) <= set(done)
        soft, mask = open_png(done["saliency"]), open_png(done["mask"])
        assert (soft.mode, mask.mode, soft.size, mask.size) == ("L", "L", (128, 128), (128, 128))
        expected = np.where(np.asarray(soft) > 128, 255, 0)
        np.testing.assert_array_equal(np.asarray(mask), expected)
        assert set(np.unique(mask)) == {0, 255}
        again = [row(corpus.scene(i), str(i))]
        stage(again)
        assert again[0]["saliency"] == done["saliency"]


def test_a_photograph_without_salient_region_is_rejected(tmp_path):
    model = narrow()
    with torch.no_grad():  # a dead last layer: the same value everywhere
        model["outconv"].weight.zero_()
    path = tmp_path / "dead.pth"
    torch.save(model.state_dict(), path)
    stage = Saliency(SaliencyConfig(weights=str(path)))
    stage.setup()
    rows = [row(corpus.scene())]
    stage(rows)
    assert rows[0]["reject_stage"] == "saliency"
    assert rows[0]["reject_reason"] == "no_salient_region"
    assert "128" in rows[0]["reject_message"]
    assert "mask" not in rows[0]


def test_a_missing_file_says_where_to_get_it(tmp_path):
    stage = Saliency(SaliencyConfig(weights=str(tmp_path / "u2net.pth")))
    with pytest.raises(InputError) as info:
        stage.setup()
    message = str(info.value)
    assert message.startswith("saliency.weights: ")
    assert "xuebinqin/U-2-Net" in message
    assert "\n" not in message


def test_published_maps(shared_data: Path):
    """With the official weights (not shipped) the published maps come out."""
    path = os.environ.get("RAYPREF_U2NET")
    if not path:
        pytest.skip("set RAYPREF_U2NET to u2net.pth or u2netp.pth to compare with published maps")
    model = load_u2net(Path(path))
    small = sum(p.numel() for p in model.parameters()) < 10_000_000
    column = "u2netp_map" if small else "u2net_map"
    folder = shared_data / "saliency"
    with (folder / "index.csv").open(encoding="utf-8", newline="") as file:
        published_maps = {line["image"]: line[column] for line in csv.DictReader(file)}
    errors = {}
    for name, map_name in published_maps.items():
        image = decode((folder / name).read_bytes(), ImageConfig())
        (soft,) = saliency_map(model, [image])
        expected = np.asarray(Image.open(folder / map_name).convert("L")).astype(float)
        errors[name] = float(np.abs(soft - expected).mean() / 255)
    assert np.mean(list(errors.values())) < 0.02, errors
