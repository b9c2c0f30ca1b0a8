"""A stand-in for DeQA's repository: the interface of its model, in code that lies beside weights.

It is the small part that DeQA's code and this share: `forward(input_ids=, images=)` puts image
features where -200 stands and gives logits. It runs with transformers 4.36 and 5 alike.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["<unk>", "<s>", "</s>", "USER", "ASSISTANT", ":", "How", "would", "you", "rate", "the"]
WORDS += ["quality", "of", "this", "image", "?", "The", "is"]
WORDS += ["bad", "poor", "excellent", "fair", "good"]
SIDE, WIDTH = 28, 16
CONFIGURATION = """
from transformers import PretrainedConfig


class MPLUGOwl2Config(PretrainedConfig):
    model_type = "mplug_owl2"
"""
MODEL = """
import torch
from transformers import PreTrainedModel

from .configuration_mplug_owl2 import MPLUGOwl2Config


class MPLUGOwl2LlamaForCausalLM(PreTrainedModel):
    config_class = MPLUGOwl2Config

    def __init__(self, config):
        super().__init__(config)
        self.words = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.eye = torch.nn.Conv2d(3, config.hidden_size, 7, 7)
        self.mixer = torch.nn.GRU(config.hidden_size, config.hidden_size, batch_first=True)
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, input_ids=None, images=None):
        rows = []
        for ids, seen in zip(input_ids, self.eye(images).flatten(2).transpose(1, 2)):
            at = (ids == -200).nonzero()[0, 0]
            rows.append(torch.cat([self.words(ids[:at]), seen, self.words(ids[at + 1 :])]))
        return {"logits": self.lm_head(self.mixer(torch.stack(rows))[0])}
"""


def save_deqa(folder: Path) -> Path:
    """Files as in the repository: configuration, code, weights, tokenizer, image processor."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["MPLUGOwl2LlamaForCausalLM"],
        "model_type": "mplug_owl2",
        "auto_map": {
            "AutoConfig": "configuration_mplug_owl2.MPLUGOwl2Config",
            "AutoModelForCausalLM": "modeling_mplug_owl2.MPLUGOwl2LlamaForCausalLM",
        },
        "hidden_size": WIDTH,
        "vocab_size": len(WORDS),
    }
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": SIDE,
        "size": SIDE,
        "resample": 3,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "configuration_mplug_owl2.py").write_text(CONFIGURATION)
    (folder / "modeling_mplug_owl2.py").write_text(MODEL)
    save_file(_weights(), folder / "model.safetensors", metadata={"format": "pt"})
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    # Transformers 4 does not know the name that 5 gives its class.
    names = json.loads((folder / "tokenizer_config.json").read_text())
    names["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def _weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "words.weight": (len(WORDS), WIDTH),
        "eye.weight": (WIDTH, 3, 7, 7),
        "eye.bias": (WIDTH,),
        "mixer.weight_ih_l0": (3 * WIDTH, WIDTH),
        "mixer.weight_hh_l0": (3 * WIDTH, WIDTH),
        "mixer.bias_ih_l0": (3 * WIDTH,),
        "mixer.bias_hh_l0": (3 * WIDTH,),
        "lm_head.weight": (len(WORDS), WIDTH),
    }
    return {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}
