"""How large the published models are: parameters, and what they keep and need per sample.

Counted on the meta device (`benchmarks/gpu_sections/counting.py`) or taken from their largest
layers.
"""

from __future__ import annotations

from typing import NamedTuple

from raypref.core.device import DType

WIDEST = 0.085  # 1e9 weights of the largest linear layer: one at a time is dequantised
SIDE = 512  # pixels of the images that the figures per sample are for


class Size(NamedTuple):
    """A family's networks. GiB are per sample, in half precision, at 512x512."""

    trained: float  # parameters and tables of what is trained, 1e9
    linear: float  # weights of its linear layers, which `base.quantise` stores in fewer bits
    text: float  # of the text encoders
    autoencoder: float
    adapter: float  # parameters of the preset's adapter per rank, 1e9
    saved: float  # kept for backward
    recomputed: float  # kept for backward with gradient checkpointing, one block included
    forward: float  # peak of a forward without gradients
    encoded: float  # peak of the autoencoder
    drawn: float  # peak of a pipeline: decoding outweighs the network's two passes


SD15 = Size(0.8595, 0.2700, 0.1231, 0.0837, 0.000199, 0.75, 0.31, 0.07, 0.31, 0.34)
SDXL = Size(2.5675, 2.2326, 0.8178, 0.0837, 0.001452, 1.53, 0.20, 0.07, 0.31, 0.34)
SIZES = {
    "sd15": SD15,
    "sd15_inpaint": SD15,
    # The transformer with its table of 384 x 384 positions; CLIP-L, CLIP-G and T5-XXL.
    "sd35m": Size(2.4697, 2.2418, 5.5806, 0.0838, 0.000587, 2.04, 0.20, 0.10, 0.31, 0.40),
    "sdxl": SDXL,
    "sdxl_inpaint": SDXL,
    # CLIP-L and T5-XXL; every image of 512x512 goes with 512 tokens of text.
    "flux": Size(11.9014, 11.8983, 4.8854, 0.0838, 0.001634, 7.44, 0.72, 0.20, 0.31, 0.40),
    "flux_fill": Size(11.9024, 11.8993, 4.8854, 0.0838, 0.001634, 7.44, 0.72, 0.20, 0.31, 0.40),
    # Qwen3-4B without its head; with 512 tokens of text, the most there are.
    "z_image": Size(6.1549, 6.1539, 4.0225, 0.0838, 0.001044, 10.90, 0.68, 0.20, 0.31, 0.40),
    # The 4B member, and what Z-Image reads texts with; its autoencoder has SD-3's layers.
    "flux2_klein": Size(3.8755, 3.8755, 4.0225, 0.0840, 0.001167, 5.44, 0.58, 0.20, 0.31, 0.40),
    # Qwen2.5-VL-7B with its vision and its head; with 512 tokens of text. The autoencoder keeps
    # what every convolution read until the image is done.
    "qwen_image": Size(20.4304, 20.4248, 8.2922, 0.1269, 0.002949, 9.39, 0.68, 0.20, 0.70, 0.95),
}


class Units(NamedTuple):
    """What is whole on a device of weights that workers share, 1e9 parameters."""

    outside: float  # of all blocks: gathered for a whole pass
    block: float  # the largest: the next one is gathered while one computes
    table: float = 0.0  # never sharded


UNITS = {
    "sd15": Units(0.0794, 0.0492),
    "sd15_inpaint": Units(0.0794, 0.0492),
    "sd35m": Units(0.0195, 0.1015, table=0.2265),
    "sdxl": Units(0.0542, 0.0492),
    "sdxl_inpaint": Units(0.0542, 0.0492),
    "flux": Units(0.0641, 0.3398),
    "flux_fill": Units(0.0651, 0.3398),
    "z_image": Units(0.0119, 0.1809),
    "flux2_klein": Units(0.1950, 0.2454),
    "qwen_image": Units(0.0405, 0.3398),
}
# Tokens of a caption, unless `cache.t5_tokens` says others.
T5 = {"sd35m": 256, "flux": 512, "flux_fill": 512}
T5_WIDTH = 4096  # values of a token, CLIP's beside them included
# Kept per pair, in float32: channels of a latent (mean and log-variance, per side and per mirror
# image of a side), and the values of a caption.
STORED = {
    "sd15": (4, 77 * 768),
    "sd15_inpaint": (4, 77 * 768),
    "sd35m": (16, (77 + T5["sd35m"]) * T5_WIDTH + 2048),
    "sdxl": (4, 77 * 2048 + 1280),
    "sdxl_inpaint": (4, 77 * 2048 + 1280),
    "flux": (16, T5["flux"] * T5_WIDTH + 768),
    "flux_fill": (16, T5["flux_fill"] * T5_WIDTH + 768),
    "z_image": (16, 512 * (2560 + 1)),
    "flux2_klein": (32, 512 * 3 * 2560),  # 128 channels of patches of 2x2
    "qwen_image": (16, 512 * (3584 + 1)),
}
# Channels that are kept of what is around a hole, of the image and its mirror image.
AROUND = {"sd15_inpaint": 1 + 4, "sdxl_inpaint": 1 + 4, "flux_fill": 16 + 64}
UPCAST = {"sdxl_inpaint"}  # whose autoencoder encodes in float32 in either half precision
# Pipelines of `perturb.kind`: parameters, 1e9.
PAINTERS = {name: size.trained + size.text + size.autoencoder for name, size in SIZES.items()} | {
    "text2image": 1.0663,
    "pixart": 5.4600,  # of which there is no family
}
U2NET = 0.044


class Judge(NamedTuple):
    """A reward, or another model that looks at images."""

    parameters: float  # 1e9
    image: float  # GiB per image of a batch
    dtype: DType  # in which that is


CLIP_H, CLIP_L = Judge(0.986, 0.019, "float32"), Judge(0.428, 0.010, "float32")
QWEN = Judge(8.29, 0.19, "bfloat16")
JUDGES = {
    "pickscore": CLIP_H,
    "realism": CLIP_H,
    "hpsv2": CLIP_H,
    "clipscore": CLIP_L,
    "aesthetic": CLIP_L,
    "heads": CLIP_L,
    "imagereward": Judge(0.447, 0.019, "float32"),
    "perception": Judge(2.419, 0.1, "float32"),
    "dinov2": Judge(0.304, 0.010, "float32"),
    "unifiedreward": QWEN,
    "vqascore": QWEN,
    "clip_flant5": Judge(11.46, 0.2, "bfloat16"),
    "hpsv3": QWEN._replace(image=0.125),
    "deqa": Judge(8.20, 0.125, "float16"),
    "photographic": QWEN._replace(parameters=8.77),
}
