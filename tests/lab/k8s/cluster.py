# SPDX-License-Identifier: Apache-2.0
"""A cluster from bare namespaces to ready nodes, and back to nothing."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, Self

from lab.actor import Actor
from lab.k8s import baseline, cgroups, images, plan
from lab.k8s.control import ControlPlane
from lab.k8s.kubectl import Kubectl
from lab.k8s.ledger import Ledger
from lab.k8s.node import ClusterNode
from lab.k8s.pki import ADMIN, Pki
from lab.k8s.plan import DNS_SERVICE, FAR6, Plan
from lab.k8s.pod import ClusterPod
from lab.netns import IP
from lab.process import REPOSITORY, Process, run
from lab.waiting import eventually

OUT: Final = REPOSITORY / "build" / "out"
PROGRAMS_VARIABLE: Final = "CILIUMD_K8S_BIN"
DNS_MANIFEST: Final = Path(__file__).with_name("dns.yaml")
START_SECONDS: Final = 60.0
IMPORT_SECONDS: Final = 120.0
NEEDED: Final = ("kube-apiserver", "kubelet", "kubectl", "etcd", "agnhost", "coredns", "pause", "helm")


class ProgramsMissing(RuntimeError):
    """The cluster's programs are not built; the text says how to build them."""


def programs_directory() -> Path:
    """Where `build/k8s_tools.py` puts them."""
    return Path(os.environ.get(PROGRAMS_VARIABLE, OUT / "k8s")).absolute()


