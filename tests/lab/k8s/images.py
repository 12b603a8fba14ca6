# SPDX-License-Identifier: Apache-2.0
"""
The images that test pods ask for, under the names they have in registries, made from this machine.

Content is as small as the tests allow: static programs of the cluster's own build, busybox, and the
network tools that Kubernetes' end-to-end specs call.
"""

import hashlib
import inspect
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

from lab.k8s import archive
from lab.k8s.archive import Image, Layer
from lab.process import run

PAUSE: Final = "registry.k8s.io/pause:3.10.1"
AGNHOST: Final = "registry.k8s.io/e2e-test-images/agnhost:2.56"
DNS_UTILS: Final = "registry.k8s.io/e2e-test-images/jessie-dnsutils:1.7"
BUSYBOX: Final = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1"
COREDNS: Final = "registry.k8s.io/coredns/coredns:v1.12.4"
DEATHSTAR: Final = "quay.io/cilium/starwars:v2.1"
BOOM_SERVER: Final = "registry.k8s.io/e2e-test-images/regression-issue-74839:1.2"
SPACESHIP: Final = "quay.io/cilium/json-mock:v1.3.8"

BOOM: Final = "regression-issue-74839"
EVERYBODYS: Final = ("/tmp", "/uploads", "/var/tmp")  # noqa: S108 - of the image, not of this machine
PROGRAMS: Final = ("pause", "agnhost", "coredns", "starwars", BOOM)
TOOLS: Final = ("bash", "curl", "nc", "dig", "ip", "ss", "iperf", "getent", "wget")
# glibc loads these at run time when a name is resolved: ldd does not show them.
RESOLVERS: Final = ("libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2")
ACCOUNTS: Final = """\
root:x:0:0:root:/root:/bin/sh
user-defined-in-image:x:1000:1000::/home:/bin/sh
"""
GROUP: Final = """\
root:x:0:
user-defined-in-image:x:1000:
group-defined-in-image:x:50000:user-defined-in-image
"""


def test_images(programs: Path) -> Path:
    """The archive with all of them, made anew when a program or this file has changed."""
    path = programs / "images.tar"
    stamp = path.with_suffix(".inputs")
    wanted = _inputs(programs)
    if not path.exists() or not stamp.exists() or stamp.read_text() != wanted:
        archive.write(path, _images(programs))
        stamp.write_text(wanted)
    return path


def _inputs(programs: Path) -> str:
    parts = [inspect.getsource(module).encode() for module in (archive, sys.modules[__name__])]
    for name in PROGRAMS:
        about = (programs / name).stat()
        parts.append(f"{name} {about.st_size} {about.st_mtime_ns}".encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _images(programs: Path) -> list[Image]:
    base, tools = _base(), _tools()
    return [
        Image((PAUSE,), (_only(programs / "pause"),), ("/pause",)),
        Image((COREDNS,), (_only(programs / "coredns"),), ("/coredns",)),
        Image((DEATHSTAR,), (_only(programs / "starwars"),), ("/starwars",)),
        Image((BOOM_SERVER,), (_only(programs / BOOM),), (f"/{BOOM}",)),
        Image((BUSYBOX, "docker.io/library/busybox:latest"), (base,), (), ("sh",)),
        Image((SPACESHIP,), (base, tools, _only(programs / "pause")), ("/pause",)),
        Image((AGNHOST, DNS_UTILS), (base, tools, _agnhost(programs)), ("/agnhost",), ("pause",)),
    ]


def _only(program: Path) -> Layer:
    layer = Layer()
    layer.file(f"/{program.name}", program, 0o755)
    return layer


def _base() -> Layer:
    """Busybox and what a system is expected to have."""
    layer = Layer()
    for path in ("/usr/sbin", "/proc", "/sys", "/dev", "/root", "/var/run", "/home"):
        layer.directory(path)
    for path in EVERYBODYS:
        layer.directory(path, 0o1777)
    layer.file("/etc/passwd", ACCOUNTS)
    layer.file("/etc/group", GROUP)
    layer.file("/etc/nsswitch.conf", "hosts: files dns\n")
    layer.program("/bin/busybox", "busybox")
    for applet in run(["/bin/busybox", "--list"]).stdout.split():
        if applet != "busybox":
            layer.link(f"/bin/{applet}", "/bin/busybox")
    return layer


def _tools() -> Layer:
    """The real tools, in the place of busybox's where both have them."""
    layer = Layer()
    for tool in TOOLS:
        layer.program(f"/usr/bin/{tool}", tool)
    # The specs' shell must be bash: busybox's prefers its own nc and ip over those in PATH.
    for name in ("sh", "bash", "nc", "ip"):
        layer.link(f"/bin/{name}", f"/usr/bin/{'bash' if name == 'sh' else name}")
    libraries = Path(f"/lib/{os.uname().machine}-linux-gnu")
    for name in RESOLVERS:
        layer.library(str(libraries / name))
    return layer


def _agnhost(programs: Path) -> Layer:
    """Agnhost and the certificate that its `porter` serves with."""
    layer = Layer()
    layer.file("/agnhost", programs / "agnhost", 0o755)
    layer.link("/agnhost-2", "agnhost")
    with tempfile.TemporaryDirectory() as directory:
        key, certificate = Path(directory, "key"), Path(directory, "crt")
        words = ["-newkey", "rsa:2048", "-noenc", "-days", "3650", "-subj", "/CN=localhost"]
        words += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        run(["/usr/bin/openssl", "req", "-x509", *words, "-keyout", key, "-out", certificate])
        layer.file("/localhost.key", key.read_bytes())
        layer.file("/localhost.crt", certificate.read_bytes())
    return layer
