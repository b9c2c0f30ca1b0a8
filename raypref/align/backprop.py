"""Gradients of rewards: images drawn with a gradient through solver steps, decoder and reward.

All that is random of an image comes from its draw's generator, in this frozen order: the numbers of
its plan, the step its distance to the reference is measured at, its start noise, further noises;
then what the denoising error on a stored image takes. So neither the number of workers nor the
split of a batch changes a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from raypref.align.backprop_config import BackpropConfig, Plan
from raypref.align.block_rewards import diversity
from raypref.align.experience import chosen_images
from raypref.align.image_scores import LatentScores, Scores, WorkerScores, levels
from raypref.align.online import guided
from raypref.align.pair_data import PairData
from raypref.align.residuals import LEARNER, REFERENCE, Draw, Samples, Side, measure
from raypref.align.rollout import MakeSolver, Predict
from raypref.models import adapters
from raypref.models.families.base import Denoiser
from raypref.models.families.conditioning import Conditioning, stack
from raypref.rewards.base import DifferentiableReward

PredictFrom = Callable[[int], Predict]  # the network, for the samples from a position on


class Drawn(NamedTuple):
    """B images, and one state of each one's path."""

    x0_BCHW: Tensor  # clean latents, with a gradient
    seen_BCHW: Tensor  # latents before a step, without one
    timesteps_B: Tensor  # of those


def drawn_images(
    predict_from: PredictFrom,
    make_solver: MakeSolver,
    start_BCHW: Tensor,
    prompts: Conditioning,
    *,
    grid_n: Tensor,
    plans: Sequence[Plan],
    marks: Sequence[int],
    stop_gradient: bool,
    recompute: bool,
) -> Drawn:
    """Sample images with a gradient through the predictions that their plans name.

    Args:
        predict_from: of n, the network for samples n .. B-1, the learner's adapter active.
        make_solver: the denoiser's solver.
        start_BCHW: Gaussian noise.
        prompts: the captions.
        grid_n: timesteps, descending.
        plans: one per image, by their steps to stop at, ascending.
        marks: per image the step whose state is returned.
        stop_gradient: whether what the network reads takes no gradient.
        recompute: whether a prediction is computed again in backward.
    """
    solver = make_solver(grid_n[:, None].expand(-1, len(plans)))
    timesteps_n = grid_n.to(start_BCHW.device)
    x, last_x0, first = start_BCHW, None, 0
    images: list[Tensor] = []
    seen: dict[int, Tensor] = {}
    for i in range(plans[-1].stop + 1):
        for b in range(first, len(plans)):
            if marks[b] == i:
                seen[b] = x[b - first].detach()
        learned = [i in plan.learned for plan in plans[first:]]
        given = x.detach() if stop_gradient else x
        arguments = (given, timesteps_n[i].expand(len(given)), prompts[first:])
        network = predict_from(first)
        if not any(learned):
            with torch.no_grad():
                prediction = network(*arguments)
        elif recompute:
            prediction = cast(Tensor, checkpoint(network, *arguments, use_reentrant=False))
        else:
            prediction = network(*arguments)
        if not all(learned):
            mask = torch.tensor(learned, device=x.device)[:, None, None, None]
            prediction = torch.where(mask, prediction, prediction.detach())
        following, x0 = solver.step(i, x, prediction.to(x.dtype), last_x0, first=first)
        ending = sum(plan.stop == i for plan in plans)
        images.append(x0[:ending])
        x, last_x0, first = following[ending:], x0[ending:], first + ending
    seen_BCHW = torch.stack([seen[b] for b in range(len(plans))])
    return Drawn(torch.cat(images), seen_BCHW, timesteps_n[list(marks)])


