# SPDX-License-Identifier: Apache-2.0
"""A restarted agent finds every number and every row as it left them, and sweeps nothing it does not know."""

import copy
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from lab import kinds, manifests, maps
from lab.node import Node
from lab.pod import Pod
from lab.traffic import Flood, Flow
from lab.waiting import eventually
from lab.world import World

pytestmark = pytest.mark.netns

VIP = "10.96.0.30"
# Of an agent with its imports, on a machine with other things to do.
START_SECONDS = 30.0


@pytest.fixture(scope="module")
def pods(node: Node) -> tuple[Pod, Pod]:
    """Pods, a service and policies of every kind of number: identities of labels and of CIDRs."""
    node.apply("namespaces", manifests.namespace("default", {"team": "a"}))
    web = node.pod("web", {"app": "web"}, ports=[("http", 8080, "TCP")]).serve(tcp=(8080,), udp=(9000,))
    client = node.pod("client", {"app": "client"})
    node.apply(
        "service",
        manifests.service("web", VIP, {"app": "web"}, ports=[("TCP", 80, "http"), ("UDP", 53, 9000)]),
    )
    node.wait_service(f"{VIP}:80", 1)
    node.apply_policy(
        "policies",
        manifests.cilium_policy(
            "web",
            {
                "endpointSelector": {"matchLabels": {"app": "web"}},
                "ingress": [
                    {"fromEndpoints": [{"matchLabels": {"app": "client"}}]},
                    {"fromCIDRSet": [{"cidr": "203.0.113.0/24", "except": ["203.0.113.64/26"]}]},
                ],
            },
        ),
        manifests.network_policy(
            "client", {"podSelector": {"matchLabels": {"app": "client"}}, "ingress": []}
        ),
    )
    return web, client


def numbers(node: Node) -> dict[str, Any]:
    """Every number users hold on to."""
    return {
        "endpoints": {
            one["status"]["external-identifiers"]["pod-name"]: (
                one["id"],
                one["status"]["identity"]["id"],
                one["status"]["networking"],
                one["status"]["policy"]["realized"]["policy-version"],
                one["status"]["slot"],
                one["status"]["slot-generation"],
            )
            for one in node.agent.get("endpoint")
        },
        "identities": {one["id"]: one["labels"] for one in node.agent.get("identity")},
        "services": {one["spec"]["id"]: one["spec"] for one in node.agent.get("service")},
        "backends": sorted(
            json.dumps(row, sort_keys=True) for row in node.agent.get("map/cilium_lb_backends_v1")
        ),
    }


