# SPDX-License-Identifier: Apache-2.0
"""Ports of masquerading are counted by destination, and those without any left are named."""

from ipaddress import ip_address

import pytest

from ciliumd import abi
from ciliumd.model.net import addr16
from ciliumd.reconcile.nat_ports import FULL_SECONDS, NOTHING, PORTS, Count, PortUse, Target

NODE, BUSY, IDLE = (ip_address(text) for text in ("192.0.2.1", "198.51.100.9", "203.0.113.7"))
NODE6, FAR6 = ip_address("2001:db8::1"), ip_address("2001:db8:9::9")
NOW = 1000


def row(remote, address, port, direction=abi.NatDir.NAT_IN, *, protocol=6, remote_port=443, created=NOW):
    """One row, with its destination as its source."""
    key = abi.NatKey(addr16(remote), addr16(address), remote_port, port, protocol, direction, 0)
    return key.pack(), abi.NatEntry(0, port, 0, addr16(address), created).pack()


def result(*rows):
    """Counted in two pieces."""
    count = Count()
    count.add(rows[::2], NOW)
    count.add(rows[1::2], NOW)
    return count.result()


def test_no_rows_are_no_use():
    """Nothing is said about families without flows."""
    assert result() == NOTHING


def test_the_destination_with_most_flows_of_each_family():
    """One port counts once: the OUT rows say the same."""
    found = result(
        *(row(BUSY, NODE, port) for port in range(40000, 40005)),
        *(row(NODE, BUSY, port, abi.NatDir.NAT_OUT) for port in range(40000, 40009)),
        *(row(IDLE, NODE, port) for port in range(40000, 40003)),
        *(row(FAR6, NODE6, port) for port in range(40000, 40002)),
    )

    assert found.most == {
        4: PortUse(Target(BUSY, 443, 6, NODE), 5),
        6: PortUse(Target(FAR6, 443, 6, NODE6), 2),
    }
    assert found.full == ()
    assert found.most[4].saturation == pytest.approx(5 / PORTS)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"protocol": 17}, id="protocol"),
        pytest.param({"remote_port": 80}, id="port"),
        pytest.param({"address": ip_address("192.0.2.2")}, id="address"),
        pytest.param({"remote": IDLE}, id="remote"),
    ],
)
def test_ports_are_counted_apart_for(other):
    """A port towards one destination is free towards all others."""
    first = {"remote": BUSY, "address": NODE}
    found = result(row(**first, port=1), row(**first, port=2), row(**first | other, port=3))

    assert found.most[4].used == 2


def test_destinations_without_a_port_left_are_named_while_that_is_news():
    """The datapath renews the row while flows are refused."""
    full = abi.NatDir.NAT_FULL
    found = result(
        row(BUSY, NODE, 40000),
        row(BUSY, NODE, 0, full, created=NOW - FULL_SECONDS),
        row(IDLE, NODE, 0, full, created=NOW - FULL_SECONDS - 1),
        row(BUSY, NODE, 40001, abi.NatDir.NAT_HANDOVER),
    )

    assert found.full == (PortUse(Target(BUSY, 443, 6, NODE), 1),)
    assert found.full[0].target.shown() == {
        "remote": "198.51.100.9",
        "port": 443,
        "protocol": "TCP",
        "address": "192.0.2.1",
    }
