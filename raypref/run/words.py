"""What the commands on a finished run share: how their words are read, and how a run is found."""

from __future__ import annotations

import argparse
import tomllib
from typing import Any, NoReturn

from raypref.core.config import InputError
from raypref.core.layers import PROFILES
from raypref.core.ledger import absolute, join, read_bytes
from raypref.core.messages import without_secrets

DONE = 0


class RunWords(argparse.ArgumentParser):
    """A parser whose complaint is an `InputError`, of one line."""

    def error(self, message: str) -> NoReturn:
        """Complain."""
        raise InputError(f"{message}; see {self.prog} --help")


def find_run(named: str) -> tuple[str, dict[str, Any]]:
    """A run's folder and settings, by its folder or its name; another version may have made it.

    Raises:
        InputError: there is none, or its settings cannot be read.
    """
    places = [absolute(named), *([] if "/" in named else [absolute(join("runs", named))])]
    for folder in places:
        text = read_bytes(join(folder, "config.toml"))
        if text is not None:
            try:
                settings = tomllib.loads(text.decode())
            except ValueError as error:  # no TOML, no text
                raise InputError(f"{join(folder, 'config.toml')}: {error}") from None
            settings.pop(PROFILES, None)  # all settings are there, whatever profile they are of
            return folder, settings
    said = " nor ".join(without_secrets(join(place, "config.toml")) for place in places)
    raise InputError(f"there is no run '{without_secrets(named)}': no {said}")
