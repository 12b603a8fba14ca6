# SPDX-License-Identifier: Apache-2.0
"""etcd, API server, controller manager and scheduler: processes in node1's network namespace."""

import signal
from pathlib import Path
from typing import Final

from lab.k8s import cgroups
from lab.k8s.ledger import Ledger
from lab.k8s.pki import SERVICE_ACCOUNT, Pki
from lab.k8s.plan import POD_CIDR, POD_CIDR6, SERVICE_CIDR, SERVICE_CIDR6, Plan
from lab.process import CommandFailed

ETCD: Final = "http://127.0.0.1:2379"
ETCD_PEER: Final = "http://127.0.0.1:2380"
ISSUER: Final = "https://kubernetes.default.svc.cluster.local"
PROGRAMS: Final = ("kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd")

Options = dict[str, object]


class ControlPlane:
    """Reaches services through node1's datapath, as a static pod on the host's network would."""

    def __init__(self, plan: Plan, pki: Pki, ledger: Ledger, programs: Path) -> None:
        self._plan = plan
        self._pki = pki
        self._ledger = ledger
        self._programs = programs
        self._started: list[str] = []

    def start_server(self) -> None:
        """Store and API server."""
        self._launch("etcd", self._etcd())
        self._launch("kube-apiserver", self._api_server())

    def start_controllers(self) -> None:
        """What makes objects happen; they want a server that is ready."""
        self._launch("kube-controller-manager", self._controller_manager())
        self._launch("kube-scheduler", self._scheduler())

    def check(self) -> None:
        """Raise ``CommandFailed`` with its log when one of the programs has ended."""
        for name in self._started:
            if self._ledger.pid(name) is None:
                raise CommandFailed(f"{name} has ended\n{self._ledger.log_tail(name)}")

    def end(self) -> None:
        """End all of it; what it has stored goes with the cluster."""
        self._ledger.end(PROGRAMS, signal.SIGKILL)

    def _launch(self, program: str, options: Options) -> None:
        words = [f"--{name}={value}" for name, value in options.items()]
        self._started.append(program)
        cgroup = cgroups.system(f"{self._plan.prefix}-n1")
        self._ledger.launch(
            program, [self._programs / program, *words], netns=self._plan.netns("n1"), cgroup=cgroup
        )

    def _etcd(self) -> Options:
        return {
            "name": "etcd",
            "data-dir": self._plan.directory / "etcd",
            # The data need not survive the machine.
            "unsafe-no-fsync": "true",
            "listen-client-urls": ETCD,
            "advertise-client-urls": ETCD,
            "listen-peer-urls": ETCD_PEER,
            "initial-advertise-peer-urls": ETCD_PEER,
            "initial-cluster": f"etcd={ETCD_PEER}",
        }

    def _api_server(self) -> Options:
        pki = self._pki
        return {
            "advertise-address": self._plan.node(1),
            "allow-privileged": "true",
            "authorization-mode": "Node,RBAC",
            "client-ca-file": pki.ca,
            "enable-admission-plugins": "NodeRestriction",
            "etcd-servers": ETCD,
            "kubelet-client-certificate": pki.certificate("apiserver-kubelet"),
            "kubelet-client-key": pki.key("apiserver-kubelet"),
            "kubelet-preferred-address-types": "InternalIP",
            "proxy-client-cert-file": pki.certificate("front-proxy"),
            "proxy-client-key-file": pki.key("front-proxy"),
            "requestheader-allowed-names": "front-proxy-client",
            "requestheader-client-ca-file": pki.ca,
            "requestheader-extra-headers-prefix": "X-Remote-Extra-",
            "requestheader-group-headers": "X-Remote-Group",
            "requestheader-username-headers": "X-Remote-User",
            "secure-port": 6443,
            "service-account-issuer": ISSUER,
            "service-account-key-file": pki.certificate(SERVICE_ACCOUNT),
            "service-account-signing-key-file": pki.key(SERVICE_ACCOUNT),
            "service-cluster-ip-range": self._plan.families(SERVICE_CIDR, SERVICE_CIDR6),
            "tls-cert-file": pki.certificate("apiserver"),
            "tls-private-key-file": pki.key("apiserver"),
        }

    def _controller_manager(self) -> Options:
        pki = self._pki
        return {
            "allocate-node-cidrs": "true",
            "cluster-cidr": self._plan.families(POD_CIDR, POD_CIDR6),
            "cluster-signing-cert-file": pki.ca,
            "cluster-signing-key-file": pki.ca_key,
            "kubeconfig": pki.kubeconfig("controller-manager"),
            "leader-elect": "false",
            "root-ca-file": pki.ca,
            "service-account-private-key-file": pki.key(SERVICE_ACCOUNT),
            "service-cluster-ip-range": self._plan.families(SERVICE_CIDR, SERVICE_CIDR6),
            "use-service-account-credentials": "true",
        }

    def _scheduler(self) -> Options:
        return {"kubeconfig": self._pki.kubeconfig("scheduler"), "leader-elect": "false"}
