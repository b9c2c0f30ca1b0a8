"""LoRA weights as others publish and read them: found by path or hub id, in any of four layouts.

* diffusers: `pytorch_lora_weights.safetensors`, keys `unet.*` or `transformer.*`;
* peft: `adapter_model.safetensors` and `adapter_config.json`, keys `base_model.model.*`, as
  Flow-GRPO's for SD-3.5-Medium;
* kohya's and OneTrainer's: `lora_unet_*` or `lora_transformer_*` (`kohya.py`);
* bare: the network's own names, as `down_blocks.*` of diffusers' older training scripts.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from raypref.core.config import InputError
from raypref.core.ledger import absolute, join, read_bytes, write_bytes
from raypref.core.messages import first_line
from raypref.models import kohya
from raypref.models.hub import first_file, hub_id
from raypref.models.lora_config import FILE_NAME, LoraConfig

if TYPE_CHECKING:
    from torch import Tensor

PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
PEFT_PREFIX = "base_model.model."
# With these begin names that are not a network's own.
PREFIXES = (
    *("unet.", "transformer.", "text_encoder", "base_model.", "diffusion_model.", "model."),
    *("lora_unet_", "lora_transformer_", "lora_te"),
)
TEXT = ("text_encoder", "lora_te")
ENDS = (".lora_A.weight", ".lora_B.weight")
METADATA = "lora_adapter_metadata"  # where diffusers says alpha
MAGNITUDE = ".lora_magnitude_vector"  # of a DoRA's layer
# What peft can do that one plain adapter of one rank cannot; each must be off.
PEFT_EXTRAS = ("modules_to_save", "lora_bias")
ONE_LORA = "a training starts from one plain LoRA"


class Found(NamedTuple):
    """LoRA weights that someone trained."""

    values: dict[str, Tensor]  # by peft's key, float32; alpha/rank is folded into B, a DoRA's too
    rank: int  # the highest of a layer; others have zeros up to it
    alpha: float  # of a layer of that rank, as it was trained with
    path: str
    left_out: int = 0  # tensors for text encoders that the file has besides


def read_lora(
    ref: str, *, key: str, component: str, without_text: bool = False, dora: bool = False
) -> Found:
    """Read LoRA weights.

    Args:
        ref: a folder or `.safetensors` file, local or URI; or OWNER/REPO[@REVISION][/FILE].
        key: the setting it comes from, for the error.
        component: the network they belong to, `unet` or `transformer`.
        without_text: leave out weights for text encoders, where there are others; else refuse them.
        dora: take a DoRA too (arXiv 2402.09353): a magnitude per layer besides; else refuse it.

    Raises:
        InputError: not there, another layout, or for another part of the pipeline.
    """
    from diffusers.utils import convert_unet_state_dict_to_peft
    from safetensors import SafetensorError
    from safetensors.torch import load as decode

    path, data, peft = _find(ref, key=key)
    where = f"{key}: {path}"
    try:
        tensors = decode(data)
    except SafetensorError as error:
        raise InputError(f"{where} is not a safetensors file ({error})") from None
    text = [name for name in tensors if name.startswith(TEXT)] if without_text else []
    if len(text) < len(tensors):
        tensors = {name: value for name, value in tensors.items() if name not in {*text}}
    if peft is None and kohya.is_layout(tensors, component):
        return _kohya(tensors, path, key=key)._replace(left_out=len(text))
    named = _named(tensors, component, peft=peft is not None, where=where)
    weights = {n: tensor.float() for n, tensor in named.items() if not n.endswith(".alpha")}
    values = convert_unet_state_dict_to_peft(weights)
    # Scripts of 2023 name the attention's processor, which holds no weights any more.
    values = {name.replace(".processor.", "."): value for name, value in values.items()}
    magnitudes = {
        n: values.pop(n) for n in [*values] if n.removesuffix(".weight").endswith(MAGNITUDE)
    }
    others = [name for name in values if not name.endswith(ENDS)]
    if others:
        raise InputError(f"{where} holds weights such as {others[0]}; {ONE_LORA}")
    if not magnitudes and peft and peft.get("use_dora"):
        raise InputError(f"{where} was made with use_dora and holds no magnitudes; save it again")
    if magnitudes and not dora:
        raise InputError(
            f"{where} is a DoRA, which evaluate.loras alone takes, as it is; trainings, soups and "
            "samples take plain LoRAs"
        )
    ranks = _ranks(values, where=where)
    scaled = {name.partition(MAGNITUDE)[0] for name in magnitudes}
    if scaled and scaled != {*ranks}:
        layer = min(scaled ^ {*ranks})
        raise InputError(f"{where} has no sound A, B and magnitude for {layer}")
    alphas, root = _alphas(data, peft, ranks, component=component, where=where)
    for name in [name for name in named if name.endswith(".alpha")]:
        layer, given = name.removesuffix(".alpha"), named[name]
        if layer not in ranks or given.numel() != 1:
            raise InputError(f"{where} has an alpha that is no layer's: {name}")
        alphas[layer] = float(given)
    for layer, rank in ranks.items():
        up = values[f"{layer}{ENDS[1]}"]
        values[f"{layer}{ENDS[1]}"] = up * (alphas[layer] / (math.sqrt(rank) if root else rank))
    widest = max(ranks, key=lambda layer: ranks[layer])
    values = _of_one_rank(values) | magnitudes
    found = Found(values, ranks[widest], alphas[widest], path, len(text))
    return _finite(found, key=key)


def _ranks(values: dict[str, Tensor], *, where: str) -> dict[str, int]:
    """The rank of each layer; InputError where a layer's A and B do not belong together."""
    layers = {name.rpartition(".lora_")[0] for name in values}
    for layer in sorted(layers):
        down, up = (values.get(f"{layer}{end}") for end in ENDS)
        if down is None or up is None or min(down.dim(), up.dim()) < 2:
            raise InputError(f"{where} has no sound A and B for {layer}")
        if not len(down) or len(down) != up.shape[1]:
            shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
            raise InputError(f"{where} has A and B for {layer} of shapes that differ: {shapes}")
    return {layer: len(values[f"{layer}{ENDS[0]}"]) for layer in sorted(layers)}


