# SPDX-License-Identifier: Apache-2.0
"""
What users do while no agent is there: a policy is edited, a pod is made, another is deleted.

:meth:`Changes.make` does so, :meth:`Changes.judge` tells what is not as it should be once agents are ready:
the edit holds for the first packet, and the new pod may what its labels say and no more.
"""

from collections.abc import Sequence
from typing import Final, Self

from lab import manifests
from lab.actor import Actor
from lab.k8s.cluster import Cluster
from lab.k8s.kubectl import Object
from lab.k8s.load import ANSWERED, DENIED_PORT, TCP_PORT
from lab.k8s.people import CLIENT, NAMESPACE, SERVER, pod
from lab.k8s.pod import ClusterPod
from lab.waiting import eventually

EDITED_PORT, OTHER_PORT = 7001, 7002
POLICY: Final = "load-edited"


class Changes:
    """Changes by number: odd ones allow the port, even ones do not.  A context manager that cleans up."""

    def __init__(self, cluster: Cluster, client: Actor, servers: Sequence[ClusterPod]) -> None:
        self.made = 0
        self._cluster = cluster
        self._kubectl = cluster.kubectl
        self._client = client
        self._servers = list(servers)

    def make(self) -> None:
        """The next edit, the next pod; the pod before goes."""
        self.made += 1
        self._kubectl.apply(self._policy(), self._newcomer())
        if self.made > 1:
            self._kubectl.delete("pod", self._name(self.made - 1), namespace=NAMESPACE, wait=False)

    def judge(self) -> list[str]:
        """What is wrong, in words; to be asked when agents are ready, and at once."""
        expected = ANSWERED if self._allowed else "timeout"
        outcomes = {server.name: self._connect(self._client, server, EDITED_PORT) for server in self._servers}
        wrong = [
            f"change {self.made}: {name}:{EDITED_PORT} {outcome} and not {expected}"
            for name, outcome in outcomes.items()
            if outcome != expected
        ]
        name = self._name(self.made)
        self._kubectl.wait("--for=condition=Ready", f"pod/{name}", namespace=NAMESPACE)
        newcomer = self._cluster.pod(name, NAMESPACE)
        try:
            wrong += [
                f"change {self.made}: {name} reaches {server.name}:{DENIED_PORT}"
                for server in self._servers
                if self._connect(newcomer.actor, server, DENIED_PORT) == ANSWERED
            ]
            for server in self._servers:
                eventually(
                    lambda server=server: self._connect(newcomer.actor, server, TCP_PORT) == ANSWERED,
                    f"{name} reaches {server.name}",
                    seconds=30.0,
                )
        finally:
            newcomer.end_actor()
        return wrong

    @property
    def _allowed(self) -> bool:
        return self.made % 2 == 1

    @staticmethod
    def _name(number: int) -> str:
        return f"newcomer{number}"

    @staticmethod
    def _connect(actor: Actor, server: ClusterPod, port: int) -> str:
        return str(actor.call("tcp_connect", address=server.address, port=port, timeout=0.5)["outcome"])

    def _newcomer(self) -> Object:
        """On both nodes in turns, and with labels that nobody has had before: an identity of its own."""
        node = self._cluster.nodes[self.made % len(self._cluster.nodes)]
        return pod(self._name(self.made), node.name, {**CLIENT, "number": str(self.made)})

    def _policy(self) -> Object:
        """It allows the port, or another one; the servers are in default deny in any case."""
        port = EDITED_PORT if self._allowed else OTHER_PORT
        rule = {
            "fromEndpoints": [{"matchLabels": CLIENT}],
            "toPorts": manifests.to_ports((port, "TCP")),
        }
        spec = {"endpointSelector": {"matchLabels": SERVER}, "ingress": [rule]}
        return manifests.cilium_policy(POLICY, spec, namespace=NAMESPACE)

    def __enter__(self) -> Self:
        for server in self._servers:
            server.actor.call("serve_tcp", name=server.name, port=EDITED_PORT)
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.actor.call("stop_server", kind="tcp", port=EDITED_PORT)
        self._kubectl.delete("ciliumnetworkpolicy", POLICY, namespace=NAMESPACE)
        self._kubectl.delete("pod", self._name(self.made), namespace=NAMESPACE)
