"""Refusals on the wire: a SplitInferError -> `application/problem+json` with a code and no detail; cloud side.

The code is an unauthenticated hint (RFC 9457 without `detail`): what was wrong in particular stays inside.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from splitinfer.errors import (
    AttestationError,
    AuthenticationError,
    CodecError,
    EgressDeniedError,
    LimitExceededError,
    ModelError,
    PolicyError,
    PromptError,
    RemoteBusyError,
    ReplayError,
    SplitInferError,
    StaleKeysetError,
    TransportTimeoutError,
    UsageError,
    VerificationError,
)

__all__ = ["FIXED_HEADERS", "Problem", "problem_for"]

FIXED_HEADERS = {"Cache-Control": "no-store", "Connection": "close"}
_LINGER_SECONDS = 1.0
_RETRY_AFTER_SECONDS = "1"

# First match wins, so kinds stand before their roots; what is not here is the server's own fault.
_STATUSES: tuple[tuple[type[SplitInferError], int], ...] = (
    (AuthenticationError, 401),
    (EgressDeniedError, 403),
    (PolicyError, 403),
    (TransportTimeoutError, 408),
    (ReplayError, 409),
    (LimitExceededError, 413),
    (StaleKeysetError, 422),
    (RemoteBusyError, 429),
    (UsageError, 400),
    (VerificationError, 400),
    (AttestationError, 422),
    (CodecError, 422),
    (ModelError, 422),
    (PromptError, 422),
)


class Problem(JSONResponse):
    """A problem document; `is_body_read` says that nothing of the request is still on its way."""

    media_type = "application/problem+json"

    def __init__(self, status: int, code: str, *, is_body_read: bool = False) -> None:
        self._is_body_read = is_body_read
        headers = dict(FIXED_HEADERS)
        if status in {429, 503}:
            headers["Retry-After"] = _RETRY_AFTER_SECONDS
        title = HTTPStatus(status).phrase
        super().__init__({"type": "about:blank", "title": title, "status": status, "code": code}, status, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the document, then read on for a moment: a close with unread bytes would reset the reply away."""
        if scope["method"] == "HEAD" or self._is_body_read:
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await _linger(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def problem_for(error: BaseException, *, is_body_read: bool = False) -> Problem:
    """Return the refusal for an error: its code and status, or `internal` where it is no fault of the request."""
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return Problem(status, error.code, is_body_read=is_body_read)
    return Problem(500, "internal", is_body_read=is_body_read)


async def _linger(receive: Receive) -> None:
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass
    except TimeoutError:
        return
