# SPDX-License-Identifier: Apache-2.0
"""
The first process of a node: gives it a file system of its own and reaps what its children leave.

Run by ``unshare`` in fresh mount, pid, uts and ipc namespaces inside the node's network namespace:
``python -S -m lab.k8s.init NAME DIRECTORY``.  When it is killed, the kernel ends all of the node.
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

MOUNT = "/usr/bin/mount"
# These trees of the machine are seen by the node, and what it writes there stays its own.
OVERLAID = ("/etc", "/opt", "/var")
# Where overlayfs must not be twice (containers' roots), or where a test looks from outside.
OWN = ("/var/lib/kubelet", "/var/lib/containerd", "/var/log/pods", "/etc/cni/net.d", "/opt/cni/bin")
# kubelet sets these of the whole machine (pkg/kubelet/cm, setupKernelTunables); the node gets files instead.
TUNABLES = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
READY = "ready"


def mount(*words: str | os.PathLike[str]) -> None:
    """Call the program of this name (mount(8))."""
    subprocess.run([MOUNT, *words], check=True)


def file_system(directory: Path) -> None:
    """Mount all that is the node's own; afterwards mounts spread to its containers, as on any node."""
    mount("--make-rprivate", "/")
    cgroups = directory / "cgroup"
    cgroups.mkdir(exist_ok=True)
    mount("--rbind", "/sys/fs/cgroup", cgroups)
    # A sysfs of this network namespace, for its devices; it hides the control groups: put them back.
    mount("-t", "sysfs", "sysfs", "/sys")
    mount("--rbind", cgroups, "/sys/fs/cgroup")
    mount("-t", "bpf", "bpf", "/sys/fs/bpf")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    for path in ("/run/lock", "/run/netns"):
        Path(path).mkdir()
    for path in OVERLAID:
        upper, work = (directory / kind / path.lstrip("/") for kind in ("upper", "work"))
        for each in (upper, work):
            each.mkdir(parents=True, exist_ok=True)
        mount("-t", "overlay", "-o", f"lowerdir={path},upperdir={upper},workdir={work}", "overlay", path)
    for path in OWN:
        own = directory / path.lstrip("/")
        for each in (own, Path(path)):
            each.mkdir(parents=True, exist_ok=True)
        mount("--bind", own, path)
    mount("-t", "proc", "proc", "/proc")
    for name in TUNABLES:
        setting, own = Path("/proc/sys", name), directory / "sysctl" / name
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(setting.read_text())
        mount("--bind", own, setting)
    mount("--make-rshared", "/")


def main() -> None:
    """Set the node up, say so, and stay."""
    name, directory = sys.argv[1], Path(sys.argv[2])
    # /proc is still the machine's: this is our number as it is seen from outside.
    number = Path("/proc/self").readlink()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    socket.sethostname(name)
    file_system(directory)
    (directory / READY).write_text(str(number))
    while True:
        signal.sigwait({signal.SIGCHLD})
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            continue


if __name__ == "__main__":
    main()
