# SPDX-License-Identifier: Apache-2.0
"""
Whom clients may still talk to through a service, and which rows of programs lead to somebody else.

A socket or a flow of UDP leaves a backend as soon as the frontend gives it to no new client; a connection
of TCP goes on as long as the backend is listed, for it may end in order.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ciliumd import abi
from ciliumd.desired.services import ServedFrontend
from ciliumd.model.net import addr16
from ciliumd.model.service import PROTOCOL_NUMBERS, BackendKey, FrontendKey

TCP, UDP = PROTOCOL_NUMBERS["TCP"], PROTOCOL_NUMBERS["UDP"]
_PROTOCOL, _KIND = abi.place_of(abi.CtKey, "protocol").start, abi.place_of(abi.CtKey, "kind").start
Row = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Reachable:
    """
    Who may be talked to: *sockets* by service id and :func:`peer` of the backend, *flows* of UDP by service
    id and backend id.  *protocols* are those that are judged at all.
    """

    sockets: frozenset[tuple[int, bytes]] = frozenset()
    flows: frozenset[tuple[int, int]] = frozenset()
    protocols: frozenset[int] = frozenset({UDP})

    def lost(self, before: "Reachable") -> bool:
        """Whether somebody could be talked to *before* who cannot be now."""
        return bool(before.sockets - self.sockets or before.flows - self.flows)


def peer(addr: bytes, port: int, protocol: int) -> bytes:
    """A backend as a socket's row names it."""
    return addr + port.to_bytes(2, "big") + bytes((protocol,))


def reachable(
    served: Iterable[ServedFrontend],
    service_ids: Mapping[FrontendKey, int],
    backend_ids: Mapping[BackendKey, int],
    *,
    all_protocols: bool = False,
) -> Reachable:
    """Who may be talked to by UDP, with *all_protocols* by TCP as well."""
    sockets: set[tuple[int, bytes]] = set()
    flows: set[tuple[int, int]] = set()
    protocols = frozenset({UDP, TCP} if all_protocols else {UDP})
    for one in served:
        number = PROTOCOL_NUMBERS[one.frontend.protocol]
        service = service_ids.get(one.frontend.key)
        if number not in protocols or service is None:
            continue
        for backend in one.chosen if number == UDP else one.backends:
            sockets.add((service, peer(addr16(backend.addr), backend.port, number)))
            known = backend_ids.get(backend.key)
            if number == UDP and known is not None:
                flows.add((service, known))
    return Reachable(frozenset(sockets), frozenset(flows), protocols)


def doomed_sockets(rows: Iterable[Row], now: Reachable) -> Iterator[bytes]:
    """Keys of ``cilium_lb_sock_v1`` whose socket may not go on talking to the backend it has."""
    for packed, value in rows:
        key = abi.SockRevnatKey.unpack(packed)
        if key.protocol not in now.protocols:
            continue
        service = abi.SockRevnat.unpack(value).rev_nat
        if (service, peer(key.addr, key.port, key.protocol)) not in now.sockets:
            yield packed


def departed_flows(rows: Iterable[Row], now: Reachable) -> Iterator[bytes]:
    """Keys of ``cilium_ct_v1`` by which a flow of UDP would be sent to a backend it may not have."""
    for packed, value in rows:
        if packed[_PROTOCOL] != UDP or packed[_KIND] != abi.CtKind.CT_KIND_SERVICE:
            continue
        entry = abi.CtEntry.unpack(value)
        if (entry.rev_nat, entry.backend_id) not in now.flows:
            yield packed
