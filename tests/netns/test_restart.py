# SPDX-License-Identifier: Apache-2.0
"""
Restart figures: numbered packets while the agent is ended and started again and again.

Three flows of 10,000 packets per second at once: pod to pod, through a ClusterIP packet by packet,
and against a port a policy denies; beside them datagrams translated by socket, a stranger that default
deny keeps out, and open connections.  The controls in the same test show that the measurement can see
a loss and a wrong allow.  Writes build/out/restart.json.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from lab import manifests, maps
from lab.confined import Confinement
from lab.node import Node
from lab.pod import Pod
from lab.probers import BEHIND_SERVICE, DENIED, DIRECT, STRANGE, receiver_policy
from lab.process import REPOSITORY
from lab.traffic import Fate, Flood, Flow
from lab.waiting import eventually
from lab.world import World

pytestmark = pytest.mark.netns

RESTARTS: Final = int(os.environ.get("CILIUMD_TEST_RESTARTS", "20"))
PACKETS_BETWEEN: Final = 1000
CONTROL_PACKETS: Final = 5000
VIP: Final = "10.96.0.20"
BY_SOCKET: Final = 9004
RESULT: Final = REPOSITORY / "build" / "out" / "restart.json"
SIGNALS: Final = (signal.SIGTERM, signal.SIGKILL)


@pytest.fixture(scope="module")
def confinement(tmp_path_factory: pytest.TempPathFactory) -> Confinement:
    """The agents of this module are under the chart's profile of system calls."""
    return Confinement(tmp_path_factory.mktemp("confined") / "blocked")


@pytest.fixture(scope="module")
def node(world: World, confinement: Confinement) -> Iterator[Node]:
    """A node with such an agent."""
    with Node(world) as node:
        node.agent.wrapper = confinement.profile
        yield node.start()


@pytest.fixture(scope="module")
def pods(node: Node) -> tuple[Pod, Pod, Pod]:
    """A sender who may, a receiver, and a stranger who may not."""
    receiver = node.pod("receiver", {"app": "receiver"}).serve(tcp=(80,))
    sender = node.pod("sender", {"app": "sender"})
    stranger = node.pod("stranger", {"app": "stranger"})
    node.apply(
        "service",
        manifests.service(
            "receiver",
            VIP,
            {"app": "receiver"},
            ports=[("UDP", 9100, BEHIND_SERVICE), ("UDP", 9101, BY_SOCKET), ("TCP", 80, 80)],
        ),
    )
    node.wait_service(f"{VIP}:9100", 1)
    node.wait_service(f"{VIP}:80", 1)
    node.apply_policy("receiver", receiver_policy())
    return receiver, sender, stranger


def flows(receiver: Pod) -> list[Flow]:
    """What the sender sends."""
    return [
        Flow("pod to pod", receiver.address, DIRECT, DIRECT),
        Flow("through ClusterIP", VIP, 9100, BEHIND_SERVICE),
        Flow("denied port", receiver.address, DENIED, DENIED),
    ]


class Connections:
    """TCP connections that must outlive every restart: direct, per packet and by socket."""

    def __init__(self, receiver: Pod, sender: Pod) -> None:
        self._people = [
            (sender.outside, receiver.address),
            (sender.outside, VIP),
            (sender.inside, VIP),
        ]
        self._kept = [
            people.call("tcp_open", address=address, port=80)["handle"] for people, address in self._people
        ]

    def broken(self) -> list[str]:
        """Those that do not answer any more."""
        return [
            f"{people.who} to {address}: {reply['outcome']}"
            for (people, address), handle in zip(self._people, self._kept, strict=True)
            if (reply := people.call("tcp_say", handle=handle))["outcome"] != "answered"
        ]


def run_restarts(node: Node, pods: tuple[Pod, Pod, Pod]) -> dict[str, Any]:
    """End and start the agent under load; the figures."""
    receiver, sender, stranger = pods
    connections = Connections(receiver, sender)
    survived = 0
    down = []
    strange = Flow("stranger", receiver.address, STRANGE, STRANGE, rate=1000)
    by_socket = Flow("ClusterIP by socket", VIP, 9101, BY_SOCKET, rate=2000)
    with (
        Flood(sender.outside, receiver.outside, flows(receiver)).start() as flood,
        Flood(stranger.outside, receiver.outside, [strange]).start() as kept_out,
        Flood(sender.inside, receiver.outside, [by_socket]).start() as translated,
    ):
        flood.wait_sent(PACKETS_BETWEEN)
        for number in range(RESTARTS):
            ended = time.monotonic()
            node.agent.restart(SIGNALS[number % len(SIGNALS)])
            down.append(time.monotonic() - ended)
            flood.wait_sent(PACKETS_BETWEEN)
            survived += not connections.broken()
        fates = flood.stop() | kept_out.stop() | translated.stop()
    may = [fates[name] for name in ("pod to pod", "through ClusterIP", "ClusterIP by socket")]
    may_not = [fates["denied port"], fates["stranger"]]
    return {
        "injected": RESTARTS,
        "survived": survived,
        "lost": sum(fate.lost for fate in may),
        "duplicates": sum(fate.duplicates for fate in may),
        "wrongly_allowed": sum(fate.received for fate in may_not),
        "send_errors": sum(sum(fate.errors.values()) for fate in fates.values()),
        "flows": {fate.name: str(fate) for fate in fates.values()},
        "packets": sum(fate.sent for fate in fates.values()),
        "seconds_down": [round(seconds, 2) for seconds in down],
    }


