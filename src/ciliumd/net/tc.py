# SPDX-License-Identifier: Apache-2.0
"""
tc programs by clsact and netlink, for kernels without tcx.

A filter of ours has a fixed priority and handle, so that replacing it is one atomic message, and a name
that says which hook it serves.  tcx and XDP links are attached by ``ciliumd.bpf``.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from pyroute2 import IPRoute

from ciliumd.net.errors import LinkGone, NetError, netlink_errors

FILTER_NAME_PREFIX = "cilium-"
FILTER_PRIORITY = 1
FILTER_HANDLE = 1

_ETH_P_ALL = 3
_EEXIST = 17
_ABSENT = frozenset({2, 22})  # ENOENT: no such filter; EINVAL: no clsact to hold one


class Direction(Enum):
    """Which way packets go through the device; the value is the parent clsact gives it."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter of ours as the kernel shows it."""

    ifindex: int
    direction: Direction
    hook: str


def attach_filter(ipr: IPRoute, ifindex: int, *, direction: Direction, hook: str, program: int) -> None:
    """Attach the program of descriptor *program*, or put it in place of the one that is there."""
    _ensure_clsact(ipr, ifindex)
    with netlink_errors(f"attach {hook} to link {ifindex} {direction.name.lower()}"):
        ipr.tc(
            "replace-filter",
            "bpf",
            ifindex,
            **_place(direction),
            handle=FILTER_HANDLE,
            fd=program,
            name=FILTER_NAME_PREFIX + hook,
            direct_action=True,
        )


def detach_filter(ipr: IPRoute, ifindex: int, *, direction: Direction) -> bool:
    """Remove our filter; False if there is none.  The clsact qdisc stays: others may use it."""
    if not any(found.direction is direction for found in list_filters(ipr, ifindex)):
        return False
    try:
        with netlink_errors(f"detach from link {ifindex} {direction.name.lower()}"):
            ipr.tc("del-filter", "bpf", ifindex, **_place(direction), handle=FILTER_HANDLE)
    except LinkGone:
        return False
    except NetError as error:
        if error.errno in _ABSENT:
            return False
        raise
    return True


def list_filters(ipr: IPRoute, ifindex: int) -> tuple[Filter, ...]:
    """Every filter of ours on a device."""
    found: list[Filter] = []
    for direction in Direction:
        try:
            with netlink_errors(f"list filters of link {ifindex}"):
                messages = tuple(ipr.get_filters(index=ifindex, parent=direction.value))
        except LinkGone:
            return ()
        except NetError as error:
            if error.errno in _ABSENT:
                continue
            raise
        found.extend(each for message in messages if (each := _filter(ifindex, direction, message)))
    return tuple(found)


def _ensure_clsact(ipr: IPRoute, ifindex: int) -> None:
    try:
        with netlink_errors(f"add clsact to link {ifindex}"):
            ipr.tc("add", "clsact", ifindex)
    except NetError as error:
        if error.errno != _EEXIST:
            raise


def _place(direction: Direction) -> dict[str, Any]:
    return {"parent": direction.value, "prio": FILTER_PRIORITY, "protocol": _ETH_P_ALL}


def _filter(ifindex: int, direction: Direction, message: Any) -> Filter | None:
    """The filter *message* describes if it is one of ours."""
    options = message.get_attr("TCA_OPTIONS")
    if message.get_attr("TCA_KIND") != "bpf" or options is None:
        return None
    name = options.get_attr("TCA_BPF_NAME") or ""
    if not name.startswith(FILTER_NAME_PREFIX):
        return None
    return Filter(ifindex, direction, name.removeprefix(FILTER_NAME_PREFIX))
