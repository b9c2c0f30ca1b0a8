"""One repository's upload to the model hub: what it holds, sending it, what went wrong."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pyarrow import fs as pafs

from raypref.core.config import InputError
from raypref.core.ledger import filesystem
from raypref.core.messages import first_line

HUB_CARD = "README.md"


class Upload(NamedTuple):
    """What goes into one repository."""

    kind: str  # as the hub calls it: "dataset" or "model"
    repo: str
    card: str
    files: Mapping[str, str]  # besides the card: name in the repository -> path, local or URI

    @property
    def address(self) -> str:
        """Of the repository below the hub's own."""
        return f"datasets/{self.repo}" if self.kind == "dataset" else self.repo


class PushFailed(Exception):  # noqa: N818 - it reads as what happened
    """The hub refused or could not be reached; the message is one line."""


def send(upload: Upload, *, public: bool) -> str:
    """Push one repository; returns its address.

    Raises:
        InputError: it is there with another visibility than was asked for.
        PushFailed: the hub refused or could not be reached.
    """
    import huggingface_hub as hub

    api, repo, kind = hub.HfApi(), upload.repo, upload.kind
    try:
        api.create_repo(repo, repo_type=kind, private=not public, exist_ok=True)
        # A repository that was there keeps its visibility.
        if bool(api.repo_info(repo, repo_type=kind).private) == public:
            there, fix = ("private", "leave --public out") if public else ("public", "say --public")
            raise InputError(
                f"{upload.kind} {upload.repo} is there and {there}; {fix}, or take another --repo"
            )
        with staged(upload) as folder:
            api.upload_folder(
                repo_id=repo,
                repo_type=kind,
                folder_path=folder,
                commit_message="Push with raypref",
                # Of an earlier push with more pairs none may stay.
                delete_patterns="part-*.parquet" if upload.kind == "dataset" else None,
            )
    except InputError:
        raise
    except Exception as error:  # the library's own, its transports' and those of a server's answer
        raise PushFailed(_explained(error, upload)) from error
    return f"{api.endpoint}/{upload.address}"


@contextmanager
def staged(upload: Upload) -> Iterator[Path]:
    """The files under their names in the repository: links where they are local, else copies."""
    with tempfile.TemporaryDirectory(prefix="raypref-push-") as folder:
        for name, path in upload.files.items():
            fs, inside = filesystem(path)
            if isinstance(fs, pafs.LocalFileSystem):
                Path(folder, name).symlink_to(inside)
            else:
                pafs.copy_files(inside, str(Path(folder, name)), fs, pafs.LocalFileSystem())
        Path(folder, HUB_CARD).write_text(upload.card, encoding="utf-8")
        yield Path(folder)


def _explained(error: BaseException, upload: Upload) -> str:
    """What went wrong at the hub, in one line and without the token."""
    import huggingface_hub as hub
    from huggingface_hub.errors import HfHubHTTPError

    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    what = f"{upload.kind} {upload.repo}"
    answer = next((e for e in chain if isinstance(e, HfHubHTTPError)), None)
    if answer is None:
        line = f"{what}: the hub cannot be reached or broke off ({first_line(error)})"
        return _without_token(f"{line}; run the same command again", hub.get_token())
    status = answer.response.status_code
    said = _without_token((answer.server_message or "").splitlines()[:1], hub.get_token())
    fixes = {
        401: "it does not know the token; `hf auth login` keeps a new one, or set HF_TOKEN",
        403: "the token may not write there; it needs the write role, or take --repo of your own",
        409: "another commit came in between; run the same command again",
        412: "another commit came in between; run the same command again",
    }
    fix = fixes.get(status, "run the same command again" if status >= 500 else "")
    return "; ".join(filter(None, [f"{what}: the hub answered {status}", said, fix]))


def _without_token(said: str | list[str], token: str | None) -> str:
    text = said if isinstance(said, str) else "".join(said)
    return text.replace(token, "***") if token else text
