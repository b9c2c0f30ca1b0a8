"""The degraded twin: the salient region of a photograph, painted anew from its caption."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from raypref.core.config import InputError, Location, Resources, Section, setting
from raypref.core.device import DType, pick_device, torch_dtype
from raypref.core.rows import Row, seed_of
from raypref.images.buckets import Size
from raypref.images.decode import as_image, image_size, of_unit
from raypref.models import paint
from raypref.models.compiled import compile_blocks
from raypref.models.families.base import side_unit, text_to_image
from raypref.models.families.registry import batch_alone, family
from raypref.models.hub import from_pretrained, model_folder, read_json

if TYPE_CHECKING:
    import torch
    from PIL import Image

# The perturbations of the paper's Table 4, the inpainter of Follow-Your-Preference, SDXL's, and
# text-to-image families whose pipelines blend the latents around the hole.
Kind = Literal[
    "sd15",
    "sd35m",
    "pixart",
    "text2image",
    "flux_fill",
    "sdxl",
    "flux",
    "z_image",
    "qwen_image",
    "flux2_klein",
]
# Step along a flow; each is a model family of that name, which says how its pipeline is called.
FLOWS = ("sd35m", "flux_fill", "flux", "z_image", "qwen_image", "flux2_klein")
LARGEST = {"flux2_klein": 1024}  # side of the largest images that a pipeline paints, pixels
KEY = "perturb.model"
# Of each kind: the network's place in the pipeline, its class in diffusers, its input channels.
NETWORKS: dict[Kind, tuple[str, str, tuple[int, ...]]] = {
    "sd15": ("unet", "UNet2DConditionModel", (9, 4)),  # 4: one not trained to inpaint
    "text2image": ("unet", "UNet2DConditionModel", (4,)),
    "sd35m": ("transformer", "SD3Transformer2DModel", (16,)),
    "pixart": ("transformer", "PixArtTransformer2DModel", (4,)),
    "flux_fill": ("transformer", "FluxTransformer2DModel", (384,)),
    "sdxl": ("unet", "UNet2DConditionModel", (9, 4)),
    "flux": ("transformer", "FluxTransformer2DModel", (64,)),
    "z_image": ("transformer", "ZImageTransformer2DModel", (16,)),
    "qwen_image": ("transformer", "QwenImageTransformer2DModel", (64,)),
    "flux2_klein": ("transformer", "Flux2Transformer2DModel", (128,)),
}
# Options of the pipelines: no safety checker (it would blacken twins), no watermark.
_UNCHECKED = {"safety_checker": None, "requires_safety_checker": False}
OPTIONS: dict[Kind, dict[str, Any]] = {
    "sd15": _UNCHECKED,
    "text2image": _UNCHECKED,
    "sdxl": {"add_watermarker": False},
}


class PerturbConfig(Section):
    """Prompt-conditioned inpainting; the defaults are those of SD-1.5's pipeline, the paper's."""

    kind: Kind = setting(
        "sd15",
        "inpainter of SD-1.5, SDXL or FLUX.1 Fill; SD-3.5-Medium, PixArt-alpha, FLUX.1, Z-Image, "
        "Qwen-Image or FLUX.2 [klein], which blend latents around the hole; or a whole new picture "
        "by SD-1.5 from the caption alone",
    )
    model: Location = setting(
        "stable-diffusion-v1-5/stable-diffusion-inpainting", "hub id or folder of its weights"
    )
    variant: str = setting("", "file variant on the hub, such as fp16")
    dtype: DType = setting("float32", "precision of the inpainter")
    steps: int = setting(50, "denoising steps", ge=1)
    guidance: float = setting(7.5, "classifier-free guidance scale", ge=0)
    strength: float = setting(1.0, "1 repaints from pure noise; pixart supports only 1", gt=0, le=1)
    paste: bool = setting(
        False,
        "put the photograph's own pixels back around the repainted region; the released code does "
        "not, so that the autoencoder's small errors are all over the twin",
    )
    scheduler: Literal["pipeline", "dpmsolver++"] = setting(
        "pipeline",
        "the model's own; or DPM-Solver++ of second order, which needs 20 to 25 steps: another "
        "twin of the same kind in half the time",
        later=True,
    )
    size: int = setting(
        0,
        "side at which twins are painted, pixels; 0: that of the crops, images.size; twins of "
        "another side are resized to the crops'; the released code's is 1024 for sd35m and pixart",
        later=True,
        ge=0,
    )
    latents: Literal["mode", "sample"] = setting(
        "mode",
        "pixart: keep the mode of the photograph's latents around the region, or a sample of them, "
        "as the released code does; other kinds do what their pipelines do",
        later=True,
    )
    compile: bool = setting(
        False,
        "torch.compile the network's repeated blocks: minutes at the start of a worker for quicker "
        "twins; moves them by rounding only, as the batch does",
        affects_result=False,
    )
    channels_last: bool = setting(
        False,
        "keep the convolutions' weights channels last, quicker on some GPUs, above all with "
        "compile; moves twins by rounding only",
        affects_result=False,
    )
    resources: Resources = Resources(batch=4)

    def folder(self) -> str:
        """What to hand to `hub.from_pretrained`."""
        return model_folder(self.model, key=KEY, probe="model_index.json")

    def check(self, side: int, step: int = 0) -> None:
        """See that the model is of this kind and takes the photographs as they are cropped.

        Args:
            side: of the crops, pixels.
            step: of the sides of crops that are no squares, pixels; 0: all are.

        Raises:
            InputError: it is missing, of another kind, or takes no images of these sides.
        """
        folder = self.folder()
        component, network, channels = NETWORKS[self.kind]
        found = read_json(folder, "model_index.json", key=KEY).get(component, [None, None])[1]
        config = read_json(folder, f"{component}/config.json", key=KEY) if found == network else {}
        told_by = family(self.kind).told_by if self.kind in FLOWS else {}
        others = {key: value for key, value in told_by.items() if key != "_class_name"}
        like = all(config.get(key) == value for key, value in others.items())
        if config.get("in_channels") not in channels or not like:
            further = "".join(f" and {key}={value}" for key, value in others.items())
            raise InputError(
                f"perturb.model: '{self.model}' is no model for perturb.kind={self.kind}, which "
                f"needs a {network} of {' or '.join(map(str, channels))} input channels{further} "
                f"as its {component}"
            )
        if network == "UNet2DConditionModel":
            of_sdxl = config.get("addition_embed_type") == "text_time"
            if of_sdxl != (self.kind == "sdxl"):
                raise InputError(
                    f"perturb.model: '{self.model}' is {'' if of_sdxl else 'not '}of SDXL; set "
                    f"perturb.kind={'sdxl' if of_sdxl else 'sd15'}, or take another model"
                )
        if self.size and step:
            raise InputError(
                f"perturb.size={self.size} paints squares, and images.bucket_step={step} keeps the "
                "shape of photographs; set perturb.size=0, or images.bucket_step=0"
            )
        unit_of = family(self.kind).side_unit if self.kind in FLOWS else side_unit
        unit = unit_of(read_json(folder, "vae/config.json", key=KEY), config)
        painted, key = (self.size, "perturb.size") if self.size else (side, "images.size")
        for length, named in ((painted, key), (step, "images.bucket_step")):
            if length % unit:
                raise InputError(
                    f"{named}={length}: perturb.model '{self.model}' takes sides that are "
                    f"multiples of {unit}"
                )
        if painted > (largest := LARGEST.get(self.kind, painted)):
            raise InputError(
                f"{key}={painted}: the pipeline of perturb.kind={self.kind} paints at most "
                f"{largest} pixels a side; set perturb.size={largest} or less"
            )
        if self.scheduler != "pipeline" and self.kind in FLOWS:
            raise InputError(
                f"perturb.scheduler={self.scheduler}: the inpainter of perturb.kind={self.kind} "
                "steps along a flow; leave it at pipeline, or take another perturb.kind"
            )
        if self.kind == "qwen_image" and self.steps == 1:
            raise InputError(
                "perturb.steps=1: the noise levels of qwen_image need at least 2 steps; set "
                "perturb.steps=2 or more"
            )
        if self.kind == "pixart" and self.strength != 1:
            raise InputError(
                f"perturb.strength={self.strength:g}: pixart repaints from pure noise only; leave "
                "it at 1, or take another perturb.kind"
            )


class Inpaint:
    """Transform: photograph and saliency map to the degraded twin, or to one candidate.

    The soft map goes in; the pipeline binarises it at 0.5 itself. The noise of a row is seeded by
    (seed, key), that of a candidate above 0 by (seed, key, candidate): batch, order and worker do
    not matter, and candidate 0 is the twin.

    Args:
        config: model and sampler.
        seed: of the noise.
        column: where the picture goes.
        numbered: whether rows have `candidate`, a number from 0.
        side: of the pictures in pixels, for text2image without photographs; None takes each
            photograph's. Where `perturb.size` is another, they are painted at that and resized.
    """

    name = "inpaint"

    def __init__(
        self,
        config: PerturbConfig,
        *,
        seed: int,
        column: str = "rejected",
        numbered: bool = False,
        side: int | None = None,
    ) -> None:
        assert side is None or config.kind == "text2image", "a hole is in a photograph"
        self.config = config
        self.seed = seed
        self.column = column
        self.side = side
        self.resources = batch_alone(config.kind, config.resources)
        photograph = ("chosen", "saliency") if side is None else ()
        self.reads: tuple[str, ...] = (
            *("key", "caption"),
            *photograph,
            *(("candidate",) if numbered else ()),
        )
        self.writes = pa.schema([(column, pa.binary())])
        self.numbered = numbered

    def setup(self) -> None:
        """Load the pipeline."""
        self.pipeline = from_pretrained(
            pipeline_of(self.config.kind),
            self.config.folder(),
            variant=self.config.variant or None,
            dtype=torch_dtype(self.config.dtype),
            **OPTIONS.get(self.config.kind, {}),
        )
        self.pipeline.to(pick_device(self.resources.num_gpus))
        self.pipeline.set_progress_bar_config(disable=True)
        self._quicken()

    def _quicken(self) -> None:
        """Scheduler, layout and compilation as the settings ask for them."""
        config, pipeline = self.config, self.pipeline
        if config.scheduler == "dpmsolver++":
            from diffusers import DPMSolverMultistepScheduler

            pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
                pipeline.scheduler.config, algorithm_type="dpmsolver++", solver_order=2
            )
        network = pipeline.components[NETWORKS[config.kind][0]]
        if config.channels_last:
            import torch

            for layer in (*network.modules(), *pipeline.vae.modules()):
                if isinstance(layer, torch.nn.Conv2d):  # Qwen-Image's autoencoder has 3D ones too
                    weight = layer.weight.data
                    layer.weight.data = weight.contiguous(memory_format=torch.channels_last)
        if config.compile:
            compile_blocks(network)

    def shape_of(self, row: Row) -> tuple[int, int] | None:
        """Width and height of a row's photograph; None: pictures need none."""
        return None if self.side is not None else image_size(row["chosen"])

    def prepare(self, rows: list[Row]) -> dict[str, Any]:
        """What the pipeline is called with."""
        config, pixart = self.config, self.config.kind == "pixart"
        if self.side is not None:
            side = config.size or self.side
            return self._call(rows, (side, side))
        photos = [as_image(row["chosen"]) for row in rows]
        call = self._call(rows, (config.size,) * 2 if config.size else photos[0].size)
        if config.kind == "text2image":
            return call
        masks = [as_image(row["saliency"]) for row in rows]
        if config.size:
            photos, masks = (paint.at_side(images, config.size) for images in (photos, masks))
        filled = paint.hole_arguments(photos, masks, images=pixart)
        sampled = {"sampled": True} if pixart and config.latents == "sample" else {}
        return {**call, **filled, **sampled, "strength": config.strength}

    def compute(self, batch: dict[str, Any]) -> np.ndarray:
        """The twins' pixels, 0..1: float32 [B, H, W, 3]."""
        twins: np.ndarray = self.pipeline(
            **batch, num_inference_steps=self.config.steps, output_type="np"
        ).images
        return twins

    def _call(self, rows: list[Row], size: Size) -> dict[str, Any]:
        """Arguments that say nothing of photographs: captions, guidance, size and noise."""
        kind = self.config.kind
        arguments = family(kind).arguments if kind in FLOWS else text_to_image
        captions = [row["caption"] for row in rows]
        generators = [self._generator(row) for row in rows]
        width, height = size
        call = arguments(captions, self.config.guidance, width) | {"width": width, "height": height}
        return {**call, "generator": generators}

    def finish(self, rows: list[Row], out: np.ndarray) -> None:
        """Fill the column."""
        for row, pixels in zip(rows, out, strict=False):
            picture = self._picture(row, pixels)
            if self.config.paste and self.side is None:
                picture = paint.paste(picture, as_image(row["chosen"]), as_image(row["saliency"]))
            row[self.column] = picture

    def _picture(self, row: Row, pixels_HWC: np.ndarray) -> Image.Image:
        """The image of what was painted, as large as the photograph."""
        if not self.config.size:
            return of_unit(pixels_HWC)
        side = self.side
        size = as_image(row["chosen"]).size if side is None else (side, side)
        if size == (self.config.size, self.config.size):
            return of_unit(pixels_HWC)
        return paint.fitted(pixels_HWC, size, rounded=self.config.kind != "pixart")

    def _generator(self, row: Row) -> torch.Generator:
        import torch

        number = row["candidate"] if self.numbered else 0
        later = (number,) if number else ()  # candidate 0 is the twin, to the bit
        return torch.Generator().manual_seed(seed_of(self.seed, "inpaint", row["key"], *later))


def pipeline_of(kind: Kind) -> Any:
    """The class of a perturbation's pipeline."""
    import diffusers

    from raypref.models.pixart import PixArtAlphaInpaintPipeline

    return {
        "sd15": diffusers.StableDiffusionInpaintPipeline,
        "sd35m": diffusers.StableDiffusion3InpaintPipeline,
        "pixart": PixArtAlphaInpaintPipeline,
        "text2image": diffusers.StableDiffusionPipeline,
        "flux_fill": diffusers.FluxFillPipeline,
        "sdxl": diffusers.StableDiffusionXLInpaintPipeline,
        "flux": diffusers.FluxInpaintPipeline,
        "z_image": diffusers.ZImageInpaintPipeline,
        "qwen_image": diffusers.QwenImageInpaintPipeline,
        "flux2_klein": diffusers.Flux2KleinInpaintPipeline,
    }[kind]
