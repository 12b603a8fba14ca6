# SPDX-License-Identifier: Apache-2.0
"""Clients that keep their backend: for new connections, by packets and by sockets."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ciliumd import abi
from ciliumd.net.namespace import own_cookie
from datapath.rows import ALLOW_ALL, POD_ONE, POD_THREE, POD_TWO, a16, u32
from datapath.sockets import connect
from datapath.wire import NODE_PORT, asks
from fixtures.packets import IP, Ether, from_pod, node_one, pod_one, pod_three, pod_two, svc_one, tcp, udp

if TYPE_CHECKING:
    from datapath.harness import Datapath
    from lab.cgroup import Cgroup

pytestmark = pytest.mark.datapath

TCP, UDP, WEB, DNS = 6, 17, 80, 53
HOURS, MINUTE = 10800, 60
TWO, THREE = (pod_two.ip, 8080), (pod_three.ip, 8081)
BOTH = {101: TWO, 103: THREE}


@pytest.fixture
def sticky(service: Datapath) -> Datapath:
    """svc_one:80 with two backends and three hours of affinity."""
    service.add_endpoint(POD_THREE, *ALLOW_ALL)
    service.add_service(1, svc_one.ip, WEB, TCP, BOTH, affinity=HOURS)
    return service


def backends(datapath: Datapath, count: int, *, first: int = 30000) -> set[tuple[str, int]]:
    """Whom pod one's next *count* connections go to."""
    return {
        (ip.dst, ip.dport)
        for sport in range(first, first + count)
        for ip in [Ether(datapath.send(POD_ONE, from_pod(pod_one, svc_one.ip, tcp(sport, WEB))).packet)[IP]]
    }


def age(datapath: Datapath, seconds: int) -> None:
    """Let all clients' last connections be so much older."""
    rows = datapath.map("lb_affinity")
    for key, value in list(rows.items()):
        row = abi.LbAffinity.unpack(value)
        # Time is of 32 bits, and the machine may have been up for less.
        rows.update(key, replace(row, last_used=(row.last_used - seconds) & 0xFFFFFFFF).pack())


def test_connections_of_a_client_go_to_one_backend(sticky: Datapath) -> None:
    """64 of them; by chance they would once in 2^63 runs."""
    assert len(backends(sticky, 64)) == 1
    ((key, value),) = sticky.map("lb_affinity").items()
    found = abi.LbAffinityKey.unpack(key)
    assert (found.client, found.kind, found.rev_nat) == (a16(pod_one.ip), abi.LbClient.LB_CLIENT_ADDRESS, 1)
    assert abi.LbAffinity.unpack(value).backend_id in BOTH


def test_every_client_has_its_own(outside: Datapath) -> None:
    """Clients outside, too: 40 of them all choosing alike is chance once in 2^39 runs."""
    for pod in (POD_ONE, POD_THREE):
        outside.add_endpoint(pod, *ALLOW_ALL)
    places = {121: (pod_one.ip, 8080), 123: (pod_three.ip, 8081)}
    outside.add_service(21, node_one.ip, 31000, TCP, places, flags=NODE_PORT, affinity=HOURS)

    def chosen(client: str) -> set[str]:
        return {
            Ether(outside.run("from_netdev", asks(client, tcp(sport, 31000)), "net0").packet)[IP].dst
            for sport in range(45000, 45008)
        }

    every = [chosen(f"192.0.2.{host}") for host in range(100, 140)]
    assert {len(one) for one in every} == {1}
    assert set().union(*every) == {pod_one.ip, pod_three.ip}


def test_another_frontend_is_another_choice(sticky: Datapath) -> None:
    """What a client has at one port says nothing about the next."""
    (first,) = backends(sticky, 1)
    other = THREE if first == TWO else TWO
    sticky.add_service(5, svc_one.ip, 81, TCP, {105: other}, affinity=HOURS)
    sent = sticky.send(POD_ONE, from_pod(pod_one, svc_one.ip, tcp(30100, 81)))
    assert Ether(sent.packet)[IP].dst == other[0]
    assert backends(sticky, 8, first=31000) == {first}


