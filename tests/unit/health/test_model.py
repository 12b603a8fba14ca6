# SPDX-License-Identifier: Apache-2.0
"""Whom to probe, what counts as reachable, and Cilium's JSON of it."""

from ipaddress import ip_address

import pytest

from ciliumd.health import model
from unit.health.samples import AT, SILENT, node, result

LOCAL = node("a", "192.0.2.1")
HEALTH = ip_address("10.0.0.7")


def test_every_node_is_probed_once_and_this_one_where_it_is():
    """Local rows win over what is published; others are taken by what they publish."""
    published = [node("a", "192.0.2.99", health=("10.0.0.99",)), node("b", "192.0.2.2", health=("10.0.1.7",))]
    here, there = model.targets(published, LOCAL, HEALTH, endpoints=True)

    assert (here.name, here.host, here.endpoint) == ("a", (ip_address("192.0.2.1"),), (HEALTH,))
    assert (there.name, there.host, there.endpoint) == (
        "b",
        (ip_address("192.0.2.2"),),
        (ip_address("10.0.1.7"),),
    )


def test_without_endpoints_only_nodes_are_probed():
    """No health endpoint, ours or theirs."""
    found = model.targets([node("b", "192.0.2.2", health=("10.0.1.7",))], LOCAL, HEALTH, endpoints=False)
    assert [one.endpoint for one in found] == [(), ()]


def test_only_ipv4_internal_addresses_are_probed():
    """Routers and external addresses are other parts' matter."""
    row = node("b", "192.0.2.2", "fd00::2", health=("fd00::7",))
    _, there = model.targets([row], LOCAL, None, endpoints=True)
    assert (there.host, there.endpoint) == ((ip_address("192.0.2.2"),), ())


def test_ipv6_is_probed_where_pods_have_no_ipv4():
    """A node that has IPv4 alone is probed at that."""
    both = node("b", "192.0.2.2", "fd00::2", health=("10.0.1.7", "fd00::7"))
    old = node("c", "192.0.2.3", health=("fd00::8",))
    _, there, beyond = model.targets([both, old], LOCAL, None, endpoints=True, family=6)
    assert (there.host, there.endpoint) == ((ip_address("fd00::2"),), (ip_address("fd00::7"),))
    assert (beyond.host, beyond.endpoint) == ((ip_address("192.0.2.3"),), (ip_address("fd00::8"),))


@pytest.mark.parametrize(("cluster", "name"), [("default", "a"), ("east", "east/a")])
def test_nodes_of_a_named_cluster_carry_its_name(cluster, name):
    """As Cilium names them."""
    (found,) = model.targets((), node("a", "192.0.2.1", cluster=cluster), None, endpoints=True)
    assert found.full_name == name


@pytest.mark.parametrize(
    ("one", "node_ok", "endpoint_ok"),
    [
        (result("a"), True, True),
        (result("a", host=SILENT), False, True),
        (result("a", endpoint=SILENT), True, False),
        (result("a", endpoint=SILENT, host=SILENT), False, False),
    ],
)
def test_one_silent_probe_makes_unreachable(one, node_ok, endpoint_ok):
    """ICMP alone is not enough."""
    assert (one.host_reachable, one.endpoint_reachable) == (node_ok, endpoint_ok)
    assert one.reachable is (node_ok and endpoint_ok)


def test_a_node_without_address_is_unreachable_and_one_without_endpoint_is_not():
    """What must be there, and what need not."""
    assert not model.NodeResult(model.Target("x", "default", (), ()), (), ()).reachable
    bare = result("b")
    assert model.NodeResult(bare.target, bare.host, ()).reachable


def test_the_summary_counts_and_names():
    """Nodes, not probes."""
    counted = model.summary([result("b", host=SILENT), result("a"), result("c", endpoint=SILENT)])

    assert (counted.reachable, counted.total) == (1, 3)
    assert counted.unreachable == ("b", "c")
    assert (counted.unreachable_nodes, counted.unreachable_endpoints) == (1, 1)
    assert counted.at == AT
    assert model.summary([]) == model.Summary(0, (), 0, 0, 0.0)


def test_connectivity_is_counted_by_type_and_status():
    """Endpoints only of nodes that have one."""
    bare = result("c")
    counted = model.connectivity(
        [result("a"), result("b", endpoint=SILENT), model.NodeResult(bare.target, bare.host, ())]
    )
    assert counted == {
        ("node", "reachable"): 3,
        ("endpoint", "reachable"): 1,
        ("endpoint", "unreachable"): 1,
    }


def test_the_report_is_ciliums():
    """Empty status for what answered, nanoseconds, primary and secondary addresses."""
    two = result("b", cluster="east", host=SILENT, endpoint=SILENT)
    bare = result("a", cluster="east")
    bare = model.NodeResult(bare.target, (*bare.host, *bare.host), ())
    text = model.report([two, bare], local="east/a", interval=60.0)
    well = {"status": "", "latency": 315254, "lastProbed": "2021-08-11T09:33:31Z"}

    assert text["local"] == {"name": "east/a"}
    assert (text["timestamp"], text["probeInterval"]) == ("2021-08-11T09:33:31Z", "60s")
    assert [one["name"] for one in text["nodes"]] == ["east/a", "east/b"]
    host = text["nodes"][0]["host"]
    assert host["primary-address"] == {"ip": "192.0.2.1", "icmp": well, "http": well}
    assert len(host["secondary-addresses"]) == 1
    assert text["nodes"][0]["health-endpoint"] is None
    assert text["nodes"][1]["health-endpoint"]["primary-address"]["http"]["status"] == "Connection timed out"


def test_a_node_without_addresses_reports_none():
    """There is nothing to show, and nothing is invented."""
    (one,) = model.report(
        [model.NodeResult(model.Target("x", "default", (), ()), (), ())], local="a", interval=1.0
    )["nodes"]
    assert one["host"] == {"primary-address": None, "secondary-addresses": []}
