# SPDX-License-Identifier: Apache-2.0
"""Cleaning a node: what is found is listed, what is removed is said, and the rest is not kept from it."""

import json

import pytest

from ciliumd.bpf import BpfError
from ciliumd.bpf.errors import Busy
from ciliumd.cli import cleanup
from ciliumd.cli.cleanup import Item
from ciliumd.cli.sysctl import DROP_IN

OURS = {"cniVersion": "1.0.0", "name": "cilium", "plugins": [{"type": "cilium-cni"}]}
THEIRS = {"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "bridge"}]}


@pytest.fixture(autouse=True)
def kernel(monkeypatch):
    """No device and no pin of this machine is looked at; tests add what shall be found."""
    found = []
    monkeypatch.setattr(cleanup, "network_items", lambda: iter(found))
    monkeypatch.setattr(cleanup, "_remove_pins", lambda root, _: cleanup._empty(root))
    return found


class Node:
    """A node's directories, and the options that name them."""

    def __init__(self, root):
        self.root = root
        self.conf, self.bin, self.sysctl = root / "net.d", root / "bin", root / "sysctl.d"
        self.run, self.pins = root / "run", root / "pins"
        self.words = [
            *("--bpf-root", str(self.pins), "--run-dir", str(self.run)),
            *(
                "--cni-conf-dir",
                str(self.conf),
                "--cni-bin-dir",
                str(self.bin),
                "--sysctl-dir",
                str(self.sysctl),
            ),
        ]

    def fill(self):
        """Everything an agent leaves."""
        for directory in (self.conf, self.bin, self.sysctl, self.run / "state", self.pins / "maps"):
            directory.mkdir(parents=True)
        (self.conf / "05-cilium.conflist").write_text(json.dumps(OURS))
        (self.conf / "10-other.conflist.cilium_bak").write_text(json.dumps(THEIRS))
        (self.conf / "README").write_text("not a configuration")
        (self.bin / "cilium-cni").write_text("")
        (self.bin / "bridge").write_text("")
        (self.sysctl / DROP_IN).write_text("")
        (self.run / "state" / "endpoints.json").write_text("{}")
        (self.run / "cilium.sock").write_text("")
        return self

    def left(self):
        """Every file that is there, below the node's root."""
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())


@pytest.fixture
def node(tmp_path):
    """A node without anything of ours."""
    return Node(tmp_path)


def test_everything_goes_and_others_come_back(run, node, kernel):
    """In this order, each with a line."""
    removed = []
    kernel.append(Item("device cilium_host", lambda: removed.append("cilium_host")))
    node.fill()
    assert run.cilium("cleanup", "-f", "--all-state", *node.words) == 0
    assert run.out.splitlines() == [
        f"removed {node.pins}",
        "removed device cilium_host",
        f"removed {node.conf / '05-cilium.conflist'}",
        f"restored {node.conf / '10-other.conflist'}",
        f"removed {node.bin / 'cilium-cni'}",
        f"removed {node.sysctl / DROP_IN}",
        f"removed {node.run / 'state'}",
        f"removed {node.run}",
    ]
    assert removed == ["cilium_host"]
    assert node.left() == ["bin/bridge", "net.d/10-other.conflist", "net.d/README"]
    assert json.loads((node.conf / "10-other.conflist").read_text()) == THEIRS


def test_a_second_time_there_is_nothing(run, node):
    """Whoever is not sure runs it again."""
    node.fill()
    run.cilium("cleanup", "-f", "--all-state", *node.words)
    assert run.cilium("cleanup", "-f", "--all-state", *node.words) == 0
    assert (run.out, run.err) == ("", "Nothing to clean up.\n")


def test_without_force_it_is_only_listed(run, node):
    """Nothing is removed by accident; the words to type are there."""
    node.fill()
    before = node.left()
    assert run.cilium("cleanup", "--all-state", *node.words) == 2
    assert run.out.splitlines()[0] == str(node.pins)
    assert "nothing was removed" in run.err
    assert "cilium cleanup -f --all-state" in run.err
    assert node.left() == before


