# SPDX-License-Identifier: Apache-2.0
"""Pods made by a container runtime: the real executable, a real agent, and whoever dies in between."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab import manifests
from lab.cni import CniRefused, Runtime, Sandbox, finished, runtime_of
from lab.netns import Namespace
from lab.node import Node
from lab.pod import Pod
from lab.waiting import eventually
from lab.world import World
from netns.cni_state import assert_empty, known

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def runtime(world: World) -> Iterator[tuple[Node, Runtime]]:
    """A node with a running agent, and its container runtime."""
    with Node(world, options={"drift-interval": "3600"}) as node:
        made = runtime_of(node)
        node.start()
        yield node, made


@pytest.fixture
def node(runtime: tuple[Node, Runtime]) -> Iterator[Node]:
    """The node; what a test left there is collected and must then be gone."""
    node, cni = runtime
    if node.agent.process is None or not node.agent.process.running:
        node.agent.start()
    yield node
    cni.collect([])
    assert_empty(node)


@pytest.fixture
def cni(runtime: tuple[Node, Runtime]) -> Runtime:
    """The runtime."""
    return runtime[1]


@pytest.fixture
def netns() -> Iterator[Namespace]:
    """An empty pod, its loopback down as the runtime leaves it."""
    with Namespace("pod") as netns:
        netns.ip("link", "set", "lo", "down")
        yield netns


def test_a_pod_gets_all_that_its_result_says(node: Node, cni: Runtime, netns: Namespace) -> None:
    """Device, address, routes; loopback up; no IPv6; and DEL takes everything away."""
    sandbox = known(node, cni, netns)
    result = cni.add(sandbox)

    host, pod = result["interfaces"]
    (address,) = result["ips"]
    inner, outer = netns.links()["eth0"], node.netns.links()[host["name"]]
    assert (inner["address"], inner["mtu"]) == (pod["mac"], pod["mtu"])
    assert (outer["address"], outer["mtu"]) == (host["mac"], host["mtu"])
    assert pod["sandbox"] == str(netns.path)
    shown = netns.ip_json("addr", "show", "dev", "eth0")[0]["addr_info"]
    assert [f"{info['local']}/{info['prefixlen']}" for info in shown] == [address["address"]]
    default = next(one for one in netns.ip_json("route") if one["dst"] == "default")
    assert default["gateway"] == address["gateway"]
    assert default["metrics"][0]["mtu"] == result["routes"][1]["mtu"]
    assert "UP" in netns.links()["lo"]["flags"]
    assert netns.sysctl("net/ipv6/conf/eth0/disable_ipv6") == "1"

    cni.check(sandbox)
    cni.delete(sandbox)
    eventually(lambda: "eth0" not in netns.links(), "its device is gone")
    assert_empty(node)


def test_two_pods_reach_each_other(node: Node, cni: Runtime) -> None:
    """By the addresses they were given."""
    pods = [Pod(name, "default") for name in ("server", "client")]
    try:
        addresses = [
            cni.add(known(node, cni, pod.netns, pod.name))["ips"][0]["address"].partition("/")[0]
            for pod in pods
        ]
        pods[0].serve(tcp=(8080,))
        eventually(lambda: pods[1].reaches(addresses[0], 8080), "the client reaches the server")
    finally:
        for pod in pods:
            pod.remove()


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_every_version_is_spoken(node: Node, cni: Runtime, netns: Namespace, version: str) -> None:
    """The whole life of a pod, with what the version has."""
    sandbox = known(node, cni, netns)
    speaking = Runtime(cni.netns, cni.config, version=version)
    speaking.config["cniVersion"] = version
    result = speaking.add(sandbox)
    assert result["cniVersion"] == version
    assert ("version" in result["ips"][0]) == (version < "1")
    if version >= "0.4.0":
        speaking.check(sandbox)
    speaking.delete(sandbox)


def test_deletions_always_succeed(node: Node, cni: Runtime, netns: Namespace) -> None:
    """Three times, without namespace, without the result of the ADD, and of a pod nobody ever saw."""
    sandbox = known(node, cni, netns)
    cni.add(sandbox)
    cni.results.clear()
    netns.remove()
    for _ in range(3):
        cni.delete(sandbox, netns=False)
    cni.delete(cni.sandbox("stranger", "/run/netns/none"))
    assert_empty(node)


def test_adding_twice_answers_the_same(node: Node, cni: Runtime, netns: Namespace) -> None:
    """The runtime did not hear the first answer."""
    sandbox = known(node, cni, netns)
    assert cni.add(sandbox) == cni.add(sandbox)
    assert len(node.agent.get("endpoint")) == 1
    cni.check(sandbox)


def test_a_new_sandbox_of_a_pod_replaces_the_old_one(node: Node, cni: Runtime, netns: Namespace) -> None:
    """And the late DEL of the old one does not touch it."""
    with Namespace("old") as old:
        before = known(node, cni, old)
        first = cni.add(before)
        after = known(node, cni, netns)
        second = cni.add(after)
        assert first["ips"] != second["ips"]
        eventually(lambda: "eth0" not in old.links(), "its device is gone")
        cni.delete(before)
        cni.check(after)
        assert [one["status"]["external-identifiers"]["pod-name"] for one in node.agent.get("endpoint")] == [
            "default/web"
        ]


def test_a_second_device_of_a_pod_is_refused(node: Node, cni: Runtime, netns: Namespace) -> None:
    """A pod has one; the text says which."""
    sandbox = known(node, cni, netns)
    cni.add(sandbox)
    second = Sandbox(sandbox.container_id, sandbox.netns, sandbox.pod, ifname="net1")
    with pytest.raises(CniRefused, match="at device eth0") as caught:
        cni.add(second)
    assert caught.value.code == 100
    cni.check(sandbox)


def test_a_taken_device_is_left_alone(node: Node, cni: Runtime, netns: Namespace) -> None:
    """Another plugin was here; nothing of ours stays."""
    netns.ip("link", "add", "eth0", "type", "veth", "peer", "name", "other")
    with pytest.raises(CniRefused, match="has a device eth0 that is not ours"):
        cni.add(known(node, cni, netns))
    assert {"lo", "eth0", "other"} == netns.links().keys()
    assert_empty(node)


def test_the_agent_needs_no_path_to_the_namespace(node: Node, cni: Runtime, netns: Namespace) -> None:
    """It may live among other mounts; this path means something to the executable only."""
    opened = os.open(netns.path, os.O_RDONLY)
    try:
        os.set_inheritable(opened, True)
        sandbox = cni.sandbox("web", f"/proc/self/fd/{opened}")
        node.apply("pod-default-web", manifests.pod("web", {}))
        with cni.launch("ADD", sandbox, passed=(opened,)) as process:
            finished(process, "ADD")
    finally:
        os.close(opened)
    assert "eth0" in netns.links()
    cni.delete(sandbox)


def test_the_nodes_own_namespace_is_refused(node: Node, cni: Runtime) -> None:
    """A runtime that mixes paths up must not rewire the host."""
    with pytest.raises(CniRefused, match="the node's own network namespace"):
        cni.add(known(node, cni, node.netns))
    assert_empty(node)


def test_an_orphan_is_collected(node: Node, cni: Runtime, netns: Namespace) -> None:
    """Valid attachments stay, and so does what was made by hand."""
    with Namespace("orphan") as lost:
        kept = known(node, cni, netns)
        cni.add(kept)
        cni.add(known(node, cni, lost, "lost"))
        by_hand = node.pod("by-hand", {})
        cni.collect([kept])
        cni.check(kept)
        pods = {one["status"]["external-identifiers"]["pod-name"] for one in node.agent.get("endpoint")}
        assert pods == {"default/web", "default/by-hand"}
        eventually(lambda: "eth0" not in lost.links(), "its device is gone")
        node.remove_pod(by_hand)


def test_sixteen_at_once(node: Node, cni: Runtime, record_property: Callable[[str, str], None]) -> None:
    """Each its own address, and all of them sooner than one after the other."""
    spaces = [Namespace(f"crowd{number}") for number in range(16)]
    try:
        crowd = [known(node, cni, space, f"crowd{number}") for number, space in enumerate(spaces)]
        began = time.monotonic()
        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(cni.add, crowd))
        seconds = time.monotonic() - began
        assert len({one["ips"][0]["address"] for one in results}) == 16
        for sandbox in crowd:
            cni.check(sandbox)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(cni.delete, crowd))
        record_property("figure", f"16 CNI ADDs at once: {1000 * seconds:.0f} ms in all")
    finally:
        for space in spaces:
            space.remove()
    assert_empty(node)


# ---- the agent is away -----------------------------------------------------------------------


def test_a_del_without_an_agent_is_done_when_it_is_back(node: Node, cni: Runtime, netns: Namespace) -> None:
    """The pod and its namespace are gone meanwhile."""
    sandbox = known(node, cni, netns)
    cni.add(sandbox)
    node.agent.stop(signal.SIGKILL)
    netns.remove()
    for _ in range(3):
        cni.delete(sandbox)
    queue = Path(cni.config["delete-queue"])
    assert [one.name for one in queue.iterdir()] == [f"{sandbox.container_id}:eth0"]
    node.agent.start()
    eventually(lambda: not list(queue.iterdir()), "the queue is done")
    assert_empty(node)


def test_an_add_waits_for_an_agent_that_starts(node: Node, cni: Runtime, netns: Namespace) -> None:
    """A node boots: the runtime is there first."""
    node.agent.stop()
    sandbox = known(node, cni, netns)
    with cni.launch("ADD", sandbox) as process:
        time.sleep(0.3)
        node.agent.start()
        result = finished(process, "ADD")
    assert result["interfaces"][1]["name"] == "eth0"
    cni.delete(sandbox)


def test_a_status_tells_whether_pods_can_be_made(node: Node, cni: Runtime) -> None:
    """Code 50 while the agent is away."""
    cni.status()
    node.agent.stop()
    with pytest.raises(CniRefused) as caught:
        cni.status()
    assert caught.value.code == 50
    node.agent.start()
    eventually(lambda: cni.status() is None, "the agent is ready")


def test_the_next_agent_knows_the_pods(node: Node, cni: Runtime, netns: Namespace) -> None:
    """By container and device: CHECK is content, DEL finds it."""
    sandbox = known(node, cni, netns)
    cni.add(sandbox)
    node.agent.restart(signal.SIGKILL)
    cni.check(sandbox)
    cni.delete(sandbox)
    assert_empty(node)


def test_a_pod_of_which_only_the_kernel_knows_can_be_deleted(
    node: Node, cni: Runtime, netns: Namespace
) -> None:
    """The file of endpoints is lost; the device's name tells the container."""
    sandbox = known(node, cni, netns)
    cni.add(sandbox)
    node.agent.stop()
    (node.directory / "state" / "endpoints.json").unlink()
    node.agent.start()
    assert len(node.agent.get("endpoint")) == 1
    cni.collect([sandbox])
    assert len(node.agent.get("endpoint")) == 1
    cni.delete(sandbox)
    assert_empty(node)


