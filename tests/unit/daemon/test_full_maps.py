# SPDX-License-Identifier: Apache-2.0
"""A map of the load balancer that is full: who is new waits and is told, who was there stays as it was."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from ciliumd import abi
from ciliumd.daemon import stages
from ciliumd.model.net import addr16
from ciliumd.model.service import ServicePort
from unit.daemon import nodes
from unit.daemon.kernel import Kernel, service

NODE, OLD, NEW = ip_address("192.0.2.1"), "10.96.0.1", "10.96.0.2"
FULL = OSError(7, "map is full")


def make_full(kernel, name):
    """No row fits into a map any more."""
    fake = kernel.maps[name]
    fake.fail = lambda key: None if key in fake.rows else FULL


def served(kernel, address):
    """Number of backends by frontend of an address, and whether clients are to keep them."""
    found = {}
    for packed, value in kernel.maps[stages.SERVICES].rows.items():
        key, row = abi.LbServiceKey.unpack(packed), abi.LbService.unpack(value)
        if key.addr == addr16(ip_address(address)) and key.port:
            found[key.port] = row.target, bool(row.flags & abi.LbServiceFlags.LB_F_AFFINITY)
    return found


def put(kernel, name, address, *, timeout=0, node_port=0):
    """A service of the pods called web."""
    one = replace(
        service(name, address),
        affinity_timeout=timeout,
        ports=(ServicePort("", "TCP", 80, 8080, node_port),),
    )
    kernel.tables.services.set(("shop", name), one)


@pytest.fixture
def kernel():
    """A node with a pod and two services of it, one with affinity."""
    kernel = Kernel()
    kernel.node.plan.set_addresses((NODE,), (NODE,))
    nodes.add_pod(kernel.tables, 1, {"app": "web"})
    put(kernel, "plain", OLD)
    put(kernel, "kept", "10.96.0.3", timeout=60)
    kernel.round(2)
    return kernel


def test_affinity_is_there_from_the_first_connection_or_the_backend_is_not(kernel):
    """A backend that clients could not keep is no choice; a new service of such backends waits."""
    make_full(kernel, stages.AFFINITY_MATCH)
    nodes.add_pod(kernel.tables, 2, {"app": "web"})
    put(kernel, "new", NEW, timeout=60)
    put(kernel, "plain", OLD, timeout=60)
    kernel.round(3)
    assert served(kernel, NEW) == {}
    assert served(kernel, "10.96.0.3") == {80: (1, True)}
    assert served(kernel, OLD) == {80: (1, False)}, "as it was"

    kernel.maps[stages.AFFINITY_MATCH].fail = lambda _: None
    kernel.round(40)
    assert served(kernel, NEW) == served(kernel, OLD) == served(kernel, "10.96.0.3") == {80: (2, True)}


def test_a_node_port_is_there_after_what_keeps_sockets_from_it(kernel):
    """Its cluster address does not wait."""
    make_full(kernel, stages.BIND)
    put(kernel, "new", NEW, node_port=30080)
    kernel.round(3)
    assert served(kernel, NEW) == {80: (1, False)}
    assert served(kernel, NODE) == {}

    kernel.maps[stages.BIND].fail = lambda _: None
    kernel.round(40)
    assert served(kernel, NODE) == {30080: (1, False)}


def test_what_clients_keep_goes_after_the_slot_that_leads_to_it(kernel):
    """A slot that cannot be changed still sends clients there: they keep it, too."""
    kernel.maps[stages.SERVICE_SLOTS].fail = lambda _: OSError(12, "no memory")
    before = dict(kernel.maps[stages.AFFINITY_MATCH].rows)
    put(kernel, "kept", "10.96.0.3")
    kernel.round(3)
    assert kernel.maps[stages.AFFINITY_MATCH].rows == before
    kernel.maps[stages.SERVICE_SLOTS].fail = lambda _: None
    kernel.round(40)
    assert kernel.maps[stages.AFFINITY_MATCH].rows == {}
