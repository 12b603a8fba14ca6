# SPDX-License-Identifier: Apache-2.0
"""
A real API server with its etcd and nothing else: no nodes, no controllers, nobody who reacts.

Programs come from ``$CILIUMD_K8S_BIN`` or ``build/out/k8s``.  Users are told apart by their tokens: an
administrator, and whoever a test gives rights.  Every request of the others is in the audit log.
"""

import contextlib
import json
import os
import shutil
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from lab.netns import Namespace, entered
from lab.process import REPOSITORY, Process, run
from lab.waiting import eventually

ADMIN: Final = "admin"
OPENSSL: Final = "/usr/bin/openssl"
_READY_SECONDS: Final = 90.0
_AUDIT_POLICY: Final = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "userGroups": ["system:masters"]},
        {"level": "None", "users": ["system:apiserver", "system:anonymous"]},
        {"level": "Metadata"},
    ],
}


class NoPrograms(Exception):
    """There is no kube-apiserver or etcd to start."""


def programs() -> Path:
    """Where the Kubernetes programs are.  Raises :class:`NoPrograms`."""
    folder = Path(os.environ.get("CILIUMD_K8S_BIN") or REPOSITORY / "build" / "out" / "k8s")
    for name in ("kube-apiserver", "etcd"):
        if not os.access(folder / name, os.X_OK):
            raise NoPrograms(f"{folder}/{name} is missing; build it, or name its folder by CILIUMD_K8S_BIN")
    return folder


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the audit log has it; *status* is HTTP's, *at* the time it came, RFC 3339."""

    user: str
    verb: str
    resource: str
    name: str
    status: int
    at: str


