"""Libraries that are installed for one setting alone, as extras of the package."""

from __future__ import annotations

from importlib.util import find_spec

from raypref.core.errors import InputError


def require_library(name: str, *, setting: str, extra: str) -> None:
    """See that an optional library is installed, without importing it.

    Args:
        name: of the library, as it is imported.
        setting: what needs it, as `base.quantise=nf4`.
        extra: of the package that installs it.

    Raises:
        InputError: it is not.
    """
    if find_spec(name) is None:
        raise InputError(
            f"{setting}: {name} is not installed; pip install 'raypref[{extra}]' on every machine "
            "of the cluster, or leave the setting out"
        )
