# SPDX-License-Identifier: Apache-2.0
"""The clsact fallback: one filter per direction, replaced in place, foreign filters untouched."""

import ctypes
import json
import os
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from ciliumd.net import tc
from ciliumd.net.errors import LinkGone
from ciliumd.net.tc import Direction
from lab.netns import Namespace
from netns.netlink import inside

BPF_PROG_LOAD, BPF_PROG_TYPE_SCHED_CLS, SYS_BPF = 5, 3, 321
RETURN_UNSPEC = struct.pack("<BBhi", 0xB7, 0, 0, -1) + struct.pack("<BBhi", 0x95, 0, 0, 0)


@pytest.fixture
def node() -> Iterator[tuple[Namespace, int]]:
    """A namespace with a device, and the device's ifindex."""
    with Namespace("tcnode") as node:
        node.ip("link", "add", "dev0", "type", "veth", "peer", "name", "dev1")
        yield node, node.links()["dev0"]["ifindex"]


@pytest.fixture
def programs() -> Iterator[tuple[int, int]]:
    """Descriptors of two programs that decide nothing."""
    pair = (load(), load())
    yield pair
    for fd in pair:
        os.close(fd)


def shown(namespace: Namespace, direction: str) -> list[dict[str, Any]]:
    """The bpf filters of dev0 as iproute2 sees them."""
    output = namespace.run(["/usr/sbin/tc", "-j", "filter", "show", "dev", "dev0", direction]).stdout
    filters = json.loads(output or "[]")
    return [each["options"] for each in filters if "bpf_name" in each.get("options", {})]


def load() -> int:
    """Load ``return TC_ACT_UNSPEC`` with a bare system call: no layer under test is needed for it."""
    code, licence = ctypes.create_string_buffer(RETURN_UNSPEC), ctypes.create_string_buffer(b"GPL")
    attr = struct.pack(
        "<IIQQIIQII16s",
        *(BPF_PROG_TYPE_SCHED_CLS, 2, ctypes.addressof(code), ctypes.addressof(licence)),
        *(0, 0, 0, 0, 0, b"nothing"),
    )
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(SYS_BPF, BPF_PROG_LOAD, ctypes.create_string_buffer(attr, len(attr)), len(attr))
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return fd


def test_filter_is_attached_and_found_by_its_name(
    node: tuple[Namespace, int], programs: tuple[int, int]
) -> None:
    """Each direction has its own filter; both are listed with hook and program."""
    namespace, ifindex = node
    inside(
        namespace,
        tc.attach_filter,
        ifindex,
        direction=Direction.INGRESS,
        hook="from_container",
        program=programs[0],
    )
    inside(
        namespace,
        tc.attach_filter,
        ifindex,
        direction=Direction.EGRESS,
        hook="to_container",
        program=programs[1],
    )
    found = inside(namespace, tc.list_filters, ifindex)

    assert [(Direction.INGRESS, "from_container"), (Direction.EGRESS, "to_container")] == [
        (each.direction, each.hook) for each in found
    ]
    assert [("cilium-from_container", True)] == [
        (each["bpf_name"], each["direct-action"]) for each in shown(namespace, "ingress")
    ]


def test_filter_is_replaced_in_place(node: tuple[Namespace, int], programs: tuple[int, int]) -> None:
    """There is one filter before and after, with another program."""
    namespace, ifindex = node
    ids = []
    for program in programs:
        inside(
            namespace,
            tc.attach_filter,
            ifindex,
            direction=Direction.INGRESS,
            hook="from_container",
            program=program,
        )
        assert 1 == len(inside(namespace, tc.list_filters, ifindex))
        (filter_,) = shown(namespace, "ingress")
        ids.append(filter_["prog"]["id"])

    assert 2 == len(set(ids))


def test_detaching_removes_ours_and_leaves_others(
    node: tuple[Namespace, int], programs: tuple[int, int]
) -> None:
    """A filter of another program on the same hook stays; detaching twice is no error."""
    namespace, ifindex = node
    place = {"direction": Direction.INGRESS}
    inside(namespace, tc.attach_filter, ifindex, **place, hook="from_container", program=programs[0])
    inside(
        namespace,
        lambda ipr: ipr.tc(
            "add-filter",
            "bpf",
            ifindex,
            parent=Direction.INGRESS.value,
            prio=7,
            handle=1,
            protocol=3,
            fd=programs[1],
            name="theirs",
        ),
    )

    assert inside(namespace, tc.detach_filter, ifindex, **place)
    assert not inside(namespace, tc.detach_filter, ifindex, **place)
    assert () == inside(namespace, tc.list_filters, ifindex)
    assert ["theirs"] == [each["bpf_name"] for each in shown(namespace, "ingress")]


def test_device_without_clsact_has_no_filters(node: tuple[Namespace, int]) -> None:
    """Listing and detaching need nothing to be there."""
    namespace, ifindex = node

    assert () == inside(namespace, tc.list_filters, ifindex)
    assert not inside(namespace, tc.detach_filter, ifindex, direction=Direction.EGRESS)


def test_attaching_to_a_device_that_is_gone_says_so(
    node: tuple[Namespace, int], programs: tuple[int, int]
) -> None:
    """A pod may be deleted while its program is attached."""
    namespace, _ = node
    with pytest.raises(LinkGone):
        inside(
            namespace,
            tc.attach_filter,
            99,
            direction=Direction.INGRESS,
            hook="from_container",
            program=programs[0],
        )
    assert () == inside(namespace, tc.list_filters, 99)
