"""`raypref sample`: methods against plain implementations, the sampler against the pipeline."""

from __future__ import annotations

import math

import pytest
import torch
import training
from torch import Tensor

from raypref.core.config import InputError, load
from raypref.models import adapters
from raypref.models.backbone import load_autoencoder, load_encoder, load_pipeline
from raypref.models.soups import soup_text, stacked, terms_of
from raypref.sample import methods
from raypref.sample.config import SampleJobConfig
from raypref.sample.draw import check_gradients
from raypref.sample.job import forwards_of
from raypref.sample.sampler import NEGATIVE, OWN, StepSampler, attach_loras

CPU = training.CPU
STEPS, GUIDANCE, SHAPE = 4, 3.0, (4, 8, 8)


class Line:
    """A world of one number per image: x halves its way to 0.5 x in two steps."""

    steps = 4

    def finished(self, noise: Tensor) -> Tensor:
        x, last = noise, None
        for i in range(self.steps):
            x, last = self.step(i, x, last)
        return x

    def step(self, i: int, x: Tensor, last: Tensor | None) -> tuple[Tensor, Tensor]:
        return 0.9 * x + 0.1 * i, x.tanh()

    def scales(self, i: int) -> tuple[float, float]:
        return 0.6, 0.8


def brightness(latents: Tensor) -> Tensor:
    return latents.double().mean((1, 2, 3))


def noise(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *SHAPE, generator=generator, dtype=torch.float64)


def fresh_from(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda n: torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64)


def test_best_of_picks_the_argmax():
    line, start = Line(), noise(5)
    chosen = methods.best_of(line, brightness, start)
    each = [float(brightness(line.finished(start[k : k + 1]))) for k in range(5)]
    assert chosen.reward == max(each)
    assert torch.equal(chosen.latents_1CHW[0], line.finished(start)[each.index(max(each))])


def test_an_image_without_a_score_is_not_chosen():
    chosen = methods.best_of(Line(), lambda x: torch.tensor([math.nan, -5.0, math.nan]), noise(3))
    assert chosen.reward == -5


def test_noise_search_is_the_plain_loop_and_never_lowers_the_reward():
    line, start = Line(), noise(1)
    rewards = []
    for rounds in range(4):
        found = methods.noise_search(
            line, brightness, start, fresh_from(7), rounds=rounds, neighbours=3, spread=0.3
        )
        rewards.append(found.reward)
    assert rewards == sorted(rewards) and rewards[-1] > rewards[0]
    assert found.images == 1 + 3 * 3
    draw, pivot = fresh_from(7), start
    for _ in range(3):
        near = [pivot, *(0.7**0.5 * pivot + 0.3**0.5 * draw(3)).split(1)]
        pivot = max(near, key=lambda one: float(brightness(line.finished(one))))
    torch.testing.assert_close(found.latents_1CHW, line.finished(pivot))


def steered(**changes) -> methods.Chosen:
    settings = {"every": 2, "potential": "max", "strength": 5.0, "churn": 0.5} | changes
    return methods.fk_steering(Line(), brightness, noise(4), fresh_from(3), lambda: 0.5, **settings)


def test_steering_without_strength_is_plain():
    chosen = steered(strength=0.0)
    best = methods.best_of(Line(), brightness, noise(4))
    assert torch.equal(chosen.latents_1CHW, best.latents_1CHW)


@pytest.mark.parametrize("churn", [0.0, 0.5])
def test_steering_is_the_plain_loop(churn):
    line, x, last, draw = Line(), noise(4), None, fresh_from(3)
    for i in range(2):
        x, last = line.step(i, x, last)
    weights = torch.softmax(5 * 40 * brightness(last), 0).tolist()
    ancestors = []
    for k in range(4):  # systematic, offset 0.5
        total, place = 0.0, (k + 0.5) / 4
        for j, weight in enumerate(weights):
            total += weight
            if place < total:
                ancestors.append(j)
                break
    assert len({*ancestors}) < 4
    x, last = x[ancestors], last[ancestors]
    again = [k for k in range(1, 4) if ancestors[k] == ancestors[k - 1]]
    if churn:
        new = draw(len(again))
        for number, k in enumerate(again):
            own = (x[k] - 0.6 * last[k]) / 0.8
            x[k] = 0.6 * last[k] + 0.8 * ((1 - churn) ** 0.5 * own + churn**0.5 * new[number])
    for i in range(2, 4):
        x, last = line.step(i, x, last)
    chosen = steered(churn=churn, strength=5.0 * 40)
    best = int(brightness(x).argmax())
    torch.testing.assert_close(chosen.latents_1CHW[0], x[best])
    assert chosen.images == 8


def test_potentials_by_hand():
    first, then = torch.tensor([1.0, 4.0]), torch.tensor([3.0, 2.0])
    for kind, second, kept in [
        ("max", [3, 4], [3, 4]),
        ("sum", [4, 6], [4, 6]),
        ("difference", [2, -2], [3, 2]),
    ]:
        now, past = methods.log_potential(kind, first, None)
        assert now.tolist() == past.tolist() == [1, 4]
        now, past = methods.log_potential(kind, then, past)
        assert (now.tolist(), past.tolist()) == (second, kept)


