# SPDX-License-Identifier: Apache-2.0
"""Who may ask at a load balancer's address: by range, from outside, per packet and by socket."""

from __future__ import annotations

import errno
import random
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

import pytest

from ciliumd.abi import DropReason, LbServiceFlags, LbSourceKey
from ciliumd.net.namespace import own_cookie
from datapath.harness import DROP, REDIRECT, Datapath, Result
from datapath.rows import ALLOW_ALL, EGRESS, INGRESS, POD_ONE, POD_TWO, a16, u32
from datapath.sockets import connect
from datapath.wire import asks
from fixtures.packets import from_pod, pod_one, pod_two, tcp, udp, world_one, world_two
from lab.kernel import chooses_errno_of_connect

if TYPE_CHECKING:
    from lab.cgroup import Cgroup

pytestmark = pytest.mark.datapath

ADDRESS, OTHER, PORT, TCP, UDP, CLIENT = "192.0.2.10", "192.0.2.11", 80, 6, 17, 45000
FRONTEND, NEIGHBOUR = 51, 52
BALANCER, ALLOW, DENY = (
    *(LbServiceFlags.LB_F_LOAD_BALANCER, LbServiceFlags.LB_F_SOURCES_ALLOW),
    LbServiceFlags.LB_F_SOURCES_DENY,
)


def list_sources(datapath: Datapath, flag: int, *ranges: str, number: int = FRONTEND) -> None:
    """Rows of these ranges, as those of a policy."""
    for one in map(IPv4Network, ranges):
        key = LbSourceKey(32 + 96 + one.prefixlen, number, flag, a16(str(one.network_address)))
        datapath.map("lb_source_range").update(key.pack(), u32(1))


def restrict(
    datapath: Datapath, flag: int, *ranges: str, protocol: int = TCP, number: int = FRONTEND
) -> None:
    """A balancer's address with these ranges and pod one behind it."""
    rows = datapath.map("lb_source_range")
    for key in [key for key, _ in rows.items() if LbSourceKey.unpack(key).rev_nat == number]:
        rows.delete(key)
    list_sources(datapath, flag, *ranges, number=number)
    address = ADDRESS if number == FRONTEND else OTHER
    datapath.add_service(
        number, address, PORT, protocol, {100 + number: (pod_one.ip, 80)}, flags=BALANCER | flag
    )


def from_outside(datapath: Datapath, client: str, *, address: str = ADDRESS) -> Result:
    """A client connects."""
    return datapath.run("from_netdev", asks(client, tcp(CLIENT, PORT), dst=address), "net0")


def refused(result: Result, direction: int) -> bool:
    """Whether it was dropped for where it came from, without a word; else it went on."""
    if result.action == REDIRECT:
        return False
    assert (result.action, result.drop.reason) == (DROP, DropReason.DROP_NOT_IN_SRC_RANGE)
    assert result.counted == {(DropReason.DROP_NOT_IN_SRC_RANGE, direction): 1}
    return True


@pytest.mark.parametrize(
    ("flag", "ranges", "one", "two"),
    [
        (0, (), True, True),
        (0, ("203.0.113.7/32",), True, True),
        (ALLOW, ("203.0.113.7/32",), True, False),
        (ALLOW, ("203.0.113.0/24",), True, True),
        (ALLOW, ("0.0.0.0/0",), True, True),
        (ALLOW, ("198.51.100.0/24", "203.0.113.8/31"), False, True),
        (ALLOW, (), False, False),
        (DENY, ("203.0.113.7/32",), False, True),
        (DENY, ("203.0.113.0/24",), False, False),
        (DENY, (), True, True),
    ],
)
def test_clients_outside(outside: Datapath, flag: int, ranges: tuple[str, ...], one: bool, two: bool) -> None:
    """203.0.113.7 and .8; without a flag rows mean nothing, without rows nobody is listed."""
    restrict(outside, flag, *ranges)
    found = [not refused(from_outside(outside, client.ip), INGRESS) for client in (world_one, world_two)]
    assert found == [one, two]


def test_ranges_are_those_of_one_frontend(outside: Datapath) -> None:
    """Another one's do not count."""
    restrict(outside, ALLOW, "203.0.113.7/32")
    restrict(outside, ALLOW, "203.0.113.8/32", number=NEIGHBOUR)
    assert not refused(from_outside(outside, world_one.ip), INGRESS)
    assert refused(from_outside(outside, world_one.ip, address=OTHER), INGRESS)
    assert not refused(from_outside(outside, world_two.ip, address=OTHER), INGRESS)


