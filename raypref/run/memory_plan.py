"""How much memory steps are predicted to need: of a GPU at the peak, of the host for latents.

Worked out, not measured: weights by their number and precision, and per sample what the networks
of the published sizes keep (`model_sizes.py`). Other sizes of a family's network are predicted as
if they were the published one. `docs/gpu.md` has the table for presets and recipes.
"""

from __future__ import annotations

from collections.abc import Sequence

from raypref.align import plan
from raypref.align.config import TrainingConfig
from raypref.align.online_config import OnlineConfig, RewardedConfig
from raypref.align.rollout_config import RolloutConfig
from raypref.core.config import Resources
from raypref.core.device import DType, Quantisation
from raypref.engine.worker import needs_of, shared_worker
from raypref.evaluate.measures import measures
from raypref.models.families.registry import batch_alone
from raypref.pairs.config import CANDIDATES, TWINS
from raypref.pairs.kinds import kind_of
from raypref.rewards.config import RewardConfig
from raypref.rewards.passes import passes
from raypref.rewards.rewards import reward, reward_section
from raypref.rewards.vqascore import VQAScoreConfig
from raypref.run.config import RunConfig
from raypref.run.model_sizes import (
    AROUND,
    CLIP_H,
    JUDGES,
    PAINTERS,
    SD15,
    SIDE,
    SIZES,
    STORED,
    T5,
    T5_WIDTH,
    U2NET,
    UNITS,
    UPCAST,
    WIDEST,
    Judge,
    Size,
)

GIB = 2**30
OVERHEAD = 1.5  # GiB per process: CUDA context, workspaces of cuDNN and cuBLAS, fragmentation
SPARE = 0.1  # share of a card that stays free
# What is free on a card of so many GB, GiB.
CARDS = {24: 23.6, 80: 79.0}
BYTES: dict[DType, int] = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
# Of a weight that is stored in fewer bits, its share of the scales included.
STORED_BYTES: dict[Quantisation, float] = {"int8": 1, "nf4": 0.5 + 4 / 64}
UNETS = ("sd15", "sd15_inpaint", "sdxl")
# What backward keeps with all weights trained, by what it keeps for a LoRA; counted for SD-1.5 and
# SD-3.5-M.
KEPT_BY_UNETS, KEPT_BY_TRANSFORMERS = 1.17, 1.57
WHOLE_COPIES = 2  # of all weights: learner, gradient
COPIES = 4  # of an adapter: learner, reference, policy, gradient; plus the EMA
# Both of the optimizer, in copies; in 8 bits with 4 bytes of a scale per 256 values.
MOMENTS = {"adamw": 2.0, "adamw8bit": 2 * (1 + 4 / 256) / 4}


def predicted_gib(config: RunConfig) -> dict[str, float]:
    """Predicted peak on one GPU of each step that asks for GPUs, GiB.

    Args:
        config: the settings of a run.

    Returns:
        By step: `captions` and `scored`, `twins`, `cache`, each training's name, `images`, and
        `scores NAMES` for the measures that run in one pass. Steps on the CPU, and those that are
        off, are left out.
    """
    found: dict[str, float] = {}

    def add(step: str, need: Resources, gib: float) -> None:
        if need.num_gpus:
            # Workers that ask for a fraction are put on one GPU.
            sharing = max(1, min(need.workers, int(1 / need.num_gpus + 1e-9)))
            found[step] = round(sharing * (gib + OVERHEAD), 1)

    c, pixels = config, (config.images.size / SIDE) ** 2
    size, pickscore = SIZES.get(config.base.family, SD15), _of_reward("pickscore", c.pickscore)
    photographs = c.pairs.kind in (TWINS, CANDIDATES)
    if photographs and c.captions.enabled:
        asked = c.captions
        vlm = _judge(JUDGES["photographic"], asked.dtype, asked.resources.batch)
        add("captions", asked.resources, _together([vlm]))
    filtering: list[tuple[float, float]] = []
    filters: list[Resources] = []
    if photographs and c.photographic.enabled:
        filtered = c.photographic
        filtering.append(_judge(JUDGES["photographic"], filtered.dtype, filtered.resources.batch))
        filters.append(filtered.resources)
    detector = (_weights(U2NET, "float32"), 0.1)
    at_once = batch_alone(c.perturb.kind, c.perturb.resources).batch
    painted = at_once * SIZES.get(c.perturb.kind, SD15).drawn * BYTES[c.perturb.dtype] / 2
    painted *= ((c.perturb.size or c.images.size) / SIDE) ** 2
    painter = (_weights(PAINTERS[c.perturb.kind], c.perturb.dtype), painted)
    if c.pairs.kind == TWINS:
        needs = [c.pickscore.resources, *filters]
        add("scored", shared_worker(needs), _together([pickscore, *filtering]))
        needs = [c.saliency.resources, c.perturb.resources, c.pickscore.resources]
        add("twins", shared_worker(needs), _together([detector, painter, pickscore]))
    if c.pairs.kind == CANDIDATES:
        if c.perturb.kind != "text2image" and c.holes.kind == "saliency":
            filtering.append(detector)
            filters.append(c.saliency.resources)
        if filters:
            add("holes", shared_worker(filters), _together(filtering))
        add("candidates", c.perturb.resources, _together([painter]))
        for name in c.candidates.rewards:
            own = reward(name, c.pickscore, c.rewards)
            named = reward_section(name).removeprefix("rewards.")
            add(f"candidates, {name}", own.resources, _together([_of_reward(named, own)]))
    precision = BYTES[c.base.dtype] / 2
    encoding = c.cache.vae_dtype or c.base.dtype
    if c.base.family in UPCAST and BYTES[encoding] == 2:
        encoding = "float32"
    encoders = _weights(size.text, c.base.dtype) + _weights(size.autoencoder, encoding)
    images = 4 * c.cache.resources.batch  # of a pair: two sides, each as it is and mirrored
    encoded = images * size.encoded * pixels * BYTES[encoding] / 2
    add("cache", c.cache.resources, encoders + encoded)
    for name, training in plan.in_order(c.trainings, c.train).items():
        add(name, training.resources, _training(c, size, training, pixels * precision))
        for group in c.reward_groups(name):
            judged = [
                _of_reward(reward_section(own).removeprefix("rewards."), config)
                for own, config in group.rewards.items()
            ]
            add(f"{name} {group.name}", group.need, _together(judged))
    drawing = c.evaluate.dtype or c.base.dtype
    decoding = c.evaluate.vae_dtype or drawing
    pipeline = _network(c, size, drawing) + _weights(size.text, drawing)
    pipeline += _weights(size.autoencoder, decoding)
    drawn = size.drawn * (c.evaluate.size / SIDE) ** 2 * BYTES[decoding] / 2
    at_once = batch_alone(c.base.family, c.evaluate.resources).batch
    add("images", c.evaluate.resources, pipeline + at_once * drawn)
    for step, need, gib in _scores(c):
        add(step, need, gib)
    return found