def test_systematic_resampling_by_hand():
    weights = torch.tensor([0.5, 0.25, 0.2, 0.05])
    assert methods.systematic(weights, 0.5).tolist() == [0, 0, 1, 2]
    assert methods.systematic(weights, 0.99).tolist() == [0, 0, 1, 3]
    assert methods.systematic(torch.full((4,), 0.25), 0.3).tolist() == [0, 1, 2, 3]


def test_reno_is_the_plain_ascent_and_raises_the_reward():
    line, start = Line(), noise(1)
    settings = {"ascents": 5, "rate": 2.0, "clip": 0.1, "regulariser": 0.01}
    found = methods.reno(line, brightness, brightness, start, **settings)
    x, seen, momentum = start.clone(), [], torch.zeros_like(start)
    for _ in range(6):
        seen.append((float(brightness(line.finished(x))), x))
        size, count = x.norm(), x.numel()
        # brightness of the end is 0.9^4 of the noise's, a mean over `count` numbers
        gradient = torch.full_like(x, 0.9**4 / count)
        gradient += 0.01 * ((count - 1) * x / size**2 - x)
        gradient *= min(1.0, 0.1 / float(gradient.norm()))
        momentum = 0.9 * momentum + gradient
        x = x + 2.0 * (gradient + 0.9 * momentum)
    reward, best = max(seen, key=lambda each: each[0])
    assert found.reward == pytest.approx(reward) and found.reward > seen[0][0]
    torch.testing.assert_close(found.latents_1CHW, line.finished(best))


# ------------------------------------------------------------------ soups


def lora_values(rank: int, seed: int, layers: tuple[str, ...] = ("a", "b")) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    values = {}
    for layer in layers:
        values[f"{layer}.lora_A.weight"] = torch.randn(rank, 5, generator=g, dtype=torch.float64)
        values[f"{layer}.lora_B.weight"] = torch.randn(6, rank, generator=g, dtype=torch.float64)
    return values


def update(values: dict[str, Tensor], layer: str) -> Tensor:
    if f"{layer}.lora_A.weight" not in values:
        return torch.zeros(6, 5, dtype=torch.float64)
    return values[f"{layer}.lora_B.weight"] @ values[f"{layer}.lora_A.weight"]


def test_a_soup_is_the_weighted_sum_of_updates():
    one, two = lora_values(2, 1), lora_values(3, 2, ("b", "c"))
    soup = stacked([(0.25, one), (-1.5, two)])
    for layer in "abc":
        want = 0.25 * update(one, layer) - 1.5 * update(two, layer)
        torch.testing.assert_close(update(soup, layer), want)
    assert {len(v) for n, v in soup.items() if "lora_A" in n} == {5}


def test_soups_are_read_and_written_back():
    terms = terms_of("0.5 * A + -2 * some/folder", key="k")
    assert terms == [(0.5, "A"), (-2.0, "some/folder")]
    assert terms_of(soup_text(terms), key="k") == terms
    assert terms_of("org/lora", key="k") == [(1.0, "org/lora")]
    for wrong in ("0.5 * ", "0.5 * A + ", "half * A"):
        with pytest.raises(InputError, match=r"evaluate\.loras\.x: .*WEIGHT \* LORA"):
            terms_of(wrong, key="evaluate.loras.x")


# ------------------------------------------------------------------ the network


@pytest.fixture(scope="module", params=["sd15", "sd35m"])
def world(request):
    """Family, denoiser with two LoRAs, conditionings of three prompts and of none."""
    denoiser = training.denoiser(request.param)
    encoder = load_encoder(training.BASES[request.param], device=CPU)
    layers = [
        (name, module)
        for name, module in denoiser.module.named_modules()
        if name.endswith("to_q") and isinstance(module, torch.nn.Linear)
    ]
    g = torch.Generator().manual_seed(5)
    loras = {}
    for adapter, rank in ((OWN, 2), (NEGATIVE, 3)):
        loras[adapter] = {
            f"{name}.lora_{part}.weight": 0.3 * torch.randn(size, generator=g, dtype=torch.float64)
            for name, own in layers
            for part, size in (("A", (rank, own.in_features)), ("B", (own.out_features, rank)))
        }
    texts = ["a red ball", "a blue cube", "a tree"]
    return denoiser, loras, encoder.text_embeddings(texts), encoder.text_embeddings([""])[0]


def sampler_of(world, **changes) -> StepSampler:
    denoiser, _, prompts, empty = world
    settings = {"steps": STEPS, "guidance": GUIDANCE, "shape": shape_of(denoiser)} | changes
    return StepSampler(denoiser, prompts[:2], empty, **settings)


def shape_of(denoiser) -> tuple[int, int, int]:
    return (denoiser.module.config.in_channels, 8, 8)


