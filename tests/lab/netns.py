# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: made by name, entered with nsenter, removed when their context ends."""

import contextlib
import ctypes
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

from lab.naming import unique_name
from lab.process import Process, run

IP: Final = "/usr/sbin/ip"
NETNS_DIRECTORY: Final = Path("/run/netns")
CLONE_NEWNET: Final = 0x40000000


class Namespace:
    """A network namespace with its loopback up."""

    def __init__(self, label: str) -> None:
        self.name = unique_name(label)
        self.path = NETNS_DIRECTORY / self.name
        self._processes: list[Process] = []
        run([IP, "netns", "add", self.name])
        self.ip("link", "set", "lo", "up")

    def ip(self, *arguments: str) -> str:
        """Output of ``ip ARGUMENTS`` in here."""
        return run([IP, "-n", self.name, *arguments]).stdout

    def ip_json(self, *arguments: str) -> Any:
        """Decoded output of ``ip -j ARGUMENTS`` in here."""
        return json.loads(run([IP, "-n", self.name, "-j", "-d", *arguments]).stdout or "[]")

    def links(self) -> dict[str, dict[str, Any]]:
        """Its devices by name."""
        return {link["ifname"]: link for link in self.ip_json("link", "show") if "ifname" in link}

    def run(
        self, command: Sequence[str | os.PathLike[str]], **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in here to its end."""
        return run(command, netns=self.path, **options)

    def start(self, command: Sequence[str | os.PathLike[str]], **options: Any) -> Process:
        """Start a command in here; it is ended with the namespace at the latest."""
        process = Process(command, netns=self.path, **options)
        self._processes.append(process)
        return process

    def sysctl(self, name: str, value: str | None = None) -> str:
        """Read a setting, or write it first: ``net/ipv4/ip_forward``."""
        if value is not None:
            self.run(["/bin/sh", "-c", f"echo {value} > /proc/sys/{name}"])
        return self.run(["/bin/cat", f"/proc/sys/{name}"]).stdout.strip()

    def remove(self) -> None:
        """End what runs in here and remove it; nothing happens when it is gone."""
        for process in self._processes:
            process.end()
        self._processes.clear()
        if self.path.exists():
            run([IP, "netns", "del", self.name], check=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def veth(left: Namespace, left_name: str, right: Namespace, right_name: str, *, mtu: int = 1500) -> None:
    """A cable between two namespaces, both ends up."""
    ends = []
    for namespace, name in ((left, left_name), (right, right_name)):
        ends.append(["name", name, "mtu", str(mtu), "netns", namespace.name])
    run([IP, "link", "add", *ends[0], "type", "veth", "peer", *ends[1]])
    left.ip("link", "set", left_name, "up")
    right.ip("link", "set", right_name, "up")


@contextlib.contextmanager
def entered(namespace: Path) -> Iterator[None]:
    """Have this thread in the namespace: sockets it makes belong there for good."""
    with Path("/proc/thread-self/ns/net").open() as home, namespace.open() as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
