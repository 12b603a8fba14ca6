# SPDX-License-Identifier: Apache-2.0
"""
K12: ports run out.  While one is free a flow gets it, else the port of a flow that is over, else a reason.

Rows of other flows are written as programs leave them; those of the node's own connections are never
given away, as nobody tracks these.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from ciliumd.abi import CtEntry, CtFlags, CtKey, CtKind, DropReason, NatDir, NatEntry, NatKey
from datapath.harness import DROP, PASS, Datapath, check_of
from datapath.node import MASQUERADE6, NAT_PORTS
from datapath.rows import EGRESS, a16
from fixtures import packets, packets6

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from datapath.tally import Tally
    from fixtures.packets import Place
    from fixtures.packets6 import Place6

pytestmark = pytest.mark.datapath

UDP, SERVER = 17, 53
WIDE = range(32768, 65536)
FLOWS = 2000
SEED = 21
# A search that failed keeps others short for some milliseconds.
REST = 0.1
LIVE = 1 << 31
CLOSED = CtFlags.CT_F_LOCAL_CLOSED | CtFlags.CT_F_REMOTE_CLOSED


@dataclass(frozen=True, slots=True)
class Family:
    """Who is who, as the rows spell them, and what a pod sends."""

    node: bytes
    world: bytes
    pod: bytes
    sent: Callable[[int], bytes]
    elsewhere: Callable[[int], bytes]


def _sender(from_pod: Callable[..., bytes], pod: Place | Place6, world: str) -> Callable[[int], bytes]:
    return lambda port: from_pod(pod, world, packets.udp(port, SERVER))


FAMILIES = {
    "IPv4": Family(
        node=a16(packets.node_one.ip),
        world=a16(packets.world_one.ip),
        pod=a16(packets.pod_one.ip),
        sent=_sender(packets.from_pod, packets.pod_one, packets.world_one.ip),
        elsewhere=_sender(packets.from_pod, packets.pod_one, packets.world_two.ip),
    ),
    "IPv6": Family(
        node=a16(packets6.node_one.ip),
        world=a16(packets6.world_one.ip),
        pod=a16(packets6.pod_one.ip),
        sent=_sender(packets6.from_pod, packets6.pod_one, packets6.world_one.ip),
        elsewhere=_sender(packets6.from_pod, packets6.pod_one, "2001:db8:9::77"),
    ),
}


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    """Both."""
    return FAMILIES[request.param]


def _load(path: Path, **options: int) -> Iterator[Datapath]:
    sizes = {"cilium_snat_v1": 1 << 17}
    with Datapath.loaded(path, sizes=sizes, **MASQUERADE6, **options) as datapath:
        yield datapath


@pytest.fixture(scope="module")
def narrow_node(node: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datapath]:
    """The tests' few ports."""
    yield from _load(tmp_path_factory.mktemp("narrow"))


@pytest.fixture(scope="module")
def wide_node(node: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datapath]:
    """As many ports as a node has."""
    yield from _load(tmp_path_factory.mktemp("wide"), nat_port_min=WIDE.start, nat_port_max=WIDE.stop - 1)


@pytest.fixture
def narrow(narrow_node: Datapath) -> Datapath:
    """Without flows."""
    return _without_flows(narrow_node)


@pytest.fixture
def wide(wide_node: Datapath) -> Datapath:
    """Without flows."""
    return _without_flows(wide_node)


def _without_flows(datapath: Datapath) -> Datapath:
    datapath.reset()
    datapath.native_device("net0", packets.node_one.ip, ip6=packets6.node_one.ip)
    datapath.host_address(packets.node_one.ip)
    datapath.host_address(packets6.node_one.ip)
    return datapath


def take(datapath: Datapath, family: Family, ports: Collection[int], *, owner: bytes) -> None:
    """Rows that give these ports to as many flows of *owner*, whose own ports are the same."""
    now, rows = int(time.monotonic()), {}
    for port in ports:
        key = NatKey(family.world, family.node, SERVER, port, UDP, NatDir.NAT_IN, 0)
        rows[key.pack()] = NatEntry(check_of(key), port, 0, owner, now).pack()
    assert not datapath.map("snat").update_batch(rows)


def track(datapath: Datapath, family: Family, port: int, *, expires: int = LIVE, flags: int = 0) -> None:
    """The conntrack row of the pod's flow with this port."""
    key = CtKey(family.pod, family.world, port, SERVER, UDP, CtKind.CT_KIND_FLOW, 0)
    row = dict.fromkeys(CtEntry.__match_args__, 0) | {"expires": expires, "flags": flags}
    datapath.map("ct").update(key.pack(), CtEntry(**row | {"check": check_of(key)}).pack())


def port_given(datapath: Datapath, family: Family, port: int) -> int | None:
    """What the pod's flow with this port leaves with; None when it is refused."""
    program = datapath.generation.entries["entry_to_netdev"]
    sent = program.test_run(family.sent(port), ifindex=_net0(datapath))
    out = NatKey(family.pod, family.world, port, SERVER, UDP, NatDir.NAT_OUT, 0)
    if sent.retval == DROP:
        return None
    assert sent.retval == PASS
    row = datapath.map("snat").lookup(out.pack())
    assert row is not None
    return NatEntry.unpack(row).port


def _net0(datapath: Datapath) -> int:
    (raw,) = datapath.map("devices").keys()
    return int.from_bytes(raw, "little")


def forget(datapath: Datapath, family: Family, port: int, given: int) -> None:
    """As if that flow had never been."""
    snat = datapath.map("snat")
    snat.delete(NatKey(family.pod, family.world, port, SERVER, UDP, NatDir.NAT_OUT, 0).pack())
    snat.delete(NatKey(family.world, family.node, SERVER, given, UDP, NatDir.NAT_IN, 0).pack())