class Backprop:
    """One rank's share of the steps of a training on gradients of rewards.

    Args:
        denoiser: the network, with its adapters.
        data: the pairs, whose prompts are drawn for.
        training: its settings.
        judge: decodes and scores; its reward models are in this process.
    """

    def __init__(
        self, denoiser: Denoiser, data: PairData, training: BackpropConfig, *, judge: LatentScores
    ) -> None:
        self.denoiser = denoiser
        self.data = data
        self.training = training
        self.judge = judge
        models = cast(WorkerScores, judge.scores).models
        self.rewards: dict[str, DifferentiableReward] = {n: models[n] for n in training.rewards}
        self.held_out: dict[str, Tensor] = {}  # the last means over all images, scalars

    def sums(self, draws: Sequence[Draw], step: int) -> dict[str, Tensor]:
        """Forward and backward of this rank's images of a step.

        Args:
            draws: whole groups one after another.
            step: the optimizer step, from 0.

        Returns:
            Metrics, summed over the images and divided by the size of the batch; the learner has
            its gradient.
        """
        training, size = self.training, self.training.micro_batch
        due = step % training.held_out_every == 0
        names = [name for name in training.held_out if due or name not in self.held_out]
        found = [
            self._learned(draws[first : first + size], names)
            for first in range(0, len(draws), size)
        ]
        metrics = {
            name: torch.cat([values[name].detach() for values, _ in found]) for name in found[0][0]
        }
        if training.group > 1:
            spread_G = metrics["reward"].view(-1, training.group).std(1, correction=0)
            metrics["reward_std"] = spread_G.repeat_interleave(training.group)
            embeddings = torch.cat([embedding for _, embedding in found])
            metrics["diversity"] = diversity(embeddings, training.group)
        where = metrics["loss"]
        for name in set(training.held_out).difference(names):
            metrics[f"held_out/{name}"] = self.held_out[name].expand(len(draws))
        return {n: metrics[n].to(where).sum() / training.batch for n in sorted(metrics)}

    def _learned(
        self, draws: Sequence[Draw], names: Sequence[str]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Metrics per image of one micro-batch, each [B], and embeddings; gradients are added."""
        training, denoiser, count = self.training, self.denoiser, len(draws)
        plans = [training.plan(draw.generator) for draw in draws]
        marks = [
            int(torch.randint(plan.stop + 1, (), generator=draw.generator))
            for plan, draw in zip(plans, draws, strict=True)
        ]
        shape = (1 + training.further_noises, *self.data.latent_shape)
        noises = torch.stack([torch.randn(shape, generator=draw.generator) for draw in draws], 1)
        # Sorted by the step they stop at, the images that are not done are the end of the batch.
        order = sorted(range(count), key=lambda b: plans[b].stop)
        back = torch.argsort(torch.tensor(order)).to(denoiser.device)
        where = denoiser.device, torch.promote_types(denoiser.dtype, torch.float32)
        noises = noises[:, order].to(*where)
        pairs, no = [draws[b].pair for b in order], [False] * count
        prompts = self.data.prompts(pairs, no, no).to(denoiser.device, denoiser.dtype)
        empty = stack([self.data.unconditional] * count).to(denoiser.device, denoiser.dtype)

        def predict_from(first: int) -> Predict:
            return guided(denoiser, empty[first:], training.guidance)

        adapters.activate(denoiser.module, LEARNER, train=True)
        grid_n = denoiser.sampling_timesteps(training.rollout_steps, self.data.latent_shape)
        drawn = drawn_images(
            predict_from,
            denoiser.solver,
            noises[0],
            prompts,
            grid_n=grid_n,
            plans=[plans[b] for b in order],
            marks=[marks[b] for b in order],
            stop_gradient=training.stop_gradient,
            recompute=training.recompute,
        )
        images = self._images(drawn.x0_BCHW, noises[1:], predict_from(0), grid_n, prompts)
        texts = [self.data.texts[pair] for pair in pairs]
        found: dict[str, Tensor] = {}
        loss_B = torch.zeros(count, device=where[0], dtype=where[1])
        for number, x0_BCHW in enumerate(images):
            pixels_BCHW = self._pixels(x0_BCHW)
            scores = {
                f"reward/{name}": reward.score_pixels(pixels_BCHW, texts).to(loss_B)
                for name, reward in self.rewards.items()
            }
            reward_B = sum(w * scores[f"reward/{n}"] for n, w in training.rewards.items())
            own_B = training.reward_loss(cast(Tensor, reward_B)) / len(noises)
            loss_B = loss_B + self._added(own_B)
            if not number:
                found = {**scores, "reward": cast(Tensor, reward_B)}
                said = self._said(pixels_BCHW, texts, names)
        if training.against:
            found["kl"] = self._distance(drawn, prompts, empty)
            loss_B = loss_B + training.kl * found["kl"].detach()
        found = {name: values[back] for name, values in {**found, "loss": loss_B}.items()}
        if training.denoising_weight:
            found["denoising_error"] = self._denoising(draws)
            found["loss"] = found["loss"] + training.denoising_weight * found["denoising_error"]
        for name in names:
            found[f"held_out/{name}"] = said.by_reward[name].to(back.device)[back]
        embedding = said.embedding_ND
        if embedding is None:
            embedding = drawn.x0_BCHW.detach().flatten(1).cpu()
        return found, embedding[back.cpu()]

    def _images(
        self,
        x0_BCHW: Tensor,
        noises: Tensor,
        predict: Predict,
        grid_n: Tensor,
        prompts: Conditioning,
    ) -> Iterator[Tensor]:
        """The image, and what one more last step makes of it under each further noise."""
        yield x0_BCHW
        if not len(noises):
            return
        solver = self.denoiser.solver(grid_n[:, None].expand(-1, len(x0_BCHW)))
        timesteps_B = grid_n[-1].to(x0_BCHW.device).expand(len(x0_BCHW))
        for noise_BCHW in noises:
            x_BCHW = self.denoiser.add_noise(x0_BCHW.detach(), noise_BCHW, timesteps_B)
            prediction = predict(x_BCHW, timesteps_B, prompts).to(x_BCHW.dtype)
            yield solver.step(len(grid_n) - 1, x_BCHW, prediction, x0_BCHW.detach(), first=0)[1]

    def _pixels(self, x0_BCHW: Tensor) -> Tensor:
        decode = self.judge.autoencoder.decode
        if not self.training.recompute:
            return decode(x0_BCHW)
        return cast(Tensor, checkpoint(decode, x0_BCHW, use_reentrant=False))

    def _said(self, pixels_BCHW: Tensor, texts: Sequence[str], names: Sequence[str]) -> Scores:
        """What held-out rewards say, and the embeddings of images that are compared."""
        if not names and self.training.group == 1:
            return Scores({}, None)
        with torch.no_grad():
            return self.judge.scores(levels(pixels_BCHW.detach()), texts, names)

    def _distance(self, drawn: Drawn, prompts: Conditioning, empty: Conditioning) -> Tensor:
        """The squared distance of the learner's predictions to the reference's, [B]."""
        guidance = self.training.guidance
        samples = Samples(
            (Side(drawn.seen_BCHW, drawn.seen_BCHW),),  # a distance has no target
            drawn.timesteps_B,
            prompts,
            unconditional=None if guidance == 1 else empty,
            guidance=guidance,
        )
        with torch.set_grad_enabled(self.training.kl > 0):
            (side,) = measure(self.denoiser, samples, against=REFERENCE)
            return self._added(side.distance, weight=self.training.kl)

    def _denoising(self, draws: Sequence[Draw]) -> Tensor:
        """The error on the chosen images of the draws' pairs, [B]."""
        groups = self.data.by_shape([draw.pair for draw in draws])
        errors = []
        for alike in groups:
            some = [draws[position] for position in alike]
            samples = chosen_images(self.denoiser, self.data, self.training, some)
            (side,) = measure(self.denoiser, samples, against="")
            errors.append(self._added(side.error, weight=self.training.denoising_weight))
        order = torch.tensor([position for alike in groups for position in alike])
        return torch.cat(errors)[torch.argsort(order).to(errors[0].device)]

    def _added(self, loss_B: Tensor, *, weight: float = 1.0) -> Tensor:
        """Add the gradient of a loss, a share of the batch's mean; returns it without one."""
        if weight and loss_B.requires_grad:
            (weight * loss_B.sum() / self.training.batch).backward()
        return loss_B.detach()

    def remember(self, metrics: Mapping[str, Any]) -> None:
        """Keep the held-out means of a step, over all ranks."""
        for name in self.training.held_out:
            self.held_out[name] = torch.as_tensor(metrics[f"held_out/{name}"]).clone()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        return {f"held_out.{name}": value for name, value in self.held_out.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """What `state` gave."""
        for name in self.training.held_out:
            if f"held_out.{name}" in tensors:
                self.held_out[name] = tensors[f"held_out.{name}"]
