"""The page on which people try a network: drop a picture, watch it refine, compare, download."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
import re
from collections.abc import AsyncIterator, Mapping

from starlette import types
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from sr3_jax.web import demo_jobs, serving

MOST_BYTES = 512 * 2**20  # of an uploaded file
_SECONDS_BETWEEN = 0.1  # looks at what changed
_SECONDS_OF_REST = 15  # between signs of life, which keep the connection open
_SECONDS_OF_GRACE = 8  # that a page may be gone, as when it is loaded again


class Demo:
    """The application, and the pages that are open.

    A page holds one picture at a time. Its work and its files end with it.
    """

    def __init__(self, upscalings: demo_jobs.Upscalings, about: dict[str, object]) -> None:
        """Stores what does the work, and what the page says of the network."""
        self._upscalings, self._about = upscalings, about
        self._open: dict[str, int] = {}  # connections of each page
        self._of_page: dict[str, demo_jobs.Upscaling] = {}
        self._ending: set[asyncio.Task] = set()
        self._is_ending = False

    def end(self) -> None:
        """Ends all streams of events, and asks the work to end."""
        self._is_ending = True
        self._upscalings.stop_all()

    def app(self) -> types.ASGIApp:
        """Returns the application."""

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            yield
            await asyncio.to_thread(self._upscalings.close)

        routes = [
            Route("/", _page),
            Route("/events", self._events),
            Route("/upscale", self._upscale, methods=["POST"]),
            Route("/stop", self._stop, methods=["POST"]),
            Route("/view/{page}/{file}", self._view),
            Route("/download/{page}/{number:int}", self._download),
            Mount("/pages", StaticFiles(directory=serving.PAGES)),
        ]
        return Starlette(routes=routes, lifespan=lifespan)

    async def _events(self, request: Request) -> Response:
        """Tells a page what changes, for as long as it is open."""
        page = request.query_params.get("page", "")
        if not re.fullmatch("[0-9a-f]{32}", page):
            return JSONResponse({"error": "no page is named"}, 400)

        async def events() -> AsyncIterator[str]:
            self._open[page] = self._open.get(page, 0) + 1
            try:
                yield _event({"about": self._about})
                told, quiet = ..., 0.0
                while not self._is_ending:
                    state = self._state(page)
                    if state != told:
                        told, quiet = state, 0.0
                        yield _event({"state": state})
                    elif quiet > _SECONDS_OF_REST:
                        quiet = 0.0
                        yield ": still here\n\n"
                    quiet += _SECONDS_BETWEEN
                    await asyncio.sleep(_SECONDS_BETWEEN)
            finally:
                self._open[page] -= 1
                ending = asyncio.create_task(self._end(page))
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)

        return StreamingResponse(
            events(), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    async def _end(self, page: str) -> None:
        await asyncio.sleep(_SECONDS_OF_GRACE)
        if not self._open.get(page):
            self._open.pop(page, None)
            await self._forget(page)

    async def _forget(self, page: str) -> None:
        if before := self._of_page.pop(page, None):
            await asyncio.to_thread(self._upscalings.forget, before)

    def _state(self, page: str) -> dict[str, object] | None:
        if (one := self._of_page.get(page)) is None:
            return None
        return {
            "status": one.status,
            "ahead": self._upscalings.ahead_of(one),
            "share": round(one.share, 4),
            "message": one.message,
            "seconds": round(one.seconds, 1),
            "size": one.size,
            "seed": one.options.seed,
            "views": {name: path.name for name, path in one.views.items()},
            "files": [path.name for path in one.files],
        }

    async def _upscale(self, request: Request) -> Response:
        page = request.query_params.get("page", "")
        if not self._open.get(page):
            return _refused("the page has lost its connection; load it again")
        try:
            content = await _content(request)
            given = request.query_params
            least = {"steps": 1, "seed": 0, "samples": 1}
            numbers = [_number(given, name, least[name]) for name in least]
            await self._forget(page)
            added = await asyncio.to_thread(
                self._upscalings.add, given.get("name", ""), content, *numbers
            )
        except (ValueError, MemoryError, OSError) as error:
            return _refused(str(error))
        except ClientDisconnect:
            return Response(status_code=400)
        self._of_page[page] = added
        if page not in self._open:  # closed meanwhile, and forgotten
            await self._forget(page)
        return JSONResponse({})

    async def _stop(self, request: Request) -> Response:
        if one := self._of_page.get(request.query_params.get("page", "")):
            await asyncio.to_thread(self._upscalings.stop, one)
        return JSONResponse({})

    async def _view(self, request: Request) -> Response:
        one, wanted = self._of_page.get(request.path_params["page"]), request.path_params["file"]
        paths = [path for path in (one.views.values() if one else ()) if path.name == wanted]
        return _file(paths[0], "") if paths else _refused("this picture is gone", 404)

    async def _download(self, request: Request) -> Response:
        one, number = self._of_page.get(request.path_params["page"]), request.path_params["number"]
        if one is None or not 0 <= number < len(one.files):
            return _refused("this picture is gone", 404)
        path = one.files[number]
        seed = f"_seed_{one.options.seed + number}" if len(one.files) > 1 else ""
        return _file(path, f"{path.stem}_{self._about['factor']:g}x{seed}{path.suffix}")


async def _page(_: Request) -> Response:
    return FileResponse(serving.PAGES / "demo.html")


def _event(content: dict[str, object]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _refused(why: str, status: int = 400) -> JSONResponse:
    return JSONResponse({"error": why}, status)


def _file(path: pathlib.Path, name: str) -> FileResponse:
    headers = {"cache-control": "private, max-age=3600" if not name else "no-store"}
    return FileResponse(path, filename=name or None, headers=headers)


def _number(given: Mapping[str, str], name: str, least: int) -> int:
    text = given.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= least):
        raise ValueError(f"{name} = {text!r}; give a whole number of at least {least}")
    return int(text)


async def _content(request: Request) -> bytes:
    """Returns the uploaded file; raises ValueError if it is larger than MOST_BYTES."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MOST_BYTES:
            raise ValueError(f"the file has more than {MOST_BYTES // 2**20} MB")
    return bytes(content)
