"""One job at a time in a run's folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pyarrow import fs as pafs

from raypref.core.config import InputError
from raypref.core.ledger import filesystem
from raypref.core.messages import first_line, without_secrets

log = logging.getLogger(__name__)

LOCK = "job.lock"  # released by the system when the job's process ends, however it ends


@contextmanager
def only_job_in(folder: str) -> Iterator[None]:
    """Hold a run's folder. An object store has no locks: there it is only made.

    Args:
        folder: local path or URI; made where it is missing.

    Raises:
        InputError: another job holds it, or it cannot be written.
    """
    fs, path = filesystem(folder)
    lock = FileLock(Path(path, LOCK))
    try:
        fs.create_dir(path, recursive=True)
        if isinstance(fs, pafs.LocalFileSystem):
            lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{without_secrets(folder)} is in use by another job; wait for it, or take another "
            "name with run=NAME"
        ) from None
    except NotImplementedError:
        where = without_secrets(folder)
        log.warning("%s: the file system has no locks; start one job at a time there", where)
    except OSError as error:
        where = without_secrets(folder)
        raise InputError(f"storage: {where} cannot be written ({first_line(error)})") from None
    try:
        yield
    finally:
        lock.release()
