# SPDX-License-Identifier: Apache-2.0
"""What an agent does behind the answer to a runtime: links after an ADD, the device after a DEL."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ciliumd.bpf.features import tcx_supported
from ciliumd.net.links import RETIRED_ALIAS
from lab.cni import Runtime, Sandbox, runtime_of
from lab.maps import link_pins
from lab.netns import Namespace
from lab.node import Node
from lab.waiting import eventually
from lab.world import World
from netns.cni_state import assert_empty, known

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(not tcx_supported(), reason="this kernel has no tcx: filters are all there is"),
]


@pytest.fixture(scope="module")
def runtime(world: World) -> Iterator[tuple[Node, Runtime]]:
    """A node with a running agent, and its container runtime."""
    with Node(world) as node:
        made = runtime_of(node)
        node.start()
        yield node, made


def hung(node: Node, cni: Runtime, sandbox: Sandbox) -> tuple[int, int]:
    """How many filters and how many links of ours are on a pod's device."""
    device = next(one["name"] for one in cni.results[sandbox]["interfaces"] if not one.get("sandbox"))
    ifindex = node.netns.links()[device]["ifindex"]
    shown = [
        node.netns.run(["/usr/sbin/tc", "filter", "show", "dev", device, side]).stdout
        for side in ("ingress", "egress")
    ]
    links = [pin for pin in link_pins(node.bpf_root) if pin.name.startswith(f"tcx_{ifindex}_")]
    return sum("cilium-" in text for text in shown), len(links)


@contextmanager
def pod(runtime: tuple[Node, Runtime]) -> Iterator[Sandbox]:
    """A sandbox that is there for a pod; in the end it is taken away, and leaves nothing."""
    node, cni = runtime
    with Namespace("web") as netns:
        sandbox = known(node, cni, netns)
        yield sandbox
        cni.delete(sandbox)
    assert_empty(node)


def test_filters_come_first_and_links_take_their_place(runtime: tuple[Node, Runtime]) -> None:
    """At no time is there neither; CHECK is content all the while."""
    node, cni = runtime
    with pod(runtime) as sandbox:
        cni.add(sandbox)
        seen = [hung(node, cni, sandbox)]
        while seen[-1] != (0, 2):
            cni.check(sandbox)
            assert len(seen) < 400, f"links never took the filters' place: {seen[-1]}"
            seen.append(hung(node, cni, sandbox))
        assert seen[0][0] == 2, f"the pod had {seen[0]} when it was made"
        assert all(max(one) == 2 for one in seen), seen


def test_an_agent_that_is_killed_in_between_is_followed_by_one_with_links(
    runtime: tuple[Node, Runtime],
) -> None:
    """The filters hold while no agent is there; the next one needs no look at what the other planned."""
    node, cni = runtime
    with pod(runtime) as sandbox:
        cni.add(sandbox)
        node.agent.stop(signal.SIGKILL)
        assert hung(node, cni, sandbox)[0] == 2
        node.agent.start()
        assert hung(node, cni, sandbox) == (0, 2)
        cni.check(sandbox)


def test_a_filter_taken_away_before_links_came_is_repaired(runtime: tuple[Node, Runtime]) -> None:
    """CHECK says so until then."""
    node, cni = runtime
    with pod(runtime) as sandbox:
        device = next(one["name"] for one in cni.add(sandbox)["interfaces"] if not one.get("sandbox"))
        node.netns.run(["/usr/sbin/tc", "qdisc", "del", "dev", device, "clsact"])
        eventually(lambda: hung(node, cni, sandbox) == (0, 2), "links hang there")
        cni.check(sandbox)


def test_a_sandbox_that_is_used_again_at_once_is_another_pods(runtime: tuple[Node, Runtime]) -> None:
    """The device of the one before is gone when the next one is made, twenty times in a row."""
    node, cni = runtime
    with Namespace("web") as netns:
        for _ in range(20):
            sandbox = known(node, cni, netns)
            cni.add(sandbox)
            cni.check(sandbox)
            cni.delete(sandbox)
    assert_empty(node)


def test_a_retired_device_of_an_agent_that_died_is_deleted_by_the_next(
    runtime: tuple[Node, Runtime],
) -> None:
    """Its mark says enough."""
    node, _ = runtime
    node.agent.stop(signal.SIGKILL)
    node.netns.ip("link", "add", "lxcretired", "type", "veth", "peer", "name", "its-peer")
    node.netns.ip("link", "set", "lxcretired", "alias", RETIRED_ALIAS)
    node.agent.start()
    eventually(lambda: "lxcretired" not in node.netns.links(), "it is deleted")
