# SPDX-License-Identifier: Apache-2.0
"""
A pod of the cluster, seen from the machine: its namespace and control group, and somebody in them.

The actor is a process of this machine that enters both, so that its sockets are the pod's in every
respect that the datapath can see, and the pod's image needs nothing.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

from lab.actor import Actor
from lab.cgroup import cgroup2_mount
from lab.k8s.node import ClusterNode
from lab.waiting import eventually


class ClusterPod:
    """A running pod; *manifest* is the object as the API server has it."""

    def __init__(self, manifest: dict[str, Any], node: ClusterNode) -> None:
        self.manifest = manifest
        self.node = node

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.manifest["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """Its namespace's name."""
        return str(self.manifest["metadata"]["namespace"])

    @property
    def address(self) -> str:
        """Its IPv4 address."""
        return str(self.manifest["status"]["podIP"])

    @property
    def address6(self) -> str:
        """Its IPv6 address, in a cluster of both families."""
        return next(one["ip"] for one in self.manifest["status"]["podIPs"] if ":" in one["ip"])

    @cached_property
    def cgroup(self) -> Path:
        """The cgroup v2 group of its first running container."""
        uid = self.manifest["metadata"]["uid"]
        groups = cgroup2_mount() / self.node.cgroup_name

        def populated() -> Path | None:
            found = (
                path.parent
                for path in groups.glob(f"kubepods/**/pod{uid}/*/cgroup.procs")
                if path.read_text()
            )
            return next(found, None)

        group = eventually(populated, f"a container of {self.namespace}/{self.name} runs on {self.node.name}")
        assert group is not None
        return group

    @cached_property
    def pid(self) -> int:
        """A process of the pod, as the machine numbers it."""
        return int((self.cgroup / "cgroup.procs").read_text().split()[0])

    def container_pid(self, name: str) -> int:
        """The first process of one of its containers, as the machine numbers it."""
        statuses = self.manifest["status"]["containerStatuses"]
        identifier = next(status["containerID"] for status in statuses if status["name"] == name)
        (group,) = (cgroup2_mount() / self.node.cgroup_name).glob(
            f"kubepods/**/{identifier.rpartition('/')[2]}"
        )
        return int((group / "cgroup.procs").read_text().split()[0])

    @property
    def netns(self) -> Path:
        """Its network namespace."""
        return Path(f"/proc/{self.pid}/ns/net")

    @cached_property
    def actor(self) -> Actor:
        """Somebody in the pod."""
        return Actor(self.netns, cgroup=self.cgroup, who=f"{self.namespace}/{self.name}")

    def end_actor(self) -> None:
        """End the process that :attr:`actor` started, if any."""
        actor = self.__dict__.pop("actor", None)
        if actor is not None:
            actor.end()