def test_time_runs_from_the_last_new_connection(sticky: Datapath) -> None:
    """Each connection begins it anew; when it is over, chance decides again."""
    (first,) = backends(sticky, 1)
    for turn in range(1, 4):
        age(sticky, HOURS - MINUTE)
        assert backends(sticky, 1, first=30000 + turn) == {first}

    seen = set()
    for turn in range(64):
        age(sticky, HOURS)
        seen |= backends(sticky, 1, first=31000 + turn)
    assert seen == {TWO, THREE}


def test_client_whose_backend_goes_keeps_the_next_one(sticky: Datapath) -> None:
    """The backend may live on, in other services: this one does not choose it any more."""
    (first,) = backends(sticky, 1)
    left = {number: place for number, place in BOTH.items() if place != first}
    sticky.add_service(1, svc_one.ip, WEB, TCP, left, affinity=HOURS)
    assert backends(sticky, 8, first=31000) == set(left.values())
    sticky.add_service(1, svc_one.ip, WEB, TCP, BOTH, affinity=HOURS)
    assert backends(sticky, 32, first=32000) == set(left.values())


def test_row_of_another_client_is_not_believed(sticky: Datapath) -> None:
    """A row recycled while it was read shows by its fold: chance decides."""
    backends(sticky, 1)
    rows = sticky.map("lb_affinity")
    seen = set()
    for turn in range(64):
        ((key, value),) = rows.items()
        rows.update(key, replace(abi.LbAffinity.unpack(value), check=7).pack())
        seen |= backends(sticky, 1, first=31000 + turn)
    assert seen == {TWO, THREE}


def test_without_affinity_nothing_is_remembered(service: Datapath) -> None:
    """The map is of those services alone that ask for it."""
    backends(service, 4)
    assert list(service.map("lb_affinity").items()) == []


def test_sockets_of_a_process_keep_their_backend(outside: Datapath, group: Cgroup) -> None:
    """A process of the node is known by its network namespace."""
    places = {121: (pod_one.ip, 53), 122: (pod_two.ip, 53)}
    outside.add_service(21, svc_one.ip, DNS, UDP, places, affinity=HOURS)
    peers = {tuple(connect(group, svc_one.ip, DNS)[2]) for _ in range(16)}
    assert len(peers) == 1
    ((key, _),) = outside.map("lb_affinity").items()
    assert abi.LbAffinityKey.unpack(key).kind == abi.LbClient.LB_CLIENT_NETNS


def test_sockets_and_packets_of_a_pod_agree(outside: Datapath, group: Cgroup) -> None:
    """The namespace that a socket is in leads to the pod, whose address packets have."""
    for pod in (POD_ONE, POD_TWO, POD_THREE):
        outside.add_endpoint(pod, *ALLOW_ALL)
    outside.map("netns").update(own_cookie().to_bytes(8, "little"), u32(POD_ONE.slot))
    places = {122: (pod_two.ip, 53), 123: (pod_three.ip, 53)}
    outside.add_service(21, svc_one.ip, DNS, UDP, places, affinity=HOURS)
    (peer,) = {connect(group, svc_one.ip, DNS)[2][0] for _ in range(8)}
    ((key, _),) = outside.map("lb_affinity").items()
    if not own_cookie():  # before Linux 5.14 nobody can tell which pod a namespace is
        assert abi.LbAffinityKey.unpack(key).kind == abi.LbClient.LB_CLIENT_NETNS
        return
    assert abi.LbAffinityKey.unpack(key).client == a16(pod_one.ip)

    sent = [
        outside.send(POD_ONE, from_pod(pod_one, svc_one.ip, udp(sport, DNS))) for sport in range(5000, 5016)
    ]
    assert {Ether(one.packet)[IP].dst for one in sent} == {peer}
