"""The help of a command, at most 100 columns wide."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from raypref.core.config import InputError, Section
from raypref.core.key_help import WIDTH, brief, describe, found, sections

COMMANDS = """\
usage: raypref COMMAND PRESET|FILE.toml [key=value ...] [--dry-run] [--redo]

Align image diffusion models with preferences, on one machine or a Ray cluster.

Commands:
{commands}

Presets:
  tiny       small embedded models, no network, minutes on a laptop: for a first look at your data
  sd15       Stable Diffusion 1.5 as in the paper: a GPU, weights from the model hub
  sd35m      Stable Diffusion 3.5 Medium as in the paper: a larger GPU
  sdxl       Stable Diffusion XL 1.0 with the settings of Diffusion-DPO: a larger GPU
  flux2_klein  FLUX.2 [klein] 4B, base: a larger GPU
  flux, z_image, qwen_image  FLUX.1-dev, Z-Image, Qwen-Image: a GPU of 80 GB
  fyp_tiny   as tiny, for an inpainting model: pairs of paintings that rewards chose
  fyp_sd15   the same with Stable Diffusion 1.5's inpainter: a GPU
  fyp_flux   the same with FLUX.1 Fill: a GPU of 80 GB

  --version, --help    the version, and the commit in a checkout; after a command, its settings

Examples:
  raypref run tiny                                             # the demo
  raypref run tiny source.path=photos/                         # your photographs
  raypref run tiny pairs.kind=labelled source.path=labels.csv  # columns prompt,chosen,rejected
  raypref run sd15 source.path=photos/ evaluate.prompts=prompts.txt --dry-run

{status}
"""
TEMPLATE = """\
{usage}

{what}

{words}

Settings that people set first:
{first}

Sections of settings ({program} --help SECTION):
{sections}

{status}
"""


class HelpOf(NamedTuple):
    """What the help of a command says."""

    program: str  # how it was called: `raypref run`, `python jobs/curate.py`
    what: str  # one sentence
    arguments: Sequence[str]  # for the usage line
    words: Mapping[str, str]  # what each argument means
    settings: type[Section]
    first: Sequence[str]  # the settings that people set first
    status: str  # what the exit status says


def commands_help(commands: Mapping[str, str], *, status: str) -> str:
    """What commands there are.

    Args:
        commands: name to one sentence.
        status: what the exit status says.
    """
    lines = "\n".join(f"  {name:<11}{what}" for name, what in commands.items())
    return COMMANDS.format(commands=lines, status=status)


def usage_line(about: HelpOf) -> str:
    """How the command is called."""
    return _wrapped(f"usage: {about.program} {' '.join(about.arguments)}", indent=7)


def short_help(about: HelpOf) -> str:
    """Arguments, the first settings, and where the others are told."""
    words = (_wrapped(f"  {word:<11}{meaning}", indent=13) for word, meaning in about.words.items())
    return TEMPLATE.format(
        usage=usage_line(about),
        program=about.program,
        what=about.what,
        words="\n".join(words),
        first="\n".join(brief(about.settings, about.first)),
        sections=_wrapped(f"  {', '.join(sections(about.settings))}", indent=2),
        status=about.status,
    )


def settings_help(settings: type[Section], topic: Sequence[str]) -> str:
    """The settings that words ask for.

    Args:
        settings: all there are.
        topic: `all`, a section, the name of a training, or words to look for.

    Raises:
        InputError: no setting matches.
    """
    told = describe(settings) if [*topic] == ["all"] else found(settings, topic)
    if not told:
        raise InputError(
            f"no setting has '{' '.join(topic)}' in its name or meaning; the sections are "
            f"{', '.join(sections(settings))}"
        )
    head = "Each setting with its type and default, and what it does:"
    return "\n".join([head, "", *(textwrap.indent(text, "  ") for text in told), ""])


def print_to_a_reader(text: str) -> None:
    """Print a text; its reader may stop in the middle, as `head` does."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        # What is still buffered would raise again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _wrapped(text: str, *, indent: int) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False)