def latents_gib(config: RunConfig, pairs: int) -> float:
    """Memory of the host that the encoded pairs take in every worker of a training, GiB.

    Args:
        config: the settings of a run.
        pairs: how many there are.
    """
    channels, caption = STORED.get(config.base.family, STORED["sd15"])
    if config.cache.t5_tokens and config.base.family in T5:
        caption += (config.cache.t5_tokens - T5[config.base.family]) * T5_WIDTH
    around = 2 * AROUND.get(config.base.family, 0)
    sides = len(kind_of(config).sides)
    values = (sides * 2 * 2 * channels + around) * (config.images.size // 8) ** 2 + caption
    return pairs * 4 * values / GIB


def too_large(predicted: dict[str, float], *, card: float) -> dict[str, float]:
    """The steps that leave less than a tenth of a card free.

    Args:
        predicted: of `predicted_gib`.
        card: what is free on it, GiB; see `CARDS`.
    """
    return {step: gib for step, gib in predicted.items() if gib > (1 - SPARE) * card}


def _training(c: RunConfig, size: Size, training: TrainingConfig, scale: float) -> float:
    """Of a training, without overhead: the pass with gradients or the largest one without."""
    mine = -(-training.batch // max(1, training.resources.workers))
    micro = min(training.micro_batch, mine)
    sides = len(training.sides)
    # The policy's finished image gets no gradient.
    learned = 1 if getattr(training, "policy_state", "") == "final" else sides
    kept = size.recomputed if training.gradient_checkpointing else size.saved
    if not c.lora.rank:
        kept *= KEPT_BY_UNETS if c.base.family in UNETS else KEPT_BY_TRANSFORMERS
    at_once = min(training.samples_at_once, mine) if isinstance(training, RolloutConfig) else 0
    if isinstance(training, OnlineConfig):
        images = training.group * -(-training.pairs_per_step // max(1, training.resources.workers))
        at_once = min(training.images_at_once, images)
    most = max(micro * learned * kept, max(at_once, micro * sides) * size.forward) * scale
    whole = _weights(size.trained, c.base.dtype)
    if training.sharded and training.resources.workers > 1:
        held, between, gathered = _shared(c, size, training)
        return max(whole, held + max(gathered + most, between))  # it is loaded whole
    held, between = _trained(c, size, training)
    models = _network(c, size, c.base.dtype) + held
    if isinstance(training, RewardedConfig):
        decoding = c.cache.vae_dtype or c.base.dtype
        models += _weights(size.autoencoder, decoding)
        # Of an online training a group is decoded at a time.
        images = training.group if isinstance(training, OnlineConfig) else training.micro_batch
        most = max(most, images * size.drawn * scale * BYTES[decoding] / BYTES[c.base.dtype])
        if not training.reward_actors:
            for name in (*training.rewards, *training.held_out):
                own = reward(name, c.pickscore, c.rewards)
                weights, work = _of_reward(reward_section(name).removeprefix("rewards."), own)
                models, most = models + weights, max(most, work)
    return models + max(most, between)


def _trained(c: RunConfig, size: Size, training: TrainingConfig) -> tuple[float, float]:
    """GiB of what is trained beside the network as loaded, and of what its step adds for a while.

    The step comes when the activations of backward are gone.
    """
    precise: DType = "float64" if c.base.dtype == "float64" else "float32"
    if c.lora.rank:
        copies = COPIES + MOMENTS[training.optimizer] + bool(training.ema_decay)
        return _weights(size.adapter * c.lora.rank * copies, precise), 0.0
    own = _weights(size.trained, precise)
    rounded = 0.0 if c.base.dtype == precise else _weights(size.trained, c.base.dtype)
    # AdamW makes a vector of its own, but not in 8 bits; and so does the sum over workers.
    between = (training.optimizer == "adamw") + (training.resources.workers > 1)
    return own * _vectors(training) + rounded, own * between


def _shared(c: RunConfig, size: Size, training: TrainingConfig) -> tuple[float, float, float]:
    """GiB of weights that workers share, and what is trained of them, on each of the workers.

    Returns:
        What is held: of each vector a part, and one more in float32 and one as loaded, from which
        parameters are gathered; what the step adds for a while; and what a pass has gathered: of
        what is outside of blocks and of two blocks the weights and gradients, and their sums.
    """
    precise: DType = "float64" if c.base.dtype == "float64" else "float32"
    units, workers = UNITS.get(c.base.family, UNITS["sd15"]), training.resources.workers
    sharded = size.trained - units.table
    own = _weights(sharded, precise) / workers
    held = own * (_vectors(training) + 1) + _weights(sharded, c.base.dtype) / workers
    half, full = BYTES[c.base.dtype], BYTES[precise]
    # A block's weights arrive in a buffer and are copied from it; gradients are summed in float32.
    gathered = units.outside * (2 * half + full) + units.block * (5 * half + 2 * full)
    return held + _weights(units.table, c.base.dtype), own, gathered * 1e9 / GIB


def _vectors(training: TrainingConfig) -> float:
    """How many vectors of all weights a training holds."""
    copies = (
        WHOLE_COPIES
        + MOMENTS[training.optimizer]
        + bool(training.ema_decay)
        + isinstance(training, RolloutConfig)
    )
    # What was loaded is the reference of a training from the base.
    return copies + (
        training.reference == "ema"
        or (
            training.against == "ref"
            and training.reference == "start"
            and training.start != plan.BASE
        )
    )


def _scores(c: RunConfig) -> list[tuple[str, Resources, float]]:
    """Of each pass that measures images: its name, what its workers hold, GiB without overhead."""
    found = []
    for together in passes(measures(c.measured, c.pickscore, c.rewards)):
        stages = [measure.stage for measure in together.values()]
        judges = {
            repr(config): (name, config)
            for name, config in _models(c, [getattr(stage, "config", None) for stage in stages])
        }
        if judges:
            step = f"scores {', '.join(name for name, _ in judges.values())}"
            each = [_of_reward(name, config) for name, config in judges.values()]
            found.append((step, shared_worker(needs_of(stages)), _together(each)))
    return found


def _models(c: RunConfig, configs: Sequence[object]) -> list[tuple[str, RewardConfig]]:
    """Name and settings of the rewards among settings of transforms."""
    named: list[tuple[str, RewardConfig]] = [("pickscore", c.pickscore), *c.rewards.items()]
    return [
        next((name, known) for name, known in named if known is config)
        for config in configs
        if isinstance(config, RewardConfig)
    ]


def _weights(parameters: float, dtype: DType) -> float:
    return parameters * 1e9 * BYTES[dtype] / GIB


def _network(c: RunConfig, size: Size, dtype: DType) -> float:
    """GiB of the network that is trained, as loaded; its linear layers as they are stored."""
    if not c.base.quantise:
        return _weights(size.trained, dtype)
    stored = size.linear * 1e9 * STORED_BYTES[c.base.quantise] / GIB
    return stored + _weights(size.trained - size.linear + WIDEST, dtype)


def _judge(judge: Judge, dtype: DType, batch: int) -> tuple[float, float]:
    """GiB of a model's weights, and of a batch."""
    scale = BYTES[dtype] / BYTES[judge.dtype]
    return _weights(judge.parameters, dtype), batch * judge.image * scale


def _of_reward(name: str, config: RewardConfig) -> tuple[float, float]:
    """The same of a reward; one from outside the package is taken for one of CLIP-H's size."""
    dtype: DType = getattr(config, "dtype", "float32")
    if isinstance(config, VQAScoreConfig) and "flant5" in config.model:  # told without its files
        name = "clip_flant5"
    return _judge(JUDGES.get(name.split(".")[0], CLIP_H), dtype, config.resources.batch)


def _together(models: Sequence[tuple[float, float]]) -> float:
    """Models stay loaded side by side; one computes at a time."""
    return sum(weights for weights, _ in models) + max(batch for _, batch in models)