def burst(sender: Pod, receiver: Pod) -> dict[str, Fate]:
    """A few packets of each flow, from ports nobody used before."""
    with Flood(sender.outside, receiver.outside, flows(receiver)).start(limit=CONTROL_PACKETS) as flood:
        flood.wait()
        return flood.stop()


def control_of_loss(node: Node, pods: tuple[Pod, Pod, Pod]) -> dict[str, Fate]:
    """With the sender's programs detached and nobody to repair that, packets are lost."""
    receiver, sender, _ = pods
    node.agent.stop(signal.SIGKILL)
    maps.detach(maps.link_pins(node.bpf_root, sender.endpoint["status"]["networking"]["interface-index"]))
    fates = burst(sender, receiver)
    node.agent.start()
    return fates


def control_of_allow(node: Node, pods: tuple[Pod, Pod, Pod]) -> dict[str, Fate]:
    """With the row gone that denies the port, packets get through to it."""
    receiver, sender, _ = pods
    node.wait_endpoint(receiver)
    version = receiver.endpoint["status"]["policy"]["realized"]["policy-version"]
    maps.delete_deny_row(node.bpf_root, version, DENIED)
    return burst(sender, receiver)


def test_restarts_lose_no_packet_and_open_no_hole(
    node: Node, pods: tuple[Pod, Pod, Pod], record_property: Callable[[str, object], None]
) -> None:
    """Half of the restarts by SIGKILL: lost 0, wrongly allowed 0; both controls see what they must."""
    receiver, sender, _ = pods
    figures = run_restarts(node, pods)
    without_link = control_of_loss(node, pods)
    healed = burst(sender, receiver)
    without_row = control_of_allow(node, pods)
    figures["controls"] = {
        "lost_without_link": without_link["through ClusterIP"].lost,
        "allowed_without_row": without_row["denied port"].received,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(figures, indent=2) + "\n")
    record_property(
        "figure",
        f"injected {figures['injected']}, survived {figures['survived']}, "
        f"packets lost {figures['lost']}, wrongly allowed {figures['wrongly_allowed']}"
        f" ({figures['packets']} packets; controls: {figures['controls']})",
    )
    record_property("data", json.dumps({"fault": "F1-restarts under load", **figures}))

    assert figures["lost"] == 0, figures["flows"]
    assert figures["wrongly_allowed"] == 0, figures["flows"]
    assert figures["duplicates"] == 0
    assert figures["send_errors"] == 0
    assert figures["survived"] == figures["injected"]
    assert figures["controls"]["lost_without_link"] > CONTROL_PACKETS // 2
    assert figures["controls"]["allowed_without_row"] > CONTROL_PACKETS // 2
    assert healed["pod to pod"].lost == healed["through ClusterIP"].lost == 0
    assert healed["denied port"].received == 0


def test_missing_row_is_written_again(node: Node, pods: tuple[Pod, Pod, Pod]) -> None:
    """What the control took away a restart brings back: the port is denied to new flows."""
    receiver, sender, _ = pods
    node.agent.restart(signal.SIGTERM)

    def closed() -> bool:
        return burst(sender, receiver)["denied port"].received == 0

    eventually(closed, "the denied port is denied again", seconds=20.0)


def test_no_call_was_refused(
    node: Node, confinement: Confinement, record_property: Callable[[str, object], None]
) -> None:
    """Starts, restarts and repairs did nothing outside of the profile."""
    assert node.agent.healthy()
    blocked = confinement.blocked()
    record_property("data", json.dumps({"case": "S4", "refused calls in F1": blocked.total()}))

    assert blocked == {}


def test_result_file_is_written() -> None:
    """Figures are kept for the report of the run."""
    figures = json.loads(Path(RESULT).read_text())

    assert {"injected", "survived", "lost", "wrongly_allowed", "controls"} <= figures.keys()
