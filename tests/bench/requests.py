# SPDX-License-Identifier: Apache-2.0
"""An API server over one connection that is kept."""

import json
from collections.abc import Mapping
from http.client import HTTPSConnection
from typing import Any, Self

from lab.manifests import Object

MISSING = 404


class Requests:
    """One request after the other, with the same *headers*.  A context manager."""

    def __init__(self, connection: HTTPSConnection, headers: Mapping[str, str] | None = None) -> None:
        self.connection = connection
        self._headers = {"Content-Type": "application/json", **(headers or {})}

    def __call__(
        self, method: str, path: str, body: Object | None = None, *, may_miss: bool = False
    ) -> dict[str, Any]:
        """
        What is answered, over when it is acknowledged; nothing for what *may_miss* and does.

        Raises AssertionError with what the server says.
        """
        self.connection.request(method, path, json.dumps(body).encode() if body else None, self._headers)
        response = self.connection.getresponse()
        answer = response.read()
        if may_miss and response.status == MISSING:
            return {}
        assert response.status < 300, f"{method} {path}: {response.status} {answer.decode()}"
        document: dict[str, Any] = json.loads(answer)
        return document

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
