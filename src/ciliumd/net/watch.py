# SPDX-License-Identifier: Apache-2.0
"""
Tells when devices, addresses or default routes of the node change.

A socket and a thread of its own, so that a slow netlink call elsewhere delays no event; pyroute2 only
decodes.  Events say what changed, not what is: whoever needs the state reads it with ``devices``.
"""

import errno
import os
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from threading import Thread
from typing import Any

from pyroute2.netlink.rtnl import RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_LINK
from pyroute2.netlink.rtnl.ifinfmsg import IFF_UP
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from ciliumd.model.net import Addr

_GROUPS = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | RTMGRP_IPV4_ROUTE
_BUFFER = 1 << 20
_READ = 1 << 16


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """A device appeared, changed, or is *gone* (deleted or moved to another namespace)."""

    ifindex: int
    name: str
    up: bool
    gone: bool


@dataclass(frozen=True, slots=True)
class AddressEvent:
    """A device got an address, or lost it (*gone*)."""

    ifindex: int
    address: Addr
    gone: bool


@dataclass(frozen=True, slots=True)
class DefaultRouteEvent:
    """A default route was added, or removed (*gone*)."""

    ifindex: int
    gone: bool


@dataclass(frozen=True, slots=True)
class EventsLost:
    """The kernel had more to say than fitted the socket's buffer: read the state again."""


Event = LinkEvent | AddressEvent | DefaultRouteEvent | EventsLost


class LinkWatch:
    """
    Calls *callback* with every event, on the watching thread; it must not block.

    The namespace is the one of the thread that calls :meth:`start`; what happens after ``start``
    returns is seen.
    """

    def __init__(self, callback: Callable[[Event], None]) -> None:
        self._callback = callback
        self._marshal: Any = MarshalRtnl()
        self._thread: Thread | None = None
        self._socket: socket.socket | None = None
        self._stop = -1

    def start(self) -> None:
        """Subscribe and start the thread."""
        if self._thread is not None:
            raise RuntimeError("the link watch was started before")
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._socket.bind((0, _GROUPS))
        self._stop = os.eventfd(0)
        self._thread = Thread(target=self._watch, args=(self._socket,), name="link-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; no callback runs after this returns."""
        if self._thread is None or self._socket is None:
            return
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._socket.close()
        os.close(self._stop)
        self._thread = None

    @property
    def alive(self) -> bool:
        """Whether events are being delivered."""
        return self._thread is not None and self._thread.is_alive()

    def _watch(self, events: socket.socket) -> None:
        poll = select.poll()
        poll.register(events, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while not any(fd == self._stop for fd, _ in poll.poll()):
            try:
                data = events.recv(_READ)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._callback(EventsLost())
                continue
            for message in self._marshal.parse(data):
                event = _event(message)
                if event is not None:
                    self._callback(event)


def _event(message: Any) -> Event | None:
    """What *message* says, if it is one of the things watched for."""
    kind = message["event"]
    gone = kind.startswith("RTM_DEL")
    if kind in {"RTM_NEWLINK", "RTM_DELLINK"}:
        # Bridges report their ports with a family of their own; the device itself is not meant.
        if message["family"] != socket.AF_UNSPEC:
            return None
        name = message.get_attr("IFLA_IFNAME") or ""
        return LinkEvent(message["index"], name, bool(message["flags"] & IFF_UP) and not gone, gone)
    if kind in {"RTM_NEWADDR", "RTM_DELADDR"}:
        text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        return AddressEvent(message["index"], ip_address(text), gone)
    if kind in {"RTM_NEWROUTE", "RTM_DELROUTE"} and message["dst_len"] == 0:
        return DefaultRouteEvent(message.get_attr("RTA_OIF") or 0, gone)
    return None
