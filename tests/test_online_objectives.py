"""Objectives on the policy's images: formulas on plain tensors, and which are each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from plain_objectives import error
from plain_online import ONLINE, SHARED, Noised
from pydantic import ValidationError
from training import training

from raypref.align import noising
from raypref.align.advantages import within_groups
from raypref.align.blocks import RolloutBlock
from raypref.align.online_config import OnlineConfig
from raypref.align.residuals import Residuals, Samples

G, SHAPE = 4, (2, 3, 3)
LINEAR = ("dgpo", "crd")  # their loss is a coefficient times what was measured
CASES = [
    pytest.param(name, settings, id=f"{name}-{number}")
    for name, entry in ONLINE.items()
    for number, settings in enumerate((entry.settings, *entry.also))
]
REWARDS = torch.tensor([0.2, 0.9, 0.4, 0.35], dtype=torch.float64)


def online(name: str, **settings: Any) -> OnlineConfig:
    made = training(name, **{"group": G, "batch": 4 * 2 * G, **settings})
    assert isinstance(made, OnlineConfig)
    return made


def drawn(seed: int, count: int = G, *, far: float = 0.3) -> torch.Tensor:
    """Learner, policy, reference, target and noisy latents of a group, [5, G, C, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn((5, count, *SHAPE), generator=generator, dtype=torch.float64)
    found[:2] = found[2] + far * found[:2]
    return found


def known(stage: OnlineConfig, reward_G: torch.Tensor) -> dict[str, torch.Tensor]:
    """The facts of a group, each [G]."""
    advantage = within_groups(reward_G[None], stage.advantage)[0]
    share = torch.linspace(0.2, 0.8, len(reward_G), dtype=torch.float64)
    weight = (advantage / getattr(stage, "temperature", 1.0)).softmax(0) * len(reward_G)
    if getattr(stage, "weighting", "") == "cutoff":
        weight = (reward_G >= stage.cutoff).double()  # type: ignore[attr-defined]
    scale = share / (1 - share)
    return {
        "reward": reward_G,
        "advantage": advantage,
        "weight": weight,
        "level": share,
        "clean_scale": scale,
    }


def residuals(stage: OnlineConfig, phi: torch.Tensor, group: torch.Tensor) -> Residuals:
    _, old, ref, target, _ = group
    return Residuals(
        phi - target,
        ref - target if stage.against == "ref" else None,
        old - target if stage.reads_policy else None,
    )


def ours(
    stage: OnlineConfig, phi: torch.Tensor, group: torch.Tensor, reward_G: torch.Tensor = REWARDS
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and metrics of the samples of a group of which phi are the learner's predictions."""
    facts = known(stage, reward_G)
    if stage.objective == "online_dpo":
        places = [int(reward_G.argmax()), int(reward_G.argmin())]
        decided = torch.tensor([float(reward_G.max() > reward_G.min())], dtype=torch.float64)
        pair = [residuals(stage, phi[k : k + 1], group[:, k : k + 1]) for k in places]
        return stage.loss(pair, {"decided": decided})
    if stage.objective == "online_raft":
        best = reward_G.argsort(descending=True)[: stage.best]  # type: ignore[attr-defined]
        return stage.loss([residuals(stage, phi[best], group[:, best])], {})
    sides = [residuals(stage, phi, group)]
    if stage.whole_groups:
        first = stage.measured([residuals(stage, phi.detach(), group)])
        rows = {name: values[None] for name, values in facts.items()}
        facts["coefficient"] = stage.coefficients(first[None], rows)[0]
    return stage.loss(sides, {name: facts[name] for name in stage.facts})


def theirs(
    stage: OnlineConfig, phi: torch.Tensor, group: torch.Tensor, reward_G: torch.Tensor = REWARDS
) -> torch.Tensor:
    """The sum over a group, by the plain formula."""
    facts, samples = known(stage, reward_G), []
    for k in range(len(reward_G)):
        x, share = group[4, k], facts["level"][k].item()
        samples.append(
            Noised(
                *(phi[k], group[1, k], group[2, k], group[3, k]),
                lambda prediction, x=x, s=share: (x - s * prediction) / (1 - s),
                share,
                reward_G[k].item(),
                facts["advantage"][k].item(),
            )
        )
    return ONLINE[stage.objective].formula(stage, samples)


def gradient(loss: torch.Tensor, phi: torch.Tensor) -> torch.Tensor:
    (found,) = torch.autograd.grad(loss.sum(), phi)
    return found


@pytest.mark.parametrize("name, settings", CASES)
def test_value_and_gradient_are_those_of_the_formula(name: str, settings: dict[str, Any]) -> None:
    stage, group = online(name, **{**settings, "group": G}), drawn(1)
    phi = group[0].clone().requires_grad_()
    got, metrics = ours(stage, phi, group)
    wanted = theirs(stage, phi, group)
    if name not in LINEAR:
        assert got.sum().item() == pytest.approx(wanted.item(), rel=1e-9)
    if name == "crd" and not stage.kl:
        assert metrics["missed"].sum().item() == pytest.approx(wanted.item(), rel=1e-9)
    expected = gradient(wanted, phi)
    assert expected.abs().max() > 1e-6
    assert (gradient(got, phi) - expected).abs().max() < 1e-9 * max(1, expected.abs().max().item())


@pytest.mark.parametrize("name, settings", CASES)
def test_its_gradient_is_that_of_finite_differences(name: str, settings: dict[str, Any]) -> None:
    """But where a part takes no gradient by design."""
    if ONLINE[name].formula.__name__ == "dgpo" or {"nft": 1, "crd": 1}.get(name):
        settings = {**settings, "clip_range": 0.0} if name == "dgpo" else {**settings}
        settings |= {"normalise": "off"} if name != "dgpo" else {}
    stage, group = online(name, **{**settings, "group": G}), drawn(2)
    phi = group[0].clone().requires_grad_()
    if name not in LINEAR:
        assert torch.autograd.gradcheck(lambda x: ours(stage, x, group)[0], phi)
        return
    step = torch.randn(phi.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        ahead, behind = (theirs(stage, phi + h * step, group) for h in (1e-5, -1e-5))
    slope = (gradient(ours(stage, phi, group)[0], phi) * step).sum().item()
    assert slope == pytest.approx((ahead - behind).item() / 2e-5, rel=1e-5)


# ------------------------------------------------------------------ what they are


@pytest.mark.parametrize("name", ["nft", "awm", "pref_grpo", "dgpo", "crd", "online_dpo"])
def test_equal_rewards_give_no_gradient_where_learner_and_policy_are_one(name: str) -> None:
    stage, group = online(name, kl=0.0), drawn(4)
    phi = group[1].clone().requires_grad_()
    rewards = torch.full((G,), 0.7, dtype=torch.float64)
    assert gradient(ours(stage, phi, group, rewards)[0], phi).abs().max() < 1e-15


@pytest.mark.parametrize("beta, clip", [(1.0, 5.0), (0.1, 5.0), (0.3, 2.0)])
def test_nft_begins_as_errors_weighted_by_advantage(beta: float, clip: float) -> None:
    """And so does AWM: both follow the gradient of A error where learner and policy are one."""
    group, plain = drawn(5), {"space": "prediction", "normalise": "off", "kl": 0.0}
    phi = group[1].clone().requires_grad_()
    advantage = within_groups(REWARDS[None], "group")[0]
    errors = torch.stack([error(phi[k], group[3, k]) for k in range(G)])
    wanted = gradient(advantage * errors, phi)
    for stage in (
        online("nft", beta=beta, advantage_clip=clip, **plain),
        online("awm", weighting="uniform", advantage_scale=1.0, kl=0.0),
    ):
        torch.testing.assert_close(gradient(ours(stage, phi, group)[0], phi), wanted)


def test_nft_at_beta_1_is_the_error_of_good_images_and_of_a_mirror_image_for_bad_ones() -> None:
    stage = online("nft", space="prediction", normalise="off", kl=0.0, advantage_clip=1.0)
    phi, old, _, target, _ = group = drawn(6)
    facts = known(stage, REWARDS) | {"advantage": torch.tensor([9.0, 1.0, -1.0, -9.0]).double()}
    got, metrics = stage.loss([residuals(stage, phi, group)], facts)
    wanted = [error(phi[k], target[k]) for k in (0, 1)]
    wanted += [error(2 * old[k] - phi[k], target[k]) for k in (2, 3)]
    torch.testing.assert_close(got, torch.stack(wanted))
    assert metrics["goodness"].tolist() == [1, 1, 0, 0]


def test_awm_is_clipped_only_in_the_direction_of_the_advantage() -> None:
    stage = online("awm", weighting="uniform", clip_range=0.1, kl=0.0, policy_kl=0.0)
    old = torch.ones(4, 1, 1, 1, dtype=torch.float64)
    phi = (old - torch.tensor([0.5, -0.5, 0.5, -0.5]).view(4, 1, 1, 1)).requires_grad_()
    facts = {"advantage": torch.tensor([1.0, 1, -1, -1]).double(), "level": old.flatten()}
    loss, metrics = stage.loss([Residuals(phi, None, old)], facts)
    assert metrics["clipped"].tolist() == [1, 0, 0, 1]
    assert (gradient(loss, phi).flatten() != 0).tolist() == [False, True, True, False]


def test_a_power_of_1_is_the_weight_t() -> None:
    group = drawn(7)
    one, other = (online("awm", weighting=w, power=1.0) for w in ("power", "t"))
    torch.testing.assert_close(ours(one, group[0], group)[0], ours(other, group[0], group)[0])


def test_pref_grpo_is_awm_on_win_rates_and_takes_no_other_advantage() -> None:
    group = drawn(8)
    one, other = online("pref_grpo"), online("awm", advantage="win_rate")
    assert torch.equal(ours(one, group[0], group)[0], ours(other, group[0], group)[0])
    with pytest.raises(ValidationError, match="win_rate"):
        online("pref_grpo", advantage="group")


def test_online_dpo_of_two_images_is_dpo_on_that_pair() -> None:
    group, rewards = drawn(9, 2), REWARDS[:2]
    stage = online("online_dpo", group=2, beta=50.0)
    _, _, ref, target, _ = group
    pair = [Residuals((group[0] - target)[[k]], (ref - target)[[k]]) for k in (1, 0)]
    wanted, _ = training("dpo", beta=50.0).loss(pair, {})
    assert torch.equal(ours(stage, group[0], group, rewards)[0], wanted)


def test_dgpo_of_two_images_has_the_gradient_of_dpo() -> None:
    """Times 2 / beta: the loss is that of a preference, times group / beta."""
    group, rewards = drawn(10, 2), REWARDS[:2]
    stage = online("dgpo", group=2, beta=50.0, kl=0.0, clip_range=0.0)
    phi = group[0].clone().requires_grad_()
    pair = [Residuals((phi - group[3])[[k]], (group[2] - group[3])[[k]]) for k in (1, 0)]
    dpo, _ = training("dpo", beta=50.0).loss(pair, {})
    got = gradient(ours(stage, phi, group, rewards)[0], phi)
    torch.testing.assert_close(got, 2 / 50 * gradient(dpo, phi))


def test_crd_rests_where_log_ratios_differ_as_rewards_do() -> None:
    stage = online("crd", beta=4.0)
    advantage = within_groups(REWARDS[None], "group")
    matched = stage.coefficients(advantage / 4 + 0.3, {"advantage": advantage})
    assert matched.abs().max() < 1e-12
    off = stage.coefficients(torch.randn(1, G).double(), {"advantage": advantage})
    assert off.abs().max() > 0.1 and off.sum().abs() < 1e-12


# ------------------------------------------------------------------ how samples are made


class Flow:
    """A denoiser's noise process, without a network: latents in, velocity out."""

    device, dtype = torch.device("cpu"), torch.float64

    def draw_timestep(self, generator: torch.Generator, shape: Sequence[int]) -> torch.Tensor:
        return torch.rand((), generator=generator)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> Any:
        image, share = self.parts(t.to(latents).view(-1, 1, 1, 1))
        return image * latents + share * noise

    def parts(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 1 - t, t

    def target(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return noise - latents


class Epsilon(Flow):
    """Predicts the noise; image and noise are on a circle."""

    def parts(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (math.pi / 2 * t).cos(), (math.pi / 2 * t).sin()

    def target(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return noise


def block(stage: OnlineConfig, rewards: torch.Tensor) -> RolloutBlock:
    """Images whose latents are their number, one group after another."""
    count = len(rewards)
    latents = torch.arange(count).double().view(-1, 1, 1, 1).expand(count, *SHAPE)
    advantage = within_groups(rewards.view(-1, stage.group), stage.advantage).flatten()
    own = {"reward/pickscore": rewards, "diversity": torch.arange(count).double()}
    numbers: Any = torch.arange(count)
    return RolloutBlock(latents, numbers, numbers, {}, rewards, advantage, own, stage.group)


def sampled(stage: OnlineConfig, rewards: torch.Tensor, process: Any = None) -> Samples:
    generators = [torch.Generator().manual_seed(k) for k in range(len(rewards))]
    made = block(stage, rewards)
    return stage.samples(process or Flow(), made, range(len(rewards)), generators)


TWO_GROUPS = torch.tensor([0.2, 0.9, 0.4, 0.9, 0.5, 0.5, 0.5, 0.5], dtype=torch.float64)


class Velocity(Epsilon):
    """Predicts v."""

    def target(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        image, share = self.parts(t.view(-1, 1, 1, 1))
        return image * noise - share * latents


@pytest.mark.parametrize("process", [Flow(), Epsilon(), Velocity()])
def test_an_error_of_the_prediction_as_one_of_the_clean_latents(process: Any) -> None:
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    latents, noise = torch.randn(2, 3, 1, 1, 1, dtype=torch.float64)
    x, target = process.add_noise(latents, noise, t), process.target(latents, noise, t)
    image, share = process.parts(t.view(-1, 1, 1, 1))

    def clean(prediction: torch.Tensor) -> torch.Tensor:
        if isinstance(process, Velocity):
            return image * x - share * prediction
        if isinstance(process, Epsilon):
            return (x - share * prediction) / image
        return x - share * prediction

    torch.testing.assert_close(clean(target), latents)
    moved = (clean(target + 0.01) - latents).abs().flatten() / 0.01
    torch.testing.assert_close(noising.clean_scale(process, t), moved)
    torch.testing.assert_close(noising.level(process, t), (share / (image + share)).flatten())


def test_online_dpo_takes_the_best_and_the_worst_with_one_noise() -> None:
    stage = online("online_dpo", timesteps=2, batch=4)
    samples = sampled(stage, TWO_GROUPS)
    chosen, rejected = samples.sides
    assert samples.prompts.tolist() == [1, 4, 1, 4]  # of equal rewards the first
    assert samples.facts["decided"].tolist() == [1, 0, 1, 0]
    t = samples.timesteps_B.view(-1, 1, 1, 1)
    assert len(set(t.flatten().tolist())) == 4
    worst = torch.tensor([0.0, 4.0, 0.0, 4.0], dtype=torch.float64).view(-1, 1, 1, 1)
    best = torch.tensor([1.0, 4.0, 1.0, 4.0], dtype=torch.float64).view(-1, 1, 1, 1)
    noise = (chosen.x_BCHW - (1 - t) * best) / t
    torch.testing.assert_close((rejected.x_BCHW - (1 - t) * worst) / t, noise)
    torch.testing.assert_close(rejected.target_BCHW, noise - worst)
    # What is reported is of the whole group.
    torch.testing.assert_close(samples.facts["reward"], torch.tensor([0.6, 0.5, 0.6, 0.5]).double())
    assert samples.facts["diversity"].tolist() == [1.5, 5.5, 1.5, 5.5]


def test_online_raft_keeps_the_best() -> None:
    stage = online("online_raft", best=2, batch=8, timesteps=2)
    samples = sampled(stage, TWO_GROUPS)
    assert samples.prompts.tolist() == [1, 3, 4, 5] * 2
    assert samples.facts["diversity"].tolist() == [1.5, 1.5, 5.5, 5.5] * 2
    with pytest.raises(ValidationError, match="best=4: of group=4 images none would be left out"):
        online("online_raft", best=4)


def test_the_weights_of_rwr_are_those_of_the_rewards_within_the_group() -> None:
    samples = sampled(online("online_rwr", advantage="mean", temperature=0.5), TWO_GROUPS)
    raised = (TWO_GROUPS / 0.5).exp().view(2, G)
    wanted = raised / raised.mean(1, keepdim=True)
    torch.testing.assert_close(samples.facts["weight"], wanted.flatten())
    samples = sampled(online("online_rwr", weighting="cutoff", cutoff=0.5), TWO_GROUPS)
    assert samples.facts["weight"].tolist() == [0, 1, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("shared", [True, False])
def test_dgpo_shares_timestep_and_noise_within_a_group_and_leaves_out_low_levels(
    shared: bool,
) -> None:
    stage = online("dgpo", shared_noise=shared, least_level=0.6, timesteps=3, batch=24)
    samples = sampled(stage, TWO_GROUPS)
    groups = samples.timesteps_B.view(3, 2, G)
    assert groups.min() >= 0.6 and groups.max() < 1
    assert (groups == groups[..., :1]).all().item() == shared
    t = samples.timesteps_B.view(-1, 1, 1, 1)
    noise = (
        samples.sides[0].x_BCHW - (1 - t) * block(stage, TWO_GROUPS).latents_NCHW.repeat(3, 1, 1, 1)
    ) / t
    noise = noise.view(3, 2, G, -1)
    assert torch.allclose(noise, noise[:, :, :1].expand_as(noise)) == shared
    assert samples.facts["advantage"].shape == (24,)


@pytest.mark.parametrize("name", ["nft", "awm", "pref_grpo", "online_rwr", "online_raft", "crd"])
def test_without_a_weight_of_the_distance_the_reference_is_not_asked(name: str) -> None:
    assert online(name, kl=0.0).against == ""
    assert online(name, kl=0.1).against == "ref"
    assert online(name, kl=0.0, max_kl=0.5).against == "ref"  # what is watched is measured
    with pytest.raises(ValidationError, match="reads no reference"):
        online(name, kl=0.0, reference="ema")


def test_a_batch_counts_samples() -> None:
    assert online("nft", batch=24, timesteps=2).pairs_per_step == 3
    assert online("online_dpo", batch=24, timesteps=2).pairs_per_step == 12
    assert online("online_raft", batch=24, timesteps=2, best=3).pairs_per_step == 4
    with pytest.raises(ValidationError, match="so a multiple of 8"):
        online("crd", batch=12, timesteps=2)
    with pytest.raises(ValidationError, match="take a multiple of reuse"):
        online("online_dpo", policy_lag=3, reuse=2)


def test_it_stops_where_its_own_images_are_denoised_far_worse_than_by_the_reference() -> None:
    stage = online("nft", batch=128, max_error_ratio=2.0)
    row = {"kl": 0.1, "diversity": 1.0, "ref_image": 0.1}
    assert stage.health([row | {"image_gap": 0.09}] * 3, key="train.mine") == ""
    assert "2.10 times" in stage.health([row | {"image_gap": 0.11}] * 3, key="train.mine")
    assert set(SHARED) == {"dgpo", "online_dpo"}
