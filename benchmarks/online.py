"""Online trainings: steps/s and memory of DiffusionNFT and Flow-GRPO beside a plain loop.

Embedded SD-1.5, one thread. A step draws 16 images of 4 prompts in 8 solver steps, scores them with
PickScore, and trains on them: DiffusionNFT at one timestep each, Flow-GRPO at two steps of each
path. The plain loop does what the released scripts do: it keeps copies of the network as reference
and as policy, encodes the captions at every step, and stores the paths. Both do the same forwards.

Each measurement is a process of its own, theirs and ours by turns. Seconds are the process's own on
the processor; memory is the peak beyond what the libraries take. The last column says where our
seconds go.

    python benchmarks/online.py [ROUNDS [OBJECTIVE ...]]    # 3, nft flow_grpo
"""

from __future__ import annotations

import copy
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from plain_loop import Plain, photographs
from torch import Tensor
from training import CPU, LORA, cached, case

from raypref.align.image_scores import LatentScores, WorkerScores
from raypref.align.loop import Alone, train
from raypref.align.objectives.registry import OBJECTIVES
from raypref.models.backbone import load_autoencoder, load_denoiser
from raypref.rewards.pickscore import PickScoreConfig

PROMPTS, GROUP, ROLLOUT, STEPS, ETA, KL, CLIP = 4, 4, 8, 3, 0.7, 0.01, 1e-4
TIMESTEPS = {"nft": 1, "flow_grpo": 2}
REWARD = PickScoreConfig(model="tiny:pickscore", processor="tiny:pickscore")


def per_sample(error: Tensor) -> Tensor:
    return error.square().mean((1, 2, 3))


