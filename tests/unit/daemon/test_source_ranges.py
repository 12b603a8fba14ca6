# SPDX-License-Identifier: Apache-2.0
"""
Who may ask at a load balancer's address, between any two writes of the maps.

The maps are read as ``lb_admits`` of the datapath reads them, after each single write of a round: nobody
passes that neither what was in force allows nor what is to be.
"""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import permutations, product

import pytest

from ciliumd import abi
from ciliumd.daemon import stages
from ciliumd.model.net import addr16, addr_from16
from ciliumd.model.service import Frontend, ServiceKind
from unit.daemon import nodes
from unit.daemon.kernel import Kernel, service

BALANCER = ip_address("192.0.2.10")
ONE, TWO = ip_network("203.0.113.0/24"), ip_network("198.51.100.0/24")
CLIENTS = tuple(map(ip_address, ("203.0.113.7", "198.51.100.7", "192.0.2.77")))
ALLOW, DENY = abi.LbServiceFlags.LB_F_SOURCES_ALLOW, abi.LbServiceFlags.LB_F_SOURCES_DENY

State = tuple[bool, tuple[object, ...]]
"""Whether the ranges are denied, and the ranges."""
STATES: tuple[State, ...] = tuple(product((False, True), ((), (ONE,), (TWO,), (ONE, TWO))))
NO_MEMORY = OSError(12, "no memory")


def want(kernel, state):
    """The author's wish: this policy with these ranges."""
    denies, ranges = state
    one = service()
    outside = Frontend(BALANCER, 80, "TCP", ServiceKind.LOAD_BALANCER)
    made = replace(
        one, frontends=(*one.frontends, outside), source_ranges=ranges, denies_sources=denies, created="1"
    )
    kernel.tables.services.set(("shop", "web"), made)


def meant(state):
    """The clients that a state lets in."""
    denies, ranges = state
    if not ranges:
        return set(CLIENTS)
    return {one for one in CLIENTS if any(one in net for net in ranges) != denies}


def admitted(maps):
    """The clients that the maps let in: none without a frontend."""
    found = set()
    for packed, value in maps[stages.SERVICES].items():
        if abi.LbServiceKey.unpack(packed).addr == addr16(BALANCER):
            row = abi.LbService.unpack(value)
            found |= {one for one in CLIENTS if admits(row, maps[stages.SOURCES], one)}
    return found


def admits(row, sources, client):
    """What ``lb_admits`` answers."""
    policy = row.flags & (ALLOW | DENY)
    if not policy:
        return True
    keys = [
        key
        for key in map(abi.LbSourceKey.unpack, sources)
        if (key.rev_nat, key.policy) == (row.rev_nat, policy)
    ]
    listed = any(client in network(key) for key in keys)
    return listed != (policy == DENY)


def network(key):
    """The range of a key."""
    return ip_network((addr_from16(key.addr), key.prefixlen - 32 - 96))


def watched(kernel, count=1, *, before):
    """Rounds; every set of clients that the maps let in meanwhile, *before* being what they held."""
    maps = {name: dict(rows) for name, rows in before.items()}
    kernel.round(count)
    seen = [admitted(maps)]
    for write in kernel.journal:
        if write.target in maps:
            if write.value is None:
                del maps[write.target][write.key]
            else:
                maps[write.target][write.key] = write.value
            seen.append(admitted(maps))
    assert maps == held(kernel)
    return seen


def held(kernel):
    """What the two maps hold."""
    return {name: dict(kernel.maps[name].rows) for name in (stages.SERVICES, stages.SOURCES)}


def serving(state):
    """A node that serves the balancer's address under a policy, and has said so to its maps."""
    kernel = Kernel()
    nodes.add_pod(kernel.tables, 1, {"app": "web"})
    want(kernel, state)
    kernel.round(2)
    assert admitted(held(kernel)) == meant(state)
    return kernel


@pytest.mark.parametrize(("old", "new"), list(permutations(STATES, 2)))
def test_nobody_passes_whom_neither_state_allows(old, new):
    """Whatever becomes whatever, after every single write."""
    kernel = serving(old)
    want(kernel, new)
    seen = watched(kernel, before=held(kernel))
    assert set().union(*seen) <= meant(old) | meant(new)
    assert seen[-1] == meant(new)
    assert all(meant(old) & meant(new) <= one for one in seen), "who may ask before and after, may meanwhile"


def crashed(kernel, before, writes):
    """Another agent over what the maps held after the first *writes* of the last rounds."""
    again = Kernel()
    for name, one in again.maps.items():
        one.rows.update(before[name])
    for write in kernel.journal[:writes]:
        rows = again.maps[write.target].rows
        if write.value is None:
            del rows[write.key]
        else:
            rows[write.key] = write.value
    nodes.add_pod(again.tables, 1, {"app": "web"})
    return again


@pytest.mark.parametrize(("old", "new"), [(a, b) for a, b in permutations(STATES, 2) if a[0] != b[0]])
@pytest.mark.parametrize("last", [(False, (ONE,)), (True, (TWO,))])
def test_nobody_passes_after_a_crash_in_between_and_a_third_wish(old, new, last):
    """Ranges that were not taken away yet say nothing under the policy they were for when it comes back."""
    kernel = serving(old)
    before = {name: dict(one.rows) for name, one in kernel.maps.items()}
    want(kernel, new)
    kernel.round(2)
    for writes in range(len(kernel.journal) + 1):
        again = crashed(kernel, before, writes)
        was = admitted(held(again))
        want(again, last)
        seen = watched(again, before=held(again))
        assert set().union(*seen) <= was | meant(last), writes
        assert seen[-1] == meant(last)
        assert again.reconciler.status().in_sync


@pytest.mark.parametrize(("old", "new"), [(a, b) for a, b in permutations(STATES, 2) if a[0] != b[0]])
def test_a_frontend_that_cannot_be_changed_keeps_its_ranges(old, new):
    """Ranges to deny that go before the frontend stops to read them would let in whom they name."""
    kernel = serving(old)
    want(kernel, new)
    kernel.maps[stages.SERVICES].fail = lambda _: NO_MEMORY
    seen = watched(kernel, 3, before=held(kernel))
    assert set().union(*seen) <= meant(old)
    assert seen[-1] == meant(old)
    kernel.maps[stages.SERVICES].fail = lambda _: None
    seen = watched(kernel, 40, before=held(kernel))
    assert set().union(*seen) <= meant(old) | meant(new)
    assert seen[-1] == meant(new)


def test_a_frontend_waits_for_ranges_that_cannot_be_taken_away():
    """It would read what its author took back; one that reads them already changes in all else."""
    kernel = serving((False, (ONE,)))
    ranges = kernel.maps[stages.SOURCES]
    kept = dict(ranges.rows)
    ranges.fail = lambda key: NO_MEMORY if key in kept else None
    want(kernel, (True, (TWO,)))
    kernel.round(2)
    assert admitted(held(kernel)) == meant((True, (TWO,)))
    assert kept.items() <= ranges.rows.items()

    want(kernel, (False, (TWO,)))
    kernel.round(2)
    assert admitted(held(kernel)) == meant((True, (TWO,))), "as it was"
    assert any("updates wait" in (one.held or "") for one in kernel.reconciler.status().stages)

    ranges.fail = lambda _: None
    kernel.round(40)
    assert admitted(held(kernel)) == meant((False, (TWO,)))
    assert kernel.reconciler.status().in_sync
