# SPDX-License-Identifier: Apache-2.0
"""ciliumd on a cluster: installed by its chart with the real helm, asked by the commands that users know."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from lab.k8s.cluster import Cluster
from lab.k8s.node import ClusterNode
from lab.k8s.pod import ClusterPod
from lab.process import REPOSITORY, CommandFailed, Process, run
from lab.waiting import NotInTime

CHART: Final = REPOSITORY / "charts" / "ciliumd"
IMAGE: Final = REPOSITORY / "build" / "out" / "image" / "ciliumd.tar"
RELEASE: Final = "cilium"
NAMESPACE: Final = "kube-system"
AGENT: Final = "cilium-agent"
SELECTOR: Final = "k8s-app=cilium"
PARTS: Final = "app.kubernetes.io/part-of=cilium"
READY_SECONDS: Final = 120.0
LOG_LINES: Final = 30
# The console script of this checkout, which need not be installed: it goes by the name it is called with.
_SCRIPT: Final = "import sys; sys.argv[0] = 'cilium'; from ciliumd.cli.main import main; sys.exit(main())"
CILIUM: Final = (sys.executable, "-c", _SCRIPT)
# A way to end an agent that is no signal.
POD_DELETE: Final = "pod delete"


class NoAgent(CommandFailed):
    """There is no agent's pod on a node, at least not at this moment."""


