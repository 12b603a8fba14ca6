# SPDX-License-Identifier: Apache-2.0
"""A node of a cluster: its namespaces, containerd and kubelet, and what runs on it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from lab.actor import Actor
from lab.k8s import cgroups, images
from lab.k8s.init import READY
from lab.k8s.ledger import Ledger, disown
from lab.k8s.pki import Pki
from lab.k8s.plan import Plan
from lab.netns import IP
from lab.process import NSENTER, Process, run
from lab.waiting import eventually

UNSHARE: Final = "/usr/bin/unshare"
CONTAINERD: Final = "/usr/bin/containerd"
CTR: Final = "/usr/bin/ctr"
# Where Debian has the reference plugins, and those of them that every node has.
CNI_PLUGINS: Final = Path("/usr/lib/cni")
CNI_BASICS: Final = ("loopback", "bridge", "host-local", "portmap")
CONTAINERD_CONFIG: Final = f"""\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{images.PAUSE}"
  # Containers of this machine may lack CAP_SYS_RESOURCE: a negative oom_score_adj would be refused.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"""


class ClusterNode:
    """Node *index*, counted from 1."""

    def __init__(self, plan: Plan, pki: Pki, ledger: Ledger, index: int, programs: Path) -> None:
        self.index = index
        self.name = f"node{index}"
        self.address = str(plan.node(index))
        self.address6 = str(plan.node6(index)) if plan.dual or plan.six else ""
        self.directory = plan.directory / self.name
        self.cgroup_name = f"{plan.prefix}-n{index}"
        self.netns = plan.netns(f"n{index}")
        self._plan = plan
        self._pki = pki
        self._ledger = ledger
        self._programs = programs

    # -- its life ------------------------------------------------------------------------------

    def start(self) -> None:
        """Cable, control groups and namespaces; nothing runs but its first process."""
        uplink = f"{self._plan.prefix}-v{self.index}"
        run([IP, "netns", "add", self.netns.name])
        run([IP, "link", "add", uplink, "type", "veth", "peer", "name", "eth0", "netns", self.netns.name])
        run([IP, "link", "set", uplink, "master", f"{self._plan.prefix}-br", "up"])
        for words in (
            ("link", "set", "lo", "up"),
            ("link", "set", "eth0", "up"),
            # nodad: it is there at once, and nobody else has it.
            ("address", "add", f"{self.address}/{self._plan.network.prefixlen}", "dev", "eth0", "nodad"),
            # A local connect() to a service needs a route before its address is translated.
            ("route", "add", "default", "via", str(self._plan.world)),
        ):
            run([IP, "-n", self.netns.name, *words])
        if self._plan.dual:
            self._join_ipv6()
        cgroups.make(self.cgroup_name)
        binaries = self.directory / "opt/cni/bin"
        binaries.mkdir(parents=True, exist_ok=True)
        for name in CNI_BASICS:
            shutil.copy2(CNI_PLUGINS / name, binaries / name)
        namespaces = ["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
        init: list[str | Path] = [sys.executable, "-S", "-m", "lab.k8s.init", self.name, self.directory]
        ready = self.directory / READY
        ready.unlink(missing_ok=True)
        spawned = self._ledger.spawn(
            self.name, [UNSHARE, *namespaces, "--", *init], netns=self.netns, cgroup=self.cgroup
        )
        eventually(
            lambda: (ready.exists() and ready.read_text()) or spawned.poll() is not None,
            f"namespaces of {self.name}",
        )
        self._ledger.record(self.name, int(ready.read_text()) if ready.exists() else spawned.pid)
        disown(spawned)
        # kubeadm asks for it before it installs anything (preflight, proc-sys-net-ipv4-ip_forward).
        six = self._plan.dual or self._plan.six
        knobs = ["ipv4/ip_forward", *(["ipv6/conf/all/forwarding"] if six else [])]
        for knob in knobs:
            self.run(["/bin/sh", "-c", f"echo 1 > /proc/sys/net/{knob}"])

    def _join_ipv6(self) -> None:
        # nodad: it is there at once, and nobody else has it.
        for words in (
            ("-6", "address", "add", f"{self.address6}/64", "dev", "eth0", "nodad"),
            ("-6", "route", "add", "default", "via", str(self._plan.world6)),
        ):
            run([IP, "-n", self.netns.name, *words])

    def start_containerd(self) -> None:
        """Start the container runtime; :meth:`wait_containerd` says when it serves."""
        config = self.directory / "containerd.toml"
        config.write_text(CONTAINERD_CONFIG)
        self.spawn("containerd", [CONTAINERD, "--config", config])

    def wait_containerd(self) -> None:
        """Wait until it answers."""
        eventually(
            lambda: self.run([CTR, "version"], check=False).returncode == 0,
            f"containerd of {self.name}\n{self._ledger.log_tail(f'{self.name}-containerd')}",
            seconds=30.0,
            every=0.1,
        )

    def start_kubelet(self, taints: Sequence[dict[str, str]]) -> None:
        """Start kubelet, which registers the node with these taints."""
        resolv = self.directory / "resolv.conf"
        resolv.write_text("nameserver 127.0.0.1\n")
        config = self.directory / "kubelet.json"
        config.write_text(json.dumps(self._kubelet_configuration(resolv, taints), indent=1))
        self.spawn(
            "kubelet",
            [
                self._programs / "kubelet",
                f"--config={config}",
                f"--kubeconfig={self._pki.kubeconfig(self.name)}",
                f"--hostname-override={self.name}",
                f"--node-ip={self._plan.families(self.address, self.address6)}",
                "--v=2",
            ],
        )

    def _kubelet_configuration(self, resolv: Path, taints: Sequence[dict[str, str]]) -> dict[str, Any]:
        low = {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"}
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": "::" if self._plan.six else "0.0.0.0",  # as the kubelet of a test does
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self._pki.ca)},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.cgroup_name}",
            "clusterDNS": [self._plan.dns_service],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "evictionHard": {**low, "nodefs.inodesFree": "1%"},
            "failCgroupV1": False,
            "failSwapOn": False,
            # Nothing is deleted that a test has loaded.
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "registerWithTaints": list(taints),
            "resolvConf": str(resolv),
        }

    @property
    def pid(self) -> int:
        """Its first process."""
        pid = self._ledger.pid(self.name)
        assert pid is not None, f"{self.name} is not up\n{self._ledger.log_tail(self.name)}"
        return pid

    def kill(self) -> None:
        """End its first process, and with it everything that runs on the node."""
        self._ledger.end([self.name], signal.SIGKILL)

    # -- on the node ---------------------------------------------------------------------------

    @property
    def cgroup(self) -> Path:
        """The cgroup v2 group of its own processes; its parent covers containers too."""
        return cgroups.system(self.cgroup_name)

    def _inside(self, command: Sequence[str | os.PathLike[str]]) -> list[str | os.PathLike[str]]:
        return [NSENTER, "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "--", *command]

    def run(
        self, command: Sequence[str | os.PathLike[str]], **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command on the node to its end."""
        return run(self._inside(command), cgroup=self.cgroup, **options)

    def process(self, command: Sequence[str | os.PathLike[str]], **options: Any) -> Process:
        """Start a command on the node; the caller ends it."""
        return Process(self._inside(command), cgroup=self.cgroup, **options)

    def spawn(self, name: str, command: Sequence[str | os.PathLike[str]]) -> None:
        """Start a daemon on the node; it ends with the node."""
        # Debian keeps tools that kubelet calls (mount, iptables) where root's PATH has them.
        path = {"PATH": f"/usr/local/sbin:/usr/sbin:/sbin:{os.environ['PATH']}"}
        disown(self._ledger.spawn(f"{self.name}-{name}", self._inside(command), cgroup=self.cgroup, env=path))

    def ip(self, *arguments: str) -> Any:
        """Decoded output of ``ip -j ARGUMENTS`` in the node's network namespace."""
        return json.loads(run([IP, "-n", self.netns.name, "-j", "-d", *arguments]).stdout or "[]")

    @cached_property
    def actor(self) -> Actor:
        """A process of the node itself; its sockets are the node's."""
        return Actor(self.netns, cgroup=self.cgroup, who=self.name)

    def start_import(self, archive: Path) -> Process:
        """Begin to load images from a docker or OCI archive."""
        log = self._ledger.log("images")
        with log.open("ab") as output:
            return self.process([CTR, "-n", "k8s.io", "images", "import", archive], output=output)

    def end_actor(self) -> None:
        """End the process that :attr:`actor` started, if any."""
        actor = self.__dict__.pop("actor", None)
        if actor is not None:
            actor.end()
