# SPDX-License-Identifier: Apache-2.0
"""Who may go on talking to a backend, and whose rows lead to one that a service has given up."""

from ipaddress import ip_address

import pytest

from ciliumd import abi
from ciliumd.desired.departed import TCP, UDP, Reachable, departed_flows, doomed_sockets, reachable
from ciliumd.desired.services import allocate_backend_ids, allocate_service_ids, served_frontends
from ciliumd.model.net import addr16
from ciliumd.model.service import Backend, BackendState, ServicePort
from unit.desired.worlds import endpoint_slice, service

pytestmark = pytest.mark.unit

ACTIVE, TERMINATING = BackendState.ACTIVE, BackendState.TERMINATING
ONE, TWO = "10.0.0.1", "10.0.0.2"
CT = dict.fromkeys(abi.CtEntry.__match_args__, 0)


def world(protocol: str, states: dict[str, BackendState], *, all_protocols: bool = False) -> Reachable:
    """Who is behind the one service 10.96.0.1:53, whose id is 1; backends are numbered by address."""
    backends = [Backend(ip_address(ip), 5353, protocol, state=state) for ip, state in states.items()]
    found, _ = served_frontends(
        [service("dns", "10.96.0.1", ServicePort("http", protocol, 53, 5353))],
        [endpoint_slice("dns", *backends)],
    )
    return reachable(
        found,
        allocate_service_ids({}, found).assigned,
        {key: int(key.addr) & 0xFF for key in allocate_backend_ids({}, found).assigned},
        all_protocols=all_protocols,
    )


def sock(ip: str, protocol: int, *, rev_nat: int = 1, cookie: int = 9) -> tuple[bytes, bytes]:
    """A socket that socket LB connected to port 5353 of *ip*."""
    key = abi.SockRevnatKey(cookie, addr16(ip_address(ip)), 5353, protocol)
    return key.pack(), abi.SockRevnat(addr16(ip_address("10.96.0.1")), 53, rev_nat).pack()


def flow(backend: int, *, protocol: int = UDP, rev_nat: int = 1, kind: int = 1) -> tuple[bytes, bytes]:
    """A flow of a client to the service, whose packets go to a backend."""
    client, frontend = (addr16(ip_address(ip)) for ip in ("10.0.0.9", "10.96.0.1"))
    key = abi.CtKey(client, frontend, 4000, 53, protocol, kind, 0)
    return key.pack(), abi.CtEntry(**{**CT, "rev_nat": rev_nat, "backend_id": backend}).pack()


def test_udp_leaves_who_terminates_while_another_is_active() -> None:
    """Socket and flow alike; who is with the active one stays."""
    now = world("UDP", {ONE: TERMINATING, TWO: ACTIVE})
    gone, kept = sock(ONE, UDP), sock(TWO, UDP)
    assert list(doomed_sockets([gone, kept], now)) == [gone[0]]
    assert list(departed_flows([flow(1), flow(2)], now)) == [flow(1)[0]]


def test_udp_stays_with_who_terminates_while_nobody_else_is_there() -> None:
    """The last one serves to the end."""
    now = world("UDP", {ONE: TERMINATING})
    assert list(doomed_sockets([sock(ONE, UDP)], now)) == []
    assert list(departed_flows([flow(1)], now)) == []


def test_backend_of_another_service_is_a_stranger() -> None:
    """What counts is whether *this* service still leads there; a service that is gone leads nowhere."""
    now = world("UDP", {ONE: ACTIVE})
    assert list(doomed_sockets([sock(ONE, UDP, rev_nat=2)], now)) == [sock(ONE, UDP, rev_nat=2)[0]]
    assert list(departed_flows([flow(1, rev_nat=2)], now)) == [flow(1, rev_nat=2)[0]]


def test_tcp_is_judged_on_request_and_ends_in_order() -> None:
    """As long as the backend is listed its connections go on, also those of a service with active ones."""
    rows = [sock(ONE, TCP), sock("10.0.0.3", TCP)]
    assert list(doomed_sockets(rows, world("TCP", {ONE: TERMINATING, TWO: ACTIVE}))) == []
    now = world("TCP", {ONE: TERMINATING, TWO: ACTIVE}, all_protocols=True)
    assert list(doomed_sockets(rows, now)) == [rows[1][0]]


def test_only_choices_of_udp_are_forgotten() -> None:
    """Neither flows of endpoints, nor connections: those end with their backend."""
    now = world("UDP", {ONE: ACTIVE})
    rows = [flow(7), flow(7, kind=abi.CtKind.CT_KIND_FLOW), flow(7, protocol=TCP)]
    assert list(departed_flows(rows, now)) == [rows[0][0]]


def test_what_is_lost_is_told_from_what_is_new() -> None:
    """A backend more is no reason to look."""
    one, both = world("UDP", {ONE: ACTIVE}), world("UDP", {ONE: ACTIVE, TWO: ACTIVE})
    assert not both.lost(one)
    assert one.lost(both)
