# SPDX-License-Identifier: Apache-2.0
"""Lines and JSON are byte for byte what scripts around Cilium parse."""

from ipaddress import ip_address

import pytest

from ciliumd.flows import render
from ciliumd.model.net import addr16
from unit.flows.samples import TRACE, VERDICT, flow

SIX = {"ethertype": 0x86DD, "src": addr16(ip_address("fd00::1")), "dst": addr16(ip_address("fd00::2"))}


def test_drop_line_names_the_policy():
    """The line of a policy drop, whole."""
    assert render.text(flow()) == (
        "xx drop (Policy denied) flow 0x0 to endpoint 12, ifindex 7, file lxc.bpf.c:120, identity 256->257: "
        "10.0.0.1:1234 -> 10.0.0.2:80 tcp SYN, policy cnp default/rule1"
    )


def test_drop_line_without_policy_ends_after_the_packet():
    """A drop no rule is behind has no trailer."""
    line = render.text(flow(rule_cookie=0, reason=166, ethertype=0x0806, file=2, line=9))

    assert line == (
        "xx drop (Unsupported L2 protocol) flow 0x0 to endpoint 12, ifindex 7, file host.bpf.c:9, "
        "identity 256->257: 02:00:00:00:00:01 -> 02:00:00:00:00:02 ARP"
    )


@pytest.mark.parametrize(
    ("point", "start"),
    [
        (101, "-> endpoint 12 "),
        (1, "-> proxy "),
        (2, "-> host from "),
        (3, "-> stack "),
        (4, "-> overlay "),
        (5, "<- endpoint 7 "),
        (7, "<- host "),
        (10, "<- network "),
        (11, "-> network "),
        (50, "unknown trace "),
    ],
)
def test_trace_line_says_where(point, start):
    """Every observation point has Cilium's arrow."""
    line = render.text(flow(**TRACE | {"trace_point": point, "ct_state": 1, "tcp_flags": 0x10}))

    assert line == (
        f"{start}flow 0x0 identity 256->257 state established ifindex lxc12: "
        "10.0.0.1:1234 -> 10.0.0.2:80 tcp ACK"
    )


@pytest.mark.parametrize(
    ("changes", "action"), [({}, "allow"), ({"reason": 2}, "deny"), ({"reason": 3, "audit": 1}, "audit")]
)
def test_policy_verdict_line(changes, action):
    """The line of a verdict names action, direction, the remote side and the policy."""
    assert render.text(flow(**VERDICT | changes)) == (
        "Policy verdict log: flow 0x0 local EP ID 12, remote ID 256, proto 6, ingress, "
        f"action {action}, auth: disabled, 10.0.0.1:1234 -> 10.0.0.2:80 tcp SYN, policy cnp default/rule1"
    )


def test_remote_side_of_an_egress_verdict_is_the_destination():
    """The endpoint that judged is the local one."""
    assert "remote ID 257, proto 6, egress" in render.text(flow(**VERDICT, direction=2))


def test_reserved_identities_have_names_unless_numeric():
    """As Cilium's monitor, with and without -n."""
    world = flow(src_identity=2)

    assert "identity world->257:" in render.text(world)
    assert "identity 2->257:" in render.text(world, numeric=True)


@pytest.mark.parametrize(
    ("changes", "summary"),
    [
        ({"tcp_flags": 0x12}, "10.0.0.1:1234 -> 10.0.0.2:80 tcp SYN, ACK"),
        ({"tcp_flags": 0}, "10.0.0.1:1234 -> 10.0.0.2:80 tcp"),
        ({"protocol": 17}, "10.0.0.1:1234 -> 10.0.0.2:80 udp"),
        ({"protocol": 132}, "10.0.0.1:1234 -> 10.0.0.2:80 sctp"),
        ({"protocol": 1, "sport": 8 << 8}, "10.0.0.1 -> 10.0.0.2 EchoRequest"),
        ({"protocol": 1, "sport": 3 << 8 | 3}, "10.0.0.1 -> 10.0.0.2 DestinationUnreachable(Port)"),
        ({"protocol": 1, "sport": 3 << 8 | 13}, "10.0.0.1 -> 10.0.0.2 DestinationUnreachable(13)"),
        ({"protocol": 1, "sport": 42 << 8 | 7}, "10.0.0.1 -> 10.0.0.2 42(7)"),
        ({"protocol": 47}, "10.0.0.1 -> 10.0.0.2"),
        (SIX, "[fd00::1]:1234 -> [fd00::2]:80 tcp SYN"),
        ({**SIX, "protocol": 58, "sport": 135 << 8}, "fd00::1 -> fd00::2 NeighborSolicitation"),
        ({"ethertype": 0x1234}, "02:00:00:00:00:01 -> 02:00:00:00:00:02 0x1234"),
    ],
)
def test_packet_summary(changes, summary):
    """Ports, ICMP names, or just addresses, by what the packet has."""
    assert render.summary(flow(**changes)) == summary


def test_verbose_text_adds_time_pods_and_rule():
    """Enough to find the packet's pods without another command."""
    assert render.verbose_text(flow()).splitlines() == [
        "2023-11-14T22:13:25.000000001Z drop DROPPED: 74 bytes",
        "  at   from-container of lxc12",
        "  for  endpoint 12, policy version 9",
        "  02:00:00:00:00:01 -> 02:00:00:00:00:02 IPv4",
        "  from default/xwing endpoint 7 identity 256 [k8s:class=xwing, k8s:org=alliance]",
        "  to   default/deathstar endpoint 12 identity 257 [k8s:class=deathstar, k8s:org=empire]",
        "  rule CiliumNetworkPolicy cnp default/rule1 ingress/0",
        render.text(flow()),
    ]


def test_monitor_json_of_a_drop():
    """Key names are those of ``cilium monitor -j``."""
    assert render.monitor_json(flow()) == {
        "type": "drop",
        "mark": "0x0",
        "reason": "Policy denied",
        "source": 7,
        "bytes": 74,
        "srcLabel": 256,
        "dstLabel": 257,
        "dstID": 12,
        "Line": 120,
        "File": 1,
        "ExtError": 0,
        "Ifindex": 7,
        "summary": {
            "ethernet": "IPv4",
            "l2": {"src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:02"},
            "l3": {"src": "10.0.0.1", "dst": "10.0.0.2"},
            "l4": {"src": "1234", "dst": "80"},
            "tcp": "10.0.0.1:1234 -> 10.0.0.2:80 tcp SYN",
        },
        "policies": ["cnp default/rule1"],
    }


def test_monitor_json_of_a_trace_and_a_verdict():
    """What only these types have."""
    trace = render.monitor_json(flow(**TRACE, protocol=1, sport=8 << 8))
    verdict = render.monitor_json(flow(**VERDICT))

    assert (trace["type"], trace["state"], trace["observationPoint"], trace["traceSummary"]) == (
        "trace",
        "new",
        "to-endpoint",
        "-> endpoint 12",
    )
    assert trace["summary"]["icmpv4"] == "EchoRequest"
    assert (verdict["type"], verdict["action"], verdict["direction"]) == (
        "policy-verdict",
        "allow",
        "ingress",
    )
