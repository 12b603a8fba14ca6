# SPDX-License-Identifier: Apache-2.0
"""The configuration runtimes find: complete, ours alone when asked for, and gone without a trace."""

import json
import stat

import pytest

from ciliumd.cni.conf import Conf, conflist, uninstall


@pytest.fixture
def path(tmp_path):
    """Where ours goes, in a directory that does not exist."""
    return tmp_path / "net.d" / "05-cilium.conflist"


def test_the_configuration_is_what_runtimes_know(path):
    """Readable by root only."""
    Conf(path, conflist(portmap=False), exclusive=True).enforce()
    assert json.loads(path.read_bytes()) == {
        "cniVersion": "0.3.1",
        "name": "cilium",
        "plugins": [
            {
                "type": "cilium-cni",
                "enable-debug": False,
                "log-file": "/var/run/cilium/cilium-cni.log",
            },
        ],
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_host_ports_are_left_to_portmap_where_we_do_not_serve_them():
    """Beside kube-proxy."""
    (_, portmap) = json.loads(conflist(portmap=True))["plugins"]
    assert portmap == {"type": "portmap", "capabilities": {"portMappings": True}}


def test_places_are_told_only_where_they_are_not_the_usual_ones(tmp_path):
    """The executable knows the usual ones itself."""
    text = conflist(portmap=False, socket=tmp_path / "s", queue=tmp_path / "q", debug=True)
    (plugin,) = json.loads(text)["plugins"]
    assert plugin["cni-socket"] == str(tmp_path / "s")
    assert plugin["delete-queue"] == str(tmp_path / "q")
    assert plugin["enable-debug"] is True
    assert "enable-ipv6" not in plugin


def test_executable_is_told_that_pods_have_ipv6():
    """It makes the devices of a new sandbox quiet instead of taking IPv6 away."""
    (plugin,) = json.loads(conflist(portmap=False, ipv6=True))["plugins"]
    assert plugin["enable-ipv6"] is True


def test_others_are_set_aside_now_and_when_they_come_back(path):
    """Any of the three kinds; what is no configuration stays."""
    path.parent.mkdir()
    for name in ("10-other.conflist", "00-first.conf", "x.json", "README", "old.conf.cilium_bak"):
        (path.parent / name).write_text(name)
    (path.parent / "dir.conf").mkdir()
    conf = Conf(path, conflist(portmap=False), exclusive=True)
    conf.enforce()
    assert sorted(one.name for one in path.parent.iterdir()) == [
        "00-first.conf.cilium_bak",
        "05-cilium.conflist",
        "10-other.conflist.cilium_bak",
        "README",
        "dir.conf",
        "old.conf.cilium_bak",
        "x.json.cilium_bak",
    ]
    (path.parent / "00-first.conf").write_text("again")
    conf.enforce()
    assert (path.parent / "00-first.conf.cilium_bak").read_text() == "again"
    assert not (path.parent / "00-first.conf").exists()


def test_others_stay_when_we_are_not_alone(path):
    """Runtimes take the first."""
    path.parent.mkdir()
    (path.parent / "10-other.conf").write_text("{}")
    Conf(path, conflist(portmap=False), exclusive=False).enforce()
    assert (path.parent / "10-other.conf").exists()


def test_ours_is_written_again_when_it_is_gone_or_another(path):
    """And left alone, with its inode, when it is as it should be."""
    conf = Conf(path, conflist(portmap=False), exclusive=True)
    conf.enforce()
    inode = path.stat().st_ino
    conf.enforce()
    assert path.stat().st_ino == inode
    path.write_text("{}")
    conf.enforce()
    assert path.read_bytes() == conflist(portmap=False)
    path.unlink()
    conf.enforce()
    assert path.read_bytes() == conflist(portmap=False)


def test_an_uninstall_gives_the_others_their_names_back(path):
    """Unless somebody has taken one meanwhile; twice is fine."""
    path.parent.mkdir()
    for name in ("a.conf", "b.conf"):
        (path.parent / name).write_text(name)
    Conf(path, conflist(portmap=False), exclusive=True).enforce()
    (path.parent / "b.conf").write_text("new")
    assert uninstall(path) == [path, path.parent / "a.conf"]
    assert (path.parent / "a.conf").read_text() == "a.conf"
    assert (path.parent / "b.conf").read_text() == "new"
    assert (path.parent / "b.conf.cilium_bak").read_text() == "b.conf"
    assert uninstall(path) == []
