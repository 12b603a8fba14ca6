# SPDX-License-Identifier: Apache-2.0
"""A5 on a live agent: hundreds of mutated objects, and the process, its policies and its pods go on."""

import json
import random
from collections.abc import Callable

import pytest

from fuzz.mutate import Mutator, rooted
from fuzz.samples import SAMPLES
from lab.manifests import cilium_policy
from lab.node import Node
from lab.waiting import eventually

pytestmark = pytest.mark.netns

ROUNDS, OBJECTS = 10, 40
FOLLOWED = ("Namespace", "Pod", "Service", "EndpointSlice", "CiliumNetworkPolicy", "NetworkPolicy")


def refusals(node: Node) -> float:
    """How many objects were refused since the agent started."""
    return sum(
        row["value"] for row in node.agent.get("metrics") if row["name"] == "ciliumd_resource_errors_total"
    )


def test_agent_goes_on_through_mutated_objects(
    node: Node, record_property: Callable[[str, object], None]
) -> None:
    """Each is taken or refused and counted; what was in force stays; nothing is left of them in the end."""
    server = node.pod("server", {"app": "server"}).serve(tcp=(80,))
    client, stranger = node.pod("client", {"app": "client"}), node.pod("stranger", {"app": "stranger"})
    spec = {
        "endpointSelector": {"matchLabels": {"app": "server"}},
        "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "client"}}]}],
    }
    node.apply_policy("guard", cilium_policy("guard", spec))
    assert node.agent.process is not None
    pid, before = node.agent.process.pid, refusals(node)
    chance = random.Random(5)
    samples = [dict(one) for one in SAMPLES if one["kind"] in FOLLOWED]
    mutator = Mutator(chance, samples)
    path = node.manifests / "mutants.json"
    for number in range(ROUNDS):
        items = [_mutant(mutator.mutate(chance.choice(samples)), f"m-{number}-{i}") for i in range(OBJECTS)]
        last = f"last-{number}"
        items.append({"apiVersion": "v1", "kind": "Service", "metadata": {"name": last}, "spec": 1})
        aside = node.manifests / ".mutants.new"
        aside.write_text(json.dumps({"kind": "List", "items": items}))
        aside.replace(path)
        eventually(lambda last=last: any(last in str(one) for one in node.problems()), f"{last} was refused")
        # Less than a second, after which a lost SYN would be sent again and hide the loss.
        assert client.reaches(server.address, 80, timeout=0.9)
        assert not stranger.reaches(server.address, 80)
    refused = refusals(node) - before
    path.unlink()
    eventually(lambda: not node.problems(), "no problem is left")
    log = node.agent.log_text()
    record_property(
        "figure",
        f"A5 live: {ROUNDS * (OBJECTS + 1)} objects, {refused:.0f} refusals counted, agent {pid} goes on",
    )
    data = {"case": "A5 live", "objects": ROUNDS * (OBJECTS + 1), "refused": refused}
    record_property("data", json.dumps(data))

    assert refused >= ROUNDS
    assert node.agent.process.running
    assert "Traceback" not in log, node.agent.log_tail()
    assert "internal error" not in log


def _mutant(document: dict[str, object], name: str) -> dict[str, object]:
    """In a namespace where nobody lives: a valid mutant must not mean the pods of this test."""
    return rooted(document, uid="", version=1, name=name, namespace="mutants")
