# SPDX-License-Identifier: Apache-2.0
"""
Everything of ours in the node's network, found and taken away, without any memory of what was made.

Devices and routes say by their alias and protocol number whose they are, filters by their name.  What
hangs on a device of ours goes with it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyroute2 import IPRoute

from ciliumd.net import links, tc
from ciliumd.net.routes import our_destinations, remove_route


@dataclass(frozen=True, slots=True)
class NetworkItem:
    """One thing of ours, and what takes it away."""

    text: str
    remove: Callable[[IPRoute], Any]


def network_items() -> tuple[NetworkItem, ...]:
    """What of ours is in the namespace of the calling thread, in the order to remove it.  Raises NetError."""
    with IPRoute() as ipr:
        return tuple(_items(ipr))


def remove(item: NetworkItem) -> None:
    """Remove one thing; what is gone by now is no error.  Raises NetError."""
    with IPRoute() as ipr:
        item.remove(ipr)


# Devices of these names without any mark are those whose creator died before marking them.
_NAMED = frozenset({(links.HOST_LINK, "veth"), (links.NET_LINK, "veth"), (links.OVERLAY_LINK, "vxlan")})


def _is_ours(link: links.Link) -> bool:
    return links.is_ours(link) or (not link.alias and (link.name, link.kind) in _NAMED)


def _items(ipr: IPRoute) -> Iterator[NetworkItem]:
    every = links.all_links(ipr)
    # Pods lose their network before the node's own end of it goes.
    ours = sorted(
        (link for link in every if _is_ours(link)),
        key=lambda link: (links.endpoint_owner(link.alias) is None, link.name),
    )
    for link in every:
        if not _is_ours(link):
            for found in tc.list_filters(ipr, link.ifindex):
                text = f"tc filter {found.hook} of {link.name}"
                yield NetworkItem(
                    text, partial(tc.detach_filter, ifindex=link.ifindex, direction=found.direction)
                )
            for destination in our_destinations(ipr, link.ifindex):
                yield NetworkItem(
                    f"route {destination} over {link.name}",
                    partial(remove_route, ifindex=link.ifindex, destination=destination),
                )
    for link in ours:
        yield NetworkItem(f"device {link.name}", partial(links.delete_link, ifindex=link.ifindex))