class Cluster:
    """
    One to three nodes, with *dual* of both families, with *six* of IPv6 alone.  A context manager that takes
    them down.

    With *cni* ``none`` and *proxy* ``none`` the nodes stay NotReady and services reach nobody:
    what ciliumd's chart is installed into.  ``bridge`` with ``iptables`` or ``nftables`` is the
    baseline of Kubernetes' own parts.
    """

    def __init__(
        self,
        *,
        nodes: int = 2,
        dual: bool = False,
        six: bool = False,
        cni: Literal["none", "bridge"] = "none",
        proxy: Literal["none", "iptables", "nftables"] = "none",
        taints: Sequence[dict[str, str]] = (),
        existing: Plan | None = None,
    ) -> None:
        self.programs = programs_directory()
        missing = [name for name in NEEDED if not (self.programs / name).exists()]
        if missing and existing is None:
            raise ProgramsMissing(f"{', '.join(missing)} not in {self.programs}: run build/k8s_tools.py")
        self.plan = existing or plan.take(OUT / "clusters", nodes, dual=dual, six=six)
        self._cni = cni
        self._proxy = proxy
        self._taints = list(taints)
        self._pods: list[ClusterPod] = []
        self.pki = Pki(self.plan)
        self._ledger = Ledger(self.plan.directory)
        self._control = ControlPlane(self.plan, self.pki, self._ledger, self.programs)
        self.kubectl = Kubectl(self.programs / "kubectl", self.pki.kubeconfig(ADMIN))
        self.nodes = [
            ClusterNode(self.plan, self.pki, self._ledger, index, self.programs)
            for index in self.plan.indexes
        ]

    # -- up and down ---------------------------------------------------------------------------

    def up(self) -> Self:
        """Bring it up; what was started is taken down again when that fails."""
        try:
            self._up()
        except BaseException:
            self.down()
            raise
        return self

    def _up(self) -> None:
        self.pki.make()
        self._bridge()
        self._world()
        for node in self.nodes:
            node.start()
            node.start_containerd()
        self._control.start_server()
        # The longest of it all: it goes on while the server starts.
        imports = self._start_imports(images.test_images(self.programs))
        eventually(self._api_ready, "the API server is ready", seconds=START_SECONDS, every=0.2)
        self._control.start_controllers()
        for node in self.nodes:
            node.start_kubelet(self._taints)
        self._end_imports(imports)
        self.kubectl.until(lambda: len(self.kubectl.list("nodes")) == len(self.nodes), "nodes are registered")
        self.kubectl.until(
            lambda: self.kubectl.exists("serviceaccount", "default"), "the default account exists"
        )
        self._apply_dns()
        if self._proxy != "none":
            baseline.start_proxy(self.nodes, self.pki, self.programs, self._proxy)
        if self._cni != "none":
            baseline.configure(self.kubectl, self.nodes)
            self.wait_nodes()
            self.kubectl.rollout("deploy/coredns", "kube-system")

    def _apply_dns(self) -> None:
        text = DNS_MANIFEST.read_text().replace(DNS_SERVICE, self.plan.dns_service)
        made = self.plan.directory / DNS_MANIFEST.name
        made.write_text(text)
        self.kubectl.apply(made)

    def _api_ready(self) -> bool:
        self._control.check()
        return self.kubectl.run("get", "--raw", "/readyz", check=False).returncode == 0

    def _bridge(self) -> None:
        name = f"{self.plan.prefix}-br"
        run([IP, "link", "add", name, "type", "bridge"])
        bits = self.plan.network.prefixlen
        run([IP, "address", "add", f"{self.plan.machine}/{bits}", "dev", name, "nodad"])
        run([IP, "link", "set", name, "up"])

    def _world(self) -> None:
        netns, cable = self.plan.netns("world").name, f"{self.plan.prefix}-world"
        run([IP, "netns", "add", netns])
        run([IP, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", netns])
        run([IP, "link", "set", cable, "master", f"{self.plan.prefix}-br", "up"])
        for words in (
            ("link", "set", "lo", "up"),
            ("link", "set", "eth0", "up"),
            ("address", "add", f"{self.plan.world}/{self.plan.network.prefixlen}", "dev", "eth0", "nodad"),
            ("address", "add", self.plan.far, "dev", "lo"),
        ):
            run([IP, "-n", netns, *words])
        if self.plan.dual:
            run([IP, "-n", netns, "-6", "address", "add", f"{self.plan.world6}/64", "dev", "eth0", "nodad"])
            run([IP, "-n", netns, "-6", "address", "add", f"{FAR6}/128", "dev", "lo"])

    def down(self) -> None:
        """Take it down; nothing of it is left but its logs in build/out/clusters/."""
        self.end_actors()
        # Who has no node any more cannot be asked to end: all of a node goes with its first process.
        for node in self.nodes:
            node.kill()
        self._control.end()
        # By name: the kernel takes the devices of a namespace away some time after its name is gone, and
        # the next cluster has the same names.
        for end in (*(f"v{index}" for index in self.plan.indexes), "world", "br"):
            run([IP, "link", "del", f"{self.plan.prefix}-{end}"], check=False)
        for label in (*(f"n{index}" for index in self.plan.indexes), "world"):
            if self.plan.netns(label).exists():
                run([IP, "netns", "del", self.plan.netns(label).name])
        for node in self.nodes:
            cgroups.remove(node.cgroup_name)
        logs = self.plan.directory.with_name(f"{self.plan.prefix}-log")
        if (self.plan.directory / "log").is_dir():
            shutil.rmtree(logs, ignore_errors=True)
            (self.plan.directory / "log").rename(logs)
        shutil.rmtree(self.plan.directory, ignore_errors=True)
        plan.release(self.plan)

    def keep(self) -> None:
        """Let it outlive this process."""
        plan.keep(self.plan)

    def end_actors(self) -> None:
        """End everybody who was sent into nodes, pods and world."""
        for node in self.nodes:
            node.end_actor()
        for pod in self._pods:
            pod.end_actor()
        self._pods.clear()
        world = self.__dict__.pop("world", None)
        if world is not None:
            world.end()

    def __enter__(self) -> Self:
        return self.up()

    def __exit__(self, *_: object) -> None:
        self.down()

    # -- what is on it -------------------------------------------------------------------------

    def node(self, name: str) -> ClusterNode:
        """A node by name."""
        return next(node for node in self.nodes if node.name == name)

    def pod(self, name: str, namespace: str = "default") -> ClusterPod:
        """A running pod by name."""
        manifest = self.kubectl.get("pod", name, namespace)
        pod = ClusterPod(manifest, self.node(manifest["spec"]["nodeName"]))
        self._pods.append(pod)
        return pod

    def pods(self, selector: str, namespace: str = "default") -> list[ClusterPod]:
        """Running pods by label, in the order of their nodes."""
        found = self.kubectl.list("pods", namespace=namespace, selector=selector)
        names = [(one["spec"]["nodeName"], one["metadata"]["name"]) for one in found]
        return [self.pod(name, namespace) for _, name in sorted(names)]

    @cached_property
    def world(self) -> Actor:
        """Somebody outside of the cluster, one hop away from every node."""
        return Actor(self.plan.netns("world"), who="world")

    def load(self, *archives: Path) -> None:
        """Load images onto every node."""
        for archive in archives:
            self._end_imports(self._start_imports(archive))

    def _start_imports(self, archive: Path) -> list[Process]:
        for node in self.nodes:
            node.wait_containerd()
        return [node.start_import(archive) for node in self.nodes]

    def _end_imports(self, imports: list[Process]) -> None:
        for one in imports:
            code = one.wait(IMPORT_SECONDS)
            assert code == 0, f"an import ended with {code}\n{self._ledger.log_tail('images')}"

    def wait_nodes(self) -> None:
        """Wait until all nodes are Ready."""
        self.kubectl.wait("--for=condition=Ready", "nodes", "--all")

    def helm(
        self, *words: str, check: bool = True, seconds: float = 180.0
    ) -> "subprocess.CompletedProcess[str]":
        """Run ``helm WORDS``."""
        return run([self.programs / "helm", *words], env=self.env, check=check, seconds=seconds)

    @property
    def env(self) -> dict[str, str]:
        """What kubectl and helm need; helm's caches belong to the cluster, not to the user's home."""
        homes = ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")
        return {**self.kubectl.env, **dict.fromkeys(homes, str(self.plan.directory / "helm"))}


def sweep() -> list[str]:
    """Take down what killed runs have left; what was taken down."""
    removed = []
    for left in plan.registered(abandoned=True):
        Cluster(existing=left).down()
        removed.append(left.prefix)
    return removed
