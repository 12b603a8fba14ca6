# SPDX-License-Identifier: Apache-2.0
"""Which identity an address has, read back from packed rows as the datapath reads them."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciliumd import abi
from ciliumd.desired.ipcache import IpcacheRows, address_key, prefix_key
from ciliumd.model.net import Addr, addr16, fold32
from unit.desired.worlds import endpoint, ipcache_rows

pytestmark = pytest.mark.unit


def identity(rows: IpcacheRows, address: str) -> int:
    """A list scan of what two map lookups do: the single address, else the longest prefix."""
    addr = addr16(ip_address(address))
    row = rows.addresses.get(abi.IpcacheKey(addr, 0).pack())
    if row is not None:
        entry = abi.IpcacheEntry.unpack(row)
        assert entry.check == fold32(addr)
        return entry.identity
    bits = int.from_bytes(bytes(4) + addr, "big")
    matches = []
    for packed, value in rows.prefixes.items():
        key = abi.IpcacheLpmKey.unpack(packed)
        shift = 160 - key.prefixlen
        if bits >> shift == int.from_bytes(bytes(4) + key.addr, "big") >> shift:
            matches.append((key.prefixlen, abi.IpcacheEntry.unpack(value).identity))
    return max(matches)[1]


def test_who_is_not_known_is_the_world() -> None:
    """Each family has a row that catches everything, and is a world of its own."""
    rows = ipcache_rows([], {}, host_addresses=[], prefixes={})

    assert identity(rows, "192.0.2.1") == 2
    assert identity(rows, "2001:db8::1") == 10


def test_endpoints_and_the_node_are_themselves() -> None:
    """Each address of an endpoint has its identity; the node's own are host."""
    rows = ipcache_rows(
        [endpoint(1, ipv6="fd00::1"), endpoint(2)],
        {1: 256, 2: 257},
        host_addresses=[ip_address("10.0.0.254"), ip_address("fd00::fe")],
        prefixes={},
    )

    assert [identity(rows, a) for a in ("10.0.0.1", "fd00::1", "10.0.0.2", "10.0.0.254", "fd00::fe")] == [
        256,
        256,
        257,
        1,
        1,
    ]


def test_endpoint_without_identity_has_no_row() -> None:
    """It is not taken for somebody it is not."""
    rows = ipcache_rows([endpoint(1)], {}, host_addresses=[], prefixes={})

    assert rows.addresses == {}


def test_longest_prefix_names_the_identity() -> None:
    """Policies with nested CIDRs tell them apart; a single address is a prefix of one."""
    rows = ipcache_rows(
        [],
        {},
        host_addresses=[],
        prefixes={
            ip_network("10.0.0.0/8"): 1 << 24,
            ip_network("10.1.0.0/16"): (1 << 24) + 1,
            ip_network("10.1.2.3/32"): (1 << 24) + 2,
            ip_network("fd00::/8"): (1 << 24) + 3,
        },
    )

    assert [identity(rows, a) - (1 << 24) for a in ("10.9.0.1", "10.1.2.4", "10.1.2.3", "fd12::1")] == [
        0,
        1,
        2,
        3,
    ]


def test_prefix_of_one_never_renames_an_endpoint_or_the_node() -> None:
    """A policy that mentions a pod's address does not turn the pod into an outsider."""
    prefixes = {ip_network("10.0.0.1/32"): 1 << 24, ip_network("10.0.0.254/32"): (1 << 24) + 1}
    rows = ipcache_rows([endpoint(1)], {1: 256}, host_addresses=[ip_address("10.0.0.254")], prefixes=prefixes)

    assert identity(rows, "10.0.0.1") == 256
    assert identity(rows, "10.0.0.254") == 1


def test_prefixes_know_what_lies_next_inside_them() -> None:
    """The next longer prefixes and named addresses, and no others; the world around them is nobody's."""
    names = ["198.51.100.0/24", "198.51.100.64/26", "198.51.100.64/28", "198.51.100.65/32", "203.0.113.0/24"]
    names += ["2001:db8::/32", "2001:db8:1::/48", "2001:db8::1/128"]
    prefixes = [ip_network(name) for name in names]
    rows = ipcache_rows([], {}, host_addresses=[], prefixes={one: 100 + n for n, one in enumerate(prefixes)})

    def key(name: str) -> bytes:
        return prefix_key(ip_network(name))

    assert rows.within == {
        key("198.51.100.0/24"): [(False, key("198.51.100.64/26"))],
        key("198.51.100.64/26"): [(False, key("198.51.100.64/28"))],
        key("198.51.100.64/28"): [(True, address_key(ip_address("198.51.100.65")))],
        key("2001:db8::/32"): [
            (True, address_key(ip_address("2001:db8::1"))),
            (False, key("2001:db8:1::/48")),
        ],
    }
    assert {inner for found in rows.within.values() for _, inner in found} <= {
        *rows.prefixes,
        *rows.addresses,
    }


def test_endpoint_cannot_take_the_nodes_address() -> None:
    """Whatever a pod was given, the node stays host."""
    rows = ipcache_rows([endpoint(1)], {1: 256}, host_addresses=[ip_address("10.0.0.1")], prefixes={})

    assert identity(rows, "10.0.0.1") == 1


@given(
    st.dictionaries(
        st.ip_addresses(v=4).map(lambda a: IPv4Network((a, 12), strict=False))
        | st.ip_addresses(v=6).map(lambda a: IPv6Network((a, 20), strict=False)),
        st.integers(1 << 24, (1 << 24) + 99),
        max_size=5,
    ),
    st.ip_addresses(),
)
def test_prefix_rows_say_what_the_prefixes_say(
    prefixes: dict[IPv4Network | IPv6Network, int], addr: Addr
) -> None:
    """For any address outside the mapped range: the identity of the prefix it is in, else the world."""
    if getattr(addr, "ipv4_mapped", None):
        return
    rows = ipcache_rows([], {}, host_addresses=[], prefixes=prefixes)

    inside = [number for prefix, number in prefixes.items() if addr in prefix]
    world = 2 if addr.version == 4 else 10
    assert identity(rows, str(addr)) == (inside or [world])[0]
