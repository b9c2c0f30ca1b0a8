"""Compiled blocks: what eager computes, few graphs, and none of them left out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import small
import torch
from gpu_sections.counting import on_meta
from torch import Tensor, nn
from torch._dynamo.utils import counters
from training import BASES, CPU, LORAS, pairs, run, training

from raypref.align import loop
from raypref.align.residuals import LEARNER, POLICY, REFERENCE
from raypref.models import adapters
from raypref.models.backbone import load_denoiser
from raypref.models.compiled import compile_blocks
from raypref.models.families.base import Denoiser
from raypref.models.lora_config import LoraConfig

DEEP = BASES["sd35m"].model_copy(update={"model": str(small.path("sd3-deep"))})


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def network() -> Denoiser:
    """Three transformer blocks; the first two are alike. No adapter is silent."""
    made = load_denoiser(DEEP, device=CPU)
    adapters.attach(made.module, LORAS["sd35m"], names=(LEARNER, REFERENCE, POLICY), seed=0)
    for seed, name in enumerate((LEARNER, REFERENCE, POLICY)):
        vector = adapters.vector(made.module, name)
        noise = torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed))
        adapters.fill(made.module, name, vector.detach() + 0.1 * noise)
    return made


def passes(made: Denoiser, sizes: tuple[int, ...]) -> list[Tensor]:
    """The learner's prediction and gradient; what the others predict, for batches of such sizes."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4, 16, 8, 8, generator=generator, dtype=torch.float64)
    timesteps, prompts = torch.tensor([10.0, 400, 700, 990]), pairs(family="sd35m").embeddings
    adapters.activate(made.module, LEARNER, train=True)
    learned = made.predict(x, timesteps, prompts[:4])
    (gradient,) = torch.autograd.grad(learned.square().sum(), adapters.vector(made.module, LEARNER))
    found = [learned.detach(), gradient]
    with torch.no_grad():
        for name in (POLICY, REFERENCE):
            adapters.activate(made.module, name)
            found += [made.predict(x[:n], timesteps[:n], prompts[:n]) for n in sizes]
    return found


@pytest.mark.parametrize(("backend", "sizes"), [("aot_eager", (4,)), ("eager", (4, 3, 2))])
def test_compiled_blocks_compute_what_eager_ones_do(backend: str, sizes: tuple[int, ...]) -> None:
    """With all of the compiler but its code generator, which takes minutes on a CPU."""
    expected, compiled = passes(network(), sizes), network()
    assert compile_blocks(compiled.module, backend=backend) == 3
    for one, other in zip(passes(compiled, sizes), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)
    # Of two shapes: three with a gradient, as the first block's inputs have none; two without; and
    # for any number of samples, three as Dynamo learns of it. All adapters share them.
    made = graphs()
    assert made <= 3 + 2 + 3 * (len(sizes) > 1)
    passes(compiled, sizes)
    assert graphs() == made, "compiled again"


def test_a_compiled_training_is_the_eager_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "compile_blocks", partial(compile_blocks, backend="eager"))
    stage = training("dpo", steps=3, batch=4, micro_batch=4, lr=5e-4, beta=2000)
    first, second = (load_denoiser(DEEP, device=CPU) for _ in range(2))
    eager = run(stage, str(tmp_path / "eager"), network=first, family="sd35m")
    assert graphs() == 0
    quick = stage.model_copy(update={"compile": True})
    compiled = run(quick, str(tmp_path / "compiled"), network=second, family="sd35m")
    assert graphs() == 3 + 2  # the learner's, and those of the reference, which adds nothing
    for ours, theirs in zip(compiled, eager, strict=True):
        for key in ("loss", "chosen_gap", "rejected_gap", "grad_norm", "lora_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-8, abs=1e-12), key


def test_a_compiled_training_of_all_weights_is_the_eager_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each parameter's gradient leaves the graph through a hook, and its values are exchanged."""
    compiler = partial(compile_blocks, backend="aot_eager")
    monkeypatch.setattr(loop, "compile_blocks", compiler)
    stage = training("dpo", steps=3, batch=2, micro_batch=1, lr=1e-4, beta=2000)
    histories = []
    for compiled in (False, True):
        own, folder = stage.model_copy(update={"compile": compiled}), str(tmp_path / str(compiled))
        histories.append(run(own, folder, family="sd35m", lora=LoraConfig(rank=0)))
    assert graphs() > 0
    for ours, theirs in zip(*histories, strict=True):
        for key in ("loss", "chosen_gap", "rejected_gap", "grad_norm", "weights_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-8, abs=1e-12), key


@pytest.mark.parametrize(("name", "count"), [("sd15", 16 + 22), ("sd35m", 24)])
def test_every_block_of_the_published_networks_is_found(name: str, count: int) -> None:
    """16 transformer blocks and 22 residual ones; 24 transformer blocks."""
    assert compile_blocks(on_meta(name).module, backend="eager") == count


class ResnetBlock2D(nn.Module):
    """A block by its name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def test_more_widths_than_dynamos_limit_are_all_compiled() -> None:
    """Past eight it would run eagerly and warn on a worker, where nobody reads it."""
    widths = range(2, 14)
    blocks = nn.ModuleList([ResnetBlock2D(width) for width in widths])
    assert compile_blocks(blocks, backend="eager") == 12
    for block, width in zip(blocks, widths, strict=True):
        block(torch.zeros(2, width))
    assert graphs() == 12


def test_a_network_without_known_blocks_is_compiled_as_a_whole() -> None:
    whole = ResnetBlock2D(3)
    assert compile_blocks(whole, kinds=["Other"], backend="eager") == 0
    whole(torch.zeros(2, 3))
    assert graphs() == 1
