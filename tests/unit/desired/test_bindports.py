# SPDX-License-Identifier: Apache-2.0
"""Ports that no socket of the node may bind."""

from ipaddress import ip_address

import pytest

from ciliumd import abi
from ciliumd.desired.bindports import bind_rows
from ciliumd.desired.services import served_frontends, with_node_ports
from ciliumd.model.service import ServicePort
from unit.desired.worlds import service

pytestmark = pytest.mark.unit


def test_a_node_port_is_one_row_however_many_addresses_the_node_has() -> None:
    """Ports of cluster addresses are nobody's business here."""
    ports = ServicePort("dns", "UDP", 53, 5353, 30053), ServicePort("web", "TCP", 80, 8080)
    addresses = [ip_address("192.0.2.1"), ip_address("192.0.2.2")]
    served, _ = served_frontends(with_node_ports([service("dns", "10.96.0.1", *ports)], addresses), [])
    assert {abi.LbBindKey.unpack(key) for key in bind_rows(served)} == {abi.LbBindKey(30053, 17)}
