# SPDX-License-Identifier: Apache-2.0
"""Events of devices, addresses and routes arrive; the netlink thread works under uvloop."""

import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from queue import Empty, SimpleQueue

import pytest
import uvloop

from ciliumd.net import links
from ciliumd.net.namespace import run_in_namespace
from ciliumd.net.thread import NetlinkThread
from ciliumd.net.watch import AddressEvent, DefaultRouteEvent, Event, EventsLost, LinkEvent, LinkWatch
from lab.netns import Namespace


@pytest.fixture
def node() -> Iterator[Namespace]:
    """An empty namespace."""
    with Namespace("watchnode") as node:
        yield node


@pytest.fixture
def events(node: Namespace) -> Iterator[SimpleQueue[Event]]:
    """What a watch in *node* tells."""
    told: SimpleQueue[Event] = SimpleQueue()
    watch = LinkWatch(told.put)
    run_in_namespace(str(node.path), watch.start)
    yield told
    watch.stop()
    assert not watch.alive


def wait_for(events: SimpleQueue[Event], wanted: Callable[[Event], bool]) -> Event:
    """The next event that is *wanted*, within five seconds."""
    deadline = time.monotonic() + 5
    seen = []
    while (left := deadline - time.monotonic()) > 0:
        try:
            event = events.get(timeout=left)
        except Empty:
            break
        if wanted(event):
            return event
        seen.append(event)
    raise AssertionError(f"not told; seen instead: {seen}")


def test_link_events_tell_up_and_gone(node: Namespace, events: SimpleQueue[Event]) -> None:
    """A device's whole life is told with its ifindex."""
    node.ip("link", "add", "dev0", "type", "veth", "peer", "name", "dev1")
    ifindex = node.links()["dev0"]["ifindex"]
    node.ip("link", "set", "dev0", "up")
    node.ip("link", "del", "dev0")

    assert wait_for(events, lambda e: e == LinkEvent(ifindex, "dev0", up=False, gone=False))
    assert wait_for(events, lambda e: e == LinkEvent(ifindex, "dev0", up=True, gone=False))
    assert wait_for(events, lambda e: e == LinkEvent(ifindex, "dev0", up=False, gone=True))


def test_device_moved_to_another_namespace_is_gone(node: Namespace, events: SimpleQueue[Event]) -> None:
    """Its program moves with it, so its row must go."""
    node.ip("link", "add", "dev0", "type", "veth", "peer", "name", "dev1")
    ifindex = node.links()["dev0"]["ifindex"]
    with Namespace("watchother") as other:
        node.ip("link", "set", "dev0", "netns", other.name)
        wait_for(events, lambda e: isinstance(e, LinkEvent) and e.ifindex == ifindex and e.gone)


def test_address_and_default_route_events_are_told(node: Namespace, events: SimpleQueue[Event]) -> None:
    """Native devices are found again when these change; other routes are no news."""
    node.ip("link", "add", "dev0", "type", "veth", "peer", "name", "dev1")
    ifindex = node.links()["dev0"]["ifindex"]
    node.ip("link", "set", "dev0", "up")
    node.ip("addr", "add", "192.0.2.10/24", "dev", "dev0")
    node.ip("route", "add", "203.0.113.0/24", "via", "192.0.2.1")
    node.ip("route", "add", "default", "via", "192.0.2.1")
    node.ip("route", "del", "default")
    node.ip("addr", "del", "192.0.2.10/24", "dev", "dev0")

    address = ip_address("192.0.2.10")
    wait_for(events, lambda e: e == AddressEvent(ifindex, address, gone=False))
    first = wait_for(events, lambda e: isinstance(e, DefaultRouteEvent))
    assert DefaultRouteEvent(ifindex, gone=False) == first
    wait_for(events, lambda e: e == DefaultRouteEvent(ifindex, gone=True))
    wait_for(events, lambda e: e == AddressEvent(ifindex, address, gone=True))


def test_overflow_is_told(node: Namespace) -> None:
    """A watcher that could not keep up learns that it must read the state again."""
    told: SimpleQueue[Event] = SimpleQueue()
    held: SimpleQueue[None] = SimpleQueue()

    def slow(event: Event) -> None:
        if held.empty():
            held.put(None)
            while node_is_busy:
                time.sleep(0.01)
        told.put(event)

    node_is_busy = [True]
    watch = LinkWatch(slow)

    def start() -> None:
        watch.start()
        assert watch._socket is not None
        watch._socket.setsockopt(1, 8, 2048)  # SO_RCVBUF

    run_in_namespace(str(node.path), start)
    node.ip("link", "add", "dev0", "type", "veth", "peer", "name", "dev1")
    for number in range(60):
        node.ip("link", "set", "dev0", "mtu", str(1000 + number))
    node_is_busy.clear()
    wait_for(told, lambda e: isinstance(e, EventsLost))
    watch.stop()


def test_netlink_thread_serves_a_uvloop_loop(node: Namespace) -> None:
    """Calls from coroutines under uvloop work, in the namespace the thread was started in."""
    node.ip("link", "add", "dev0", "type", "veth", "peer", "name", "dev1")
    thread = NetlinkThread()
    run_in_namespace(str(node.path), thread.start)

    async def main() -> set[str]:
        found = await thread.call(links.all_links)
        await thread.call(links.set_mtu, found[-1].ifindex, 1234)
        assert await thread.stop()
        return {link.name for link in found}

    assert {"lo", "dev0", "dev1"} == uvloop.run(main())
    assert 1234 in {link["mtu"] for link in node.links().values()}
