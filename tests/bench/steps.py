# SPDX-License-Identifier: Apache-2.0
"""
P10: what each step costs of which the making and deleting of a pod could consist.

The kernel waits in some of them, for a grace period of RCU or for callbacks of one.  The steps are taken
alone, by the agent's own functions, on a node where nothing else goes on.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from pyroute2 import IPRoute

from bench.machine import timed
from bench.result import Figure, Section
from bench.samples import percentile
from ciliumd.daemon.attachments import pod_device
from ciliumd.net import links, tc
from datapath.harness import Datapath
from datapath.node import private_node
from lab.netns import Namespace

DEVICE, PEER = "lxcstep", "eth0"
MTU: Final = 1500
OWNER: Final = "bench/step"

Samples = dict[str, list[float]]


class Steps:
    """One pair after the other, and how long each step of each took."""

    def __init__(self, ipr: IPRoute, datapath: Datapath) -> None:
        self._ipr = ipr
        self._datapath = datapath
        self.samples: Samples = {}

    def take(self, name: str, step: Callable[[], object]) -> None:
        """Take a step and note its time."""
        self.samples.setdefault(name, []).append(timed(step))

    @contextmanager
    def pair(self, kind: str) -> Iterator[int]:
        """The node's end of a pair, whose making and deleting are noted too, the latter as of this *kind*."""
        with Namespace("step") as space, space.path.open() as namespace:
            make = partial(links.create_veth, self._ipr, DEVICE, peer=PEER, mtu=MTU)
            self.take("pair made in the namespace", lambda: make(peer_namespace=namespace.fileno()))
            ifindex = socket.if_nametoindex(DEVICE)
            yield ifindex
            self.take(f"pair deleted, {kind}", lambda: links.delete_link(self._ipr, ifindex))

    def by_links(self) -> None:
        """Programs by tcx links."""
        generation = self._datapath.generation
        with self.pair("with links") as ifindex:
            device = pod_device(ifindex, OWNER)
            self.take("link, ingress", lambda: generation.attach_device(ifindex, ingress=device.ingress))
            self.take("link, egress", lambda: generation.attach_device(ifindex, egress=device.egress))
        generation.detach_device(ifindex)

    def by_filters(self) -> None:
        """The same by clsact filters."""
        entries = self._datapath.generation.entries
        with self.pair("with filters") as ifindex:
            for hook, program in pod_device(ifindex, OWNER).hooks:
                direction = tc.Direction[hook.name]
                attach = partial(
                    tc.attach_filter,
                    self._ipr,
                    ifindex,
                    direction=direction,
                    hook=program,
                    program=entries[program].fd,
                )
                self.take(f"filter, {direction.name.lower()}", attach)

    def moved(self) -> None:
        """A pair that was made before, its end moved into the pod's namespace."""
        with Namespace("step") as space, space.path.open() as namespace:
            host = links.create_veth(self._ipr, DEVICE, peer=f"{DEVICE}p", mtu=MTU)
            move = partial(self._ipr.link, "set", index=host.peer, net_ns_fd=namespace.fileno())
            self.take("end moved into the namespace", move)
            self.take("pair deleted, bare", lambda: links.delete_link(self._ipr, host.ifindex))


def measure(state_dir: Path, *, pods: int) -> Section:
    """Each way of making a pod, in turns."""
    section = Section("steps", "P10  steps of a pod's making and deleting", case="P10")
    with private_node(), IPRoute() as ipr, Datapath.loaded(state_dir) as datapath:
        steps = Steps(ipr, datapath)
        for _ in range(pods):
            steps.by_links()
            steps.by_filters()
            steps.moved()
    section.add(
        *(
            Figure.of(f"{name}, p50 of {pods}", 1000 * percentile(times, 0.5), "ms")
            for name, times in steps.samples.items()
        )
    )
    section.data = dict(steps.samples)
    return section
