# SPDX-License-Identifier: Apache-2.0
"""What pods are masqueraded as: the address by which the cluster knows the node."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from ciliumd import abi
from ciliumd.daemon.datapath import device_rows
from ciliumd.net.devices import NativeDevice

FOUR, FOUR_TOO = ip_address("192.0.2.1"), ip_address("192.0.2.2")
SIX, SIX_TOO = ip_address("2001:db8::1"), ip_address("2001:db8::2")
DEVICE = NativeDevice(3, "net0", "02:00:00:00:00:01", 1500, (FOUR, FOUR_TOO), (SIX, SIX_TOO))


def shown(rows):
    """The addresses of the one row."""
    (row,) = (abi.NativeDevice.unpack(value) for value in rows.values())
    assert row.check == DEVICE.ifindex
    return IPv4Address(row.ipv4), IPv6Address(row.ipv6)


@pytest.mark.parametrize(
    ("internal", "expected"),
    [
        ((), (FOUR, SIX)),
        ((FOUR_TOO, SIX_TOO), (FOUR_TOO, SIX_TOO)),
        ((SIX_TOO,), (FOUR, SIX_TOO)),
        ((ip_address("198.51.100.1"), FOUR_TOO), (FOUR_TOO, SIX)),
    ],
    ids=["no node yet", "both", "one family", "one that the device does not have"],
)
def test_an_internal_address_of_the_device_is_taken(internal, expected):
    """Of each family; else the kernel's first."""
    assert shown(device_rows((DEVICE,), internal)) == expected


def test_flows_keep_the_address_they_have_while_the_node_is_unknown():
    """An agent that starts knows no node yet: it keeps what is written, if the device has it."""
    before = device_rows((DEVICE,), (FOUR_TOO, SIX_TOO))
    assert device_rows((DEVICE,), (), before.get) == before

    without = replace(DEVICE, ipv6=(SIX,))
    assert shown(device_rows((without,), (), before.get)) == (FOUR_TOO, SIX)


def test_a_device_without_addresses_of_a_family_has_none():
    """Zero is no address: nothing is masqueraded there."""
    bare = replace(DEVICE, ipv4=(), ipv6=())
    rows = device_rows((bare,), (FOUR, SIX))
    assert shown(rows) == (IPv4Address(0), IPv6Address(0))
    assert device_rows((bare,), (), rows.get) == rows
