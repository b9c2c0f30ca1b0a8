"""The samples of a step: what the sides share, what a flip and a dropped caption do."""

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch.overrides import TorchFunctionMode
from training import LORA, denoiser, pairs, training

from raypref.align.config import TrainingConfig
from raypref.align.residuals import LEARNER, POLICY, REFERENCE, Draw, Samples
from raypref.core.config import InputError, load
from raypref.models import adapters
from raypref.models.families.base import Denoiser
from raypref.run.config import RunConfig

SCHEDULE = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
PLAIN = training("dpo", caption_dropout=0.0, flip=0.0)
DRO = training("dro", caption_dropout=0.0, flip=0.0, rollout_steps=5)


def network() -> Denoiser:
    made = denoiser()
    adapters.attach(made.module, LORA, names=(LEARNER, REFERENCE, POLICY), seed=0)
    return made


def made_by(stage: TrainingConfig, seeds: list[int]) -> Samples:
    draws = [Draw(i % 10, torch.Generator().manual_seed(seed)) for i, seed in enumerate(seeds)]
    return stage.experience()(network(), pairs(), stage, draws)


def test_a_pair_shares_noise_timestep_and_caption() -> None:
    made = made_by(PLAIN, [1, 2, 3])
    assert torch.equal(made.sides[0].target_BCHW, made.sides[1].target_BCHW)
    schedule = SCHEDULE.alphas_cumprod[made.timesteps_B].double().view(-1, 1, 1, 1)
    for b in range(3):
        # x_t - sqrt(1 - abar) noise = sqrt(abar) x0: within the posterior's spread of the mean.
        for side, x in ((0, made.sides[0].x_BCHW), (1, made.sides[1].x_BCHW)):
            x0 = (x[b] - (1 - schedule[b]).sqrt() * made.sides[0].target_BCHW[b]) / schedule[
                b
            ].sqrt()
            mean, log_variance = pairs().moments[b, side, 0]
            assert ((x0 - mean) / torch.exp(0.5 * log_variance)).abs().max() < 6
    assert torch.equal(made.prompts.sequence_BLD, pairs().embeddings.sequence_BLD[:3])


def test_the_flip_is_drawn_once_per_pair() -> None:
    mirrored = made_by(PLAIN.model_copy(update={"flip": 1.0}), [1, 2])
    straight = made_by(PLAIN, [1, 2])
    assert torch.equal(mirrored.sides[0].target_BCHW, straight.sides[0].target_BCHW)
    data = pairs()
    schedule = SCHEDULE.alphas_cumprod[straight.timesteps_B].double().view(-1, 1, 1, 1).sqrt()
    for side, a, b in (
        (0, mirrored.sides[0].x_BCHW, straight.sides[0].x_BCHW),
        (1, mirrored.sides[1].x_BCHW, straight.sides[1].x_BCHW),
    ):
        moved = (a - b) / schedule
        means = data.moments[:2, side, 1, 0] - data.moments[:2, side, 0, 0]
        assert torch.corrcoef(torch.stack([moved.flatten(), means.flatten()]))[0, 1] > 0.7


def test_a_dropped_caption_is_the_empty_one() -> None:
    made = made_by(PLAIN.model_copy(update={"caption_dropout": 1.0}), [4, 5])
    empty = pairs().unconditional.sequence_BLD
    assert torch.equal(made.prompts.sequence_BLD, empty.expand(2, -1, -1))


def test_caption_dropout_and_flip_have_the_rate_asked_for() -> None:
    stage = PLAIN.model_copy(update={"caption_dropout": 0.2, "flip": 0.5})
    made = made_by(stage, list(range(400)))
    same = made.prompts.sequence_BLD == pairs().unconditional.sequence_BLD
    dropped = same.all(dim=(1, 2)).double().mean().item()
    assert 0.12 < dropped < 0.28  # 4 sigma around 0.2