def test_without_all_state_ids_are_remembered(run, node):
    """The state directory stays."""
    node.fill()
    assert run.cilium("cleanup", "-f", *node.words) == 0
    assert "run/state/endpoints.json" in node.left()


def test_bpf_state_alone(run, node):
    """Neither CNI nor devices."""
    node.fill()
    before = [name for name in node.left() if not name.startswith("pins/")]
    assert run.cilium("cleanup", "-f", "--bpf-state", *node.words) == 0
    assert run.out == f"removed {node.pins}\n"
    assert node.left() == before


@pytest.mark.parametrize(
    ("keys", "left"),
    [
        ({}, {"pins", "state"}),
        ({"clean-cilium-state": "false", "clean-cilium-bpf-state": "false"}, {"pins", "state"}),
        ({"clean-cilium-bpf-state": "true"}, {"state"}),
        ({"clean-cilium-state": "true"}, set()),
        ({"clean-cilium-state": "True", "clean-cilium-bpf-state": "true"}, set()),
    ],
)
def test_what_the_configuration_asks_for(run, node, tmp_path, keys, left):
    """An init container runs it before every start; executable and sysctls are the next agent's too."""
    node.fill()
    options = tmp_path / "options"
    options.mkdir()
    for key, text in keys.items():
        (options / key).write_text(text)
    assert run.cilium("cleanup", "--force", f"--if-configured={options}", *node.words) == 0
    present = {"pins": node.pins.is_dir(), "state": (node.run / "state").is_dir()}
    assert {name for name, there in present.items() if there} == left
    assert {"bin/cilium-cni", "net.d/05-cilium.conflist", f"sysctl.d/{DROP_IN}"} <= set(node.left())


def test_a_configuration_of_others_is_not_touched(run, node):
    """Even by the name that ours usually has; nor is one replaced that came back by itself."""
    node.conf.mkdir()
    for name, document in {
        "05-cilium.conflist": THEIRS,
        "06-broken.conf": None,
        "07-list.conf": [],
        "08-single.conf": {"type": "bridge"},
        "10-other.conflist": THEIRS,
        "10-other.conflist.cilium_bak": OURS,
    }.items():
        (node.conf / name).write_text("{" if document is None else json.dumps(document))
    before = node.left()
    assert run.cilium("cleanup", "-f", *node.words) == 0
    assert node.left() == before


def test_what_cannot_be_removed_is_told_and_the_rest_goes(run, node, kernel):
    """Exit code 1, with the reason of each."""

    def fail():
        raise BpfError("remove", "device lxc1", 1, "not permitted")

    kernel.append(Item("device lxc1", fail))
    node.fill()
    assert run.cilium("cleanup", "-f", "--all-state", *node.words) == 1
    assert "1 of 8 could not be removed: device lxc1: " in run.err
    assert "run it again" in run.err
    assert not node.run.exists()


def test_beside_a_running_agent_nothing_is_removed(run, node, monkeypatch):
    """The agent would make it again; how to stop it is said."""

    def busy(*_):
        raise Busy("lock", "pins", 16, "another agent holds it")

    node.fill()
    before = node.left()
    monkeypatch.setattr(cleanup, "_remove_pins", busy)
    assert run.cilium("cleanup", "-f", "--all-state", *node.words) == 1
    assert "nothing was removed: an agent is running" in run.err
    assert "--set cleanup.enabled=true" in run.err
    assert node.left() == before


def test_a_mount_point_is_emptied(run, node, monkeypatch):
    """In a container the directory itself is the node's mount."""
    node.fill()
    monkeypatch.setattr(type(node.run), "is_mount", lambda path: path == node.run)
    assert run.cilium("cleanup", "-f", "--all-state", *node.words) == 0
    assert list(node.run.iterdir()) == []
