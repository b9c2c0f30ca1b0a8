"""Loads foreign weights into transformers' models, and says in one line why they do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypref.core.config import InputError
from raypref.models.hub import from_pretrained

if TYPE_CHECKING:
    from torch import Tensor, nn

SHOWN = 3  # names of an error line; a wrong file misses hundreds


def load_part(kind: Any, source: str, *, key: str) -> Any:
    """An image processor, tokenizer or configuration by `from_pretrained`.

    Raises:
        InputError: the folder or hub id does not have it.
    """
    try:
        return from_pretrained(kind, source)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _unusable(key, source, f"no {kind.__name__} in it", error) from None


def require_vocabulary(tokenizer: Any, size: int, *, key: str, source: str) -> None:
    """A folder without a vocabulary makes an all but empty tokenizer, which maps all words to one.

    Raises:
        InputError: the tokenizer is not that of a model with `size` tokens.
    """
    if len(tokenizer) != size:
        raise InputError(
            f"{key}: the tokenizer of '{source}' has {len(tokenizer)} tokens, the model {size}; "
            "is a file of the tokenizer missing?"
        )


def load_folder(kind: Any, source: str, *, key: str) -> Any:
    """A whole model by `from_pretrained`, float32; nothing is left at random values.

    Raises:
        InputError: no weights, damaged ones, or those of another model.
    """
    import torch
    from safetensors import SafetensorError

    try:
        # Mismatched sizes are reported by name below, with all else that is wrong.
        model, found = from_pretrained(
            kind,
            source,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unusable(key, source, f"no {kind.__name__} in it", error) from None
    _require_all(found, key=key, source=source, origin=f"a {kind.__name__}")
    return model


def load_state(
    kind: Any,
    config: Any,
    state: dict[str, Tensor],
    *,
    key: str,
    path: Path,
    origin: str,
    **kwargs: Any,
) -> Any:
    """A model from a state dict that already has transformers' names, float32.

    Raises:
        InputError: a shape is not that of the configuration.
    """
    import torch

    model, found = from_pretrained(
        kind,
        None,
        config=config,
        state_dict=state,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **kwargs,
    )
    _require_all(found, key=key, source=str(path), origin=origin)
    return model


def read_state(path: Path, *, key: str, origin: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU, without executing pickled code.

    Args:
        path: `.safetensors`, or what `torch.save` wrote: a state dict, or a training checkpoint
            that keeps one under `state_dict` or `weights`.
        key: the configuration key the path came from, for the error.
        origin: which file is expected, for the error.

    Raises:
        InputError: the file is damaged or holds something else.
    """
    import torch
    from safetensors.torch import load_file

    try:  # foreign bytes: the unpickler raises whatever they make it raise, and runs no code
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _unusable(key, str(path), f"not {origin}", error) from None
    for name in ("state_dict", "weights"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(f"{key}: '{path}' is not {origin}: it is no dict of tensors")
    return state


def require_names(
    state: Mapping[str, Tensor], expected: Iterable[str], *, key: str, path: Path, origin: str
) -> None:
    """Nothing missing, nothing left over.

    Raises:
        InputError: names what is, the first few of each.
    """
    expected = dict.fromkeys(expected)  # in their order
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        raise _misfit(key, str(path), origin, missing=missing, unexpected=unexpected)


def require_shapes(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Sequence[int]],
    *,
    key: str,
    path: Path,
    origin: str,
) -> None:
    """Every tensor as large as it must be; the names are those expected.

    Raises:
        InputError: names those that are not, the first few.
    """
    wrong = [
        f"{name} {list(state[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if list(state[name].shape) != list(shape)
    ]
    if wrong:
        raise _misfit(key, str(path), origin, mismatched=wrong)


def linear_layers(
    state: Mapping[str, Tensor],
    names: Iterable[str],
    *,
    width: int | None = None,
    key: str,
    path: Path,
    origin: str,
) -> nn.Sequential:
    """Linear layers one after another, float32: [B, width] to [B, 1].

    Args:
        state: has NAME.weight and NAME.bias of each.
        names: in the order of their use.
        width: of the input; None takes that of the first layer.
        key: the configuration key the path came from, for the error.
        path: where the tensors were read, for the error.
        origin: which file is expected, for the error.

    Raises:
        InputError: a layer does not fit the one before it, or the last has more than one output.
    """
    from torch import nn

    layers = []
    for name in names:
        weight, bias = state[f"{name}.weight"].float(), state[f"{name}.bias"].float()
        inside = weight.shape[-1] if width is None else width
        if weight.shape != (len(bias), inside):
            wrong = [f"{name}.weight {list(weight.shape)} instead of {[len(bias), inside]}"]
            raise _misfit(key, str(path), origin, mismatched=wrong)
        layer = nn.Linear(inside, len(bias), device="meta")
        layer.load_state_dict({"weight": weight, "bias": bias}, assign=True)
        layers.append(layer.requires_grad_(False))
        width = len(bias)
    if width != 1:
        raise _misfit(key, str(path), origin, mismatched=[f"{width} outputs instead of 1"])
    return nn.Sequential(*layers)


def _require_all(found: Mapping[str, Any], *, key: str, source: str, origin: str) -> None:
    missing = sorted(found["missing_keys"])
    mismatched = [
        f"{name} {list(is_)} instead of {list(must)}"
        for name, is_, must in sorted(found["mismatched_keys"])
    ]
    # Old checkpoints carry buffers that a model no longer has: left over is not wrong here.
    if missing or mismatched:
        raise _misfit(key, source, origin, missing=missing, mismatched=mismatched)


def _misfit(key: str, source: str, origin: str, **wrong: list[str]) -> InputError:
    parts = []
    for what, names in wrong.items():
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            parts.append(f"{what}: {', '.join(names[:SHOWN])}{more}")
    return InputError(
        f"{key}: '{source}' does not have the weights of {origin} ({'; '.join(parts)})"
    )


def _unusable(key: str, source: str, what: str, error: Exception) -> InputError:
    text = " ".join(str(error).split())[:160]
    return InputError(f"{key}: '{source}': {what} ({type(error).__name__}: {text})")
