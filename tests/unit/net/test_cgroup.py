# SPDX-License-Identifier: Apache-2.0
"""Where the group of all pods is: paths as kubelet and runtimes write them, and a real tree."""

from pathlib import Path, PurePosixPath

import pytest

from ciliumd.net.cgroup import (
    CgroupNotFound,
    Mount,
    cgroup2_mounts,
    find_group_of_all_pods,
    group_of_all_pods,
    own_group,
    search_by_inode,
)

POD = "pod0b2e6f9c_1d4e_4c53_8a11_3a5a7b1c9d2e"
ID = "6f1ed002ab5595859014ebf0951522d9"


def mount(point, root="/", kind="cgroup2"):
    """A line of mountinfo."""
    return f"35 24 0:29 {root} {point} rw,nosuid shared:9 - {kind} {kind} rw,nsdelegate\n"


NODE = mount("/run/cilium/cgroup")
HYBRID = mount("/run/cilium/cgroup/cpu", kind="cgroup") + mount("/run/cilium/cgroup/unified")
V1_LINES = "9:name=systemd:/x\n4:memory:/y\n"


def never(*_):
    """A search that must not be needed."""
    raise AssertionError


@pytest.mark.parametrize(
    ("group", "mounts", "expected"),
    [
        (f"/kubepods/besteffort/{POD}/{ID}", NODE, "/run/cilium/cgroup"),
        (f"/kubepods/{POD}/{ID}", NODE, "/run/cilium/cgroup"),
        (
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-{POD}.slice/cri-containerd-{ID}.scope",
            NODE,
            "/run/cilium/cgroup",
        ),
        (f"/kubepods.slice/kubepods-{POD}.slice/crio-{ID}.scope", NODE, "/run/cilium/cgroup"),
        (f"/k8s-n1/kubepods/burstable/{POD}/{ID}", HYBRID, "/run/cilium/cgroup/unified/k8s-n1"),
        (
            f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-{POD}.slice/cri-containerd-{ID}.scope",
            NODE,
            "/run/cilium/cgroup/kubelet.slice",
        ),
        (
            f"/system.slice/docker-{ID}.scope/kubelet/kubepods/besteffort/{POD}/{ID}",
            NODE,
            f"/run/cilium/cgroup/system.slice/docker-{ID}.scope/kubelet",
        ),
        (
            f"/docker/{ID}/kubelet/kubepods/besteffort/{POD}/{ID}",
            mount("/run/cilium/cgroup", f"/docker/{ID}"),
            "/run/cilium/cgroup/kubelet",
        ),
        (
            f"/kubepods/{POD}/{ID}",
            mount("/sys/fs/cgroup/unified", f"/kubepods/{POD}/{ID}") + NODE,
            "/run/cilium/cgroup",
        ),
        (
            f"/a/kubepods/{POD}/outer/kubepods/{POD}/{ID}",
            NODE,
            f"/run/cilium/cgroup/a/kubepods/{POD}/outer",
        ),
        (f"/kubepods/{POD}/{ID}", mount(r"/run/with\040space"), "/run/with space"),
    ],
    ids=[
        "cgroupfs",
        "cgroupfs guaranteed",
        "systemd containerd",
        "systemd cri-o",
        "a machine shared by nodes",
        "systemd below kubelet's root",
        "node in a container",
        "node in a container that sees its own part",
        "own group mounted too",
        "a node that is a pod",
        "mount point with a space",
    ],
)
def test_the_parent_of_kubepods(group, mounts, expected):
    """In the node's cgroup namespace the path says it."""
    assert group_of_all_pods(f"{V1_LINES}0::{group}\n", mounts, search=never) == Path(expected)


def test_in_a_namespace_of_its_own_the_group_is_searched_for():
    """The node's tree is the mount whose root lies above the namespace."""
    asked = []

    def search(tree, own):
        asked.append((tree, own))
        return PurePosixPath(f"/k8s-n2/kubepods/{POD}/{ID}")

    mounts = mount("/sys/fs/cgroup") + mount("/run/cilium/cgroup", "/../../../..")
    assert group_of_all_pods("0::/\n", mounts, search=search) == Path("/run/cilium/cgroup/k8s-n2")
    assert asked == [(Path("/run/cilium/cgroup"), Path("/sys/fs/cgroup"))]


@pytest.mark.parametrize(
    ("cgroup", "mounts", "message"),
    [
        (V1_LINES, NODE, "no line 0::"),
        ("0::/kubepods/x/y\n", mount("/sys/fs/cgroup/cpu", kind="cgroup"), "cgroup.autoMount.enabled=true"),
        ("0::/system.slice/ssh.service\n", NODE, "not below kubepods"),
        ("0::/kubepods/a/b\n", mount("/x", "/kubepods/a/b"), "not below kubepods"),
        ("0::/kubepods/a/b\n", mount("/x", "/user.slice"), "in none of the mounted"),
        ("0::/\n", mount("/sys/fs/cgroup"), "the node's cgroup2 is not mounted"),
        ("0::/\n", mount("/run/cilium/cgroup", "/../.."), "the node's cgroup2 is not mounted"),
        ("0::/\n", mount("/sys/fs/cgroup") + mount("/run/cilium/cgroup", "/.."), "nowhere below kubepods"),
    ],
)
def test_what_cannot_be_told_is_an_error_that_helps(cgroup, mounts, message):
    """Each says what to set."""
    with pytest.raises(CgroupNotFound, match=message):
        group_of_all_pods(cgroup, mounts, search=lambda *_: None)


def test_mounts_of_other_kinds_are_none():
    """Hierarchies of the first version have the group's old controllers."""
    assert cgroup2_mounts(HYBRID) == (Mount(PurePosixPath("/"), Path("/run/cilium/cgroup/unified")),)


def test_own_group_is_the_unified_line():
    """Named hierarchies come before it."""
    assert own_group("1:name=systemd:/a\n0::/b\n") == PurePosixPath("/b")


def test_a_group_is_found_by_its_inode(tmp_path):
    """Below kubelet's directories only, at any depth."""
    wanted = tmp_path / "n1" / "kubepods" / "besteffort" / POD / ID
    for path in (wanted, tmp_path / "n2" / "kubepods" / POD / ID, tmp_path / "system.slice"):
        path.mkdir(parents=True)
    seen = tmp_path / "own"
    seen.symlink_to(wanted)
    assert search_by_inode(tmp_path, seen) == PurePosixPath("/n1/kubepods/besteffort") / POD / ID
    assert search_by_inode(tmp_path, tmp_path / "system.slice") is None


def test_the_texts_are_read_from_proc(tmp_path):
    """And one that is missing is named."""
    with pytest.raises(CgroupNotFound, match=r"cannot read .*cgroup"):
        find_group_of_all_pods(tmp_path)
    (tmp_path / "cgroup").write_text(f"0::/n1/kubepods/{POD}/{ID}\n")
    (tmp_path / "mountinfo").write_text(NODE)
    assert find_group_of_all_pods(tmp_path) == Path("/run/cilium/cgroup/n1")
