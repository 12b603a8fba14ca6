# SPDX-License-Identifier: Apache-2.0
"""The API server of the laboratory as its administrator has it, and objects by the thousand."""

import time
from http.client import HTTPSConnection
from typing import Any, Final

from bench import many
from bench.requests import Requests
from lab.apiserver import ADMIN, ApiServer
from lab.manifests import Object

SERVICES: Final = "/api/v1/namespaces/default/services"
SLICES: Final = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
# The server hangs up on who says nothing for a minute and a half.
IDLE_SECONDS: Final = 30.0


class ApiClient(Requests):
    """The administrator."""

    def __init__(self, server: ApiServer) -> None:
        connection = HTTPSConnection(server.address, server.port, context=server.context, timeout=60)
        super().__init__(connection, {"Authorization": f"Bearer {server.token(ADMIN)}"})
        self._server = server
        self._used = float("-inf")

    def __call__(
        self, method: str, path: str, body: Object | None = None, *, may_miss: bool = False
    ) -> dict[str, Any]:
        """See :class:`Requests`; the connection is made anew after a rest."""
        if time.monotonic() - self._used > IDLE_SECONDS:
            self.connection.close()
            with self._server.there():
                self.connection.connect()
        self._used = time.monotonic()
        return super().__call__(method, path, body, may_miss=may_miss)

    def remove(self, path: str) -> None:
        """Delete an object that may be gone already."""
        self("DELETE", path, may_miss=True)

    def put(self, path: str, body: Object) -> None:
        """Make an object, whatever was there by its name."""
        self.remove(f"{path}/{body['metadata']['name']}")
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
