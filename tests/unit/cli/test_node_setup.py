# SPDX-License-Identifier: Apache-2.0
"""What init containers do on a node: the CNI executable, mounts, sysctls."""

import os
import stat

import pytest

from ciliumd.cli import mounts
from ciliumd.cli.sysctl import DROP_IN

MOUNTS = (
    "sysfs /sys sysfs rw 0 0\n"
    "bpf /sys/fs/bpf bpf rw 0 0\n"
    "tmpfs /run/over bpf rw 0 0\n"
    "tmpfs /run/over tmpfs rw 0 0\n"
)


def test_the_executable_is_installed_once(run, tmp_path):
    """With its mode, in one rename, and not again while it is the same."""
    source, directory = tmp_path / "cilium-cni", tmp_path / "opt" / "bin"
    source.write_bytes(b"first")
    words = ("install-cni", str(directory), "--source", str(source))
    target = directory / "cilium-cni"
    assert run.ciliumd(*words) == 0
    assert run.out == f"installed {target}\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    first = target.stat().st_ino
    assert run.ciliumd(*words) == 0
    assert run.out == f"{target} is up to date\n"
    assert target.stat().st_ino == first
    source.write_bytes(b"second")
    assert run.ciliumd(*words) == 0
    assert target.read_bytes() == b"second"
    assert target.stat().st_ino != first
    assert os.listdir(directory) == ["cilium-cni"]  # noqa: PTH208  hidden ones count


def test_one_that_may_not_be_started_is_replaced(run, tmp_path):
    """The same bytes with another mode are no executable."""
    source = tmp_path / "source" / "cilium-cni"
    source.parent.mkdir()
    source.write_bytes(b"x")
    (tmp_path / "cilium-cni").write_bytes(b"x")
    (tmp_path / "cilium-cni").chmod(0o644)
    assert run.ciliumd("install-cni", str(tmp_path), "--source", str(source)) == 0
    assert os.access(tmp_path / "cilium-cni", os.X_OK)


def test_an_executable_that_is_missing_is_told(run, tmp_path):
    """Nothing is written."""
    assert run.ciliumd("install-cni", str(tmp_path), "--source", str(tmp_path / "missing")) == 1
    assert "cannot install" in run.err
    assert "cni.binPath" in run.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "target", "expected"),
    [
        ("bpf", "/sys/fs/bpf", True),
        ("cgroup2", "/sys/fs/bpf", False),
        ("bpf", "/sys/fs", False),
        ("bpf", "/run/over", False),
    ],
)
def test_what_is_mounted(kind, target, expected):
    """The last mount on a directory is the one that is seen."""
    assert mounts.mounted(MOUNTS, kind, mounts.Path(target)) is expected


def test_a_mount_that_is_there_is_left(run, tmp_path):
    """Neither namespaces nor privileges are needed for that."""
    (tmp_path / "mounts").write_text(MOUNTS)
    assert run.ciliumd("mount", "bpf", "/sys/fs/bpf", f"--node={tmp_path}") == 0
    assert run.out == "bpf is mounted on /sys/fs/bpf\n"


def test_a_node_that_cannot_be_entered_is_told(run, tmp_path):
    """With the command for the node's administrator."""
    (tmp_path / "mounts").write_text("")
    assert run.ciliumd("mount", "bpf", str(tmp_path / "bpf"), f"--node={tmp_path}") == 1
    assert f"mount -t bpf none {tmp_path / 'bpf'}" in run.err
    assert "bpf.autoMount.enabled" in run.err
    assert run.ciliumd("mount", "bpf", "/x", f"--node={tmp_path / 'missing'}") == 1
    assert "mount the node's /proc" in run.err


@pytest.fixture
def procfs(tmp_path):
    """A writable sys/net with the settings that matter."""

    def write(rp_filter, ip_forward):
        net = tmp_path / "proc" / "sys" / "net" / "ipv4"
        (net / "conf" / "all").mkdir(parents=True)
        (net / "conf" / "all" / "rp_filter").write_text(f"{rp_filter}\n")
        (net / "ip_forward").write_text(f"{ip_forward}\n")
        return tmp_path / "proc"

    return write


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            ("1", "0"),
            ("0", "1"),
            ["set net.ipv4.conf.all.rp_filter to 0, was 1", "set net.ipv4.ip_forward to 1, was 0"],
        ),
        (("2", "1"), ("2", "1"), []),
        (("0", "1"), ("0", "1"), []),
    ],
)
def test_sysctls_that_are_in_the_way_are_set(run, procfs, before, after, said):
    """And no others: loose filtering lets pods' packets through."""
    root = procfs(*before)
    assert run.ciliumd("apply-sysctls", f"--procfs={root}") == 0
    assert run.out.splitlines() == said
    net = root / "sys" / "net" / "ipv4"
    assert (
        (net / "conf/all/rp_filter").read_text().strip(),
        (net / "ip_forward").read_text().strip(),
    ) == after


def test_a_file_keeps_them_so(run, procfs, tmp_path):
    """systemd applies its files again to each new device; the file is written once."""
    words = ("apply-sysctls", f"--procfs={procfs('0', '1')}", f"--sysctl-dir={tmp_path}")
    assert run.ciliumd(*words) == 0
    assert run.out == f"wrote {tmp_path / DROP_IN}\n"
    text = (tmp_path / DROP_IN).read_text()
    assert "\n-net.ipv4.conf.lxc*.rp_filter = 0\n" in text
    assert run.ciliumd(*words) == 0
    assert run.out == ""


def test_sysctls_that_cannot_be_written_are_told(run, tmp_path):
    """With what to set on the node instead."""
    assert run.ciliumd("apply-sysctls", f"--procfs={tmp_path}") == 1
    assert "sysctlfix.enabled=false" in run.err
    assert "net.ipv4.ip_forward=1" in run.err
