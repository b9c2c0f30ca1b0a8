"""Serves a study: one page, its images, and votes that are on the disk before they are answered.

Every address begins with the study's token; everything else is not found. No address, file or
answer holds the name of a model.
"""

from __future__ import annotations

import ipaddress
import json
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from raypref.core.config import InputError
from raypref.study.config import ServeConfig
from raypref.study.folder import Study
from raypref.study.page import policy, served_page
from raypref.study.votes import Refused, VoteStore, checked, code_of, now

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MOST_BYTES = 4096  # of what a page sends
MOST_KEYS = 10_000  # raters and addresses that rates are known of
BURST_SECONDS = 5.0  # of the rate that may come at once
CONNECTIONS = 512
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "X-Robots-Tag": "noindex, nofollow",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
Doing = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]


class RateLimit:
    """A bucket per key that fills at a rate; what finds it empty has to wait.

    Args:
        rate: per second.
        clock: seconds, rising.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self.most = max(1.0, rate * BURST_SECONDS)
        self.clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, key: str) -> float:
        """Seconds to wait; 0 where it may go on, which is then counted."""
        when = self.clock()
        left, before = self._left.pop(key, (self.most, when))
        left = min(self.most, left + (when - before) * self.rate)
        short = max(0.0, 1.0 - left)
        self._left[key] = (left if short else left - 1.0, when)
        while len(self._left) > MOST_KEYS:
            self._left.popitem(last=False)
        return short / self.rate


def study_app(study: Study, store: VoteStore, *, rate: float) -> Starlette:
    """The application.

    Args:
        study: what is asked.
        store: where votes go.
        rate: votes per second of one rater; ten times that of all else of one address.
    """
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse
    from starlette.routing import Route

    html = served_page(study)
    headers = HEADERS | {"Content-Security-Policy": policy(served=True)}
    images = {side.image: study.image(side.image) for i in study.items.values() for side in i.sides}
    raters, addresses = RateLimit(rate), RateLimit(10 * rate)

    def refused(status: int, why: str, wait: float = 0.0) -> Response:
        more = {"Retry-After": str(int(wait) + 1)} if wait else {}
        return JSONResponse({"error": why}, status, more)

    def known(request: Request) -> bool:
        given = request.path_params["token"].encode()
        return secrets.compare_digest(given, study.token.encode())

    async def page(request: Request) -> Response:
        return HTMLResponse(html) if known(request) else not_found()

    def not_found() -> Response:
        return PlainTextResponse("Not found. The address of a study is longer.\n", 404)

    async def image(request: Request) -> Response:
        path = images.get(request.path_params["name"].removesuffix(".webp"))
        if path is None or not known(request):
            return not_found()
        return FileResponse(path, media_type="image/webp", stat_result=None)

    def posted(doing: Doing) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            if not known(request):
                return not_found()
            if request.headers.get("content-type", "").partition(";")[0] != "application/json":
                return refused(415, "send application/json")
            body = b""
            async for chunk in request.stream():
                body += chunk
                if len(body) > MOST_BYTES:
                    return refused(413, f"more than {MOST_BYTES} bytes")
            try:
                told = json.loads(body)
                if not isinstance(told, dict):
                    raise Refused("send a JSON object")
                if wait := raters.wait(code_of(told)):
                    return refused(429, "too many requests of this rater", wait)
                status, content = await run_in_threadpool(doing, told)
            except Refused as error:
                return refused(400, str(error))
            except (ValueError, RecursionError):  # no JSON, no text
                return refused(400, "send JSON")
            return JSONResponse(content, status)

        return answer

    def start(told: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        rater = code_of(told)
        tasks = [asked._asdict() for asked in study.order(rater)]
        return 200, {"tasks": tasks, "answers": answers(rater)}

    def vote(told: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        cast = checked(told, study, time=now())
        kept = store.cast(cast)
        # The one that stands is told where it is another: the page was open twice.
        return (
            (200, {"kept": kept})
            if kept == "stored"
            else (
                409,
                {"kept": kept, "answers": answers(cast.rater)},
            )
        )

    def undo(told: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        rater, own = code_of(told), told.get("id")
        if not isinstance(own, str) or not store.undo(rater, own):
            return 404, {"error": "no such vote"}
        return 200, {"answers": answers(rater)}

    def answers(rater: str) -> list[dict[str, str]]:
        votes = store.of_rater(rater).values()
        return [{"task": v.task, "choice": v.choice, "id": v.id} for v in votes]

    class Guard:
        """Counts requests per address, and adds the headers that every answer has."""

        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await self.app(scope, receive, send)
                return

            async def with_headers(message: Any) -> None:
                if message["type"] == "http.response.start":
                    own = [*message.get("headers", [])]
                    own = [each for each in own if each[0] not in (b"etag", b"last-modified")]
                    own += [(n.lower().encode(), v.encode()) for n, v in headers.items()]
                    message = {**message, "headers": own}
                await send(message)

            address = (scope.get("client") or ("",))[0]
            if wait := addresses.wait(address):
                answer = refused(429, "too many requests of this address", wait)
                await answer(scope, receive, with_headers)
                return
            await self.app(scope, receive, with_headers)

    async def to_page(request: Request) -> Response:
        from starlette.responses import RedirectResponse

        return RedirectResponse(f"/{study.token}/", 307) if known(request) else not_found()

    async def missing(request: Request, error: Exception) -> Response:
        return not_found()

    routes = [
        Route("/{token}", to_page),
        Route("/{token}/", page),
        Route("/{token}/images/{name}", image),
        Route("/{token}/start", posted(start), methods=["POST"]),
        Route("/{token}/vote", posted(vote), methods=["POST"]),
        Route("/{token}/undo", posted(undo), methods=["POST"]),
    ]
    app = Starlette(
        routes=routes, middleware=[Middleware(Guard)], exception_handlers={404: missing}
    )
    app.router.redirect_slashes = False
    return app


def serve_study(study: Study, config: ServeConfig, *, say: Callable[[str], None]) -> None:
    """Serve until the process is told to end.

    Args:
        study: what is asked.
        config: address and rates.
        say: is told the study's address, and what it exposes.

    Raises:
        InputError: the server's libraries are missing, or the address cannot be had.
    """
    try:
        import starlette.applications  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise InputError(
            f"a study is served with starlette and uvicorn ({error}): pip install "
            "'raypref[study]'; raypref study make ... static=true makes a page without a server"
        ) from None
    try:
        listening = socket.create_server(
            (config.host, config.port),
            family=socket.AF_INET6 if ":" in config.host else socket.AF_INET,
            backlog=CONNECTIONS,
        )
    except OSError as error:
        said = f"{config.host}:{config.port} cannot be had ({error.strerror or error})"
        raise InputError(f"{said}; port=0 takes a free port") from None
    store = VoteStore(study.folder)
    host = f"[{config.host}]" if ":" in config.host else config.host
    port = listening.getsockname()[1]
    say(f"Study: http://{host}:{port}/{study.token}/")
    say(exposure(config.host, port))
    settings = uvicorn.Config(
        study_app(study, store, rate=config.rate),
        log_level="warning",
        access_log=False,  # it would hold the token
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=16_384,
        lifespan="off",
    )
    try:
        with suppress(KeyboardInterrupt):
            uvicorn.Server(settings).run(sockets=[listening])
    finally:
        store.close()


def exposure(host: str, port: int) -> str:
    """Who can reach what, for the person who starts the server."""
    with suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return "Only this machine reaches it. Ctrl+C ends it; votes are kept."
    if host == "localhost":
        return "Only this machine reaches it. Ctrl+C ends it; votes are kept."
    return (
        f"Everybody who reaches port {port} of this machine at {host} and has the whole address "
        "sees prompts and images and can vote under any code. Nothing is encrypted: for raters "
        "outside your network put a proxy with HTTPS before it, or a tunnel. Ctrl+C ends it."
    )
