"""The page of a run while it goes on: an application that reads the run folder.

It answers GET alone, and only requests whose Host header names the address that it is
bound to: a page of another site whose name was pointed here gets nothing.
"""

import asyncio
import ipaddress
import json
import socket
import time
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from threading import Lock
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from topd_ray.page.assets import page_html
from topd_ray.page.overview import progress
from topd_ray.page.run_page import RunPage
from topd_ray.page.step_blocks import BLOCK_KINDS, BlockKind
from topd_ray.records.open_run import open_run
from topd_ray.records.run_folder import RunFolder

POLL_S = 1.0
"""Seconds between two looks at the folder."""
PING_S = 15.0
"""Longest silence on a stream of events: a reader who has gone is noticed by then."""
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


class LivePage:
    """The page of a run folder; reads it again where its files have changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # One request at a time reads: the page keeps what it has read.
        self._lock = Lock()
        self._page: RunPage | None = None
        self._values: dict[str, Any] = {}
        self._seen: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """Name of the run."""
        return self._path.name

    def changed(self) -> tuple[float, ...]:
        """Return when the files last changed that tell how far the run is."""
        folder = RunFolder(self._path)
        files = (folder.config, folder.metrics, folder.events, folder.summary)
        times = [file.stat().st_mtime if file.is_file() else 0.0 for file in files]
        return (*times, float(open_run(self._path).state == "running"))

    def values(self) -> dict[str, Any]:
        """Return the overview as the folder is now."""
        with self._lock:
            seen = self.changed()
            if self._page is None:
                self._page = RunPage(open_run(self._path))
            elif seen != self._seen:
                self._page.again()
            if seen != self._seen:
                self._values = self._page.values()
            self._seen = seen
            return self._values

    def block(self, kind: BlockKind, step: int) -> bytes | None:
        """Return a block; None where the run has none."""
        self.values()
        with self._lock:
            return None if self._page is None else self._page.blocks.block(kind, step)

    def progress(self) -> dict[str, Any]:
        """Return state, step and seconds left."""
        return progress(open_run(self._path))


def live_app(live: LivePage, *, hosts: Collection[str]) -> Starlette:
    """Return the application of a page; `hosts` are the Host headers that it takes."""

    def page(_: Request) -> Response:
        html = page_html(title=live.name, values=live.values(), blocks={}, is_live=True)
        return HTMLResponse(html, headers=_HEADERS)

    def values(_: Request) -> Response:
        return JSONResponse(live.values(), headers=_HEADERS)

    def block(request: Request) -> Response:
        kind = request.path_params["kind"]
        found = (
            live.block(kind, request.path_params["step"])
            if kind in BLOCK_KINDS
            else None
        )
        if found is None:
            return PlainTextResponse("no such block\n", 404, headers=_HEADERS)
        media_type = "application/octet-stream"
        return Response(found, headers=_HEADERS, media_type=media_type)

    async def events(_: Request) -> Response:
        return StreamingResponse(
            _events(live), headers=_HEADERS, media_type="text/event-stream"
        )

    return Starlette(
        routes=[
            Route("/", page, methods=["GET"]),
            Route("/values.json", values, methods=["GET"]),
            Route("/blocks/{kind}/{step:int}", block, methods=["GET"]),
            Route("/events", events, methods=["GET"]),
        ],
        middleware=[Middleware(HostCheck, hosts=frozenset(hosts))],
    )


async def _events(live: LivePage) -> AsyncIterator[str]:
    """Yield the progress at once and at each change, as server-sent events."""
    seen: tuple[float, ...] = ()
    said_s = time.monotonic()
    while True:
        now = await asyncio.to_thread(live.changed)
        if now != seen:
            seen = now
            said_s = time.monotonic()
            progressed = await asyncio.to_thread(live.progress)
            yield f"data: {json.dumps(progressed)}\n\n"
        elif time.monotonic() - said_s > PING_S:
            said_s = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(POLL_S)


class HostCheck:
    """Refuses requests whose Host header names another address, and other methods."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 421 for another host; pass the request on otherwise."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        named = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
        if not self._takes(named):
            answer = PlainTextResponse("this address is not served here\n", 421)
        elif scope["method"] != "GET":
            answer = PlainTextResponse("GET alone\n", 405, headers={"Allow": "GET"})
        else:
            await self._app(scope, receive, send)
            return
        await answer(scope, receive, send)

    def _takes(self, named: str) -> bool:
        # A literal address needs no name server, so no other site can stand behind it.
        if "*" in self._hosts and _is_literal(named.rpartition(":")[0]):
            return True
        return named in self._hosts


def allowed_hosts(host: str, port: int) -> set[str]:
    """Return the Host headers that mean the bound address.

    `*` among them: any literal address, where all interfaces are bound.
    """
    names = {host}
    if is_loopback(host):
        names |= {"localhost", "127.0.0.1", "::1"}
    elif host in ("0.0.0.0", "::", ""):
        names |= {"localhost", socket.gethostname(), socket.getfqdn()}
    with_port = {f"[{n}]:{port}" if ":" in n else f"{n}:{port}" for n in names}
    if host in ("0.0.0.0", "::", ""):
        with_port.add("*")
    return {name.lower() for name in with_port}


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


__all__ = ["HostCheck", "LivePage", "allowed_hosts", "is_loopback", "live_app"]
