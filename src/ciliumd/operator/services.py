# SPDX-License-Identifier: Apache-2.0
"""
What is to be said about Services: an event on those that are not served as they are written.

The judgement is the agents' (``resources``, ``desired.services``), so what an event says is what happens on
every node.  What only a node knows, its resolvers and whether its maps have room, is told by its agent alone.
"""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from ciliumd.desired.cluster import api_server_addresses
from ciliumd.desired.guard import guard
from ciliumd.desired.services import by_service, refused_claims
from ciliumd.kubernetes.client import Api
from ciliumd.kubernetes.kinds import CILIUM_NODE, ENDPOINT_SLICE, SERVICE, Kind
from ciliumd.model.net import Prefix
from ciliumd.model.objects import API_SERVER
from ciliumd.operator.events import warn
from ciliumd.operator.objects import Key
from ciliumd.operator.store import Store
from ciliumd.operator.watch import Followed
from ciliumd.resources import InvalidResource, parse
from ciliumd.resources.services import SERVICE_NAME_LABEL

if TYPE_CHECKING:
    from ciliumd.model.service import Service

REASON_INVALID: Final = "ServiceInvalid"
REASON_REFUSED: Final = "FrontendRefused"
FOLLOWED: Final = (Followed(SERVICE), Followed(ENDPOINT_SLICE, f"{SERVICE_NAME_LABEL}={API_SERVER[1]}"))
_GATHER_SECONDS: Final = 0.1


class Services:
    """Tells the authors of Services what is wrong; one round for whatever changed."""

    def __init__(self, api: Api, store: Store, *, allowed: tuple[Prefix, ...]) -> None:
        self._api = api
        self._store = store
        self._allowed = allowed
        self._rows: dict[tuple[Kind, Key], tuple[Any, ...]] = {}
        self._invalid: dict[Key, str] = {}
        self._said: dict[Key, tuple[str, str]] = {}

    def changed(self, kind: Kind, key: Key) -> bool:
        """Whether an object differs in what counts here."""
        document = self._store.get(kind, key)
        known = self._rows.pop((kind, key), None)
        wrong = self._invalid.pop(key, "") if kind == SERVICE else ""
        if document is None:
            return known is not None or bool(wrong)
        try:
            rows = tuple(row for _, _, row in parse(document).rows())
        except InvalidResource as error:
            # Agents go on with the version before it: what that took stays taken until it is mended.
            if known is not None:
                self._rows[kind, key] = known
            if kind != SERVICE:
                return False
            self._invalid[key] = "; ".join(f"{field} {message}".strip() for field, message in error.problems)
            return self._invalid[key] != wrong
        self._rows[kind, key] = rows
        return rows != known or bool(wrong)

    async def reconcile(self, _: str) -> None:
        """Look at all Services."""
        # A thousand that come at once are one round and not a thousand.
        await asyncio.sleep(_GATHER_SECONDS)
        wrong = self._problems()
        self._said = {key: said for key, said in self._said.items() if wrong.get(key) == said}
        for key, (reason, message) in wrong.items():
            service = self._store.get(SERVICE, key)
            if service is not None and key not in self._said:
                await warn(self._api, service, reason, message)
                self._said[key] = reason, message

    def _problems(self) -> dict[Key, tuple[str, str]]:
        servers = api_server_addresses(self._of(ENDPOINT_SLICE))
        kept = guard(
            self._of(CILIUM_NODE),
            protected=[(addr, "an address of the API server") for addr in sorted(servers, key=str)],
            allowed=self._allowed,
        )
        services: list[Service] = list(self._of(SERVICE))
        refused = refused_claims(services, kept)
        found = {
            key: (REASON_REFUSED, f"{field}: {message}")
            for key, (field, message) in by_service(refused).items()
        }
        return found | {key: (REASON_INVALID, message) for key, message in self._invalid.items()}

    def _of(self, wanted: Kind) -> Iterator[Any]:
        for (kind, _), rows in self._rows.items():
            if kind == wanted:
                yield from rows
