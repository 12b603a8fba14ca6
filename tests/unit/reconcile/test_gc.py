# SPDX-License-Identifier: Apache-2.0
"""Expired rows go, live rows stay, and NAT rows live exactly as long as their flow."""

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from ciliumd import abi
from ciliumd.model.net import addr16
from ciliumd.reconcile import gc

POD, WORLD, NODE = (addr16(ip_address(text)) for text in ("10.1.0.5", "192.0.2.7", "172.18.0.2"))
ENTRY = dict.fromkeys(abi.CtEntry.__match_args__, 0)
NOW = 10_000


def ct_value(expires):
    """A conntrack value with every other number set to something that is not *expires*."""
    return abi.CtEntry(**{**dict.fromkeys(ENTRY, 1), "expires": expires}).pack()


def nat_rows(*, source=POD, protocol=6, created=0):
    """Both rows of a masqueraded flow from *source*, port 1234, seen as 40000 outside."""
    out = abi.NatKey(src=source, dst=WORLD, sport=1234, dport=80, protocol=protocol, dir=0, zone=0)
    back = abi.NatKey(src=WORLD, dst=NODE, sport=80, dport=40000, protocol=protocol, dir=1, zone=0)
    return [
        (out.pack(), abi.NatEntry(check=1, port=40000, flags=0, addr=NODE, created=created).pack()),
        (back.pack(), abi.NatEntry(check=1, port=1234, flags=0, addr=source, created=created).pack()),
    ]


@given(st.lists(st.integers(0, 2**32 - 1)), st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_exactly_the_expired_rows_go_in_bounded_chunks(expiries, now, chunk):
    """Every expired key once, no other, no chunk longer than asked."""
    rows = [(number.to_bytes(4, "little"), ct_value(expires)) for number, expires in enumerate(expiries)]
    chunks = list(gc.expired_ct(rows, now, chunk=chunk))

    assert all(0 < len(part) <= chunk for part in chunks)
    expired = [key for (key, _), expires in zip(rows, expiries, strict=True) if expires <= now]
    assert expired == [key for part in chunks for key in part]


def test_nat_rows_live_as_long_as_their_flow():
    """Both rows ask for the same conntrack row: the pod's flow before translation."""
    flow = abi.CtKey(
        local=POD, remote=WORLD, local_port=1234, remote_port=80, protocol=6, kind=0, zone=0
    ).pack()
    rows = nat_rows()

    assert [] == list(gc.expired_nat(rows, NOW, is_live_flow={flow}.__contains__))
    assert [[key for key, _ in rows]] == list(gc.expired_nat(rows, NOW, is_live_flow=lambda _key: False))


def test_young_nat_rows_stay():
    """A row younger than the reading of conntrack is not judged by it."""
    assert [] == list(gc.expired_nat(nat_rows(created=NOW - 5), NOW, is_live_flow=lambda _key: False))


def test_nat_rows_of_the_node_go_by_age():
    """The node's own connections have no conntrack row here and are not swept for that."""

    def kept(age, protocol):
        rows = nat_rows(source=NODE, protocol=protocol, created=100_000 - age)
        return [] == list(gc.expired_nat(rows, 100_000, is_live_flow=lambda _key: False))

    assert kept(3600, 6)
    assert not kept(7 * 3600, 6)
    assert kept(200, 17)
    assert not kept(301, 17)
