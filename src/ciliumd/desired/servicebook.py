# SPDX-License-Identifier: Apache-2.0
"""
Every service with what it has and what is behind it, kept up to date service by service.

The same as ``desired.services.served_frontends`` answers for all of them at once, at the cost of those that
a change touches.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ciliumd.desired.claims import Claims
from ciliumd.desired.guard import NO_GUARD, Guard
from ciliumd.desired.services import NOWHERE, ServedFrontend, ServiceProblem, judged_claims, served_of
from ciliumd.model.objects import EndpointSliceRow, NamespacedName
from ciliumd.model.service import Place, Service, ServiceKind


@dataclass(frozen=True, slots=True)
class Entry:
    """A service, its frontends with their backends, and what is wrong with those that it does not have."""

    service: Service
    served: tuple[ServedFrontend, ...]
    problems: tuple[ServiceProblem, ...]


class ServiceBook:
    """An entry for each service; *slices_of* answers the slices of one."""

    def __init__(self, slices_of: Callable[[NamespacedName], Iterable[EndpointSliceRow]]) -> None:
        self._slices_of = slices_of
        self._claims = Claims()
        self._entries: dict[NamespacedName, Entry] = {}
        self._stale: set[NamespacedName] = set()
        self._here = NOWHERE
        self._proxy = ""

    @property
    def entries(self) -> Mapping[NamespacedName, Entry]:
        """All of them, by namespace and name."""
        return self._entries

    def served(self) -> Iterator[ServedFrontend]:
        """Every frontend of the node, in no particular order."""
        for entry in self._entries.values():
            yield from entry.served

    def update(
        self,
        changed: Mapping[NamespacedName, Service | None],
        stale: Iterable[NamespacedName] = (),
        *,
        guard: Guard = NO_GUARD,
        here: Place = NOWHERE,
        proxy: str = "",
    ) -> set[NamespacedName]:
        """
        Take *changed* services for what they are now, None for one that is gone; *stale* have other slices.

        Those of another *proxy* are not served, but what they have nobody else takes.

        Answers the services whose entries were made anew or are gone.  When one fails the others are made
        all the same, the failure is raised, and all are answered next time.
        """
        self._stale |= self._claims.update(changed, guard)
        self._stale.update(stale)
        if (here, proxy) != (self._here, self._proxy):
            self._here, self._proxy = here, proxy
            self._stale.update(self._claims.services)
        failure: Exception | None = None
        for name in self._stale:
            try:
                self._make(name)
            except Exception as error:  # noqa: BLE001  one service must not hold up the others
                failure = error
        if failure is not None:
            raise failure
        touched, self._stale = self._stale, set()
        return touched

    def _make(self, name: NamespacedName) -> None:
        service = self._claims.services.get(name)
        if service is None:
            self._entries.pop(name, None)
            return
        owned, problems = judged_claims(self._claims, name)
        # What is wrong with a claim is the author's business, whoever serves the service.
        ours = owned if self._is_ours(service) else ()
        served = tuple(served_of(service, ours, self._slices_of(name), self._here))
        self._entries[name] = Entry(service, served, tuple(problems))

    def _is_ours(self, service: Service) -> bool:
        """Host ports are pods', which name no proxy."""
        return service.proxy == self._proxy or service.type == ServiceKind.HOST_PORT.value
