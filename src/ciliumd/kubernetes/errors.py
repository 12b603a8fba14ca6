# SPDX-License-Identifier: Apache-2.0
"""What can become of a request to the API server, named for what the caller can do about it."""

from typing import Final

import httpx2 as httpx
import msgspec

_LONGEST_WAIT: Final = 10.0


class ApiError(Exception):
    """A request that was not granted.  *status* is HTTP's, 0 when no answer came."""

    def __init__(self, verb: str, resource: str, status: int, message: str) -> None:
        super().__init__(f"{verb} {resource}: {message}")
        self.verb = verb
        self.resource = resource
        self.status = status
        self.message = message


class Unreachable(ApiError):
    """Nobody answers, or nobody who could: try again later."""


class Forbidden(ApiError):
    """We may not do this (401, 403): somebody has to grant *verb* on *resource*."""


class NotFound(ApiError):
    """There is no such object, or no such kind."""


class AlreadyExists(ApiError):
    """There is an object of this name.  After a retry it may be the one we created."""


class Conflict(ApiError):
    """The object changed meanwhile: read it again."""


class Expired(ApiError):
    """What the request refers to is too old (410): start again."""


class Refused(ApiError):
    """The object, or the request, is not valid."""


def error_of(verb: str, shown: str, answer: httpx.Response) -> ApiError:
    """What a status other than success means."""
    status = answer.status_code
    message, reason = answer.reason_phrase, ""
    try:
        document = msgspec.json.decode(answer.content)
    except msgspec.DecodeError:
        document = None
    if isinstance(document, dict):
        message, reason = document.get("message") or message, document.get("reason") or ""
    errors: dict[int, type[ApiError]] = {
        401: Forbidden,
        403: Forbidden,
        404: NotFound,
        409: AlreadyExists if reason == "AlreadyExists" else Conflict,
        410: Expired,
        429: Unreachable,
    }
    return errors.get(status, Unreachable if status >= 500 else Refused)(verb, shown, status, message)


def retry_after(answer: httpx.Response) -> float:
    """Seconds the server asks us to wait, within reason."""
    try:
        return min(float(answer.headers.get("Retry-After", 0)), _LONGEST_WAIT)
    except ValueError:
        return 0.0