def settled(node: Node) -> maps.Dump:
    """Rows once retired policy versions have gone."""
    last: list[maps.Dump] = [maps.dump(node.bpf_root)]

    def quiet() -> bool:
        previous, last[0] = last[0], maps.dump(node.bpf_root)
        return previous == last[0] and len(last[0]["cilium_policy_rules_v1"]) <= 2

    eventually(quiet, "maps do not change any more", seconds=15.0, every=1.0)
    return last[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_every_number_and_row_is_the_same_after_a_restart(
    node: Node, pods: tuple[Pod, Pod], number: signal.Signals
) -> None:
    """Endpoint, identity, service, backend and policy numbers, and all state maps byte by byte."""
    web, client = pods
    before_rows, before = settled(node), numbers(node)
    code = node.agent.restart(number)
    after_rows, after = settled(node), numbers(node)

    assert code == (0 if number == signal.SIGTERM else -number)
    assert after == before
    assert maps.differences(before_rows, after_rows) == []
    assert client.reaches(VIP, 80)
    assert not web.reaches(client.address, 80)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_services_of_every_kind_keep_their_numbers(
    node: Node, pods: tuple[Pod, Pod], number: signal.Signals
) -> None:
    """Node ports, external and balancer addresses with ranges, both scopes, affinity, a host port."""
    web, _ = pods
    manifest = manifests.pod("web", {"app": "web"}, ports=[("http", 8080, "TCP")])
    before_them = settled(node)
    node.apply("kinds", *kinds.every_kind({"app": "web"}))
    hosted = copy.deepcopy(manifest)
    kinds.add_host_port(hosted, 8088, 8080)
    node.apply("pod-default-web", hosted)
    for frontend in ("198.51.100.7:80", "198.51.100.8:80", f"{node.address}:30081", f"{node.address}:8088"):
        node.wait_service(frontend, 1)
    before_rows, before = settled(node), numbers(node)
    for name in ("lb_source_range_v1", "lb_affinity_match_v1", "lb_bind_v1"):
        assert before_rows[f"cilium_{name}"], name
    node.agent.restart(number)

    assert numbers(node) == before
    assert maps.differences(before_rows, settled(node)) == []
    node.apply("pod-default-web", manifest)
    node.delete("kinds")
    eventually(lambda: not services_that_differ(before_them, maps.dump(node.bpf_root)), "all is as before")
    assert web.reaches(web.address, 8080)


def services_that_differ(before: maps.Dump, after: maps.Dump) -> list[str]:
    """Rows of the load balancer that are not the same."""
    of_services = [name for name in before if name.startswith("cilium_lb_")]
    return maps.differences(*({name: one[name] for name in of_services} for one in (before, after)))


def test_changes_made_while_the_agent_was_away_are_taken_up(node: Node, pods: tuple[Pod, Pod]) -> None:
    """A service edited, a policy removed and one added in its absence are as written after its start."""
    web, client = pods
    node.agent.stop()
    saved = (node.manifests / "policies.yaml").read_text()
    node.delete("policies")
    node.apply("service", manifests.service("web", VIP, {"app": "web"}, ports=[("TCP", 81, "http")]))
    node.apply("closed", manifests.network_policy("closed", {"podSelector": {"matchLabels": {"app": "web"}}}))
    node.agent.start()
    node.wait_service(f"{VIP}:81", 1)
    try:
        eventually(lambda: not client.reaches(web.address, 8080), "the new policy is in force")
        frontends = [one["spec"]["frontend-address"]["port"] for one in node.agent.get("service")]
        assert frontends == [81]
    finally:
        before = node.policy_revision()
        node.delete("closed")
        node.write("policies", saved)
        node.wait_policy_after(before)
    eventually(lambda: client.reaches(VIP, 81), "the old policies are in force again")


@pytest.fixture
def _missing_manifests(node: Node) -> Iterator[None]:
    """The directory of manifests is away; the agent is stopped before and running after."""
    aside = node.manifests.with_name("aside")
    node.agent.stop()
    node.manifests.rename(aside)
    yield
    if aside.exists():
        aside.rename(node.manifests)
    node.agent.end()
    node.agent.start()


@pytest.mark.usefixtures("_missing_manifests")
def test_nothing_is_swept_while_the_source_is_away(node: Node, pods: tuple[Pod, Pod]) -> None:
    """Without its manifests the agent starts or not, but takes no policy, service or pod away."""
    web, client = pods
    before = maps.dump(node.bpf_root)
    flows = [Flow("meanwhile", web.address, 9100, 9100, rate=1000)]
    with Flood(client.outside, web.outside, flows).start() as flood:
        node.agent.launch()
        assert node.agent.process is not None
        eventually(
            lambda: not node.agent.process.running or "manifests" in node.agent.log_text()[-2000:],  # type: ignore[union-attr]
            "the agent says what is missing",
            seconds=START_SECONDS,
        )
        flood.wait_sent(1000)
        fate = flood.stop()["meanwhile"]

    assert maps.differences(before, maps.dump(node.bpf_root)) == []
    assert fate.lost == 0
    assert not web.reaches(client.address, 80)


def test_damaged_state_files_are_reported_and_not_believed(node: Node, pods: tuple[Pod, Pod]) -> None:
    """A state file full of other bytes is named in the log; numbers come back from the maps."""
    web, client = pods
    before = numbers(node)
    node.agent.stop()
    (path,) = [one for one in (node.directory / "state").iterdir() if one.name == "identities.json"]
    original = path.read_bytes()
    path.write_bytes(os.urandom(200))
    mark = len(node.agent.log_text())
    try:
        node.agent.start()
        said = node.agent.log_text()[mark:]
        after = numbers(node)
    finally:
        if path.read_bytes() != original:
            node.agent.stop()
            path.write_bytes(original)
            node.agent.start()

    assert "identities.json" in said
    assert after["services"] == before["services"]
    assert after["endpoints"].keys() == before["endpoints"].keys()
    assert client.reaches(VIP, 81)
    assert web.endpoint["id"]


def test_pod_that_vanished_while_the_agent_was_away_is_cleaned_up(world: World) -> None:
    """A namespace that died without a word leaves no endpoint, address or row after the next start."""
    with Node(world, name="forgetful", pod_cidr="10.13.0.0/24") as node:
        node.start()
        stays, goes = node.pod("stays").serve(tcp=(80,)), node.pod("goes")
        node.agent.stop()
        goes.remove()
        eventually(
            lambda: goes.endpoint["status"]["networking"]["interface-name"] not in node.netns.links(),
            "the device is gone with its namespace",
        )
        node.agent.start()
        eventually(lambda: len(node.agent.get("endpoint")) == 1, "one endpoint is left")
        eventually(lambda: goes.address not in str(node.agent.get("map/cilium_lxc_v1")), "its row is gone")

        assert node.agent.get("endpoint")[0]["id"] == stays.id
        assert node.outside.call("tcp_connect", address=stays.address, port=80)["outcome"] == "answered"
