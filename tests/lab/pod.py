# SPDX-License-Identifier: Apache-2.0
"""A pod: a namespace of its own that ``ciliumd endpoint add`` made part of a node."""

from functools import partial
from pathlib import Path
from typing import Any

from lab.actor import Actor
from lab.netns import Namespace


class Pod:
    """
    A pod's namespace and what may happen in it.

    Two people live in it: ``inside`` is in the control group whose sockets are translated, as
    containers are; ``outside`` is not, so its packets are translated one by one.
    """

    def __init__(self, name: str, namespace: str, *, cgroup: Path | None = None) -> None:
        self.name = name
        self.namespace = namespace
        self.netns = Namespace(f"pod-{name}")
        self.endpoint: dict[str, Any] = {}
        self._cgroup = cgroup
        self._actors: dict[str, Actor] = {}

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @property
    def id(self) -> int:
        """Endpoint id."""
        return int(self.endpoint["id"])

    @property
    def address(self) -> str:
        """Its IPv4 address."""
        return str(self.endpoint["status"]["networking"]["addressing"][0]["ipv4"])

    @property
    def address6(self) -> str:
        """Its IPv6 address; empty when it has none."""
        return str(self.endpoint["status"]["networking"]["addressing"][0]["ipv6"])

    @property
    def outside(self) -> Actor:
        """Somebody outside the control group: service translation per packet."""
        return self._actor("outside", None)

    @property
    def inside(self) -> Actor:
        """Somebody in the control group: service translation by socket."""
        assert self._cgroup is not None, "this node has no control group"
        return self._actor("inside", self._cgroup)

    def _actor(self, kind: str, cgroup: Path | None) -> Actor:
        if kind not in self._actors:
            self._actors[kind] = Actor(self.netns.path, cgroup=cgroup, who=f"{self.name} ({kind})")
        return self._actors[kind]

    def tcp(self, address: str, port: int, **options: Any) -> dict[str, Any]:
        """Connect from outside the control group."""
        return dict(self.outside.call("tcp_connect", address=address, port=port, **options))

    def udp(self, address: str, port: int, **options: Any) -> dict[str, Any]:
        """Exchange a datagram from outside the control group."""
        return dict(self.outside.call("udp_exchange", address=address, port=port, **options))

    def ping(self, address: str, **options: Any) -> dict[str, Any]:
        """Ping."""
        return dict(self.outside.call("ping", address=address, **options))

    def reaches(self, address: str, port: int, *, timeout: float = 0.4) -> bool:
        """Whether a TCP connection is answered within a short time."""
        return bool(self.tcp(address, port, timeout=timeout)["outcome"] == "answered")

    def reaches_udp(self, address: str, port: int, *, timeout: float = 0.3) -> bool:
        """Whether a datagram is answered within a short time."""
        return bool(self.udp(address, port, timeout=timeout)["outcome"] == "answered")

    def serve(self, *, tcp: tuple[int, ...] = (), udp: tuple[int, ...] = (), six: bool = False) -> "Pod":
        """Answer on these ports, with the pod's name; *six*: on IPv6, and on IPv4 by the same sockets."""
        serve = partial(self.outside.call, name=self.name, **({"address": "::"} if six else {}))
        for port in tcp:
            serve("serve_tcp", port=port)
        for port in udp:
            serve("serve_udp", port=port)
        return self

    def remove(self) -> None:
        """End who lives here and remove the namespace."""
        for actor in self._actors.values():
            actor.end()
        self._actors.clear()
        self.netns.remove()