def test_ranges_are_those_of_one_policy(outside: Datapath) -> None:
    """Rows of both may be there: the frontend's one write says which are read."""
    for flag, other, mine, theirs in (
        (ALLOW, DENY, "203.0.113.7/32", "203.0.113.8/32"),
        (ALLOW, DENY, "203.0.113.7/32", "203.0.113.7/32"),
        (DENY, ALLOW, "203.0.113.8/32", "203.0.113.7/32"),
        (DENY, ALLOW, "203.0.113.8/32", "203.0.113.8/32"),
    ):
        restrict(outside, flag, mine)
        list_sources(outside, other, theirs)
        assert not refused(from_outside(outside, world_one.ip), INGRESS)
        assert refused(from_outside(outside, world_two.ip), INGRESS)
        restrict(outside, flag)
        list_sources(outside, other, theirs, "0.0.0.0/0")
        assert refused(from_outside(outside, world_two.ip), INGRESS) == (flag == ALLOW)


def test_revoking_ends_what_is_under_way(outside: Datapath) -> None:
    """Every packet from outside is asked, not only the first."""
    restrict(outside, ALLOW, "203.0.113.7/32")
    assert not refused(from_outside(outside, world_one.ip), INGRESS)
    restrict(outside, ALLOW, "203.0.113.8/32")
    packet = asks(world_one.ip, tcp(CLIENT, PORT, "A"), dst=ADDRESS)
    assert refused(outside.run("from_netdev", packet, "net0"), INGRESS)


def test_pods_are_clients_too(outside: Datapath) -> None:
    """Per packet, by their own address."""
    outside.add_endpoint(POD_TWO, *ALLOW_ALL)
    packet = from_pod(pod_two, ADDRESS, tcp(CLIENT, PORT))
    restrict(outside, ALLOW, "203.0.113.0/24")
    assert refused(outside.send(POD_TWO, packet), EGRESS)
    restrict(outside, ALLOW, f"{pod_two.ip}/32")
    assert not refused(outside.send(POD_TWO, packet), EGRESS)


def test_socket_of_a_pod_is_refused_and_the_nodes_are_not(outside: Datapath, group: Cgroup) -> None:
    """The namespace of these tests is the node's, and then pod one's."""
    restrict(outside, ALLOW, "203.0.113.0/24", protocol=UDP)
    assert connect(group, ADDRESS, PORT) == [0, [ADDRESS, PORT], [pod_one.ip, 80]]
    if not own_cookie():  # before Linux 5.14 nobody can tell which pod a namespace is
        return
    outside.map("netns").update(own_cookie().to_bytes(8, "little"), u32(POD_ONE.slot))
    told = errno.ECONNREFUSED if chooses_errno_of_connect() else errno.EPERM
    assert connect(group, ADDRESS, PORT) == [told, None, None]
    restrict(outside, ALLOW, f"{pod_one.ip}/32", protocol=UDP)
    assert connect(group, ADDRESS, PORT) == [0, [ADDRESS, PORT], [pod_one.ip, 80]]
    assert outside.send(POD_ONE, from_pod(pod_one, ADDRESS, udp(CLIENT, PORT))).action == REDIRECT


def test_longest_match_is_that_of_networks(outside: Datapath) -> None:
    """300 clients against 40 random ranges, as the standard library reads them."""
    chance = random.Random(7)
    ranges = [
        IPv4Network((chance.getrandbits(32), chance.choice((8, 12, 16, 20, 24, 28, 31, 32))), strict=False)
        for _ in range(40)
    ]
    clients = [str(IPv4Address(chance.getrandbits(32))) for _ in range(100)]
    clients += [str(one[0]) for one in ranges * 3] + [str(one[-1]) for one in ranges * 2]
    clients = [one for one in clients if not IPv4Address(one).is_multicast]
    for flag in (ALLOW, DENY):
        restrict(outside, flag, *map(str, ranges))
        for client in clients:
            listed = any(IPv4Address(client) in one for one in ranges)
            assert refused(from_outside(outside, client), INGRESS) == (listed == (flag == DENY)), client
