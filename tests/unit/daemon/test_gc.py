# SPDX-License-Identifier: Apache-2.0
"""Conntrack and NAT rows go when they are over, and never when they were taken into use meanwhile."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import pytest
from structlog.testing import capture_logs

from ciliumd import abi
from ciliumd.daemon.gc import ConntrackGc
from ciliumd.model.net import addr16
from ciliumd.reconcile.gc import CHUNK, NAT_MIN_AGE, flow_of_nat

POD, NODE, PEER = (addr16(ip_address(text)) for text in ("10.0.0.2", "192.0.2.1", "198.51.100.9"))
ZEROS = dict.fromkeys(abi.CtEntry.__match_args__, 0)


class FakeMap:
    """Rows, and what happens between reading them and deleting."""

    def __init__(self):
        self.rows = {}
        self.between = None
        self.deleted = []

    def items(self):
        """Every row as of now."""
        found = list(self.rows.items())
        if self.between:
            self.between()
        return iter(found)

    def lookup(self, key):
        """One row."""
        return self.rows.get(key)

    def delete_batch(self, keys):
        """Delete; the failures by key."""
        self.deleted.append(len(keys))
        for key in keys:
            self.rows.pop(key, None)
        return {}


@pytest.fixture
def maps():
    """Empty maps."""
    return {"cilium_ct_v1": FakeMap(), "cilium_snat_v1": FakeMap()}


class Writer(ThreadPoolExecutor):
    """Counts the calls between which others get in."""

    calls = 0

    def submit(self, *args, **kwargs):
        """Count."""
        self.calls += 1
        return super().submit(*args, **kwargs)


def collect(maps, writer=None):
    """One walk; the totals."""

    async def walk():
        with writer or Writer(1) as thread:
            gc = ConntrackGc(maps, executor=thread)
            await gc.collect()
            return gc.totals

    return asyncio.run(walk())


def ct_key(port):
    """A flow of the pod."""
    return abi.CtKey(
        local=POD,
        remote=PEER,
        local_port=port,
        remote_port=443,
        protocol=6,
        kind=abi.CtKind.CT_KIND_FLOW,
        zone=0,
    )


def ct_row(expires):
    """A row that expires then."""
    return abi.CtEntry(**{**ZEROS, "expires": expires}).pack()


def nat_row(port, created):
    """The NAT row of that flow on its way out."""
    zeros = dict.fromkeys(abi.NatKey.__match_args__, 0)
    key = abi.NatKey(
        **{
            **zeros,
            "src": POD,
            "dst": PEER,
            "sport": port,
            "dport": 443,
            "protocol": 6,
            "dir": abi.NatDir.NAT_OUT,
        }
    )
    zeros = dict.fromkeys(abi.NatEntry.__match_args__, 0)
    entry = abi.NatEntry(**{**zeros, "addr": NODE, "port": 40000 + port, "created": created})
    assert flow_of_nat(key, entry) == ct_key(port)
    return key.pack(), entry.pack()


def test_expired_flows_go_with_their_nat_rows(maps):
    """Live ones stay with theirs."""
    now = int(time.monotonic()) + 1000
    ct, nat = maps["cilium_ct_v1"], maps["cilium_snat_v1"]
    past = int(time.monotonic()) - NAT_MIN_AGE - 5
    for port, expires in ((1, 0), (2, now)):
        ct.rows[ct_key(port).pack()] = ct_row(expires)
        key, row = nat_row(port, max(past, 0))
        nat.rows[key] = row
    totals = collect(maps)
    assert (totals.conntrack, totals.nat, totals.runs) == (1, 1, 1)
    assert list(ct.rows) == [ct_key(2).pack()]
    assert list(nat.rows) == [nat_row(2, 0)[0]]


def test_a_flow_taken_into_use_meanwhile_stays(maps):
    """Between reading and deleting a packet came: the row is looked at again."""
    ct = maps["cilium_ct_v1"]
    alive, over = ct_key(1).pack(), ct_key(2).pack()
    ct.rows = {alive: ct_row(0), over: ct_row(0)}

    def packet():
        ct.rows[alive] = ct_row(int(time.monotonic()) + 60)

    ct.between = packet
    totals = collect(maps)
    assert totals.conntrack == 1
    assert list(ct.rows) == [alive]


@pytest.mark.parametrize("which", ["cilium_ct_v1", "cilium_snat_v1"])
def test_a_row_goes_before_the_next_one_is_looked_at(maps, which):
    """A packet that takes a judged row into use finds it gone and makes it anew; it is not deleted later."""
    rows = [(ct_key(port).pack(), ct_row(0)) for port in (1, 2)]
    if which == "cilium_snat_v1":
        rows = [nat_row(port, max(int(time.monotonic()) - NAT_MIN_AGE - 5, 0)) for port in (1, 2)]
    (first, row), (second, _) = rows
    maps[which].rows = dict(rows)
    look_up = maps[which].lookup

    def lookup(key):
        if key == second:
            maps[which].rows[first] = row
        return look_up(key)

    maps[which].lookup = lookup
    collect(maps)
    assert list(maps[which].rows) == [first]


def test_a_flow_that_vanished_meanwhile_is_not_counted(maps):
    """The LRU was quicker."""
    ct = maps["cilium_ct_v1"]
    ct.rows = {ct_key(1).pack(): ct_row(0)}
    ct.between = ct.rows.clear
    totals = collect(maps)
    assert totals.conntrack == 0
    assert ct.deleted == []


def test_a_nat_row_whose_flow_came_back_meanwhile_stays(maps):
    """Its conntrack row appeared after the walk began."""
    ct, nat = maps["cilium_ct_v1"], maps["cilium_snat_v1"]
    key, row = nat_row(1, max(int(time.monotonic()) - NAT_MIN_AGE - 5, 0))
    nat.rows[key] = row

    def packet():
        ct.rows[ct_key(1).pack()] = ct_row(int(time.monotonic()) + 60)

    nat.between = packet
    assert collect(maps).nat == 0
    assert list(nat.rows) == [key]


@pytest.mark.parametrize("expires", [0, 1 << 31], ids=["all-over", "all-live"])
def test_many_rows_are_looked_at_in_pieces(maps, expires):
    """So that policy writes get in between, whether rows go or not."""
    ct, writer = maps["cilium_ct_v1"], Writer(1)
    ct.rows = {ct_key(port).pack(): ct_row(expires) for port in range(1, 10001)}
    assert collect(maps, writer).conntrack == (0 if expires else 10000)
    assert writer.calls >= 3
    assert len(ct.rows) == (10000 if expires else 0)
    assert all(count <= CHUNK for count in ct.deleted)


def test_a_destination_without_ports_is_warned_of_once(maps):
    """Until it has some again; what was counted is kept for status and metrics."""
    nat = maps["cilium_snat_v1"]
    for direction, dport in ((abi.NatDir.NAT_IN, 40000), (abi.NatDir.NAT_FULL, 0)):
        key = abi.NatKey(PEER, NODE, 443, dport, 6, direction, 0)
        nat.rows[key.pack()] = abi.NatEntry(0, 1, 0, NODE, int(time.monotonic())).pack()

    async def walk():
        with Writer(1) as thread:
            gc = ConntrackGc(maps, executor=thread)
            await gc.collect()
            await gc.collect()
            return gc.ports

    with capture_logs() as told:
        ports = asyncio.run(walk())

    assert told == [
        {
            "event": "nat.ports_exhausted",
            "log_level": "warning",
            "ports": 1,
            "remote": "198.51.100.9",
            "port": 443,
            "protocol": "TCP",
            "address": "192.0.2.1",
        }
    ]
    assert [(one.target.port, one.used) for one in ports.full] == [(443, 1)]
    assert ports.most[4].used == 1
