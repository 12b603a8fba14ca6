# SPDX-License-Identifier: Apache-2.0
"""The API server of the laboratory over one connection that is kept, and objects by the thousand."""

import json
import time
from http.client import HTTPSConnection
from typing import Any, Final, Self

from bench import many
from lab.apiserver import ADMIN, ApiServer
from lab.manifests import Object

SERVICES: Final = "/api/v1/namespaces/default/services"
SLICES: Final = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
MISSING: Final = 404
# The server hangs up on who says nothing for a minute and a half.
IDLE_SECONDS: Final = 30.0


class ApiClient:
    """The administrator.  A context manager."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._connection = HTTPSConnection(server.address, server.port, context=server.context, timeout=60)
        self._used = float("-inf")

    def __call__(self, method: str, path: str, body: Object | None = None) -> dict[str, Any]:
        """One request, over when it is acknowledged.  Raises AssertionError with what the server says."""
        headers = {
            "Authorization": f"Bearer {self._server.token(ADMIN)}",
            "Content-Type": "application/json",
        }
        if time.monotonic() - self._used > IDLE_SECONDS:
            self._connect()
        self._used = time.monotonic()
        self._connection.request(method, path, json.dumps(body).encode() if body else None, headers)
        response = self._connection.getresponse()
        answer = response.read()
        if method == "DELETE" and response.status == MISSING:
            return {}
        assert response.status < 300, f"{method} {path}: {response.status} {answer.decode()}"
        document: dict[str, Any] = json.loads(answer)
        return document

    def put(self, path: str, body: Object) -> None:
        """Make an object, whatever was there by its name."""
        self("DELETE", f"{path}/{body['metadata']['name']}")
        self("POST", path, body)

    def serve(self, service: Object, *slices: Object) -> None:
        """A service and its slices, new."""
        self("POST", SERVICES, service)
        for one in slices:
            self("POST", SLICES, one)

    def fill(self, first: int, end: int) -> None:
        """Services of ten backends each, as :mod:`bench.many` numbers them."""
        for number in range(first, end):
            self.serve(many.service(number), many.slice_of(number))

    def _connect(self) -> None:
        self._connection.close()
        with self._server.there():
            self._connection.connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