def test_negative_weights_on_the_unconditional_side(world):
    denoiser, loras, prompts, _ = world
    shape = shape_of(denoiser)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = denoiser.sampling_timesteps(STEPS, shape)[1].expand(2)
    empties = sampler_of(world).empties

    def predicted(values, conditioning) -> Tensor:
        """With the update added to the weights themselves."""
        layers = dict(denoiser.module.named_modules())
        kept = {}
        for name in {n.rpartition(".lora_")[0] for n in values}:
            kept[name] = layers[name].weight.data
            delta = values[f"{name}.lora_B.weight"] @ values[f"{name}.lora_A.weight"]
            layers[name].weight.data = kept[name] + delta
        with torch.no_grad():
            found = denoiser.predict(x, t, conditioning)
        for name, weight in kept.items():
            layers[name].weight.data = weight
        return found

    def expected(negative) -> Tensor:
        captioned, without = predicted(loras[OWN], prompts[:2]), predicted(negative, empties)
        return without + GUIDANCE * (captioned - without)

    both = stacked([(1.0, loras[OWN]), (0.5, loras[NEGATIVE])])
    none = stacked([(1.0, loras[OWN]), (0.0, loras[NEGATIVE])])
    want = {"npo": expected(both), "plain": expected(loras[OWN])}
    for negative, name in ((both, "npo"), (none, "plain")):  # weight 0: ordinary guidance
        attach_loras(denoiser, {OWN: loras[OWN], NEGATIVE: negative}, key="sample.loras")
        sampler = sampler_of(world, negative=True)
        sampler._counted = 2
        with torch.no_grad():
            torch.testing.assert_close(sampler.predict(x, t), want[name], rtol=1e-6, atol=1e-8)
    assert (want["npo"] - want["plain"]).abs().max() > 1e-4
    adapters.activate(denoiser.module, OWN)


def test_images_do_not_depend_on_how_many_are_drawn_and_forwards_are_counted(world):
    sampler = sampler_of(world)
    shape = shape_of(world[0])
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sampler.prompts = sampler.prompts[[0, 0]]
    with torch.no_grad():
        all_three = sampler.finished(x)
        assert sampler.forwards == 3 * STEPS * 2
        y, last = x, None
        for i in range(STEPS):
            y, last = sampler.step(i, y, last)
        alone = torch.cat([sampler.finished(x[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(all_three, y, rtol=0, atol=0)
    torch.testing.assert_close(all_three, alone)


def test_plain_is_what_the_pipeline_of_the_evaluation_draws():
    """SD-3.5: one solver in both. SD-1.5's pipeline brings a scheduler of its own."""
    base = training.BASES["sd35m"]
    pipeline = load_pipeline(base, device=CPU)
    denoiser = training.denoiser("sd35m")
    encoder = load_encoder(base, device=CPU)
    shape = shape_of(denoiser)
    want = pipeline(
        "a red ball",
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        height=8 * int(pipeline.vae_scale_factor),
        width=8 * int(pipeline.vae_scale_factor),
        generator=[torch.Generator().manual_seed(3)],
        output_type="np",
    ).images[0]
    start = torch.randn(1, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sampler = StepSampler(
        denoiser,
        encoder.text_embeddings(["a red ball"]),
        encoder.text_embeddings([""])[0],
        steps=STEPS,
        guidance=GUIDANCE,
        shape=shape,
    )
    with torch.no_grad():
        pixels = load_autoencoder(base, device=CPU).decode(sampler.finished(start))
    got = pixels[0].permute(1, 2, 0).numpy()
    assert abs(got - want).max() < 1e-4


def test_a_lora_of_another_model_is_refused():
    values = {
        "nowhere.lora_A.weight": torch.zeros(1, 2),
        "nowhere.lora_B.weight": torch.zeros(2, 1),
    }
    with pytest.raises(InputError, match=r"sample\.loras: .*another model.*nowhere"):
        attach_loras(training.denoiser(), {OWN: values}, key="sample.loras")


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sample.rewards.pickscore=0"], "at least one reward"),
        (["sample.rewards.nonsense=1"], r"sample\.rewards"),
        (["sample.method=fk_steering", "sample.every=60"], r"sample\.every=60"),
        (["sample.negative=a", "evaluate.guidance=1"], r"sample\.negative.*evaluate\.guidance"),
        (["sample.name=../x"], "letters, digits"),
    ],
)
def test_bad_settings_are_refused(words, said):
    with pytest.raises(InputError, match=said):
        load(SampleJobConfig, "tiny", words)


def test_reno_wants_a_gradient():
    config = load(SampleJobConfig, "tiny", [])
    check_gradients({"pickscore": config.pickscore})
    flat = {n: own for n, own in config.rewards.items() if not own.differentiable}
    with pytest.raises(InputError, match=r"sample\.rewards: .*no gradient"):
        check_gradients(flat)


def test_forwards_are_told_before():
    words = ["evaluate.steps=10", "evaluate.guidance=2", "sample.candidates=3"]
    told = {
        method: forwards_of(load(SampleJobConfig, "tiny", [*words, f"sample.method={method}"]))
        for method in ("plain", "best_of", "noise_search", "reno")
    }
    assert told == {"plain": 20, "best_of": 60, "noise_search": 260, "reno": 1020}
