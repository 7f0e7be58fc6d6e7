"""The page on which subjects answer a study, and the server behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette import types
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from sr3_jax.study.answers import Answers, Window
from sr3_jax.study.design import CONSENT, QUESTIONS
from sr3_jax.web import serving

_DAYS = 60  # that a browser keeps the code of its subject
_MOST_BYTES = 4096  # of a request
_MOST = 1e8  # of a number that a browser tells: milliseconds, or pixels


class StudyPage:
    """The application. The server alone says which trial is next; the page shows it."""

    def __init__(self, answers: Answers) -> None:
        """Stores the database."""
        self._answers, self._study = answers, answers.study
        # Cookies are those of all ports of a machine, and so of all its studies.
        self._cookie = f"sr3_study_{self._study.identity}"

    def app(self) -> types.ASGIApp:
        """Returns the application."""

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            yield
            self._answers.close()

        images = StaticFiles(directory=str(self._study.folder / "images"))
        routes = [
            Route("/", _page),
            Route("/session", self._session),
            Route("/begin", self._begin, methods=["POST"]),
            Route("/answer", self._answer, methods=["POST"]),
            Route("/withdraw", self._withdraw, methods=["POST"]),
            Mount("/images", images),
            Mount("/pages", StaticFiles(directory=serving.PAGES)),
        ]
        return Starlette(routes=routes, lifespan=lifespan)

    async def _session(self, request: Request) -> Response:
        return await self._told(self._state, self._code(request))

    async def _begin(self, request: Request) -> Response:
        given = await _given(request)
        window = Window(
            *(int(_number(given, name)) for name in ("width", "height")), _number(given, "ratio")
        )
        code = self._code(request)
        if not self._study.codes and await asyncio.to_thread(self._answers.progress, code) is None:
            code = ""  # of another study, or made up

        def begin() -> dict[str, Any]:
            made = self._answers.begin(window, code)
            return {"code": made, **self._state(made)}

        answer = await self._told(begin)
        if answer.status_code == 200:
            made = json.loads(answer.body)["code"]
            answer.set_cookie(
                self._cookie, made, max_age=_DAYS * 86400, httponly=True, samesite="strict"
            )
        return answer

    async def _answer(self, request: Request) -> Response:
        given = await _given(request)

        def add() -> dict[str, Any]:
            times = (_number(given, name) for name in ("shown_ms", "answered_ms"))
            trial, code = int(_number(given, "trial")), self._code(request)
            return {"is_kept": self._answers.add(code, trial, given.get("side", ""), *times)}

        return await self._told(add)

    async def _withdraw(self, request: Request) -> Response:
        return await self._told(lambda: self._answers.withdraw(self._code(request)) or {})

    def _code(self, request: Request) -> str:
        """Returns the subject's code: of an invitation's address, or of the browser's cookie."""
        invited = request.query_params.get("code", "") if self._study.codes else ""
        return (invited or request.cookies.get(self._cookie, ""))[:100]

    def _state(self, code: str) -> dict[str, Any]:
        """Returns all that the page needs: what is left, without what is expected of checks."""
        study, options = self._study, self._study.options
        progress = self._answers.progress(code) if code else None
        told = {
            "title": options.title,
            "question": QUESTIONS[options.task],
            "consent": (options.consent or CONSENT).replace("{minutes}", study.duration),
            "seconds": options.seconds,
            "scale": options.scale,
            "breakEvery": options.break_every,
            "hasChecks": options.checks > 0,
            "isOver": study.is_over,
            "isInvited": not study.codes or code in study.codes,
            "hasBegun": progress is not None,
            "isWithdrawn": bool(progress and progress.is_withdrawn),
            "trials": [],
        }
        if progress is None or progress.is_withdrawn:
            return told
        told["numTrials"], told["next"] = len(progress.trials), progress.next
        for number, trial in enumerate(progress.trials[progress.next :], progress.next):
            files = study.files[trial.image]
            width, height = study.sizes[trial.image]
            told["trials"].append(
                {
                    "number": number,
                    "isPractice": trial.kind == "practice",
                    "expected": trial.expected if trial.kind == "practice" else "",
                    "left": f"images/{files[trial.left]}",
                    "right": f"images/{files[trial.right]}",
                    "middle": f"images/{files['input']}" if "input" in files else "",
                    "width": width,
                    "height": height,
                }
            )
        return told

    async def _told(self, function: Callable[..., Any], *arguments: Any) -> JSONResponse:
        """Calls a function of the database in a thread; refusals become sentences."""
        try:
            told = await asyncio.to_thread(function, *arguments)
        except PermissionError as error:
            return JSONResponse({"error": str(error)}, 403, {"cache-control": "no-store"})
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400, {"cache-control": "no-store"})
        return JSONResponse(told, headers={"cache-control": "no-store"})


async def _page(_: Request) -> Response:
    return FileResponse(serving.PAGES / "study.html")


async def _given(request: Request) -> dict[str, Any]:
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > _MOST_BYTES:
            return {}
    try:
        given = json.loads(content)
    except ValueError:
        return {}
    return given if isinstance(given, dict) else {}


def _number(given: dict[str, Any], name: str) -> float:
    """Returns a number; raises ValueError if it is none, or not from 0 to 1e8."""
    value = given.get(name)
    if not (isinstance(value, int | float) and 0 <= value < _MOST):
        raise ValueError(f"{name} = {value!r} is no number of a browser")
    return float(value)
