"""`raypref push`: a run's pairs and LoRA to the model hub, each with its card.

The command shows what goes before it goes, and asks. Uploads are `huggingface_hub`'s own: they
resume, and what the hub has is not sent again.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from raypref.align import plan
from raypref.core.config import InputError, build
from raypref.core.ledger import Ledger, filesystem, join, read_bytes
from raypref.core.messages import without_secrets
from raypref.curate.cards import CARD
from raypref.models.lora_config import FILE_NAME
from raypref.models.lora_formats import shared_name
from raypref.models.network import COMPONENTS, CONFIG, WEIGHTS
from raypref.pairs.config import TWINS
from raypref.pairs.kinds import KINDS
from raypref.pairs.maker import Kind
from raypref.run.config import RunConfig
from raypref.run.upload import HUB_CARD, PushFailed, Upload, send
from raypref.run.words import DONE, RunWords, find_run

PAIRS, LORA, BOTH = "pairs", "lora", "both"
UNKNOWN = "other"  # what `source.license` says where nobody said anything
FAILED = 1


def push(words: Sequence[str], program: str) -> int:
    """Do what a command line says; returns the exit status.

    Args:
        words: after the command.
        program: how it was called, for the help text.

    Raises:
        InputError: wrong words, or nothing to push; says the fix.
    """
    parser = _arguments(program)
    if {"--help", "-h"} & {*words}:
        print(parser.format_help(), end="")
        return DONE
    given = parser.parse_args(words)
    folder, settings = find_run(given.run)
    kind = _kind(settings)
    licence = given.license or settings.get("source", {}).get("license", UNKNOWN)
    if not given.license and licence == UNKNOWN:
        raise InputError(
            f"the licence of the {kind.terms.images} is not known, and others may read what is "
            "pushed; say it with --license as the hub spells it (cc-by-4.0; other where its list "
            "has none)"
        )
    uploads = collect(folder, settings, what=given.what, repo=given.repo, licence=licence)
    print(described(folder, uploads, public=given.public, licence=licence, kind=kind))
    if given.dry_run:
        return DONE
    _require_token()
    if not given.yes and not _agreed():
        print("nothing was pushed")
        return FAILED
    try:
        for upload in uploads:
            print(f"Pushed: {send(upload, public=given.public)}", flush=True)
    except PushFailed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return FAILED
    return DONE


def _arguments(program: str) -> RunWords:
    parser = RunWords(
        prog=program,
        allow_abbrev=False,
        description="Upload a run's pairs (a dataset) and LoRA (a model) to the Hugging Face hub, "
        "with their cards. What goes is shown first, and asked about.",
        epilog="The token is that of `hf auth login`, or HF_TOKEN; HF_ENDPOINT names another hub. "
        "Exit status: 0 done, 2 wrong words or nothing to push, 1 refused by you or the hub.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="folder or URI of a run, or the name of one below runs/")
    add("--repo", metavar="OWNER/NAME", required=True, type=_repo, help="of both repositories")
    add("--what", choices=(PAIRS, LORA, BOTH), default=BOTH, help="default: both")
    add("--public", action="store_true", help="for everybody; private otherwise")
    add("--license", metavar="LICENCE", type=_licence, help="of the photographs, or the images")
    add("--yes", action="store_true", help="do not ask")
    add("--dry-run", action="store_true", help="show what would go, then stop")
    return parser


def _repo(text: str) -> str:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"'{text}' is not OWNER/NAME")
    return text


def _licence(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9.-]+", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not spelled as on the hub, as cc-by-4.0")
    return text


def _kind(settings: Mapping[str, Any]) -> Kind:
    """Of the pairs of a run, which another version may have made."""
    return KINDS.get(settings.get("pairs", {}).get("kind", TWINS), KINDS[TWINS])


def collect(
    folder: str, settings: Mapping[str, Any], *, what: str, repo: str, licence: str
) -> list[Upload]:
    """What of a run goes where: the pairs first.

    Args:
        folder: the run's.
        settings: its own.
        what: `pairs`, `lora` or `both`.
        repo: OWNER/NAME; a dataset and a model may share it.
        licence: of the photographs or labelled images, for the cards.

    Raises:
        InputError: something is not made yet; says what to run.
    """
    uploads = []
    if what != LORA:
        uploads.append(_pairs(folder, repo, licence))
    if what != PAIRS:
        uploads.append(_lora(folder, settings, repo, licence, with_pairs=what == BOTH))
    return uploads


def _pairs(folder: str, repo: str, licence: str) -> Upload:
    from huggingface_hub import DatasetCard

    ledger = Ledger(join(folder, "pairs"), {})
    if not ledger.committed():
        raise InputError(f"{ledger.path} is not complete; `raypref curate` finishes it")
    text = _read(ledger.path, (CARD, HUB_CARD), fix="`raypref curate` with run=NEW writes one")
    card = DatasetCard(text, ignore_metadata_errors=True)
    card.data["license"] = licence
    return Upload("dataset", repo, str(card), {n: join(ledger.path, n) for n in ledger.parts()})


def _lora(
    folder: str, settings: Mapping[str, Any], repo: str, licence: str, *, with_pairs: bool
) -> Upload:
    from huggingface_hub import ModelCard

    try:
        config = build(RunConfig, settings)
    except InputError as error:
        raise InputError(f"{join(folder, 'config.toml')}: {error}") from None
    final = plan.final(plan.in_order(config.trainings, config.train))
    ledger = Ledger(join(folder, final), {})
    if not final or not ledger.committed():
        raise InputError(
            f"{join(folder, final or 'a training')} is not complete; `raypref align` finishes it, "
            "--what=pairs leaves the LoRA out"
        )
    fix = f"`raypref run {join(folder, 'config.toml')}` writes one"
    text = _read(ledger.path, (HUB_CARD,), fix=fix)
    for call in ("load_lora_weights", "from_pretrained"):  # of a LoRA, of a whole network
        text = text.replace(f'{call}("."', f'{call}("{repo}"')
    said = rf"\1: {licence}."
    text = re.sub(r"^(Licence of the \w+): .*$", said, text, flags=re.MULTILINE)
    card = ModelCard(text, ignore_metadata_errors=True)
    if with_pairs:
        card.data["datasets"] = [repo]
    fs, root = filesystem(ledger.path)
    whole = [f"{part}/{name}" for part in COMPONENTS for name in (CONFIG, WEIGHTS)]
    named = (FILE_NAME, shared_name(config.run, final), *whole)
    files = [name for name in named if fs.get_file_info(f"{root}/{name}").is_file]
    return Upload("model", repo, str(card), {name: join(ledger.path, name) for name in files})


def _read(folder: str, names: Sequence[str], *, fix: str) -> str:
    for name in names:
        if (data := read_bytes(join(folder, name))) is not None:
            return data.decode()
    raise InputError(f"{folder} has no card; {fix}")


def described(
    folder: str, uploads: Sequence[Upload], *, public: bool, licence: str, kind: Kind
) -> str:
    """What goes, for a person to agree to: repositories, files, bytes, who may read it."""
    import huggingface_hub as hub

    seen = "public, everybody may read it" if public else "private"
    lines = [f"From {without_secrets(folder)} to {hub.HfApi().endpoint}:"]
    for upload in uploads:
        sizes = {HUB_CARD: len(upload.card.encode())}
        for name, path in upload.files.items():
            fs, inside = filesystem(path)
            sizes[name] = fs.get_file_info(inside).size
        total = _bytes(sum(sizes.values()))
        lines.append(f"\n{upload.kind} {upload.repo} ({seen}): {len(sizes)} files, {total}")
        lines += [f"  {name:<40} {_bytes(count):>10}" for name, count in sizes.items()]
    lines.append(f"\nLicence of the {kind.terms.images}: {licence}")
    if any(upload.kind == "dataset" for upload in uploads):
        lines.append(f"The pairs hold {kind.terms.hold}.")
    return "\n".join(lines)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _require_token() -> None:
    """InputError where nothing could be sent, before anybody is asked."""
    import huggingface_hub as hub

    if hub.is_offline_mode():
        raise InputError("HF_HUB_OFFLINE is set; unset it to push")
    if hub.get_token() is None:
        raise InputError(
            "there is no token for the hub; `hf auth login` keeps one, or set HF_TOKEN"
        )


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise InputError("nobody can be asked here, it is no terminal; --yes pushes without asking")
    return input("Push? [y/N] ").strip().lower() in ("y", "yes")