class Ciliumd:
    """The release of the chart on a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.kubectl = cluster.kubectl

    # -- its life ------------------------------------------------------------------------------

    def values(self, **more: object) -> list[str]:
        """``--set`` words: what a cluster without kube-proxy needs, and more."""
        host, port = str(self.cluster.plan.node(1)), "6443"
        values = {"k8sServiceHost": host, "k8sServicePort": port, **more}
        return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]

    def install(self, **more: object) -> None:
        """Install the chart; :meth:`wait` says when it works."""
        self.cluster.helm("install", RELEASE, str(CHART), "-n", NAMESPACE, *self.values(**more))

    def installed(self) -> bool:
        """Whether the release is there."""
        return self.cluster.helm("status", RELEASE, "-n", NAMESPACE, check=False).returncode == 0

    def wait(self) -> None:
        """Wait until agents and operator are ready, and with them all nodes and cluster DNS."""
        try:
            self.kubectl.rollout("ds/cilium", NAMESPACE, seconds=READY_SECONDS)
            self.kubectl.rollout("deploy/cilium-operator", NAMESPACE)
            self.cluster.wait_nodes()
            self.kubectl.rollout("deploy/coredns", NAMESPACE)
        except NotInTime as late:
            raise NotInTime(f"{late}\n{self.story()}") from None

    def wait_reachable(self, node: ClusterNode) -> None:
        """Wait until a node's agent says that it reaches all nodes."""
        all_nodes = len(self.cluster.nodes)
        self.kubectl.until(
            lambda: f"{all_nodes}/{all_nodes} reachable" in self.cilium(node, "status"),
            f"{node.name} reaches all nodes",
        )

    def story(self) -> str:
        """The end of what agents and operators have logged, also those that have crashed."""
        lines = []
        for pod in self.kubectl.list("pods", namespace=NAMESPACE, selector=PARTS):
            name = str(pod["metadata"]["name"])
            for which in ("--previous", "--previous=false"):
                words = ["logs", name, "-n", NAMESPACE, which, "--all-containers", f"--tail={LOG_LINES}"]
                lines += [f"--- {name} {which} ---", self.kubectl.run(*words, check=False).stdout]
        return "\n".join(lines)

    # -- its agents ----------------------------------------------------------------------------

    def agent(self, node: ClusterNode) -> dict[str, Any]:
        """The agent's pod on a node, as the API server has it; the newest, when one is being replaced."""
        pods = [
            pod
            for pod in self.kubectl.list("pods", namespace=NAMESPACE, selector=SELECTOR)
            if pod["spec"].get("nodeName") == node.name and "deletionTimestamp" not in pod["metadata"]
        ]
        if not pods:
            raise NoAgent(f"no agent on {node.name}\n{self.kubectl.story(NAMESPACE)}")
        return max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def agent_name(self, node: ClusterNode) -> str:
        """Name of that pod."""
        return str(self.agent(node)["metadata"]["name"])

    def incarnation(self, node: ClusterNode) -> tuple[str, int]:
        """Which agent that is: it differs after each kind of restart."""
        pod = self.agent(node)
        statuses = pod["status"].get("containerStatuses", [])
        restarts = sum(status["restartCount"] for status in statuses if status["name"] == AGENT)
        return str(pod["metadata"]["uid"]), restarts

    def ready(self, node: ClusterNode) -> bool:
        """Whether its agent is Ready."""
        statuses = self.agent(node)["status"].get("containerStatuses", [])
        return any(status["ready"] for status in statuses if status["name"] == AGENT)

    def signal(self, node: ClusterNode, number: signal.Signals) -> None:
        """Send the agent's process a signal, from outside of its container."""
        pod = ClusterPod(self.agent(node), node)
        os.kill(pod.container_pid(AGENT), number)

    def delete(self, node: ClusterNode) -> None:
        """Delete the agent's pod and do not wait."""
        self.kubectl.delete("pod", self.agent_name(node), namespace=NAMESPACE, wait=False)

    def restart(self, kind: str, *, meanwhile: Callable[[], None] = lambda: None) -> None:
        """
        End all agents at once, by a signal's name or :data:`POD_DELETE`; others are ready afterwards.

        *meanwhile* is called when all have been ended and before anybody waits for the next ones.
        """
        nodes = self.cluster.nodes
        before = {node.name: self.incarnation(node) for node in nodes}
        for node in nodes:
            if kind == POD_DELETE:
                self.delete(node)
            else:
                self.signal(node, signal.Signals[kind])
        meanwhile()
        for node in nodes:
            self.wait_restarted(node, before[node.name])

    def wait_restarted(self, node: ClusterNode, before: tuple[str, int]) -> None:
        """Wait until another agent than *before* is Ready."""
        self.kubectl.until(
            lambda: self.incarnation(node) != before and self.ready(node),
            f"another agent is ready on {node.name}",
            seconds=READY_SECONDS,
        )

    def seconds_to_ready(self, node: ClusterNode) -> float:
        """Seconds from the start of a node's agent until its maps were what objects say."""
        metrics = self.cilium_json(node, "metrics", "list", "-p", "cilium_agent_bootstrap_seconds")
        (overall,) = (one["value"] for one in metrics if one["labels"].get("scope") == "overall")
        return float(overall)

    def logs(self, node: ClusterNode, *words: str) -> str:
        """What the agent of a node has logged."""
        return self.kubectl.logs(self.agent_name(node), NAMESPACE, "-c", AGENT, *words)

    # -- its command lines ---------------------------------------------------------------------

    def exec(self, node: ClusterNode, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run a command in the agent's container."""
        return self.kubectl.exec(
            self.agent_name(node), *words, namespace=NAMESPACE, container=AGENT, check=check
        )

    def cilium(self, node: ClusterNode, *words: str) -> str:
        """Output of ``cilium WORDS`` in the agent's container."""
        return self.exec(node, "cilium", *words).stdout

    def cilium_json(self, node: ClusterNode, *words: str) -> Any:
        """Decoded output of ``cilium WORDS -o json``."""
        return json.loads(self.cilium(node, *words, "-o", "json"))

    def monitor(self, node: ClusterNode, output: Path, *words: str) -> Process:
        """``cilium monitor WORDS`` writing to a file; the caller ends it."""
        exec_words = ["exec", self.agent_name(node), "-n", NAMESPACE, "-c", AGENT, "--"]
        with output.open("wb") as file:
            return self.kubectl.process(*exec_words, "cilium", "monitor", *words, output=file)

    def outer(self, *words: str, check: bool = True, seconds: float = 120.0) -> str:
        """Output of ``cilium WORDS`` on the admin's machine, which speaks to the whole cluster."""
        return run([*CILIUM, *words], env=self.kubectl.env, check=check, seconds=seconds).stdout
