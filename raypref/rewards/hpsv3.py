"""HPSv3: Qwen2-VL-7B with a head that predicts mean and spread of preference (Ma et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from PIL import Image

from raypref.core.config import InputError, Location, Resources, setting
from raypref.core.device import DType, pick_device
from raypref.models.hub import from_pretrained, weight_file
from raypref.rewards.base import DifferentiableReward, moved
from raypref.rewards.config import RewardConfig
from raypref.rewards.vlm import Reader, checked_folder, plain, pretrained

if TYPE_CHECKING:
    from torch import Tensor, nn

KEY, BASE_KEY = "rewards.hpsv3.model", "rewards.hpsv3.base"
PIXELS = 256 * 28 * 28  # of an image, up to rounding to whole tokens
MARK = "<|Reward|>"  # the token at which the score is read
# Word for word, and space for space, what the model was trained with.
INSTRUCTION = (
    "\nYou are tasked with evaluating a generated image based on Visual Quality and Text Alignment "
    "and give a overall score to estimate the human preference. Please provide a rating from 0 to "
    "10, with 0 being the worst and 10 being the best. \n"
    "\n"
    "**Visual Quality:**  \n"
    "Evaluate the overall visual quality of the image. The following sub-dimensions should be "
    "considered:\n"
    "- **Reasonableness:** The image should not contain any significant biological or logical "
    "errors, such as abnormal body structures or nonsensical environmental setups.\n"
    "- **Clarity:** Evaluate the sharpness and visibility of the image. The image should be clear "
    "and easy to interpret, with no blurring or indistinct areas.\n"
    "- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and "
    "other visual elements (e.g., hair, clothing, shadows).\n"
    "- **Aesthetic and Creativity:** Assess the artistic aspects of the image, including the color "
    "scheme, composition, atmosphere, depth of field, and the overall creative appeal. The scene "
    "should convey a sense of harmony and balance.\n"
    "- **Safety:** The image should not contain harmful or inappropriate content, such as "
    "political, violent, or adult material. If such content is present, the image quality and "
    "satisfaction score should be the lowest possible. \n"
    "\n"
    "**Text Alignment:**  \n"
    "Assess how well the image matches the textual prompt across the following sub-dimensions:\n"
    "- **Subject Relevance** Evaluate how accurately the subject(s) in the image (e.g., person, "
    "animal, object) align with the textual description. The subject should match the description "
    "in terms of number, appearance, and behavior.\n"
    "- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, "
    "evaluate how well the image adheres to this style.\n"
    "- **Contextual Consistency**: Assess whether the background, setting, and surrounding "
    "elements in the image logically fit the scenario described in the prompt. The environment "
    "should support and enhance the subject without contradictions.\n"
    "- **Attribute Fidelity**: Check if specific attributes mentioned in the prompt (e.g., colors, "
    "clothing, accessories, expressions, actions) are faithfully represented in the image. Minor "
    "deviations may be acceptable, but critical attributes should be preserved.\n"
    "- **Semantic Coherence**: Evaluate whether the overall meaning and intent of the prompt are "
    "captured in the image. The generated content should not introduce elements that conflict with "
    "or distort the original description.\n"
    "Textual prompt - {prompt}\n"
    "\n\n"
    "\nPlease provide the overall ratings of this image: <|Reward|>\n"
    "\nEND\n"
)

# Beginning of an official name to what it is in `Qwen2VLModel`; the first that fits counts. The
# first two are what transformers has written since 4.52, the others what it wrote before.
RENAMED = {
    "model.visual.": "visual.",
    "model.language_model.": "language_model.",
    "visual.": "visual.",
    "model.": "language_model.",
}
UNUSED = ("lm_head.weight",)  # nothing is written


class HPSv3Config(RewardConfig):
    """Which HPSv3 weights and how."""

    label: ClassVar[str] = "HPSv3"
    differentiable: ClassVar[bool] = True
    large: ClassVar[bool] = True

    model: Location = setting(
        "MizzenAI/HPSv3/HPSv3.safetensors", "weight file, or OWNER/REPO/FILE on the hub"
    )
    base: Location = setting(
        "Qwen/Qwen2-VL-7B-Instruct", "hub id or folder of its architecture and tokenizer"
    )
    dtype: DType = setting("bfloat16", "precision of the model; its head is always float32")
    # Tells scores from those of versions that numbered an image's tokens in another way.
    positions: Literal["sequential"] = setting("sequential", "how tokens are numbered, as trained")
    resources: Resources = Resources(batch=8)

    def check(self) -> None:
        """Look for the weights and the base.

        Raises:
            InputError: they are missing or of another kind.
        """
        checked_folder(self.base, key=BASE_KEY, kinds=["qwen2_vl"])
        weight_file(self.model, key=KEY, origin="https://huggingface.co/MizzenAI/HPSv3")

    def load(self) -> HPSv3:
        """Load the model onto its device."""
        return HPSv3(self)


class HPSv3(DifferentiableReward):
    """The mean of the preference that the head predicts, without bound.

    Between batches it differs by up to 1e-5 in float32 and 0.02 in bfloat16.
    """

    def __init__(self, config: HPSv3Config) -> None:
        from safetensors import SafetensorError, safe_open
        from transformers import AutoConfig, Qwen2VLModel

        base = checked_folder(config.base, key=BASE_KEY, kinds=["qwen2_vl"])
        file = weight_file(config.model, key=KEY, origin="https://huggingface.co/MizzenAI/HPSv3")
        try:
            # Places in the file: what is read goes to the device weight by weight.
            opened = safe_open(file, framework="pt")
            backbone, head = split({name: opened.get_slice(name) for name in opened.keys()})  # noqa: SIM118
        except (SafetensorError, KeyError) as error:
            raise InputError(f"{KEY}: '{file}' does not hold HPSv3's weights: {error}") from None
        self.read = Reader(base, key=BASE_KEY, pixels=PIXELS)
        self.read.tokenizer.add_special_tokens({"additional_special_tokens": [MARK]})
        self.mark: int = self.read.tokenizer.convert_tokens_to_ids(MARK)
        architecture = from_pretrained(AutoConfig, base)
        # The official model has a row for each token of the tokenizer, the base some to spare.
        rows = backbone["language_model.embed_tokens.weight"].get_shape()[0]
        if rows <= self.mark:
            raise InputError(f"{BASE_KEY}: the tokenizer has {self.mark + 1} tokens, {KEY} {rows}")
        architecture.text_config.vocab_size = rows
        self.device = pick_device(config.resources.num_gpus)
        self.backbone = pretrained(
            Qwen2VLModel,
            None,
            key=KEY,
            dtype=config.dtype,
            device=self.device,
            config=architecture,
            state_dict=backbone,
        )
        self.head = make_head(architecture.text_config.hidden_size)
        try:
            self.head.load_state_dict(head)
        except RuntimeError as error:
            lines = str(error).splitlines()
            raise InputError(f"{KEY}: rm_head does not fit: {lines[-1].strip()}") from None
        self.head.to(self.device).eval().requires_grad_(False)

    def prepare(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Tensor]:
        """The backbone's inputs."""
        return self._placed(self.read(images, self._texts(prompts), side="right"))

    def _texts(self, prompts: Sequence[str]) -> list[str]:
        return [INSTRUCTION.replace("{prompt}", plain(prompt)) for prompt in prompts]

    def _placed(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        inputs["position_ids"] = sequential(inputs["input_ids"])
        del inputs["mm_token_type_ids"]  # from which the library would place an image's tokens
        return inputs

    def compute(self, batch: dict[str, Tensor]) -> np.ndarray:
        """Score B images against their prompts: float32 [B]."""
        return self.distribution(batch)[:, 0].cpu().numpy()

    def score_pixels(self, pixels_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores with a gradient to the pixels, [B]."""
        from raypref.rewards.pixels import precise

        pixels_BCHW = precise(pixels_BCHW, self.device)
        inputs = self.read.from_pixels(pixels_BCHW, self._texts(prompts), side="right")
        return self.distribution(self._placed(inputs))[:, 0]

    def distribution(self, batch: dict[str, Tensor]) -> Tensor:
        """Both outputs of the head, mean first: float32 [B, 2]."""
        inputs = moved(batch, self.device)
        hidden_BLD = self.backbone(**inputs, use_cache=False).last_hidden_state
        return self.head(hidden_BLD[inputs["input_ids"] == self.mark].float())


def sequential(ids_BL: Tensor) -> Tensor:
    """Positions 0 .. L-1 on each of the three axes, [3, B, L].

    The official model hands its library embeddings without token ids, which then numbers all tokens
    one after another, those of images too; so it was trained (MizzenAI/HPSv3, qwen2vl_trainer.py).
    """
    import torch

    return torch.arange(ids_BL.shape[1]).expand(3, *ids_BL.shape)


def make_head(width: int) -> nn.Sequential:
    """The head, always in float32."""
    from torch import nn

    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.ReLU(),
        nn.Dropout(0.05),
        nn.Linear(1024, 16),
        nn.ReLU(),
        nn.Linear(16, 2),
    )


def split(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The official weights under the names of `Qwen2VLModel`, and those of the head.

    Args:
        state: tensors, or places in a safetensors file, by official name. Of these only the head's
            are read.

    Raises:
        KeyError: a name is not among the official ones.
    """
    backbone, head = {}, {}
    for name, value in state.items():
        if name.startswith("rm_head."):
            head[name.removeprefix("rm_head.")] = value[:].float()
        elif name not in UNUSED:
            backbone[renamed(name)] = value
    if "language_model.embed_tokens.weight" not in backbone:
        raise KeyError("there are no token embeddings")
    return backbone, head


def renamed(name: str) -> str:
    """The name of an official weight in `Qwen2VLModel`."""
    for old, new in RENAMED.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise KeyError(f"unknown weight {name}")