# ---- somebody is killed ----------------------------------------------------------------------


@pytest.mark.parametrize("milliseconds", [0, 3, 8, 15, 25, 40, 60, 90])
def test_an_executable_that_is_killed_leaves_nothing_after_its_del(
    node: Node, cni: Runtime, netns: Namespace, milliseconds: int
) -> None:
    """The runtime's patience is over, wherever that finds it."""
    sandbox = known(node, cni, netns)
    with cni.launch("ADD", sandbox) as process:
        time.sleep(milliseconds / 1000)
        process.kill()
        process.communicate()
    cni.delete(sandbox)
    eventually(lambda: "eth0" not in netns.links(), "its device is gone")
    assert_empty(node)


@pytest.mark.parametrize("milliseconds", [2, 8, 15, 25, 40, 60])
def test_an_agent_that_is_killed_leaves_nothing_after_the_del(
    node: Node, cni: Runtime, netns: Namespace, milliseconds: int
) -> None:
    """Whatever it was doing; the ADD fails or was done."""
    sandbox = known(node, cni, netns)
    with cni.launch("ADD", sandbox) as process:
        time.sleep(milliseconds / 1000)
        node.agent.stop(signal.SIGKILL)
        node.agent.start()
        try:
            finished(process, "ADD")
        except CniRefused as refused:
            assert refused.code == 11  # noqa: PT017  it may also succeed
    cni.delete(sandbox)
    eventually(lambda: "eth0" not in netns.links(), "its device is gone")
    assert_empty(node)
