# SPDX-License-Identifier: Apache-2.0
"""
Certificates of a cluster, one authority for all of it, and the kubeconfigs that carry them.

Keys are P-256: made in milliseconds, and good for service account tokens (ES256) too.
"""

import base64
import json
from pathlib import Path
from typing import Final

from lab.k8s.plan import Plan
from lab.process import run

OPENSSL: Final = "/usr/bin/openssl"
DAYS: Final = "3650"
ADMIN: Final = "admin"
SERVICE_ACCOUNT: Final = "service-account"
# Who calls the API server: file name -> subject.  Groups are organizations (RBAC, "Default roles").
CLIENTS: Final = {
    ADMIN: "/O=system:masters/CN=admin",
    "apiserver-kubelet": "/O=system:masters/CN=kube-apiserver-kubelet-client",
    "controller-manager": "/CN=system:kube-controller-manager",
    "front-proxy": "/CN=front-proxy-client",
    "proxy": "/CN=system:kube-proxy",
    "scheduler": "/CN=system:kube-scheduler",
}


class Pki:
    """The files of one cluster's authority; made by :meth:`make`, found again by name."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.directory = plan.directory / "pki"
        self.ca = self.certificate("ca")
        self.ca_key = self.key("ca")

    def certificate(self, name: str) -> Path:
        """Path of a certificate."""
        return self.directory / f"{name}.crt"

    def key(self, name: str) -> Path:
        """Path of its key."""
        return self.directory / f"{name}.key"

    def kubeconfig(self, name: str) -> Path:
        """Path of a client's kubeconfig."""
        return self.directory / f"{name}.kubeconfig"

    def make(self) -> None:
        """Make everything; nothing happens when it is there."""
        done = self.directory / "done"
        if done.exists():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        self._make(
            "ca", "/CN=kubernetes-ca", "basicConstraints=critical,CA:TRUE", "keyUsage=keyCertSign,cRLSign"
        )
        # Signs the tokens of service accounts; its certificate is where others find the public key.
        self._make(SERVICE_ACCOUNT, "/CN=service-account")
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        names = [f"DNS:{name}" for name in (*names, f"{names[-1]}.cluster.local", "localhost")]
        addresses = [f"IP:{address}" for address in ("127.0.0.1", self._plan.api_service, self._plan.node(1))]
        self._sign("apiserver", "/CN=kube-apiserver", f"subjectAltName={','.join(names + addresses)}")
        nodes = {
            f"node{index}": f"/O=system:nodes/CN=system:node:node{index}" for index in self._plan.indexes
        }
        for name, subject in {**CLIENTS, **nodes}.items():
            self._sign(name, subject)
            self.kubeconfig(name).write_text(json.dumps(self._kubeconfig(name), indent=1))
        done.touch()

    def _kubeconfig(self, name: str) -> dict[str, object]:
        def embedded(path: Path) -> str:
            return base64.b64encode(path.read_bytes()).decode()

        cluster = {"server": self._plan.api_server, "certificate-authority-data": embedded(self.ca)}
        user = {
            "client-certificate-data": embedded(self.certificate(name)),
            "client-key-data": embedded(self.key(name)),
        }
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": self._plan.prefix, "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [
                {"name": self._plan.prefix, "context": {"cluster": self._plan.prefix, "user": name}}
            ],
            "current-context": self._plan.prefix,
        }

    def _sign(self, name: str, subject: str, *extensions: str) -> None:
        self._make(
            name,
            subject,
            "basicConstraints=critical,CA:FALSE",
            "keyUsage=digitalSignature",
            "extendedKeyUsage=serverAuth,clientAuth",
            *extensions,
            by=("-CA", self.ca, "-CAkey", self.ca_key),
        )

    def _make(self, name: str, subject: str, *extensions: str, by: tuple[str | Path, ...] = ()) -> None:
        words: list[str | Path] = [
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-noenc",
        ]
        words += ["-days", DAYS, "-subj", subject, "-keyout", self.key(name), "-out", self.certificate(name)]
        # Without -config the machine's openssl.cnf would add extensions of its own.
        words += ["-config", "/dev/null", *by]
        for extension in extensions:
            words += ["-addext", extension]
        self._openssl(*words)

    @staticmethod
    def _openssl(*words: str | Path) -> None:
        run([OPENSSL, *words])
