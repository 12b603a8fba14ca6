# SPDX-License-Identifier: Apache-2.0
"""Flows survive the socket, and read as Hubble's JSON on the way."""

import json
from ipaddress import ip_address

import pytest

from ciliumd.flows import wire
from ciliumd.model.net import addr16
from unit.flows.samples import TRACE, VERDICT, flow

SAMPLES = [
    {},
    {"audit": 1},
    VERDICT,
    VERDICT | {"reason": 3, "direction": 2},
    TRACE,
    TRACE | {"ct_state": 255, "trace_point": 250},
    {"protocol": 1, "sport": 0x0800},
    {"protocol": 47},
    {"ethertype": 0x0806, "protocol": 0},
    {"src": addr16(ip_address("fd00::1")), "dst": addr16(ip_address("::")), "ethertype": 0x86DD},
    {"direction": 0, "hook": 200, "file": 200, "timestamp": 0},
]


@pytest.mark.parametrize("changes", SAMPLES)
def test_flow_comes_back_as_it_went(changes):
    """JSON text and back gives an equal flow, whatever is in the record."""
    sent = flow(**changes)

    assert wire.from_json(json.loads(json.dumps(wire.to_json(sent)))) == sent


def test_lost_events_come_back():
    """A gap travels in the stream like a flow."""
    gap = wire.LostEvents(wire.SUBSCRIBER_QUEUE, 5)

    assert wire.to_json(gap) == {"lost_events": {"source": "OBSERVER_EVENTS_QUEUE", "num_events_lost": 5}}
    assert wire.from_json(wire.to_json(gap)) == gap


def test_drop_reads_as_hubble_json():
    """Field names and enum members of flow.proto."""
    out = wire.to_json(flow())
    body = {name: value for name, value in out["flow"].items() if name != "extensions"}

    assert out["time"] == "2023-11-14T22:13:25.000000001Z"
    assert body == {
        "time": "2023-11-14T22:13:25.000000001Z",
        "verdict": "DROPPED",
        "drop_reason": 133,
        "drop_reason_desc": "POLICY_DENIED",
        "ethernet": {"source": "02:00:00:00:00:01", "destination": "02:00:00:00:00:02"},
        "IP": {"source": "10.0.0.1", "destination": "10.0.0.2", "ipVersion": "IPv4"},
        "l4": {"TCP": {"source_port": 1234, "destination_port": 80, "flags": {"SYN": True}}},
        "source": {
            "ID": 7,
            "identity": 256,
            "namespace": "default",
            "labels": ["k8s:class=xwing", "k8s:org=alliance"],
            "pod_name": "xwing",
        },
        "destination": {
            "ID": 12,
            "identity": 257,
            "namespace": "default",
            "labels": ["k8s:class=deathstar", "k8s:org=empire"],
            "pod_name": "deathstar",
        },
        "Type": "L3_L4",
        "node_name": "kind/node1",
        "event_type": {"type": 1, "sub_type": 133},
        "traffic_direction": "INGRESS",
        "interface": {"index": 7, "name": "lxc12"},
        "file": {"name": "lxc.bpf.c", "line": 120},
        "ingress_denied_by": [{"name": "rule1", "namespace": "default", "kind": "CiliumNetworkPolicy"}],
        "Summary": "10.0.0.1:1234 -> 10.0.0.2:80 tcp SYN",
    }


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (VERDICT, "ingress_allowed_by"),
        (VERDICT | {"reason": 3}, "ingress_denied_by"),
        (VERDICT | {"direction": 2}, "egress_allowed_by"),
        ({"direction": 2}, "egress_denied_by"),
    ],
)
def test_policies_stand_under_what_they_did(changes, key):
    """Direction and verdict choose the field of flow.proto."""
    found = [name for name in wire.to_json(flow(**changes))["flow"] if name.endswith("_by")]

    assert found == [key]


@pytest.mark.parametrize(("state", "reply"), [(0, False), (1, False), (2, True), (3, None), (255, None)])
def test_reply_is_said_only_where_it_is_known(state, reply):
    """A related packet's direction is unknown, and absent is not false."""
    assert wire.to_json(flow(**TRACE, ct_state=state))["flow"].get("is_reply") is reply


@pytest.mark.parametrize("line", [{}, {"flow": {}}])
def test_other_json_is_refused(line):
    """A line that is neither flow nor gap is an error, not an empty flow."""
    with pytest.raises(KeyError):
        wire.from_json(line)