class PlainOnline(Plain):
    """The released scripts' loop, for both objectives."""

    def __init__(self, objective: str) -> None:
        what = case("tiny")
        super().__init__(what.base, LORA, micro=what.micro, device=CPU)
        self.objective = objective
        self.reward = REWARD.load()
        side = what.side // self.pipe.vae_scale_factor
        self.shape = self.unet.config.in_channels, side, side
        self.policy = copy.deepcopy(self.unet) if objective == "nft" else self.unet
        config = {**self.schedule.config, "timestep_spacing": "trailing", "clip_sample": False}
        kind: Any = DPMSolverMultistepScheduler if objective == "nft" else DDIMScheduler
        self.scheduler: Any = kind.from_config(config)
        self.scheduler.set_timesteps(ROLLOUT)

    @torch.no_grad()
    def drawn(self, prompts: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
        """Latents, and per step but the last: before it, after it, its timestep."""
        x, path = torch.randn(len(prompts), *self.shape), []
        if self.objective == "nft":
            self.scheduler.set_timesteps(ROLLOUT)  # it keeps earlier predictions
        noisy = {} if self.objective == "nft" else {"eta": ETA}
        for t in self.scheduler.timesteps:
            eps = self.policy(x, t.expand(len(x)), prompts).sample
            after = self.scheduler.step(eps, t, x, **noisy).prev_sample
            path.append((x, after, t))
            x = after
        return x, path[:-1]

    @torch.no_grad()
    def advantages(self, latents: Tensor, texts: list[str]) -> Tensor:
        pixels = self.pipe.vae.decode(latents / self.pipe.vae.config.scaling_factor).sample
        images = self.pipe.image_processor.postprocess(pixels)
        scores = torch.from_numpy(self.reward.score(images, texts)).view(-1, GROUP)
        centred = scores - scores.mean(1, keepdim=True)
        return (centred / (scores.std(1, keepdim=True) + 1e-4)).flatten()

    def nft(self, x0: Tensor, prompts: Tensor, advantage: Tensor) -> Tensor:
        noise, t = torch.randn_like(x0), torch.randint(1000, (len(x0),))
        abar = self.schedule.alphas_cumprod[t][:, None, None, None]
        x = self.schedule.add_noise(x0, noise, t)
        with torch.no_grad():
            old = self.policy(x, t, prompts).sample
        learner, reference = self.predict(x, t, prompts), self.reference(x, t, prompts)
        good = (advantage / 5).clamp(-1, 1) / 2 + 0.5
        missed = []
        for mixed in (learner, 2 * old - learner):
            away = (x - (1 - abar).sqrt() * mixed) / abar.sqrt() - x0
            missed.append(per_sample(away) / away.detach().abs().mean((1, 2, 3)))
        loss = 5 * (good * missed[0] + (1 - good) * missed[1])
        return (loss + 1e-4 * per_sample(learner - reference)).sum()

    def flow_grpo(
        self, some: list[tuple[Tensor, Tensor, Tensor]], prompts: Tensor, advantage: Tensor
    ) -> Tensor:
        """One step of each image's path."""
        x, after, t = (torch.stack(parts) for parts in zip(*some, strict=True))
        abar = self.schedule.alphas_cumprod[t][:, None, None, None]
        to = self.schedule.alphas_cumprod[t - 1000 // ROLLOUT][:, None, None, None]
        std = ETA * ((1 - to) / (1 - abar) * (1 - abar / to)).sqrt()

        def mean(eps: Tensor) -> Tensor:
            x0 = (x - (1 - abar).sqrt() * eps) / abar.sqrt()
            return to.sqrt() * x0 + (1 - to - std**2).sqrt() * eps

        own, reference = mean(self.predict(x, t, prompts)), mean(self.reference(x, t, prompts))
        likely = -per_sample((after - own) / std) / 2
        ratio = (likely - likely.detach()).exp()  # drawn by the learner itself
        clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
        loss = torch.maximum(-advantage * ratio, -advantage * clipped)
        return (loss + KL * per_sample((own - reference) / std) / 2).sum()

    def learn(self, texts: list[str]) -> None:
        """One optimizer step on images of these prompts."""
        texts = [text for text in texts for _ in range(GROUP)]
        prompts = self.prompts(texts)
        latents, path = self.drawn(prompts)
        advantage = self.advantages(latents, texts)
        count = TIMESTEPS[self.objective]
        chosen = torch.stack([torch.randperm(ROLLOUT - 1)[:count] for _ in texts])
        for k in range(count):
            for first in range(0, len(texts), self.micro):
                part = slice(first, first + self.micro)
                if self.objective == "nft":
                    loss = self.nft(latents[part], prompts[part], advantage[part])
                else:
                    own = [
                        (path[i][0][b], path[i][1][b], path[i][2])
                        for b, i in [*enumerate(chosen[:, k].tolist())][part]
                    ]
                    loss = self.flow_grpo(own, prompts[part], advantage[part])
                (loss / (len(texts) * count)).backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.policy is not self.unet:
            self.policy.load_state_dict(self.unet.state_dict())


def time_plain(objective: str) -> dict[str, float]:
    loop, texts = PlainOnline(objective), [text for text, _, _ in photographs(16, 64)]
    loop.learn(texts[:PROMPTS])  # warm-up
    began = time.process_time()
    for i in range(STEPS):
        first = i * PROMPTS % len(texts)
        loop.learn(texts[first : first + PROMPTS])
    return {"seconds": (time.process_time() - began) / STEPS}


@contextmanager
def timed(owner: Any, name: str, spent: dict[str, float]) -> Iterator[None]:
    """Add a method's seconds to `spent`."""
    inner = getattr(owner, name)

    def call(*args: Any, **options: Any) -> Any:
        began = time.process_time()
        try:
            return inner(*args, **options)
        finally:
            spent[name] = spent.get(name, 0.0) + time.process_time() - began

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, inner)


def time_ours(objective: str) -> dict[str, float]:
    what, count = case("tiny"), TIMESTEPS[objective]
    kind = OBJECTIVES[objective]
    own = {"policy_keep": 0.0} if objective == "nft" else {"eta": ETA, "kl": KL}
    settings = {
        "steps": STEPS + 1,
        "batch": PROMPTS * GROUP * count,
        "micro_batch": what.micro,
        "group": GROUP,
        "timesteps": count,
        "rollout_steps": ROLLOUT,
        "rollout_batch": PROMPTS * GROUP,
        "guidance": 1.0,
        "checkpoint_every": 10**6,
    }
    training = kind.model_validate({"objective": objective, **settings, **own})
    pairs = photographs(16, what.side)
    data = replace(cached(what.base, pairs), texts=tuple(text for text, _, _ in pairs))
    judge = LatentScores(
        load_autoencoder(what.base, device=CPU), WorkerScores({"pickscore": REWARD})
    )
    clock: list[float] = []
    spent: dict[str, float] = {}

    def tick(metrics: object) -> None:
        if not clock:
            spent.clear()  # of the warm-up
        clock.append(time.process_time())

    with (
        tempfile.TemporaryDirectory() as folder,
        timed(kind, "roll_out", spent),
        timed(LatentScores, "images", spent),
        timed(WorkerScores, "__call__", spent),
    ):
        train(
            load_denoiser(what.base, device=CPU),
            data,
            training,
            LORA,
            name="bench",
            draws="bench",
            seed=0,
            folder=folder,
            start=None,
            group=Alone(),
            on_step=tick,
            judge=judge,
        )
    seconds = (clock[-1] - clock[0]) / STEPS
    names = {"roll_out": "rollout", "images": "decoding", "__call__": "reward"}
    parts = {names[name]: value / STEPS / seconds for name, value in spent.items()}
    return {"seconds": seconds, **parts, "learning": 1 - sum(parts.values())}


SIDES: dict[str, Callable[[str], dict[str, float]]] = {"plain": time_plain, "ours": time_ours}


def peak() -> float:
    """MiB of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(side: str, objective: str) -> None:
    """Print one measurement."""
    torch.set_num_threads(1)
    before = peak()
    found = SIDES[side](objective)
    print(json.dumps({**found, "mib": peak() - before}))


def measured(side: str, objective: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", side, objective]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print(
        "| objective | plain, s/step | ours | steps/s, ours / plain | MiB, plain | ours | where |"
    )
    print("|---|---|---|---|---|---|---|")
    for objective in sys.argv[2:] or TIMESTEPS:
        found = [{side: measured(side, objective) for side in SIDES} for _ in range(rounds)]
        seconds, mib = (
            {side: statistics.median(row[side][key] for row in found) for side in SIDES}
            for key in ("seconds", "mib")
        )
        ratios = [row["plain"]["seconds"] / row["ours"]["seconds"] for row in found]
        shares = ", ".join(
            f"{name} {statistics.median(row['ours'][name] for row in found):.0%}"
            for name in ("rollout", "decoding", "reward", "learning")
        )
        print(
            f"| `{objective}` | {seconds['plain']:.2f} | {seconds['ours']:.2f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | "
            f"{mib['plain']:.0f} | {mib['ours']:.0f} | {shares} |",
            flush=True,
        )


if __name__ == "__main__":
    child(*sys.argv[2:]) if sys.argv[1:2] == ["--child"] else main()
