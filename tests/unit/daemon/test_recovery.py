# SPDX-License-Identifier: Apache-2.0
"""What the next agent takes over: from files, from maps where files are lost, and nothing that is wrong."""

from ipaddress import IPv4Address, ip_address, ip_network

from structlog.testing import capture_logs

from ciliumd import abi
from ciliumd.daemon import stages, state
from ciliumd.daemon.recovery import readable, remembered_endpoints, restore_numbers
from ciliumd.desired.endpoints import endpoint_rows, state_rows
from ciliumd.model.labels import Label
from ciliumd.model.service import Frontend, FrontendKey, Service, ServiceKind, ServicePort
from ciliumd.net.links import Link, endpoint_alias
from ciliumd.tables import Tables
from unit.daemon import nodes
from unit.daemon.kernel import Kernel


def lived():
    """A node that has had a pod, a service, a policy with a prefix; and its maps."""
    kernel = Kernel()
    nodes.add_pod(kernel.tables, 1, {"app": "web"})
    nodes.add_pod(kernel.tables, 2, {"app": "db"})
    nodes.add_policy(
        kernel.tables, nodes.policy("web", nodes.rule(nodes.app("db"), nodes.cidr("198.51.100.0/24")))
    )
    front = Frontend(ip_address("10.96.0.1"), 80, "TCP", ServiceKind.CLUSTER_IP)
    port = ServicePort("", "TCP", 80, 8080)
    kernel.tables.services.set(
        ("shop", "web"), Service("shop", "web", "ClusterIP", (front,), (port,), selector=(("app", "web"),))
    )
    kernel.round(2)
    return kernel


def taken_over(kernel, *, without=()):
    """The numbers the next agent has; *without* some maps or files."""
    tables = Tables()
    restore_numbers(tables, rows=lambda name: {} if name in without else kernel.maps[name].rows)
    return tables


def numbers(tables):
    """Every number by table."""
    return {
        name: dict(getattr(tables, name).items())
        for name in ("identities", "prefixes", "service_ids", "backend_ids")
    }


def test_every_number_comes_back():
    """As it was."""
    kernel = lived()
    assert numbers(taken_over(kernel)) == numbers(kernel.tables)
    assert kernel.tables.service_ids.get(FrontendKey(ip_address("10.96.0.1"), 80, "TCP")) == 1


def test_a_lost_file_of_prefixes_is_made_up_for_by_the_maps():
    """The ipcache holds prefix and number both."""
    kernel = lived()
    found = taken_over(kernel, without=(stages.PREFIX_FILE,))
    assert dict(found.prefixes.items()) == {ip_network("198.51.100.0/24"): 1 << 24}


def test_identities_whose_labels_are_lost_are_given_to_nobody():
    """Or pods would pass for each other until the last map is rewritten."""
    kernel = lived()
    before = set(dict(kernel.tables.identities.items()).values())
    with capture_logs() as logs:
        found = taken_over(kernel, without=(stages.IDENTITY_FILE,))
    assert {one["identity"] for one in logs} == before
    lost = dict(found.identities.items())
    assert set(lost.values()) == before
    assert all(label.source == "unspec" for labels in lost for label in labels)

    after = nodes.Planned(
        nodes.copied(kernel.tables), next_version=100, restored=kernel.maps[stages.POLICY].rows
    )
    for labels in dict(after.tables.identities.items()):
        after.tables.identities.delete(labels)
    for labels, number in lost.items():
        after.tables.identities.set(labels, number)
    after.refresh()
    assert set(after.plan.identities.values()).isdisjoint(before)
    rows = [state.identity_row(labels, number) for labels, number in lost.items()]
    assert dict(state.identity_of(*row) for row in rows) == lost


def test_identities_only_policies_know_are_not_given_away_either():
    """A released pod's class may still be in a map."""
    kernel = lived()
    identity = kernel.node.plan.identities[2]
    gone = (stages.IDENTITY_FILE, stages.IPCACHE, stages.FACTS)
    assert identity in dict(taken_over(kernel, without=gone).identities.items()).values()


def test_rows_that_make_no_sense_are_told_and_left_out():
    """The others are taken over, the agent starts."""
    kernel = lived()
    kernel.maps[stages.IDENTITY_FILE].rows |= {b"999": b"{}", b"x": b'["k8s:a"]'}
    kernel.maps[stages.PREFIX_FILE].rows |= {b"998": b"10.0.0.0/99"}
    with capture_logs() as logs:
        found = taken_over(kernel)
    assert numbers(found) == numbers(kernel.tables)
    assert [(one["file"], one["row"]) for one in logs] == [
        (stages.IDENTITY_FILE, "999"),
        (stages.IDENTITY_FILE, "x"),
        (stages.PREFIX_FILE, "998"),
    ]


def test_endpoint_rows_that_make_no_sense_are_left_out_too():
    """The file says which one."""
    good = nodes.endpoint(1)
    rows = dict([state.endpoint_row(good), (b"2", b"[]")])
    with capture_logs() as logs:
        found = list(readable(stages.ENDPOINT_FILE, rows, lambda _, value: state.endpoint_of(value)))
    assert found == [good]
    assert [one["row"] for one in logs] == ["2"]


# ---- endpoints the kernel remembers ----------------------------------------------------------


def link_of(one, *, alias=None, ifindex=None):
    """Its device."""
    text = endpoint_alias(one.id, f"{one.namespace}/{one.pod}") if alias is None else alias
    return Link(ifindex or one.ifindex, one.ifname, one.node_mac, 1500, True, False, text, "veth", 2)


def remembered(links, rows, states):
    """What is found in these rows."""
    return remembered_endpoints(links, slots=rows.devices, facts=rows.facts, states=states)


def test_an_endpoint_is_remembered_by_its_device_and_rows():
    """All but its namespace's path and its container."""
    one = nodes.endpoint(7, address=IPv4Address("10.0.0.7"))
    rows, states = endpoint_rows([one], {7: 300}), state_rows([one], {7: 5})
    (found,) = remembered([link_of(one)], rows, states)
    assert found == one.__class__(
        **{**{f: getattr(one, f) for f in one.__slots__}, "netns": "", "container_id": ""}
    )


def test_a_device_whose_rows_disagree_is_not_believed():
    """Another owner, another device, a slot that has another tenant by now, no rows at all."""
    one, two = nodes.endpoint(7), nodes.endpoint(8)
    rows, states = endpoint_rows([one, two], {7: 300, 8: 301}), state_rows([one, two], {7: 5, 8: 5})
    assert remembered([link_of(one, alias="")], rows, states) == []
    assert remembered([link_of(one, alias=endpoint_alias(9, "a/b"))], rows, states) == []
    assert remembered([link_of(one, ifindex=two.ifindex)], rows, states) == []
    assert remembered([link_of(one, ifindex=4711)], rows, states) == []
    slot = one.slot.to_bytes(4, "little")
    states[slot] = ((one.slot_gen + 1) << 32 | 5).to_bytes(8, "little")
    assert remembered([link_of(one)], rows, states) == []
    del states[slot]
    assert remembered([link_of(one)], rows, states) == []


def test_lost_identities_have_labels_no_policy_names():
    """They are of no namespace and say what they are."""
    kernel = lived()
    with capture_logs():
        found = taken_over(kernel, without=(stages.IDENTITY_FILE,))
    number = kernel.node.plan.identities[1]
    assert found.identities.get(frozenset({Label("unspec", f"lost-identity-{number}")})) == number
    assert abi.Endpoint.unpack(kernel.maps[stages.FACTS].rows[bytes(4)]).identity == number
