# SPDX-License-Identifier: Apache-2.0
"""A replay says what the maps would, and tells addresses outside apart as the policies it is given do."""

from ipaddress import ip_address, ip_network

import pytest

from ciliumd.desired.policy import Judged, Outside, Subject, World, lookup, replay, resolve, select
from ciliumd.desired.policy.cookies import cookie
from ciliumd.model.identity import Reserved, cidr_labels, reserved_labels
from ciliumd.model.policy import Enforcement, NamedPort, PortRule, Selector
from unit.policy.builders import (
    DB,
    EGRESS,
    HOST,
    INGRESS,
    OTHER,
    TCP,
    UDP,
    WEB,
    app,
    cidr,
    identities,
    pod,
    policy,
    rule,
)

pytestmark = pytest.mark.unit

DB_POD = Subject(pod("db"), frozenset())
TO_DB = Selector(frozenset({("k8s", "app", "db")}))
HTTP = PortRule("TCP", 80)


def said(policies, *traffic, world=None, enforcement=Enforcement.DEFAULT):
    """The verdicts on *traffic*, by name."""
    found = replay(policies, traffic, world=world or World(identities()), enforcement=enforcement)
    return [one.verdict.name.removeprefix("POLICY_VERDICT_") for one in found]


def incoming(peer, port=80, protocol=TCP):
    """Traffic to the db pod."""
    return Judged(DB_POD, INGRESS, peer, protocol, port)


def test_it_says_what_the_rows_of_a_version_say() -> None:
    """Of every identity, port and direction, with the rule."""
    policies = [
        policy(
            rule(app("web"), ports=(HTTP, PortRule("TCP", 100, 200)), origin="some"),
            rule(app("other"), origin="all"),
            rule(app("other"), ports=(PortRule("UDP", 53),), deny=True, origin="no-dns"),
            rule(app("web"), direction=EGRESS, origin="out"),
            egress=True,
        )
    ]
    known = identities()
    state = resolve(select(policies, DB_POD.labels), known)
    traffic = [
        Judged(DB_POD, direction, peer, protocol, port)
        for direction in (INGRESS, EGRESS)
        for peer in (WEB, DB, OTHER, HOST)
        for protocol, port in ((TCP, 80), (TCP, 150), (TCP, 201), (UDP, 53), (1, 8))
    ]

    found = replay(policies, traffic, world=World(known))

    assert [tuple(one) for one in found] == [
        lookup(state, one.peer, one.direction, one.protocol, one.port) for one in traffic
    ]
    assert {one.rule_cookie for one in found} >= {cookie("some"), cookie("no-dns"), cookie("out")}
    assert [one.allows for one in found[:3]] == [True, True, False]


def test_addresses_outside_are_told_apart_by_the_policies_that_are_asked() -> None:
    """Whatever identity their packets had when they were seen."""
    inside, hole, beyond = (ip_address(one) for one in ("192.0.2.1", "192.0.2.129", "198.51.100.1"))
    traffic = [incoming(one) for one in (inside, hole, beyond)]

    assert said([policy(subject=TO_DB)], *traffic) == ["DEFAULT_DENY"] * 3
    narrow = policy(rule(cidr("192.0.2.0/24", "192.0.2.128/25")), subject=TO_DB)
    assert said([narrow], *traffic) == ["ALLOW", "DEFAULT_DENY", "DEFAULT_DENY"]
    wide = policy(rule(cidr("0.0.0.0/0")), subject=TO_DB)
    assert said([narrow, wide], *traffic) == ["ALLOW"] * 3


def test_the_longest_prefix_of_the_family_is_who_an_address_is() -> None:
    """Otherwise the world of its family."""
    outside = Outside(map(ip_network, ("10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32")))
    for address, labels in {
        "10.1.2.3": cidr_labels(ip_network("10.1.0.0/16")),
        "10.2.2.3": cidr_labels(ip_network("10.0.0.0/8")),
        "11.0.0.1": reserved_labels(Reserved.WORLD),
        "2001:db8::1": cidr_labels(ip_network("2001:db8::/32")),
        "2001:db9::1": reserved_labels(Reserved.WORLD_IPV6),
    }.items():
        assert outside.labels(ip_address(address)) == labels


def test_named_ports_and_the_nodes_setting_count() -> None:
    """Those of the peer on egress; and what the node enforces without any policy."""
    named = frozenset({NamedPort("http", "TCP", 8080)})
    policies = [
        policy(rule(app("web"), ports=(PortRule("TCP", name="http"),), direction=EGRESS), egress=True)
    ]
    world = World(identities(), {WEB: named})
    traffic = [Judged(DB_POD, EGRESS, WEB, TCP, port) for port in (8080, 80)]

    assert said(policies, *traffic, world=world) == ["ALLOW", "DEFAULT_DENY"]
    assert said([], *traffic) == ["ALLOW", "ALLOW"]
    assert said([], *traffic, enforcement=Enforcement.ALWAYS) == ["DEFAULT_DENY", "DEFAULT_DENY"]