def _of_one_rank(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with zeros to the highest rank of a layer.

    Where A and B are both zero no gradient reaches either: a training keeps each layer's own rank.
    """
    from torch.nn.functional import pad

    rank = max(len(value) for name, value in values.items() if name.endswith(ENDS[0]))
    return {
        name: pad(value.movedim(dim, -1), (0, rank - value.shape[dim])).movedim(-1, dim)
        for name, value in values.items()
        for dim in [0 if name.endswith(ENDS[0]) else 1]
    }


def _named(
    tensors: dict[str, Tensor], component: str, *, peft: bool, where: str
) -> dict[str, Tensor]:
    """The tensors by the network's own names."""
    prefix = PEFT_PREFIX if peft else f"{component}."
    if not peft and not any(name.startswith(PREFIXES) for name in tensors):
        prefix = ""
    strange = sorted(name for name in tensors if not name.startswith(prefix))
    if strange or not tensors:
        raise InputError(
            f"{where} holds {strange[0] if strange else 'nothing'}; only weights of the "
            f"{component} are taken, named {prefix}* or {kohya.PREFIXES[component][0]}*"
        )
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _finite(found: Found, *, key: str) -> Found:
    """The weights; InputError where one is none: the first step would diverge, hours later."""
    for name, value in found.values.items():
        if not value.isfinite().all():
            raise InputError(
                f"{key}: {found.path} holds numbers that are not finite, in {name}; take weights "
                "saved before their training diverged"
            )
    return found


def identity(ref: str, *, key: str) -> str:
    """What tells weights from others: their content where it can be read here, else their name."""
    if not Path(ref).expanduser().exists():
        return ref
    return hashlib.sha256(_find(ref, key=key)[1]).hexdigest()


def content(ref: str, *, key: str) -> bytes:
    """The bytes of LoRA weights.

    Raises:
        InputError: there are none.
    """
    return _find(ref, key=key)[1]


def bring_in(ref: str, *, key: str, component: str, folder: str) -> None:
    """Write LoRA weights of any layout as our own, `pytorch_lora_weights.safetensors`.

    Weights for text encoders are left out.
    """
    from raypref.models import lora

    found = read_lora(ref, key=key, component=component, without_text=True)
    # The scale is folded in already: alpha = rank adds none.
    plain = LoraConfig(rank=found.rank, alpha=found.rank)
    lora.save(found.values, plain, folder=folder, component=component)


def pipeline_weights(ref: str, *, key: str, component: str) -> dict[str, Tensor]:
    """LoRA weights, or those of a soup, as a pipeline's `load_lora_weights` takes them.

    Raises:
        InputError: not there, or a layout that is not known.
    """
    from safetensors.torch import load

    from raypref.models.soups import is_soup, read_soup

    if is_soup(ref):
        found = read_soup(ref, key=key, component=component)
        return {f"{component}.{name}": value for name, value in found.items()}
    data = read_bytes(join(ref, FILE_NAME))
    if data is not None and METADATA not in _header(data).get("__metadata__", {}):
        tensors = dict(load(data))
        if any(name.endswith(".dora_scale") for name in tensors):
            raise InputError(
                f"{key}: {join(ref, FILE_NAME)} is a DoRA in kohya's layout, of which diffusers "
                "leaves the magnitudes out; save it in peft's or diffusers' layout"
            )
        return tensors  # the file as it is: diffusers reads its own, whatever else it has
    values = read_lora(ref, key=key, component=component, dora=True).values
    return {f"{component}.{name}": value for name, value in values.items()}


def _header(data: bytes) -> dict[str, Any]:
    """What a safetensors file says of itself."""
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header


def shared_name(run: str, training: str) -> str:
    """Name of the file that is handed on; programs list LoRAs by it."""
    return f"{run.rpartition('/')[2]}-{training}.safetensors"


def write_shared(folder: str, *, name: str, component: str) -> None:
    """Write a run's LoRA once more, in the layout that ComfyUI and others know, as `name`.

    Of a UNet that is kohya's. Of a transformer, SD-3's or FLUX's, ComfyUI knows diffusers' keys,
    which kohya's cannot replace: there one layer makes queries, keys and values, and diffusers does
    not read it.
    The scale alpha/rank is folded into B and alpha is the rank, said or assumed, as in `lora.save`.

    Args:
        folder: holds what `lora.save` wrote.
        name: of the new file, of `shared_name`.
        component: the network it belongs to, `unet` or `transformer`.
    """
    from diffusers.utils import convert_state_dict_to_kohya
    from safetensors.torch import save

    path = join(folder, FILE_NAME)
    found = read_lora(path, key=path, component=component).values
    tensors = {f"{component}.{layer}": value for layer, value in found.items()}
    if component == "unet":
        tensors = convert_state_dict_to_kohya(tensors)
    data = save({n: value.contiguous() for n, value in tensors.items()}, {"format": "pt"})
    write_bytes(join(folder, name), data)


def _kohya(tensors: dict[str, Tensor], path: str, *, key: str) -> Found:
    values: dict[str, Tensor] = {}
    alphas: dict[int, float] = {}
    names = {name.partition(".")[0] for name in tensors}
    for layer in sorted(names):
        down, up = (tensors.get(f"{layer}.lora_{part}.weight") for part in ("down", "up"))
        given = tensors.get(f"{layer}.alpha")
        odd = given is not None and given.numel() != 1
        found = {}
        if not (
            odd or down is None or up is None or min(down.dim(), up.dim()) < 2 or not len(down)
        ):
            rank = len(down)
            alpha = rank if given is None else float(given)
            alphas[rank] = max(alpha, alphas.get(rank, 0.0))
            found = kohya.layers(layer, down.float(), up.float() * (alpha / rank))
        if not found:
            what = f"no sound lora_down, lora_up and alpha for {layer}"
            raise InputError(f"{key}: {path} has {what}; save it again with its own trainer")
        for name, (a, b) in found.items():
            values |= {f"{name}{ENDS[0]}": a, f"{name}{ENDS[1]}": b}
    if len(tensors) > 3 * len(names):
        raise InputError(f"{key}: {path} holds more than plain LoRAs; {ONE_LORA}")
    _ranks(values, where=f"{key}: {path}")
    rank = max(alphas)
    return _finite(Found(_of_one_rank(values), rank, alphas[rank], path), key=key)


def _find(ref: str, *, key: str) -> tuple[str, bytes, dict[str, Any] | None]:
    """Path and content of the weights, and peft's configuration where it is that layout."""
    names = (FILE_NAME, PEFT_WEIGHTS)
    if "://" in ref or Path(ref).expanduser().exists():
        here = absolute(ref if "://" in ref else str(Path(ref).expanduser()))
        paths = [here] if here.endswith(".safetensors") else [join(here, name) for name in names]
        for path in paths:
            data = read_bytes(path)
            if data is not None:
                return path, data, _peft_config(path, key=key)
        whole = ("unet/config.json", "transformer/config.json")
        if any(read_bytes(join(here, name)) is not None for name in whole):
            raise InputError(f"{key}: {ref} holds a whole network, which goes into base.network")
        raise InputError(f"{key}: no LoRA weights in {ref}: neither {names[0]} nor {names[1]}")
    named = hub_id(ref)
    if named is None:
        raise InputError(f"{key}: no folder or file '{ref}', and it is not a hub id (OWNER/REPO)")
    file = first_file(ref, (named.file,) if named.file else names, key=key)
    if file.name == PEFT_WEIGHTS:
        sibling = f"{named.file.rpartition('/')[0]}/{PEFT_CONFIG}".lstrip("/")
        first_file(ref, (sibling,), key=key)
    return str(file), file.read_bytes(), _peft_config(str(file), key=key)


def _peft_config(path: str, *, key: str) -> dict[str, Any] | None:
    folder, _, name = path.rpartition("/")
    if name != PEFT_WEIGHTS:
        return None
    data = read_bytes(join(folder, PEFT_CONFIG))
    if data is None:
        raise InputError(f"{key}: {path} has no {PEFT_CONFIG} beside it, for its alpha")
    try:
        config: dict[str, Any] = dict(json.loads(data))
    except (ValueError, TypeError, RecursionError) as error:
        where = join(folder, PEFT_CONFIG)
        raise InputError(f"{key}: {where} holds no JSON object ({first_line(error)})") from None
    extras = [extra for extra in PEFT_EXTRAS if config.get(extra)]
    if config.get("peft_type") != "LORA" or extras:
        what = ", ".join(extras) or f"peft_type {config.get('peft_type')}"
        raise InputError(f"{key}: {path} was made with {what}; a training starts from a plain LoRA")
    return config


def _alphas(
    data: bytes,
    peft: dict[str, Any] | None,
    ranks: dict[str, int],
    *,
    component: str,
    where: str,
) -> tuple[dict[str, float], bool]:
    """Each layer's alpha, and whether it is divided by the root of the rank."""
    if peft is not None:
        said, default = peft, None
    else:  # what diffusers keeps of peft's configuration; without it, alpha is the rank
        try:
            kept = dict(json.loads(_header(data).get("__metadata__", {}).get(METADATA, "{}")))
        except (ValueError, TypeError, RecursionError):
            raise InputError(f"{where} has metadata that is not a JSON object") from None
        said = {k.removeprefix(f"{component}."): v for k, v in kept.items()}
        default = "rank"
    own = said.get("alpha_pattern") or {}
    if not isinstance(own, dict):
        raise InputError(f"{where} has an alpha_pattern that is no object: {own!r}")
    alphas = {}
    for layer, rank in ranks.items():
        named = next((v for pattern, v in own.items() if _names(pattern, layer)), None)
        alpha = said.get("lora_alpha", rank if default else None) if named is None else named
        if not isinstance(alpha, int | float) or alpha <= 0:
            raise InputError(f"{where} does not say its alpha (lora_alpha is {alpha!r})")
        alphas[layer] = float(alpha)
    return alphas, bool(said.get("use_rslora"))


def _names(pattern: str, layer: str) -> bool:
    """Whether an entry of peft's `alpha_pattern` is for a layer; a pattern is its name or end."""
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})", layer) is not None
    except re.error:
        return False
