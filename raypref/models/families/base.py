"""What a model family is: the classes and facts that one file per family holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from raypref.models.families.conditioning import Conditioning
    from raypref.models.solvers import Solver
    from raypref.models.stochastic import StochasticSolver

Shape = tuple[int, ...]  # of one sample's latents, (C, h, w)
# Of surroundings, [B, K, h, w]: 1 in the hole and 0 around it at the latents' size, [B, 1, h, w].
Hole: TypeAlias = "Callable[[Tensor], Tensor]"


class TextEncoder(Protocol):
    """Captions to conditioning. Run once per caption; results are stored."""

    def text_embeddings(self, prompts: Sequence[str]) -> Conditioning:
        """Captions as the denoiser reads them."""


class Autoencoder(Protocol):
    """Pixels to latents and back. Latents are scaled as the denoiser sees them, [B, C, h, w]."""

    def image_moments(self, images: Sequence[Image.Image]) -> Tensor:
        """Mean and log-variance of the latents, [B, 2, C, h, w]."""

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """RGB in [0, 1], [B, 3, H, W]; the gradient flows to the latents."""


class InpaintingAutoencoder(Autoencoder, Protocol):
    """That of a family that inpaints."""

    def surroundings(self, images: Sequence[Image.Image], masks: Sequence[Image.Image]) -> Tensor:
        """What the network reads of images beside the noisy latents, [B, K, h, w].

        Args:
            images: RGB, all of one size.
            masks: of that size, bright where to paint.
        """


class Denoiser(Protocol):
    """The network that is trained, with its noise process.

    A timestep is a number of the family's own: an index of the training schedule, or a noise level
    in thousandths. Larger is noisier. Latents are images of C channels everywhere: a network that
    reads them packed into tokens packs and unpacks in `predict`.
    """

    module: nn.Module
    component: str  # the part of the pipeline it is, `unet` or `transformer`
    device: torch.device
    dtype: torch.dtype

    def training_timesteps(self, shape: Shape) -> Tensor:
        """The training schedule at this size, ascending, [T]."""

    def draw_timestep(self, generator: torch.Generator, shape: Shape) -> Tensor:
        """One timestep from the training distribution at this size, a scalar on the CPU."""

    def sampling_timesteps(self, steps: int, shape: Shape) -> Tensor:
        """The timesteps of drawing an image of this size in so many steps, descending, [steps]."""

    def solver(self, grid_nB: Tensor) -> Solver:
        """The method the policy is sampled with, on a grid of timesteps, one column per sample."""

    def stochastic_solver(
        self, grid_nB: Tensor, *, eta: float, constant: bool = False, window: range | None = None
    ) -> StochasticSolver:
        """A method whose steps have noise, and so likelihoods, for objectives on paths.

        Args:
            grid_nB: timesteps, as `solver` takes them.
            eta: how much noise, 0 to 1.
            constant: whether a flow's noise is the same at all levels.
            window: steps with noise; None: all but the last, which never has any.
        """

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Noise clean latents to the given timesteps."""

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """What the network should predict there."""

    def predict(self, x_BCHW: Tensor, timesteps_B: Tensor, conditioning: Conditioning) -> Tensor:
        """What it predicts, with the active adapter."""


def under_guidance(denoiser: Denoiser, captioned: Tensor, empty: Tensor, scale: float) -> Tensor:
    """The prediction under classifier-free guidance: empty + scale (captioned - empty).

    A denoiser whose pipeline changes the sum then has a method `rescaled(guided, captioned)`.

    Args:
        denoiser: what predicted.
        captioned: its prediction with captions, [B, C, h, w].
        empty: the same with the empty caption.
        scale: of the guidance; 1: none.
    """
    guided = empty + scale * (captioned - empty)
    rescaled: Callable[[Tensor, Tensor], Tensor] | None = getattr(denoiser, "rescaled", None)
    return guided if rescaled is None else rescaled(guided, captioned)


def text_to_image(prompts: list[str], guidance: float, side: int) -> dict[str, Any]:
    """Arguments of a pipeline's call, as most have them."""
    return {"prompt": prompts, "guidance_scale": guidance, "height": side, "width": side}


def paint_everything(prompts: list[str], guidance: float, side: int) -> dict[str, Any]:
    """Arguments of an inpainting pipeline's call: the mask is the whole picture."""
    from PIL import Image

    count = len(prompts)
    return {
        **text_to_image(prompts, guidance, side),
        "image": [Image.new("RGB", (side, side))] * count,
        "mask_image": [Image.new("L", (side, side), 255)] * count,
    }


def side_unit(autoencoder: Mapping[str, Any], network: Mapping[str, Any]) -> int:
    """Pixels a side of an image has to be a multiple of: those of a latent, times the patch.

    Args:
        autoencoder: what `vae/config.json` says, of an `AutoencoderKL`.
        network: what the network's `config.json` says.
    """
    return int(2 ** (len(autoencoder["block_out_channels"]) - 1) * network.get("patch_size", 1))


@dataclass(frozen=True)
class Family:
    """One model family: each file in this folder holds one as `FAMILY`.

    The three classes are made as `kind(model, variant=..., device=..., dtype=...)`: `model` is
    what `hub.from_pretrained` takes, in diffusers layout, `variant` a file variant or empty. The
    text encoder of a family in `registry.READ_BY_T5` takes `t5_tokens` too.
    """

    text_encoder: type[Any]  # a `TextEncoder`
    autoencoder: type[Any]  # an `Autoencoder`
    denoiser: type[Any]  # a `Denoiser`
    conditioning: type[Conditioning]  # what `text_encoder` makes and `denoiser` reads
    pipeline: str  # diffusers' class of the whole
    network: str  # diffusers' class of what is trained
    channels: int  # that it reads, as `in_channels` of its configuration
    # What else its configuration says that tells the family from others of the same class.
    told_by: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    parts: tuple[str, ...]  # what a checkpoint must have of the pipeline
    # The linear layers a LoRA is usually put on; every network of the family has them.
    targets: tuple[str, ...]
    options: Mapping[str, Any]  # of the pipeline's `hub.from_pretrained`
    # Prompts, guidance scale and side in pixels as the pipeline's arguments for them.
    arguments: Callable[[list[str], float, int], dict[str, Any]] = text_to_image
    side_unit: Callable[[Mapping[str, Any], Mapping[str, Any]], int] = side_unit
    # Of one that inpaints: where `surroundings_BKHW`, which its autoencoder makes, have the hole.
    hole: Hole | None = None

    @property
    def inpaints(self) -> bool:
        """Whether it reads the surroundings of a hole."""
        return self.hole is not None

    @property
    def component(self) -> str:
        """The pipeline's name for what is trained, `unet` or `transformer`."""
        return str(self.denoiser.component)