@pytest.mark.parametrize("percent", [50, 90, 95, 99])
def test_a_free_port_is_found(wide: Datapath, family: Family, percent: int, tally: Tally) -> None:
    """While few of 32768 are left, 99.9 % of new flows get one."""
    chance = random.Random(SEED)  # which ports are taken, reproducibly
    taken = set(chance.sample(WIDE, len(WIDE) * percent // 100))
    take(wide, family, taken, owner=family.node)
    served = wrong = 0
    longest = 0.0
    for number in range(FLOWS):
        # Its own port is taken already, or none to give.
        wanted = 1024 + number
        began = time.perf_counter()
        given = port_given(wide, family, wanted)
        longest = max(longest, time.perf_counter() - began)
        if given is not None:
            served += 1
            wrong += given in taken or given not in WIDE
            forget(wide, family, wanted, given)

    tally(f"K12 NAT {percent} % taken", injected=FLOWS, delivered=served, wrong=wrong)
    assert wrong == 0
    assert served >= FLOWS * 0.999


def test_the_last_port_of_a_small_range_is_found(narrow: Datapath, family: Family) -> None:
    """Whichever it is: a range of no more ports than tries is walked as a whole."""
    for free in NAT_PORTS:
        take(narrow, family, NAT_PORTS, owner=family.node)
        forget(narrow, family, 1024, free)
        assert port_given(narrow, family, 1024) == free


def test_without_a_port_left_a_flow_is_refused_for_that_reason(narrow: Datapath, family: Family) -> None:
    """It is counted and told, the agent finds a row about it, and nobody else is concerned."""
    take(narrow, family, NAT_PORTS, owner=family.node)
    known = narrow.snat()

    refused = narrow.run("to_netdev", family.sent(1024), "net0")

    assert refused.action == DROP
    assert refused.drop.reason == DropReason.DROP_NAT_NO_MAPPING
    assert refused.counted == {(DropReason.DROP_NAT_NO_MAPPING, EGRESS): 1}
    (note,) = set(narrow.snat()) - set(known)
    assert note == NatKey(family.world, family.node, SERVER, 0, UDP, NatDir.NAT_FULL, 0)
    assert abs(narrow.snat()[note].created - time.monotonic()) < 60
    assert narrow.run("to_netdev", family.elsewhere(1024), "net0").action == PASS
    # No other row was touched.
    assert {key: row for key, row in narrow.snat().items() if key in known} == known

    forget(narrow, family, 1024, NAT_PORTS[7])
    time.sleep(REST)
    assert port_given(narrow, family, 1024) == NAT_PORTS[7]


@pytest.mark.parametrize(
    "over",
    [
        pytest.param(None, id="untracked"),
        pytest.param({"expires": 1}, id="expired"),
        pytest.param({"flags": CLOSED}, id="closed"),
    ],
)
def test_the_port_of_a_flow_that_is_over_is_given_on(
    narrow: Datapath, family: Family, over: dict[str, int] | None
) -> None:
    """When none is free; the flow that had it, should it wake up, does not get the other's answers."""
    old = NAT_PORTS[13]
    take(narrow, family, NAT_PORTS, owner=family.pod)
    for port in NAT_PORTS:
        if port != old:
            track(narrow, family, port)
    if over is not None:
        track(narrow, family, old, **over)
    assert port_given(narrow, family, old) == old

    assert port_given(narrow, family, 1024) == old

    owner = narrow.snat()[NatKey(family.world, family.node, SERVER, old, UDP, NatDir.NAT_IN, 0)]
    assert (owner.addr, owner.port) == (family.pod, 1024)
    track(narrow, family, 1024)
    assert port_given(narrow, family, old) is None
    assert port_given(narrow, family, 1024) == old
    assert not [key for key in narrow.snat() if key.dir == NatDir.NAT_HANDOVER]


@pytest.mark.parametrize("flag", [0, CtFlags.CT_F_LOCAL_CLOSED, CtFlags.CT_F_REMOTE_CLOSED])
def test_the_port_of_a_live_flow_is_never_given_on(narrow: Datapath, family: Family, flag: int) -> None:
    """Half closed is live: the other side may send for hours."""
    take(narrow, family, NAT_PORTS, owner=family.pod)
    for port in NAT_PORTS:
        track(narrow, family, port, flags=flag)
    before = {key: row for key, row in narrow.snat().items() if key.dir == NatDir.NAT_IN}

    for port in range(1024, 1034):
        assert port_given(narrow, family, port) is None

    assert {key: row for key, row in narrow.snat().items() if key.dir == NatDir.NAT_IN} == before


def test_a_port_is_not_given_on_while_another_does(narrow: Datapath, family: Family) -> None:
    """Two processors at once: the row that says so keeps the second one away."""
    take(narrow, family, NAT_PORTS, owner=family.pod)
    for port in NAT_PORTS:
        key = NatKey(family.world, family.node, SERVER, port, UDP, NatDir.NAT_HANDOVER, 0)
        row = NatEntry(check_of(key), 0, 0, bytes(16), int(time.monotonic()))
        narrow.map("snat").update(key.pack(), row.pack())

    assert port_given(narrow, family, 1024) is None


def test_free_ports_go_first(narrow: Datapath, family: Family) -> None:
    """A closed flow's last packets may be under way."""
    take(narrow, family, NAT_PORTS[:-1], owner=family.pod)

    assert port_given(narrow, family, 1024) == NAT_PORTS[-1]
