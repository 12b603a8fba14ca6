# SPDX-License-Identifier: Apache-2.0
"""
Which service has a frontend that several claim, kept up to date service by service.

Nobody takes an external or load balancer address that the guard keeps or that is a cluster address, at
whatever port.  Of several services that claim one frontend the kind decides (:data:`PRECEDENCE`), then age:
the older one keeps it, of equally old ones the first by namespace and name; a service that does not say when
it was created counts as the youngest.  So a claim that comes later never takes anything.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, TypeVar

from ciliumd.desired.guard import NO_GUARD, Guard
from ciliumd.model.net import Addr
from ciliumd.model.objects import NamespacedName
from ciliumd.model.service import Frontend, FrontendKey, Service, ServiceKind

K = TypeVar("K")

PRECEDENCE: Final = (
    frozenset({ServiceKind.CLUSTER_IP}),
    frozenset({ServiceKind.NODE_PORT, ServiceKind.HOST_PORT}),
    frozenset({ServiceKind.LOAD_BALANCER}),
    frozenset({ServiceKind.EXTERNAL_IP}),
)
"""What Kubernetes gave out, before what the balancer's controller said, before what anybody may write."""

OUTSIDE: Final = frozenset({ServiceKind.EXTERNAL_IP, ServiceKind.LOAD_BALANCER})
"""Kinds whose addresses come from outside the cluster."""

_RANK: Final = {kind: rank for rank, kinds in enumerate(PRECEDENCE) for kind in kinds}

_Rank = tuple[int, bool, str, NamespacedName]
_Names = tuple[NamespacedName, ...]
_ByAddress = dict[Addr, _Names]


class Claims:
    """The claims of all services; :meth:`update` tells whose frontends may be others now."""

    def __init__(self) -> None:
        self._services: dict[NamespacedName, Service] = {}
        self._guard: Guard = NO_GUARD
        # Nearly every frontend is claimed once: a tuple is the smallest that holds one name.
        self._claimants: dict[FrontendKey, _Names] = {}
        self._cluster_ips: _ByAddress = {}
        self._outside: dict[Addr, set[FrontendKey]] = {}

    @property
    def services(self) -> Mapping[NamespacedName, Service]:
        """Whoever claims something, or could."""
        return self._services

    def update(self, changed: Mapping[NamespacedName, Service | None], guard: Guard) -> set[NamespacedName]:
        """
        Take *changed* services for what they are now, None for one that is gone, and a *guard*.

        Answers those, and every service that claims what is judged anew because of them.
        """
        touched: set[FrontendKey] = set()
        addresses: set[Addr] = set()
        if guard != self._guard:
            self._guard = guard
            touched.update(*self._outside.values())
        for name, new in changed.items():
            old = self._services.pop(name, None)
            for frontend in old.frontends if old else ():
                touched.add(frontend.key)
                _remove(self._claimants, frontend.key, name)
                if frontend.kind is ServiceKind.CLUSTER_IP:
                    addresses.add(frontend.addr)
                    _remove(self._cluster_ips, frontend.addr, name)
            for frontend in new.frontends if new else ():
                touched.add(frontend.key)
                _add(self._claimants, frontend.key, name)
                if frontend.kind is ServiceKind.CLUSTER_IP:
                    addresses.add(frontend.addr)
                    _add(self._cluster_ips, frontend.addr, name)
            self._keep_outside(old, new)
            if new is not None:
                self._services[name] = new
        for addr in addresses:
            touched.update(self._outside.get(addr, ()))
        return set(changed).union(*(self._claimants.get(key, ()) for key in touched))

    def judged(self, name: NamespacedName) -> Iterator[tuple[Frontend, str]]:
        """
        The frontends that a service claims, by precedence, and why it does not have one; empty if it has.

        One that it claims for several reasons is told once, for the best of them.
        """
        service = self._services[name]
        told: set[FrontendKey] = set()
        for frontend in sorted(service.frontends, key=lambda one: _RANK[one.kind]):
            message = self.refusal(frontend)
            if not message:
                owner = self._owner(frontend.key)
                if owner is not service:
                    message = f"{frontend.key} belongs to service {owner.namespace}/{owner.name}"
                elif frontend.key in told:
                    continue
                else:
                    told.add(frontend.key)
            yield frontend, message

    def refusal(self, frontend: Frontend) -> str:
        """Why an address is nobody's to take; empty when it is, as what Kubernetes gave always is."""
        if frontend.kind not in OUTSIDE:
            return ""
        names = self._cluster_ips.get(frontend.addr)
        if names and not self._guard.allows(frontend.addr):
            namespace, name = min(names, key=lambda one: _age(self._services[one]))
            return f"{frontend.addr} is the cluster address of service {namespace}/{name}"
        return self._guard.objection(frontend.addr)

    def _owner(self, key: FrontendKey) -> Service:
        """Who has it: there is somebody who may."""
        names = self._claimants[key]
        if len(names) == 1:
            return self._services[names[0]]
        best = min(rank for name in names if (rank := self._rank(name, key)) is not None)
        return self._services[best[3]]

    def _rank(self, name: NamespacedName, key: FrontendKey) -> _Rank | None:
        """How good a service's best claim is; None if it may not have it at all."""
        service = self._services[name]
        ranks = [
            _RANK[frontend.kind]
            for frontend in service.frontends
            if frontend.key == key and not self.refusal(frontend)
        ]
        return (min(ranks), *_age(service)) if ranks else None

    def _keep_outside(self, old: Service | None, new: Service | None) -> None:
        """Which keys may be refused for their address, whoever claims them."""
        for service in (old, new):
            for frontend in service.frontends if service else ():
                if frontend.kind not in OUTSIDE:
                    continue
                if frontend.key in self._claimants:
                    self._outside.setdefault(frontend.addr, set()).add(frontend.key)
                elif keys := self._outside.get(frontend.addr):
                    keys.discard(frontend.key)
                    if not keys:
                        del self._outside[frontend.addr]


def by_age(services: Iterable[Service]) -> list[Service]:
    """The *services*, oldest first."""
    return sorted(services, key=_age)


def _age(service: Service) -> tuple[bool, str, NamespacedName]:
    return (service.created == "", service.created, service.key)


def _add(claims: dict[K, _Names], key: K, name: NamespacedName) -> None:
    names = claims.get(key, ())
    if name not in names:
        claims[key] = (*names, name)


def _remove(claims: dict[K, _Names], key: K, name: NamespacedName) -> None:
    rest = tuple(one for one in claims.get(key, ()) if one != name)
    if rest:
        claims[key] = rest
    else:
        claims.pop(key, None)