def test_timesteps_cover_the_schedule_evenly() -> None:
    t = made_by(PLAIN, list(range(500))).timesteps_B
    assert t.min() >= 0
    assert t.max() <= 999
    counts = torch.histc(t.double(), bins=5, min=0, max=1000)
    assert counts.min() > 65, counts  # 100 expected, 4 sigma is 36


def test_dro_noises_the_photograph_to_the_policys_timestep_with_noise_of_its_own() -> None:
    made = made_by(DRO, [7, 8, 9])
    schedule = SCHEDULE.alphas_cumprod[made.timesteps_B].double().view(-1, 1, 1, 1)
    x0 = made.sides[0].x_BCHW - (1 - schedule).sqrt() * made.sides[0].target_BCHW
    mean = pairs().moments[:3, 0, 0, 0] * schedule.sqrt()
    spread = torch.exp(0.5 * pairs().moments[:3, 0, 0, 1]) * schedule.sqrt()
    assert ((x0 - mean) / spread).abs().max() < 6
    assert not torch.equal(made.sides[0].target_BCHW, made.sides[1].target_BCHW)
    # The rejected side's target is the policy's own prediction at that state.
    policy = network()
    adapters.activate(policy.module, POLICY)
    eps = policy.predict(made.sides[1].x_BCHW, made.timesteps_B, made.prompts)
    assert (eps - made.sides[1].target_BCHW).abs().max() < 1e-9


def test_two_stops_give_two_samples_of_a_draw() -> None:
    """The first is the one there is without a second: draws of older trainings stay."""
    seeds = list(range(40))
    one = made_by(DRO, seeds)
    two = made_by(DRO.model_copy(update={"rollout_stops": 2}), seeds)
    rejected, alone = two.sides[1], one.sides[1]
    assert torch.equal(two.timesteps_B[:40], one.timesteps_B)
    assert (rejected.x_BCHW[:40] - alone.x_BCHW).abs().max() < 1e-9
    torch.testing.assert_close(two.sides[0].x_BCHW[:40], one.sides[0].x_BCHW, atol=1e-12, rtol=0)
    captions = two.prompts.sequence_BLD
    assert len(captions) == 80 and torch.equal(captions[:40], captions[40:])
    # Other steps of the same jittered grid, each as likely; noise of their own.
    width = 1000 // 5
    first, second = two.timesteps_B.split(40)
    assert torch.equal(first % width, second % width)
    assert ((second // width != first // width) & (second != first)).all()
    assert {*(second // width).tolist()} == {0, 1, 2, 3, 4}
    noise = two.sides[0].target_BCHW
    assert (noise[:40] - noise[40:]).flatten(1).std(1).min() > 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"policy_state": "final"}, "needs policy_state=trajectory"),
        ({"batch": 5}, "an even batch"),
        ({"rollout_steps": 1}, "2 rollout_steps or more"),
    ],
)
def test_what_two_stops_cannot_be_combined_with_is_refused(
    wrong: dict[str, Any], message: str
) -> None:
    overrides = [f"train.stage1.{key}={value}" for key, value in wrong.items()]
    with pytest.raises(InputError, match=rf"train\.stage1.*rollout_stops=2 .*{message}") as caught:
        load(RunConfig, "tiny", [*overrides, "train.stage1.rollout_stops=2"])
    assert "\n" not in str(caught.value)


class _Copies(TorchFunctionMode):
    """Counts what is sent to a device by name."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.to and any(isinstance(each, torch.device) for each in args):
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_rollout_sends_its_numbers_to_the_device_at_once() -> None:
    """Each copy from the host drains the device's queue: 104 per rollout of 20 steps before."""
    stage = DRO.model_copy(update={"rollout_steps": 20, "batch": 32, "micro_batch": 32})
    draws = [Draw(i % 3, torch.Generator().manual_seed(i)) for i in range(32)]
    made = network()
    zeros = torch.zeros(32, 4, 8, 8, dtype=torch.float64)
    made.predict = lambda x, timesteps, prompts: zeros[: len(x)]  # type: ignore[method-assign]
    with _Copies() as copies:
        stage.experience()(made, pairs(), stage, draws)
    assert 0 < copies.count <= 12
