# SPDX-License-Identifier: Apache-2.0
"""Records and lookups the tests of this room share: xwing (256) to deathstar (257), seen by endpoint 12."""

import os
from ipaddress import ip_address

from ciliumd.abi import Event, EventType
from ciliumd.flows.decode import decode
from ciliumd.flows.enrich import Lookups, PodName, enrich
from ciliumd.model.net import addr16, mac_bytes

OFFSET_NS = 1_700_000_000_000_000_000
COOKIE = 0xBEEF
XWING, DEATHSTAR = ip_address("10.0.0.1"), ip_address("10.0.0.2")
LABELS = {
    256: ("k8s:org=alliance", "k8s:class=xwing"),
    257: ("k8s:org=empire", "k8s:class=deathstar"),
}
PODS = {XWING: PodName(7, "default", "xwing"), DEATHSTAR: PodName(12, "default", "deathstar")}
ORIGINS = {COOKIE: ("cnp:default/rule1/ingress/0",)}
FIELDS = {
    "timestamp": 5_000_000_001,
    "type": EventType.EVENT_DROP,
    "reason": 133,
    "hook": 0,
    "direction": 1,
    "endpoint_id": 12,
    "line": 120,
    "src_identity": 256,
    "dst_identity": 257,
    "ifindex": 7,
    "length": 74,
    "rule_cookie": COOKIE,
    "policy_version": 9,
    "src": addr16(XWING),
    "dst": addr16(DEATHSTAR),
    "sport": 1234,
    "dport": 80,
    "protocol": 6,
    "tcp_flags": 0x02,
    "ct_state": 0,
    "trace_point": 0,
    "smac": mac_bytes("02:00:00:00:00:01"),
    "dmac": mac_bytes("02:00:00:00:00:02"),
    "file": 1,
    "audit": 0,
    "ethertype": 0x0800,
}
TRACE = {"type": EventType.EVENT_TRACE, "reason": 0, "trace_point": 101, "rule_cookie": 0}
VERDICT = {"type": EventType.EVENT_POLICY_VERDICT, "reason": 1}


def record(**changes):
    """The bytes of one record: a SYN denied by ingress policy, with *changes*."""
    return Event(**{**FIELDS, **changes}).pack()


def lookups():
    """Names of the two pods, their labels, the rule and the device."""
    return Lookups(
        labels=LABELS.get,
        pod=PODS.get,
        origins=lambda cookie: ORIGINS.get(cookie, ()),
        interface={7: "lxc12"}.get,
        node_name="kind/node1",
    )


def flow(**changes):
    """The enriched flow of :func:`record`."""
    return enrich(decode(record(**changes), offset_ns=OFFSET_NS), lookups())


class FakeRecords:
    """A ring buffer whose descriptor is a pipe, readable while records are queued."""

    def __init__(self):
        self.fd, self._signal = os.pipe()
        self._data = b""
        self.kernel_lost = 0

    def push(self, *records):
        """The datapath sends *records*."""
        self._data += b"".join(records)
        os.write(self._signal, b"x")

    def drain(self):
        """Everything queued."""
        if self._data:
            os.read(self.fd, 1 << 16)
        data, self._data = self._data, b""
        return data

    def close(self):
        """Give the descriptors back."""
        os.close(self.fd)
        os.close(self._signal)
