# SPDX-License-Identifier: Apache-2.0
"""A machine without a kernel: devices by index, programs on them, and a journal of what was done."""

import asyncio
import itertools
from dataclasses import dataclass, replace

from ciliumd.net.endpoint import EndpointLinks, PreparedLink
from ciliumd.net.errors import LinkConflict, LinkGone, NamespaceGone
from ciliumd.net.links import RETIRED_ALIAS, Link, endpoint_alias, endpoint_owner


@dataclass
class Namespace:
    """A network namespace: which of our devices its end is the peer of."""

    peer: int = 0


class FakeSandbox:
    """A namespace held open; *path* is where it is."""

    def __init__(self, path):
        self.path = path
        self.cookie = 4000 + len(path)
        self.closed = False

    def close(self):
        """Let go; a second time would close somebody else's."""
        assert not self.closed
        self.closed = True


class FakeNetlink:
    """
    The calls endpoints make, on devices in memory.

    *fail* gives the error a call by that name raises; *hold* an event it waits for first, as a slow
    kernel would: the call itself goes on when its caller is cancelled.
    """

    def __init__(self, journal):
        self.journal = journal
        self.links = {}
        self.with_ipv6 = {}
        self.namespaces = {}
        self.fail = {}
        self.hold = {}
        self.faulty = ()
        self.sandboxes = []
        self._numbers = itertools.count(101)
        self._turn = asyncio.Lock()

    def namespace(self, path):
        """A pod's namespace at *path*."""
        self.namespaces[path] = Namespace()
        return path

    def sandbox(self, path):
        """What a runtime passes: the namespace at *path*, opened."""
        self.sandboxes.append(FakeSandbox(path))
        return self.sandboxes[-1]

    async def call(self, function, *args, **kwargs):
        """Run it after those before it, whatever becomes of the caller."""
        return await asyncio.shield(asyncio.ensure_future(self._run(function.__name__, args, kwargs)))

    async def _run(self, name, args, kwargs):
        async with self._turn:
            if name in self.hold:
                await self.hold[name].wait()
            if error := self.fail.get(name):
                self.journal.append((f"{name} fails",))
                raise error
            return getattr(self, name)(*args, **kwargs)

    # ---- what ciliumd.net would do -----------------------------------------------------------

    def open_sandbox(self, path, ipv6=False):
        """As ``net.namespace.open_sandbox``."""
        if path not in self.namespaces:
            raise NamespaceGone(path, "No such file or directory")
        self.with_ipv6[path] = ipv6
        return self.sandbox(path)

    def close_sandbox(self, sandbox):
        """As ``net.namespace.close_sandbox``."""
        sandbox.close()

    def wiring_faults(self, wanted, sandbox, ifindex):
        """As ``net.endpoint.wiring_faults``."""
        assert not sandbox.closed
        gone = () if ifindex in self.links else (f"the node's device {wanted.name} is gone",)
        return gone + self.faulty

    def prepare_endpoint(self, wanted, sandbox):
        """As ``net.endpoint.prepare_endpoint``."""
        assert not sandbox.closed
        namespace = self.namespaces[sandbox.path]
        alias = endpoint_alias(wanted.endpoint_id, wanted.pod)
        host = self.link_by_name(wanted.name)
        if host is not None and host.alias == RETIRED_ALIAS:
            self.delete_link(host.ifindex)
            host = None
        if host is not None and endpoint_owner(host.alias).pod != wanted.pod:
            raise LinkConflict(f"wire pod {wanted.pod}", f"device {host.name} belongs to {host.alias}")
        if host is not None and namespace.peer != host.ifindex:
            self.delete_link(host.ifindex)
            host = None
        made = host is None
        if host is None:
            if namespace.peer:
                raise LinkConflict(f"wire pod {wanted.pod}", f"{sandbox.path} has a device {wanted.ifname}")
            mac = wanted.node_mac
            host = Link(next(self._numbers), wanted.name, mac, wanted.mtu, False, False, alias, "veth", 2)
            namespace.peer = host.ifindex
        self.links[host.ifindex] = host = replace(host, alias=alias)
        self.journal.append(("prepare", host.ifindex))
        return PreparedLink(host, made)

    def connect_endpoint(self, wanted, sandbox, prepared):
        """As ``net.endpoint.connect_endpoint``."""
        assert not sandbox.closed
        index = prepared.link.ifindex
        if index not in self.links:
            raise LinkGone(f"wire pod {wanted.pod}", "disappeared")
        self.links[index] = replace(self.links[index], up=True)
        self.journal.append(("connect", index))
        return EndpointLinks(index, prepared.link.name, prepared.link.mac, wanted.mac, 2)

    def link_by_name(self, name):
        """As ``net.links.link_by_name``."""
        return next((link for link in self.links.values() if link.name == name), None)

    def link_by_index(self, ifindex):
        """As ``net.links.link_by_index``."""
        return self.links.get(ifindex)

    def all_links(self):
        """As ``net.links.all_links``."""
        return tuple(self.links.values())

    def leftovers(self, name):
        """As ``net.links.leftovers``."""
        if name is None:
            return tuple(link for link in self.links.values() if endpoint_owner(link.alias) is not None)
        link = self.link_by_name(name)
        ours = link is not None and (
            link.alias in {"", RETIRED_ALIAS} or endpoint_owner(link.alias) is not None
        )
        return (link,) if ours else ()

    def delete_link(self, ifindex):
        """As ``net.links.delete_link``; the end inside the pod goes too."""
        self.journal.append(("delete device", ifindex))
        for namespace in self.namespaces.values():
            if namespace.peer == ifindex:
                namespace.peer = 0
        return self.links.pop(ifindex, None) is not None

    def retire_endpoint_link(self, ifindex, endpoint_id):
        """As ``net.links.retire_endpoint_link``."""
        link = self.links.get(ifindex)
        if link is None:
            return False
        owner = endpoint_owner(link.alias)
        if owner is None or owner.endpoint_id != endpoint_id:
            raise LinkConflict(f"delete veth of endpoint {endpoint_id}", "is not its veth")
        self.links[ifindex] = replace(link, up=False, alias=RETIRED_ALIAS)
        self.journal.append(("retire", ifindex))
        return True

    def retired_links(self):
        """As ``net.links.retired_links``."""
        return tuple(link for link in self.links.values() if link.alias == RETIRED_ALIAS)

    def delete_retired(self, ifindex):
        """As ``net.links.delete_retired``."""
        link = self.links.get(ifindex)
        return link is not None and link.alias == RETIRED_ALIAS and self.delete_link(ifindex)


class FakeAttachments:
    """Programs by device."""

    def __init__(self, journal):
        self.journal = journal
        self.devices = {}
        self.missing = []
        self.fail = {}

    async def attach(self, device):
        """Hang them."""
        self.devices[device.ifindex] = device
        await asyncio.sleep(0)
        if error := self.fail.get("attach"):
            raise error
        self.journal.append(("attach", device.ifindex))

    async def attach_new(self, device):
        """Hang them the quick way."""
        await self.attach(device)

    async def missing_on(self, ifindex):
        """What of it is gone."""
        return [one for one in self.missing if one.ifindex == ifindex]

    async def detach(self, ifindex):
        """Take them off."""
        self.devices.pop(ifindex, None)
        await asyncio.sleep(0)
        if error := self.fail.get("detach"):
            raise error
        self.journal.append(("detach", ifindex))
