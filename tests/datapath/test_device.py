# SPDX-License-Identifier: Apache-2.0
"""
The pod's hook on a real veth: frames that a test run does not take, or shows otherwise.

A test run wants IP headers whole, and leaves a VLAN tag in the frame where a device has taken it
out.  Everything a pod does here is refused, so events tell what became of each frame.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import pytest

from ciliumd.abi import DropReason, Event
from ciliumd.model.net import mac_bytes
from datapath.attach import attached
from datapath.harness import Datapath
from datapath.malformed import ETHERNET, cut, frames, runnable
from datapath.rows import DENY_ALL, POD_ONE, POD_TWO
from fixtures.packets import from_pod, pod_one, pod_two, router, udp
from reference.parser import Answered, Flow, Parser, Pod, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.datapath

PATIENCE = 5.0
SENDER = Pod(mac_bytes(pod_one.mac), mac_bytes(pod_one.node_mac), pod_one.address.packed)
TABLE = frames(pod_one.mac, pod_one.node_mac, pod_one.ip, pod_two.ip)


class Wire:
    """The pod's end of its veth."""

    def __init__(self, datapath: Datapath, pod_end: socket.socket) -> None:
        self._datapath = datapath
        self._socket = pod_end

    def send(self, frame: bytes) -> Event | None:
        """What is told of one frame; None when nothing comes, which takes a moment."""
        self._datapath.events()
        self._socket.send(frame)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            events = self._datapath.events()
            if events:
                (event,) = events
                return event
            time.sleep(0.001)
        return None


@pytest.fixture
def wire(datapath: Datapath) -> Iterator[Wire]:
    """Pod one, behind its veth, in default deny."""
    datapath.policies({POD_ONE.version: DENY_ALL})
    datapath.add_endpoint(POD_ONE)
    datapath.add_endpoint(POD_TWO)
    with (
        attached(datapath.generation, POD_ONE.ifindex, ingress="entry_from_container"),
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as pod_end,
    ):
        pod_end.bind(("eth1", 0))
        yield Wire(datapath, pod_end)


def test_frames_too_short_for_a_test_run_are_refused(wire: Wire) -> None:
    """Down to a bare Ethernet header; a cut VLAN tag does not even pass the device."""
    parser = Parser(router.address.packed)
    whole = (frame for name, frame in TABLE.items() if name != "vlan")
    short = {frame for table_frame in whole for frame in cut(table_frame) if not runnable(frame)}
    assert {len(frame) for frame in short} >= set(range(ETHERNET, ETHERNET + 20))
    for frame in sorted(short):
        event = wire.send(frame)
        assert event is not None, frame.hex()
        assert Refused(event.reason) == parser.from_container(frame, SENDER), frame.hex()


def test_frames_of_every_kind_mean_the_same_on_a_device(wire: Wire) -> None:
    """As in a test run: reason, or flow."""
    parser = Parser(router.address.packed)
    for name, frame in TABLE.items():
        expected = parser.from_container(frame, SENDER)
        if isinstance(expected, Answered):
            continue
        event = wire.send(frame)
        assert event is not None, name
        if event.reason != DropReason.DROP_POLICY:
            assert Refused(event.reason) == expected, name
            continue
        flow = Flow(event.src[12:], event.dst[12:], event.protocol, event.sport, event.dport, event.tcp_flags)
        assert flow == expected, name


def test_vlan_tag_hides_nothing(wire: Wire) -> None:
    """The device takes the tag out of the frame: behind it stands an IPv4 packet, and a pod has no VLANs."""
    frame = from_pod(pod_one, pod_two.ip, udp(5000, 53))
    tagged = frame[:12] + b"\x81\0\0\7" + frame[12:]
    event = wire.send(tagged)
    assert event is not None
    assert event.reason == DropReason.DROP_UNKNOWN_L3
