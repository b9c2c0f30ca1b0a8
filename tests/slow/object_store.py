"""A real S3 protocol server that is out of order now and then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from moto.backends import get_backend
from moto.core import DEFAULT_ACCOUNT_ID
from moto.server import DomainDispatcherApplication, create_backend_app
from pyarrow import fs as pafs
from werkzeug.serving import WSGIRequestHandler, make_server

NAME = "lake"
BUCKET = f"s3://{NAME}"
EVERY, BURST = 400, 12  # requests: the store refuses one burst of 12 per 400
REFUSALS = {"503 Slow Down": "SlowDown", "500 Internal Server Error": "InternalError"}
SECRET = "not-for-any-log"


class _Moody:
    """Passes requests on to the store, except for bursts that it refuses with 500 or 503."""

    def __init__(self, store: Callable[..., Iterable[bytes]]) -> None:
        self.store = store
        self.lock = threading.Lock()
        self.seen = self.refused = 0

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self.lock:
            self.seen += 1
            refuse = self.seen > EVERY and self.seen % EVERY < BURST
            self.refused += refuse
            status = [*REFUSALS][self.seen // EVERY % 2]
        if not refuse:
            return self.store(environ, start)
        start(status, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{REFUSALS[status]}</Code></Error>".encode()]


class _Silent(WSGIRequestHandler):
    def log_request(self, *arguments: object) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class ObjectStore:
    """A started server with an empty bucket."""

    variables: dict[str, str]  # of the environment of whoever uses it
    app: _Moody

    def files(self, folder: str) -> list[str]:
        """URIs of all files below a folder of the bucket."""
        fs, root = pafs.FileSystem.from_uri(folder)
        found = fs.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
        return [f"s3://{each.path}" for each in found if each.is_file]

    def names(self) -> list[str]:
        """Names of all files, from the server's own memory: no request, so none is refused."""
        return [*get_backend("s3")[DEFAULT_ACCOUNT_ID]["aws"].buckets[NAME].keys]

    def contents(self) -> Iterator[tuple[str, bytes]]:
        """Names and bytes of all files, from the server's own memory: requests take their time."""
        for key in get_backend("s3")[DEFAULT_ACCOUNT_ID]["aws"].buckets[NAME].keys.values():
            yield key.name, key.value


@contextmanager
def object_store(address: str) -> Iterator[ObjectStore]:
    """Serve on an address of this machine; this process is one of the users."""
    app = _Moody(DomainDispatcherApplication(create_backend_app))
    server = make_server(address, 0, app, threaded=True, request_handler=_Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{address}:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        fs, name = pafs.FileSystem.from_uri(f"{BUCKET}?allow_bucket_creation=true")
        fs.create_dir(name)
        yield ObjectStore(variables, app)
    server.shutdown()
