# SPDX-License-Identifier: Apache-2.0
"""Files spoilt while the agent is away: what was denied stays denied, what was allowed stays allowed."""

import json
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from lab import manifests, maps
from lab.node import Node
from lab.pod import Pod
from lab.traffic import Flood, Flow
from lab.waiting import eventually

pytestmark = pytest.mark.netns

SERVER, FRIEND = {"matchLabels": {"app": "server"}}, {"matchLabels": {"app": "friend"}}
ONLY_FRIENDS = {"endpointSelector": SERVER, "ingress": [{"fromEndpoints": [FRIEND]}]}
STAYS = "its last good version stays"


class Cast(NamedTuple):
    """Who is there: the server lets its friend in and nobody else."""

    server: Pod
    friend: Pod
    stranger: Pod

    def truth(self) -> tuple[bool, bool]:
        """Whether friend and stranger get in."""
        return (self.friend.reaches(self.server.address, 80), self.stranger.reaches(self.server.address, 80))


@pytest.fixture(scope="module")
def cast(node: Node) -> Cast:
    """Three pods, each in a file of its own."""
    server = node.pod("server", {"app": "server"}).serve(tcp=(80,))
    return Cast(server, node.pod("friend", {"app": "friend"}), node.pod("stranger", {"app": "stranger"}))


@pytest.fixture
def guarded(node: Node, cast: Cast) -> Iterator[Cast]:
    """The policy is in force, and is gone afterwards."""
    node.apply_policy("guard", manifests.cilium_policy("guard", ONLY_FRIENDS))
    assert cast.truth() == (True, False)
    yield cast
    node.delete_policy("guard")


def with_http() -> str:
    """The policy with a rule that this version does not enforce."""
    ports = [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"method": "GET"}]}}]
    rule = {"fromEndpoints": [FRIEND], "toPorts": ports}
    return json.dumps(manifests.cilium_policy("guard", {"endpointSelector": SERVER, "ingress": [rule]}))


MALFORMED = "kind: [unclosed\nmetadata: {}\n"
CASES = {
    "policy-malformed": ("guard", MALFORMED, "File", "guard.yaml:2"),
    "policy-invalid": ("guard", with_http(), "CiliumNetworkPolicy", "guard.yaml:1"),
    "server-malformed": ("pod-default-server", MALFORMED, "File", "pod-default-server.yaml:2"),
}


@pytest.mark.parametrize("case", CASES)
def test_file_spoilt_while_the_agent_is_away_opens_and_closes_nothing(
    node: Node, guarded: Cast, case: str
) -> None:
    """Not one packet gets in or lost, no row differs, the problem is shown, and goes with the repair."""
    file, text, kind, place = CASES[case]
    server, friend, stranger = guarded
    good = (node.manifests / f"{file}.yaml").read_text()
    node.agent.stop()
    before = maps.dump(node.bpf_root)
    node.write(file, text)
    allowed = Flow("allowed", server.address, 9100, 9100, rate=500)
    denied = Flow("denied", server.address, 9101, 9101, rate=500)
    try:
        with (
            Flood(friend.outside, server.outside, [allowed]).start() as wanted,
            Flood(stranger.outside, server.outside, [denied]).start() as unwanted,
        ):
            node.agent.start()
            (problem,) = eventually(node.problems, "the problem is listed")
            wanted.wait_sent(500)
            fates = {**wanted.stop(), **unwanted.stop()}
        after = maps.dump(node.bpf_root)
        truth = guarded.truth()
        told = node.agent.cli("policy", "get").stderr
        counted = node.agent.get("healthz")["datapath"]["manifests"]
    finally:
        node.write(file, good)
    eventually(lambda: not node.problems(), "no problem is left once the file is repaired")

    assert fates["allowed"].lost == 0, fates["allowed"]
    assert (fates["denied"].received, fates["denied"].sent > 500) == (0, True), fates["denied"]
    assert truth == (True, False)
    assert maps.differences(before, after) == []
    assert (problem["kind"], problem["file"]) == (kind, place)
    assert STAYS in problem["message"]
    assert place in told
    assert STAYS in told
    assert "1 problems" in counted
    assert guarded.truth() == (True, False)


def test_spoilt_file_that_is_deleted_takes_its_policy_along(node: Node, cast: Cast) -> None:
    """The last good version lives as long as its file, over restarts too, and then is gone for good."""
    node.apply_policy("guard", manifests.cilium_policy("guard", ONLY_FRIENDS))
    node.agent.stop()
    node.write("guard", MALFORMED)
    for _ in range(2):
        node.agent.start()
        assert cast.truth() == (True, False)
        node.agent.stop()
    node.delete("guard")
    node.agent.start()
    eventually(lambda: cast.truth() == (True, True), "without the file the server is open")
    node.write("guard", MALFORMED)
    (problem,) = eventually(node.problems, "the problem is listed")
    node.agent.restart()

    assert STAYS not in problem["message"]
    assert cast.truth() == (True, True)
    node.delete("guard")
    eventually(lambda: not node.problems(), "no problem is left")


def test_damaged_store_is_reported_and_harms_nothing_else(node: Node, guarded: Cast) -> None:
    """Without its memory the agent takes the files as they are, and writes a good store again."""
    (path,) = [one for one in (node.directory / "state").iterdir() if one.name == "last-good.json"]
    node.agent.stop()
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    mark = len(node.agent.log_text())
    node.agent.start()

    assert "last-good.json" in node.agent.log_text()[mark:]
    assert guarded.truth() == (True, False)
    assert node.problems() == []
    eventually(lambda: path.stat().st_size == size, "the store is whole again")