class ApiServer:
    """
    An API server and its etcd in *folder*; a context manager that starts and ends both.

    *users* are names of those who get a token beside the administrator.  Both run here, or, for nodes that
    are namespaces, in *netns*, where the server listens on *address*.  *wrapper* are words before a command.
    """

    def __init__(
        self,
        folder: Path,
        *,
        users: tuple[str, ...] = (),
        netns: Namespace | None = None,
        address: str = "127.0.0.1",
        wrapper: Sequence[str] = (),
    ) -> None:
        self._bin = programs()
        self._folder = folder
        self._netns = netns
        self._wrapper = list(wrapper)
        self.address = address
        self._port, self._etcd_port, self._peer_port = free_ports(3)
        self._tokens = {name: f"token-of-{name}" for name in (ADMIN, *users)}
        self._etcd: Process | None = None
        self._server: Process | None = None
        self._trust: ssl.SSLContext | None = None

    @property
    def port(self) -> int:
        """Its port."""
        return self._port

    @property
    def url(self) -> str:
        """Where it is served."""
        return f"https://{self.address}:{self._port}"

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write_files()
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start what does not run, and wait until it is ready."""
        if self._etcd is None:
            self._etcd = self._launch("etcd", self._etcd_command())
        if self._server is None:
            self._server = self._launch("kube-apiserver", self._server_command())
        eventually(self._ready, "the API server is ready", seconds=_READY_SECONDS, every=0.2)

    def stop_server(self) -> None:
        """End the API server; etcd goes on."""
        if self._server is not None:
            self._server.end()
            self._server = None

    def stop(self) -> None:
        """End both."""
        self.stop_server()
        if self._etcd is not None:
            self._etcd.end()
            self._etcd = None

    def save(self) -> Path:
        """Keep what the cluster holds now, for :meth:`put_back`; it stops for a moment."""
        saved = self._folder / "saved"
        self.stop()
        shutil.rmtree(saved, ignore_errors=True)
        shutil.copytree(self._folder / "data", saved)
        self.start()
        return saved

    def put_back(self, saved: Path) -> None:
        """Start again from an earlier state, versions included."""
        self.stop()
        shutil.rmtree(self._folder / "data")
        shutil.copytree(saved, self._folder / "data")
        self.start()

    def kubeconfig(self, user: str = ADMIN, *, port: int = 0, token_file: Path | None = None) -> Path:
        """A kubeconfig of *user*, by way of another *port* if that is given."""
        who = {"tokenFile": str(token_file)} if token_file else {"token": self.token(user)}
        server = f"https://{self.address}:{port or self._port}"
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "lab",
                    "cluster": {"server": server, "certificate-authority": str(self._certificate)},
                }
            ],
            "users": [{"name": user, "user": who}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
            "current-context": "lab",
        }
        path = self._folder / f"{user}-{port or self._port}.kubeconfig"
        path.write_text(json.dumps(document))
        return path

    def token(self, user: str) -> str:
        """The token of *user*."""
        return self._tokens[user]

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, patch: bool = False
    ) -> dict[str, Any]:
        """The answer to the administrator.  Raises urllib.error.HTTPError."""
        content = "application/merge-patch+json" if patch else "application/json"
        data = None if body is None else json.dumps(body).encode()
        with self._ask(method, path, data=data, content=content) as answer:
            document: dict[str, Any] = json.load(answer)
            return document

    def grant(self, user: str, rules: list[dict[str, Any]]) -> None:
        """*user* may do this, in all namespaces."""
        base = "/apis/rbac.authorization.k8s.io/v1"
        self.request("POST", f"{base}/clusterroles", {"metadata": {"name": user}, "rules": rules})
        self.request(
            "POST",
            f"{base}/clusterrolebindings",
            {
                "metadata": {"name": user},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
            },
        )

    def define(self, definition: Mapping[str, Any]) -> None:
        """Install a CustomResourceDefinition and wait until its kind is served."""
        base = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        self.request("POST", base, definition)
        group, names = definition["spec"]["group"], definition["spec"]["names"]
        version = definition["spec"]["versions"][0]["name"]
        eventually(
            lambda: self._serves(f"/apis/{group}/{version}", names["plural"]), f"{names['kind']} is served"
        )

    def requests(self, user: str = "") -> list[Request]:
        """What was asked so far by *user*, or by everybody but the administrator."""
        log = self._folder / "audit.log"
        found = []
        for line in log.read_text().splitlines() if log.exists() else ():
            entry = json.loads(line)
            if user and entry["user"].get("username") != user:
                continue
            about = entry.get("objectRef", {})
            found.append(
                Request(
                    user=entry["user"].get("username", ""),
                    verb=entry["verb"],
                    resource=about.get("resource", entry["requestURI"]),
                    name=about.get("name", ""),
                    status=entry.get("responseStatus", {}).get("code", 0),
                    at=entry["requestReceivedTimestamp"],
                )
            )
        return found

    @property
    def certificates(self) -> Path:
        """Where ``apiserver.crt`` and ``apiserver.key`` are."""
        return self._folder / "certificates"

    @property
    def _certificate(self) -> Path:
        return self.certificates / "apiserver.crt"

    @property
    def context(self) -> ssl.SSLContext:
        """Trusts this server and nobody else."""
        if self._trust is None:
            self._trust = ssl.create_default_context(cafile=self._certificate)
        return self._trust

    def _ask(
        self,
        method: str,
        path: str,
        *,
        data: bytes | None = None,
        content: str = "application/json",
        seconds: float = 30.0,
    ) -> Any:
        headers = {"Authorization": f"Bearer {self.token(ADMIN)}", "Content-Type": content}
        request = urllib.request.Request(self.url + path, data, headers, method=method)  # noqa: S310  our own
        with self.there():
            return urllib.request.urlopen(request, context=self.context, timeout=seconds)  # noqa: S310

    def there(self) -> contextlib.AbstractContextManager[None]:
        """Where sockets reach it: this thread is in its namespace meanwhile."""
        return contextlib.nullcontext() if self._netns is None else entered(self._netns.path)

    def _ready(self) -> bool:
        for name, process in (("etcd", self._etcd), ("kube-apiserver", self._server)):
            if process is not None and not process.running:
                tail = (self._folder / f"{name}.log").read_text()[-3000:]
                raise AssertionError(f"{name} ended:\n{tail}")
        if not self._certificate.exists():
            return False
        try:
            with self._ask("GET", "/readyz", seconds=2.0) as answer:
                return bool(answer.status == 200)
        except (OSError, ssl.SSLError):
            return False

    def _serves(self, path: str, plural: str) -> bool:
        try:
            served = self.request("GET", path)["resources"]
        except urllib.error.HTTPError:
            return False
        return any(one["name"] == plural for one in served)

    def _launch(self, name: str, command: list[str]) -> Process:
        with (self._folder / f"{name}.log").open("ab") as log:
            where = None if self._netns is None else self._netns.path
            return Process([*self._wrapper, *command], netns=where, output=log)

    def _etcd_command(self) -> list[str]:
        client = f"http://127.0.0.1:{self._etcd_port}"
        peer = f"http://127.0.0.1:{self._peer_port}"
        return [
            f"{self._bin}/etcd",
            "--name=lab",
            f"--data-dir={self._folder}/data",
            "--unsafe-no-fsync",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=lab={peer}",
        ]

    def _server_command(self) -> list[str]:
        folder = self._folder
        return [
            f"{self._bin}/kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            f"--bind-address={self.address}",
            f"--advertise-address={self.address}",
            "--endpoint-reconciler-type=none",
            f"--secure-port={self._port}",
            f"--cert-dir={folder}/certificates",
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--service-account-key-file={folder}/sa.pub",
            f"--service-account-signing-key-file={folder}/sa.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
            f"--token-auth-file={folder}/tokens.csv",
            f"--audit-policy-file={folder}/audit.json",
            f"--audit-log-path={folder}/audit.log",
            "--shutdown-delay-duration=0s",
        ]

    def _write_files(self) -> None:
        folder = self._folder
        key, public = folder / "sa.key", folder / "sa.pub"
        run([OPENSSL, "genrsa", "-out", key, "2048"])
        run([OPENSSL, "rsa", "-in", key, "-pubout", "-out", public])
        groups = {ADMIN: '"system:masters"'}
        (folder / "tokens.csv").write_text(
            "".join(f"{token},{name},{name},{groups.get(name, '')}\n" for name, token in self._tokens.items())
        )
        (folder / "audit.json").write_text(json.dumps(_AUDIT_POLICY))


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
