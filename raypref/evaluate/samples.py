"""Strips of the same prompts and noise over the steps of a training: how it went, to look at."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from PIL import Image
from pyarrow import fs as pafs

from raypref.core.config import results_of
from raypref.core.ledger import Ledger, filesystem, join, write_bytes
from raypref.engine.stream import StreamConfig, stream
from raypref.evaluate.generate import BASE, GenerateConfig, rows_to_generate
from raypref.evaluate.painting import drawing
from raypref.images.decode import encode_png, open_png
from raypref.models.backbone import BackboneConfig
from raypref.models.lora_config import FILE_NAME
from raypref.models.network import COMPONENTS, holds_network


def draw_samples(
    base: BackboneConfig,
    config: GenerateConfig,
    *,
    texts: Mapping[int, str],
    photographs: Ledger | None,
    trained: Mapping[str, Ledger],
    folder: str,
    streaming: StreamConfig,
) -> float:
    """Write `<stage>/samples/step-<number>.png` for all weights that a stage kept on its way.

    A file shows the first `samples` prompts side by side, drawn with the first seed. Among those
    of a stage is the base's, as `step-00000000.png`.

    Args:
        base: the model that was aligned.
        config: seed and sampler settings of the evaluation.
        texts: the evaluation's prompts by number; the first `samples` of them are drawn.
        photographs: of a set of holes; None for prompts.
        trained: the stages and where they are.
        folder: the evaluation's folder.
        streaming: how rows are cut into blocks.

    Returns:
        How long a worker was busy, in seconds.
    """

    kept = {
        f"{name}/{step}": join(ledger.path, "milestones", step)
        for name, ledger in trained.items()
        for step in _steps(ledger.path)
    }
    texts = dict(islice(texts.items(), config.samples))
    if not kept or not texts:
        return 0.0
    loras = {model: trained[model.split("/")[0]].fingerprint for model in kept}
    parts = {"base": base, "evaluate": config, "prompts": list(texts.values()), **loras}
    if photographs is not None:
        parts |= {"evaluate.blend": config.blend, "photographs": photographs.fingerprint}
    drawn = Ledger(join(folder, "samples"), results_of(parts))
    if drawn.state() == "stale":  # of an earlier training, whose strips went with it
        drawn.clear()
    first_seed = {"seeds": config.seeds[:1]}
    streamed = stream(
        rows_to_generate(texts, config.model_copy(update=first_seed), [BASE, *kept]),
        stages=drawing(
            base, _in_small_batches(config, len(texts)), loras=kept, photographs=photographs
        ),
        ledger=drawn,
        keep=["model", "prompt_id", "image"],
        config=streaming,
    )
    images: dict[str, dict[int, Image.Image]] = {model: {} for model in (BASE, *kept)}
    for row in drawn.rows(["model", "prompt_id", "image"]):
        images[row["model"]][row["prompt_id"]] = open_png(row["image"])
    strips = {}
    for model, by_prompt in images.items():
        strip = Image.new("RGB", (config.size * len(texts), config.size))
        for place, number in enumerate(texts):
            strip.paste(by_prompt[number], (config.size * place, 0))
        strips[model] = encode_png(strip)
    for model in kept:
        name, step = model.split("/")
        samples = join(trained[name].path, "samples")
        write_bytes(join(samples, f"{step}.png"), strips[model])
        write_bytes(join(samples, f"step-{0:08d}.png"), strips[BASE])
    return streamed.busy


def _in_small_batches(config: GenerateConfig, prompts: int) -> GenerateConfig:
    """A batch holds one model's images only: a larger one would be filled with copies."""
    need = config.resources
    smaller = need.model_copy(update={"batch": min(need.batch, prompts)})
    return config.model_copy(update={"resources": smaller})


def _steps(stage: str) -> list[str]:
    fs, root = filesystem(join(stage, "milestones"))
    found = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    # A kill can leave a folder without its file.
    return sorted(f.base_name for f in found if _kept(join(stage, "milestones", f.base_name)))


def _kept(folder: str) -> bool:
    """Whether a folder holds a LoRA, or a whole network."""
    fs, root = filesystem(folder)
    lora = bool(fs.get_file_info(f"{root}/{FILE_NAME}").is_file)
    return lora or any(holds_network(folder, component=name) for name in COMPONENTS)
