# SPDX-License-Identifier: Apache-2.0
"""
HTTP over the agent's unix socket, with the standard library only.

A request either gives decoded JSON or ends the command with a :class:`CommandError`; which paths
exist and what they mean is for the commands.
"""

import http.client
import json
import os
import socket
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote, urlencode

from ciliumd.cli.errors import UNREACHABLE, CommandError, NotFoundError

DEFAULT_SOCKET: Final = "/var/run/cilium/cilium.sock"
SOCKET_VARIABLE: Final = "CILIUM_SOCK"
DEFAULT_TIMEOUT: Final = 30.0


class _UnixConnection(http.client.HTTPConnection):
    """HTTP to a path instead of a host and port."""

    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Open the unix socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def socket_path(host: str | None) -> str:
    """Where the agent listens: *host* (a path or ``unix://`` and a path), the environment, or the default."""
    chosen = host or os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET
    scheme, separator, path = chosen.partition("://")
    if not separator:
        return chosen
    if scheme != "unix":
        raise CommandError(
            f"cannot speak to {chosen}: only unix sockets are supported",
            hint=f"use --host unix://{DEFAULT_SOCKET}",
            code=UNREACHABLE,
        )
    return path


class Client:
    """The agent behind one socket."""

    def __init__(self, path: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.path = path
        self._timeout = timeout

    def get(self, path: str, **query: str | int) -> Any:
        """The JSON of ``GET /v1/<path>``."""
        return self._json("GET", path, query, None)

    def post(self, path: str, body: Any) -> Any:
        """The JSON that answers ``POST /v1/<path>``."""
        return self._json("POST", path, {}, body)

    def put(self, path: str, body: Any) -> Any:
        """The JSON that answers ``PUT /v1/<path>``."""
        return self._json("PUT", path, {}, body)

    def patch(self, path: str, body: Any) -> Any:
        """The JSON that answers ``PATCH /v1/<path>``."""
        return self._json("PATCH", path, {}, body)

    def delete(self, path: str) -> Any:
        """The JSON that answers ``DELETE /v1/<path>``, None if there is none."""
        return self._json("DELETE", path, {}, None)

    def stream(self, path: str, **query: str | int) -> Iterator[Any]:
        """Each line of ``GET /v1/<path>`` as it arrives, decoded; ends when the agent ends it."""
        connection, response = self._request("GET", path, query, None, timeout=None)
        try:
            while line := response.readline():
                if line.strip():
                    yield json.loads(line)
        except (OSError, http.client.HTTPException) as error:
            raise CommandError(
                f"the agent went away: {error}",
                hint="cilium status",
                code=UNREACHABLE,
            ) from error
        finally:
            connection.close()

    def _json(self, method: str, path: str, query: dict[str, str | int], body: Any) -> Any:
        connection, response = self._request(method, path, query, body, timeout=self._timeout)
        try:
            data = response.read()
            return json.loads(data) if data.strip() else None
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        except json.JSONDecodeError as error:
            raise CommandError(
                f"the agent's answer to {method} /v1/{path} is not JSON: {error}",
                hint="is another program listening on this socket? cilium version",
            ) from error
        finally:
            connection.close()

    def _request(
        self, method: str, path: str, query: dict[str, str | int], body: Any, *, timeout: float | None
    ) -> tuple[_UnixConnection, http.client.HTTPResponse]:
        connection = _UnixConnection(self.path, timeout)
        target = f"/v1/{path}" + (f"?{urlencode(query, quote_via=quote)}" if query else "")
        data = None if body is None else json.dumps(body)
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if data else {})
        try:
            connection.request(method, target, body=data, headers=headers)
            response = connection.getresponse()
            if response.status < http.client.BAD_REQUEST:
                return connection, response
            reason = _reason(response.read()) or response.reason
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._unreachable(error) from error
        connection.close()
        message = f"{method} /v1/{path}: {reason}"
        if response.status == http.client.NOT_FOUND:
            raise NotFoundError(message)
        raise CommandError(message)

    def _unreachable(self, error: Exception) -> CommandError:
        match error:
            case FileNotFoundError():
                why, hint = "the socket does not exist", "is the agent running? start it with: ciliumd agent"
            case ConnectionRefusedError():
                why, hint = "nobody listens", "the agent is down or starting: ciliumd agent"
            case PermissionError():
                why, hint = "permission denied", "run the command as root"
            case TimeoutError():
                why, hint = "no answer in time", "raise --timeout, and look at the agent's log"
            case _:
                why, hint = str(error) or type(error).__name__, "look at the agent's log"
        return CommandError(f"cannot reach the agent at {self.path}: {why}", hint=hint, code=UNREACHABLE)


def segment(text: str | int) -> str:
    """*text* as one segment of a path."""
    return quote(str(text), safe=":")


def _reason(body: bytes) -> str:
    """The agent's explanation: ``{"error": ...}``, ``{"message": ...}``, a JSON string, or plain text."""
    text = body.decode(errors="replace").strip()
    try:
        answer = json.loads(text)
    except json.JSONDecodeError:
        return text
    if isinstance(answer, dict):
        return str(answer.get("error") or answer.get("message") or text)
    return str(answer)
