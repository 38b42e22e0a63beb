"""The routes: a Cloud and its settings -> a FastAPI application; cloud side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from server.door import Door
from server.exchange import Exchange
from server.log import RequestLog, report_internal_error
from server.problems import FIXED_HEADERS, Problem
from server.settings import ServerSettings
from splitinfer.handoff import Cloud, Route

__all__ = ["create_app"]

_CODES = {404: "not_found", 405: "method_not_allowed"}


def create_app(cloud: Cloud, settings: ServerSettings) -> FastAPI:
    """Return the application; `app.state.door` says whether it drains. No docs, no schema, no CORS, no redirects."""
    door = Door(
        cloud,
        max_transfers=settings.max_transfers,
        max_body_bytes=settings.max_body_bytes,
        silence_seconds=settings.read_timeout_seconds,
        max_rounds=settings.max_rounds,
        rounds_idle_seconds=settings.session_idle_seconds,
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(door.close)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, lifespan=lifespan)
    app.state.door = door
    _add_routes(app, door)
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(Exception, _internal_problem)
    app.add_middleware(RequestLog)
    return app


def _add_routes(app: FastAPI, door: Door) -> None:
    async def keyset() -> Response:
        return Exchange(door, Route.KEYSET)

    async def prefill() -> Response:
        return Exchange(door, Route.PREFILL)

    async def decode() -> Response:
        return Exchange(door, Route.DECODE)

    async def state() -> Response:
        return Exchange(door, Route.STATE)

    async def resume() -> Response:
        return Exchange(door, Route.RESUME)

    async def session() -> Response:
        return Exchange(door, Route.SESSION)

    async def health() -> Response:
        if door.is_draining:
            return JSONResponse({"status": "draining"}, 503, FIXED_HEADERS)
        return JSONResponse({"status": "ok"}, 200, FIXED_HEADERS)

    answers = {Route.KEYSET: keyset, Route.PREFILL: prefill, Route.DECODE: decode}
    answers |= {Route.STATE: state, Route.RESUME: resume, Route.SESSION: session}
    for route, answer in answers.items():
        method, path = route.value.split(" ")
        app.add_api_route(path, answer, methods=[method], response_model=None)
    app.add_api_route("/v1/health", health, methods=["GET"], response_model=None)


async def _http_problem(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return Problem(status, _CODES.get(status, "usage"))


async def _internal_problem(_request: Request, error: Exception) -> Response:
    report_internal_error(error)
    return Problem(500, "internal")
