# SPDX-License-Identifier: Apache-2.0
"""The model mirrors the datapath's numbers, and derived properties say what they promise."""

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from ciliumd import abi
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.identity import (
    API_SERVER_NODE_MAX,
    API_SERVER_NODE_MIN,
    CLUSTER_MAX,
    CLUSTER_MIN,
    LOCAL_MAX,
    LOCAL_MIN,
    NODE_MAX,
    NODE_MIN,
    Reserved,
    cidr_labels,
    is_node,
    reserved_identities,
    reserved_labels,
)
from ciliumd.model.labels import parse_label
from ciliumd.model.service import Backend, BackendState, Frontend, Service, ServiceKind, ServicePort

pytestmark = pytest.mark.unit


def test_reserved_identities_are_the_datapaths() -> None:
    """Names and numbers agree with the ABI, none is missing."""
    assert {f"ID_{reserved.name}": int(reserved) for reserved in Reserved} == {
        identity.name: int(identity) for identity in abi.Identity
    }


def test_scopes_of_local_identities_are_the_datapaths() -> None:
    """The datapath tells prefixes and nodes by the upper byte, and the API server by a bit."""
    scope, node = abi.IdentityScope, abi.NodeScope
    assert LOCAL_MIN >> scope.SCOPE_SHIFT == LOCAL_MAX >> scope.SCOPE_SHIFT == scope.SCOPE_CIDR
    assert NODE_MIN >> scope.SCOPE_SHIFT == API_SERVER_NODE_MAX >> scope.SCOPE_SHIFT == scope.SCOPE_NODE
    assert not (NODE_MIN | NODE_MAX) & node.NODE_API_SERVER
    assert API_SERVER_NODE_MIN & API_SERVER_NODE_MAX & node.NODE_API_SERVER
    assert is_node(NODE_MIN)
    assert is_node(API_SERVER_NODE_MAX)
    assert not is_node(LOCAL_MAX)
    assert not is_node(API_SERVER_NODE_MAX + 1)


def test_backend_states_are_the_datapaths() -> None:
    """Names and numbers agree with the ABI."""
    assert {f"BACKEND_{state.name}": int(state) for state in BackendState} == {
        state.name: int(state) for state in abi.LbBackendState
    }


def test_reserved_label_names_use_dashes() -> None:
    """Labels are spelled as Cilium users know them."""
    assert reserved_labels(Reserved.REMOTE_NODE) == {parse_label("reserved:remote-node")}


def test_unknown_is_no_identity_of_a_packet() -> None:
    """0 marks what has no identity, so no label set stands for it."""
    assert 0 not in reserved_identities()
    assert len(reserved_identities()) == len(Reserved) - 1


def test_identity_ranges_do_not_meet() -> None:
    """Reserved, cluster and local identities can be told apart by their number."""
    assert max(Reserved) < CLUSTER_MIN < CLUSTER_MAX < LOCAL_MIN


def test_prefix_identity_belongs_to_the_world() -> None:
    """What policy says about the world holds for every prefix of it."""
    assert cidr_labels(ip_network("10.0.0.0/8")) == {
        parse_label("cidr:10.0.0.0/8"),
        parse_label("reserved:world"),
    }


def test_endpoint_lists_the_addresses_it_has() -> None:
    """IPv4 first, absent families left out."""
    spec = EndpointSpec(
        id=1,
        slot=0,
        slot_gen=1,
        namespace="shop",
        pod="web-1",
        container_id="",
        netns="/run/netns/web-1",
        ifname="lxcweb1",
        ifindex=7,
        mac="02:00:00:00:00:01",
        node_mac="02:00:00:00:00:02",
        ipv4=None,
        ipv6=IPv6Address("fd00::1"),
    )

    assert spec.addresses == (IPv6Address("fd00::1"),)
    assert spec.pod_key == ("shop", "web-1")


def test_keys_ignore_what_does_not_make_a_frontend_or_backend_another() -> None:
    """Kind, node and state may change without a new id."""
    addr = IPv4Address("10.0.0.1")
    assert (
        Frontend(addr, 80, "TCP", ServiceKind.CLUSTER_IP).key
        == Frontend(addr, 80, "TCP", ServiceKind.NODE_PORT).key
    )
    assert (
        Backend(addr, 80, "TCP", "one", BackendState.ACTIVE).key
        == Backend(addr, 80, "TCP", "two", BackendState.TERMINATING).key
    )


def test_service_finds_the_port_of_a_frontend_by_protocol_and_number() -> None:
    """53/UDP and 53/TCP are different ports."""
    addr = IPv4Address("10.0.0.10")
    tcp, udp = (Frontend(addr, 53, protocol, ServiceKind.CLUSTER_IP) for protocol in ("TCP", "UDP"))
    ports = (ServicePort("dns", "UDP", 53, 53), ServicePort("dns-tcp", "TCP", 53, 53))
    service = Service("kube-system", "dns", "ClusterIP", (tcp, udp), ports)

    assert service.port_of(tcp).name == "dns-tcp"
    assert service.port_of(udp).name == "dns"
    with pytest.raises(KeyError):
        service.port_of(Frontend(addr, 54, "TCP", ServiceKind.CLUSTER_IP))
