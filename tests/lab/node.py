# SPDX-License-Identifier: Apache-2.0
"""
A node: a namespace with an uplink to the world, an agent, pods, and a directory of manifests.

Pins, state, socket and control group are the node's own; :meth:`Node.remove` takes all of it down,
and so does a context that ends by an exception, which also prints the end of the agent's log.
"""

import itertools
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml

from ciliumd.model.identity import CLUSTER_MIN
from lab import manifests
from lab.actor import Actor
from lab.agent import Agent
from lab.cgroup import Cgroup
from lab.naming import unique_name
from lab.netns import Namespace
from lab.pod import Pod
from lab.sweep import BPFFS, remove_pins
from lab.waiting import PATIENCE, eventually
from lab.world import World

# Small maps: a test node holds a handful of pods, and starts in a fraction of the time.
SMALL = {
    "bpf-ct-max": "65536",
    "bpf-nat-max": "16384",
    "bpf-ipcache-max": "4096",
    "bpf-lb-map-max": "4096",
}
SIX = {"enable-ipv4": "false", "enable-ipv6": "true"}
# Nobody probes a node of one: its health endpoint would be one more among the endpoints of each test.
ALONE = {"enable-health-checking": "false", "enable-endpoint-health-checking": "false"}


class Node:
    """A node with an agent, which :meth:`start` starts."""

    def __init__(
        self,
        world: World,
        *,
        name: str = "node",
        pod_cidr: str = "10.11.0.0/24",
        options: Mapping[str, str] | None = None,
        outlive: bool = False,
        six: bool = False,
    ) -> None:
        """*six*: neither the node nor its pods have IPv4, and *pod_cidr* is of IPv6."""
        self.name = name
        self.world = world
        self.pod_cidr = pod_cidr
        self.netns = Namespace(name)
        self.cgroup = Cgroup(name)
        self.bpf_root = BPFFS / unique_name(name)
        self.directory = Path(tempfile.gettempdir()) / unique_name(name)
        self.manifests = self.directory / "manifests"
        self.manifests.mkdir(parents=True)
        self.pods: dict[str, Pod] = {}
        self._actors: dict[str, Actor] = {}
        self._files = itertools.count(1)
        self.address, self.gateway = world.plug(self.netns, six=six)
        self.agent = Agent(
            netns=self.netns.path,
            options={
                "manifests": str(self.manifests),
                "node-name": name,
                "bpf-root": str(self.bpf_root),
                "cgroup-root": str(self.cgroup.path),
                "state-dir": str(self.directory / "state"),
                "api-socket": str(self.directory / "cilium.sock"),
                "cni-socket": str(self.directory / "cni.sock"),
                **(SIX | {"pod-cidr-ipv6": pod_cidr} if six else {"pod-cidr": pod_cidr}),
                **ALONE,
                **SMALL,
                **(options or {}),
            },
            log=self.directory / "agent.log",
            socket=self.directory / "cilium.sock",
            outlive=outlive,
        )

    def start(self) -> Self:
        """Start the agent and wait until it is ready."""
        self.agent.start()
        return self

    # -- manifests -----------------------------------------------------------------------------

    def apply(self, name: str, *objects: manifests.Object) -> Path:
        """Write objects into one file of the directory, as a whole."""
        return self.write(name, yaml.safe_dump_all(objects, sort_keys=False))

    def write(self, name: str, text: str) -> Path:
        """Write a file of the directory, as a whole."""
        path = self.manifests / f"{name}.yaml"
        aside = self.manifests / f".{name}.new"
        aside.write_text(text)
        aside.replace(path)
        return path

    def delete(self, name: str) -> None:
        """Remove a file of the directory."""
        (self.manifests / f"{name}.yaml").unlink()

    def apply_policy(self, name: str, *policies: manifests.Object) -> int:
        """Write policies and wait until every endpoint runs them; the revision that has them."""
        before = self.policy_revision()
        self.apply(name, *policies)
        return self.wait_policy_after(before)

    def delete_policy(self, name: str) -> int:
        """Remove a file of policies and wait until no endpoint runs them."""
        before = self.policy_revision()
        self.delete(name)
        return self.wait_policy_after(before)

    def policy_revision(self) -> int:
        """The agent's revision of policies."""
        return int(self.agent.get("policy")["revision"])

    def wait_policy_after(self, before: int) -> int:
        """Wait for a later revision and for every endpoint to run it."""
        revision = eventually(
            lambda: (now := self.policy_revision()) > before and now, f"a policy revision after {before}"
        )
        self.agent.cilium("policy", "wait", str(revision), "--max-wait-time", f"{10 * PATIENCE:g}")
        return int(revision)

    def problems(self) -> list[dict[str, Any]]:
        """Objects the agent refused."""
        return list(self.agent.get("policy").get("problems") or ())

    # -- pods ----------------------------------------------------------------------------------

    def pod(
        self,
        name: str,
        labels: Mapping[str, str] | None = None,
        *,
        namespace: str = "default",
        ports: Sequence[tuple[str, int, str]] = (),
        **more: Any,
    ) -> Pod:
        """A pod with its manifest, made part of the node and ready; *more* is told to the agent."""
        self.apply(
            f"pod-{namespace}-{name}", manifests.pod(name, labels or {}, namespace=namespace, ports=ports)
        )
        pod = Pod(name, namespace, cgroup=self.cgroup.path)
        self.pods[pod.key] = pod
        self.add_endpoint(pod, **more)
        return pod

    def add_endpoint(self, pod: Pod, **more: Any) -> None:
        """Ask the agent to make the namespace a pod, and wait until it is one."""
        body = {"netns": str(pod.netns.path), "pod": pod.key, **more}
        pod.endpoint = self.agent.client.put("endpoint", body)
        self.wait_endpoint(pod)

    def wait_endpoint(self, pod: Pod) -> None:
        """Wait until the endpoint is ready and has the identity of the pod's labels."""

        def ready() -> bool:
            pod.endpoint = self.agent.get(f"endpoint/{pod.id}")
            status = pod.endpoint["status"]
            return status["state"] == "ready" and status["identity"]["id"] >= CLUSTER_MIN

        eventually(ready, f"endpoint of {pod.key} is ready")

    def remove_pod(self, pod: Pod) -> None:
        """Take a pod away: endpoint, manifest, namespace."""
        self.agent.client.delete(f"endpoint/pod:{pod.key.replace('/', '%2F')}")
        self.delete(f"pod-{pod.namespace}-{pod.name}")
        del self.pods[pod.key]
        pod.remove()

    def wait_service(self, frontend: str, backends: int) -> dict[str, Any]:
        """Wait until a service ``ip:port``, or ``[ip]:port``, has so many backends; its model."""

        def found() -> dict[str, Any] | None:
            for service in self.agent.get("service"):
                address = service["spec"]["frontend-address"]
                if f"{address['ip']}:{address['port']}" == frontend.replace("[", "").replace("]", ""):
                    realized = service["status"].get("realized")
                    if realized and len(realized.get("backend-addresses") or ()) == backends:
                        return dict(service)
            return None

        return dict(eventually(found, f"service {frontend} has {backends} backends") or {})

    # -- people on the node itself -------------------------------------------------------------

    @property
    def outside(self) -> Actor:
        """Somebody on the node, outside the control group."""
        return self._actor("outside", None)

    @property
    def inside(self) -> Actor:
        """Somebody on the node, in the control group."""
        return self._actor("inside", self.cgroup.path)

    def _actor(self, kind: str, cgroup: Path | None) -> Actor:
        if kind not in self._actors:
            self._actors[kind] = Actor(self.netns.path, cgroup=cgroup, who=f"{self.name} ({kind})")
        return self._actors[kind]

    # -- the end -------------------------------------------------------------------------------

    def remove(self) -> None:
        """Take everything down."""
        self.agent.end()
        for actor in self._actors.values():
            actor.end()
        self._actors.clear()
        for pod in self.pods.values():
            pod.remove()
        self.pods.clear()
        remove_pins(self.bpf_root)
        self.netns.remove()
        self.cgroup.remove()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            print(self.agent.log_tail(), file=sys.stderr)
        self.remove()
