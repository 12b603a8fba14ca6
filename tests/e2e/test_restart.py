# SPDX-License-Identifier: Apache-2.0
"""
Agents are restarted under traffic, and nobody notices.

Numbered datagrams, an open connection and fresh ones between pods and through every kind of service, and as
many against the policy.
While agents are away policies are edited and pods come and go.  Lost, reset, refused and wrongly allowed must
all be 0; a control shows that each of them can be seen.
"""

import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from lab import manifests
from lab.k8s import load
from lab.k8s.changes import Changes
from lab.k8s.ciliumd import POD_DELETE, Ciliumd
from lab.k8s.kubectl import Kubectl
from lab.k8s.load import ANSWERED, DENIED_PORT, KIND_RATE, PATIENCE_SECONDS, TCP_PORT, Load, Path
from lab.k8s.people import CLIENT, NAMESPACE, SERVER, People
from lab.waiting import eventually

RESTARTS, RESTARTS_LONG = 10, 50
# Datagrams against the policy in a long run.
DENIED_LONG = 1_000_000
BETWEEN = 1000
CONTROL: Final = "control"
# A pod whose agent was killed gets a new pod next: kubelet waits longer and longer for containers that crash.
KINDS = ("SIGTERM", POD_DELETE, "SIGKILL", POD_DELETE)


@pytest.fixture
def paths(people: People, kubectl: Kubectl) -> Iterator[list[Path]]:
    """From client1 to server1 and a host port on its own node, and to server2 on the other one."""
    for name, place in (("server1", "near"), ("server2", "far")):
        kubectl("label", "pod", name, f"load={place}", "-n", NAMESPACE, "--overwrite")
    kubectl.apply(*load.objects(SERVER, CLIENT, NAMESPACE), load.hosted("node1", SERVER))
    kubectl.wait("--for=condition=Ready", f"pod/{load.HOSTED}", namespace=NAMESPACE)
    on_host = people.cluster.pod(load.HOSTED, NAMESPACE)
    yield load.paths(kubectl, people.actor("client1"), people["server1"], people["server2"], on_host)
    on_host.end_actor()
    kubectl.delete("pod", load.HOSTED, namespace=NAMESPACE)
    kubectl.delete("service", *load.SERVICES, namespace=NAMESPACE)
    kubectl.delete("networkpolicy", "load", namespace=NAMESPACE)


def test_nobody_notices(
    ciliumd: Ciliumd,
    people: People,
    paths: list[Path],
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    """As the module says."""
    is_long = request.config.getoption("--long")
    restarts = RESTARTS_LONG if is_long else RESTARTS
    client, servers = people.actor("client1"), [people["server1"], people["server2"]]
    wrong: list[str] = []
    pods_ready: list[float] = []
    reconciled: list[float] = []
    with Changes(people.cluster, client, servers) as changes, Load(client, paths).start() as running:
        running.wait_sent(BETWEEN)
        for kind in itertools.islice(itertools.cycle(KINDS), restarts):
            began = time.monotonic()
            ciliumd.restart(kind, meanwhile=changes.make)
            pods_ready.append(time.monotonic() - began)
            wrong += changes.judge()
            reconciled += [ciliumd.seconds_to_ready(node) for node in people.cluster.nodes]
            running.wait_sent(BETWEEN)
        while is_long and running.denied_sent() < DENIED_LONG:
            running.wait_sent(BETWEEN)
        report = running.stop()
    record_property(
        "figure",
        f"{restarts} restarts of both agents under load: sent={report.sent} lost={report.lost} "
        f"reset={report.reset} refused={report.refused} wrongly_allowed={report.wrongly_allowed}\n"
        f"{changes.made} policy edits and {changes.made} new pods meanwhile: wrong={len(wrong)}\n"
        f"from an agent's start to reconciled, s: {spread(reconciled)}; "
        f"from its end to the next one's pod Ready: {spread(pods_ready)}\n{report}",
    )
    data = {"fault": "F1-restarts of both agents on a cluster", "injected": restarts}
    data |= {"survived": restarts - len(wrong), "wrongly_allowed": report.wrongly_allowed}
    data |= report.data() | {"restarts": restarts, "edits": changes.made, "edits_wrong": len(wrong)}
    data |= {"seconds_to_reconciled": reconciled, "seconds_to_pod_ready": pods_ready}
    record_property("data", json.dumps(data))

    assert report.denied_sent > 0
    assert report.denied_connects.total() > 0
    assert wrong == []
    assert (report.lost, report.reset, report.refused, report.wrongly_allowed) == (0, 0, 0, 0), str(report)
    assert all(fate.duplicates == 0 for fate in report.fates), str(report)


def spread(values: list[float]) -> str:
    """Least, median and most."""
    return f"{min(values):.1f} / {statistics.median(values):.1f} / {max(values):.1f}"


def test_the_load_would_have_noticed(
    people: People, paths: list[Path], kubectl: Kubectl, record_property: Callable[[str, object], None]
) -> None:
    """Control: what a policy stops for a moment is lost, reset and refused; without one all gets through."""
    client, server = people.actor("client1"), people["server2"]

    def outcome(port: int) -> str:
        return str(client.call("tcp_connect", address=server.address, port=port, timeout=0.5)["outcome"])

    everybody = {"endpointSelector": {"matchLabels": SERVER}, "ingressDeny": [{"fromEntities": ["all"]}]}
    with Load(client, paths).start() as running:
        running.wait_sent(BETWEEN)
        kubectl.apply(manifests.cilium_policy(CONTROL, everybody, namespace=NAMESPACE))
        eventually(lambda: outcome(TCP_PORT) == "timeout", "nobody gets through", seconds=30.0)
        # Longer than anybody is patient on an open connection: TCP makes good for less.
        running.wait_sent(int(KIND_RATE * (PATIENCE_SECONDS + 2)))
        kubectl.delete("ciliumnetworkpolicy", CONTROL, namespace=NAMESPACE)
        kubectl.delete("networkpolicy", "load", namespace=NAMESPACE)
        eventually(lambda: outcome(DENIED_PORT) == ANSWERED, "everybody gets through", seconds=30.0)
        running.wait_sent(BETWEEN)
        report = running.stop()
    record_property(
        "figure",
        f"control: lost={report.lost} reset={report.reset} refused={report.refused} "
        f"wrongly_allowed={report.wrongly_allowed} (each must be seen)",
    )

    assert min(report.lost, report.reset, report.refused, report.wrongly_allowed) > 0, str(report)
