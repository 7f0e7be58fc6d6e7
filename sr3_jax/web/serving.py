"""Serves a page to browsers: on this machine alone, or with a password to others."""

from __future__ import annotations

import base64
import contextlib
import hmac
import pathlib
import re
import secrets
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import uvicorn
from starlette import types
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

PAGES = pathlib.Path(__file__).parent / "pages"
# A page of another site cannot send this header without being asked for leave, which it never gets.
OWN_HEADER = "x-sr3"
# All that a page uses comes from its own server.
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_SECONDS_TO_END = 3  # that open connections have when the server is asked to end


class Guard:
    """Lets in what is meant to come in, and adds headers to all answers.

    A page for this machine alone answers browsers that ask for it by a name of the machine itself,
    so that no other site's name can be pointed here. Requests that change something need
    `OWN_HEADER`.

    Attributes:
      app: the application behind it.
      is_local: whether the page is for this machine alone.
      password: what browsers are asked for, with any user name; empty: nothing.
    """

    def __init__(self, app: types.ASGIApp, *, is_local: bool, password: str = "") -> None:
        self.app, self._is_local, self._password = app, is_local, password

    async def __call__(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)

        async def send_guarded(message: types.Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if refusal := self._refusal(scope["method"], headers):
            await refusal(scope, receive, send_guarded)
        else:
            await self.app(scope, receive, send_guarded)

    def _refusal(self, method: str, headers: Headers) -> PlainTextResponse | None:
        name = re.sub(r":\d+$", "", headers.get("host", ""))
        if self._is_local and name not in _LOOPBACK:
            return PlainTextResponse("this page is for browsers on its own machine\n", 403)
        if self._password and not _knows(headers.get("authorization", ""), self._password):
            asks = {"www-authenticate": 'Basic realm="sr3_jax", charset="UTF-8"'}
            return PlainTextResponse("the password is missing or wrong\n", 401, asks)
        if method not in ("GET", "HEAD") and OWN_HEADER not in headers:
            return PlainTextResponse("this request did not come from the page\n", 403)
        return None


def _knows(authorization: str, password: str) -> bool:
    kind, _, encoded = authorization.partition(" ")
    try:
        given = base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except ValueError:
        return False
    return kind.lower() == "basic" and hmac.compare_digest(given.encode(), password.encode())


class Address(NamedTuple):
    """Where a page is served.

    Attributes:
      port: its port; 0: a free one.
      listen: whether other machines may ask for it.
      password: what they are asked for; empty: one is made where `listen` is set.
    """

    port: int = 0
    listen: bool = False
    password: str = ""


@contextlib.contextmanager
def listening(address: Address) -> Iterator[socket.socket]:
    """Opens the socket of an address, before anything slow is begun.

    Raises:
      ValueError: another program has the port.
    """
    host = "0.0.0.0" if address.listen else "127.0.0.1"
    with socket.socket() as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((host, address.port))
        except OSError as error:
            raise ValueError(
                f"--port={address.port} cannot be opened ({error.strerror}); give another, or 0 "
                "for a free one"
            ) from error
        opened.listen()  # from here on browsers wait instead of being refused
        yield opened


def serve(
    app: types.ASGIApp,
    opened: socket.socket,
    address: Address,
    *,
    has_password: bool = True,
    on_exit: Callable[[], None] = lambda: None,
) -> None:
    """Serves until Ctrl-C or SIGTERM, and prints where.

    Args:
      app: the application.
      opened: the socket of `listening`.
      address: whose it is.
      has_password: whether other machines are asked for a password.
      on_exit: called once the server is asked to end, before it waits for open connections.
    """
    password = address.password
    if has_password and address.listen and not password:
        password = secrets.token_urlsafe(9)
    port = opened.getsockname()[1]
    print(f"The page: http://127.0.0.1:{port}/", flush=True)
    if address.listen:
        asks = f" with the password {password}" if password else ""
        print(f"Others reach it as http://{socket.gethostname()}:{port}/{asks}", flush=True)
        print(
            "What is sent is not encrypted on its way; in networks of others put a server with "
            "https in front, or use ssh -L",
            file=sys.stderr,
        )
    print("Ctrl-C ends it.", flush=True)
    config = uvicorn.Config(
        Guard(app, is_local=not address.listen, password=password),
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=_SECONDS_TO_END,
    )
    _Server(config, on_exit).run(sockets=[opened])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_exit: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_exit = on_exit

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._on_exit()
        super().handle_exit(sig, frame)
