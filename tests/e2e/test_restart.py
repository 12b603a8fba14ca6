# SPDX-License-Identifier: Apache-2.0
"""
Agents are restarted under traffic, and nobody notices.

Numbered datagrams, an open connection and fresh ones on four paths, and as many against the policy.
Lost, reset, refused and wrongly allowed must all be 0.
"""

import itertools
from collections.abc import Callable, Iterator

import pytest

from lab.k8s import load
from lab.k8s.ciliumd import POD_DELETE, Ciliumd
from lab.k8s.kubectl import Kubectl
from lab.k8s.load import Load, Path
from lab.k8s.people import CLIENT, NAMESPACE, SERVER, People

RESTARTS, RESTARTS_LONG = 10, 50
BETWEEN = 1000
# A pod whose agent was killed gets a new pod next: kubelet waits longer and longer for containers that crash.
KINDS = ("SIGTERM", POD_DELETE, "SIGKILL", POD_DELETE)


@pytest.fixture
def paths(people: People, kubectl: Kubectl) -> Iterator[list[Path]]:
    """From client1 to server1 on its own node and to server2 on the other one."""
    kubectl("label", "pod", "server2", "load=far", "-n", NAMESPACE, "--overwrite")
    kubectl.apply(*load.objects(SERVER, CLIENT, NAMESPACE))
    yield load.paths(kubectl, people.actor("client1"), people["server1"], people["server2"])
    kubectl.delete("service", load.CLUSTER_IP, load.NODE_PORT, namespace=NAMESPACE)
    kubectl.delete("networkpolicy", "load", namespace=NAMESPACE)


def test_nobody_notices(
    ciliumd: Ciliumd,
    people: People,
    paths: list[Path],
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    """As the module says."""
    restarts = RESTARTS_LONG if request.config.getoption("--long") else RESTARTS
    with Load(people.actor("client1"), paths).start() as running:
        running.wait_sent(BETWEEN)
        for kind in itertools.islice(itertools.cycle(KINDS), restarts):
            ciliumd.restart(kind)
            running.wait_sent(BETWEEN)
        report = running.stop()
    record_property(
        "figure",
        f"{restarts} restarts of both agents under load: sent={report.sent} lost={report.lost} "
        f"reset={report.reset} refused={report.refused} wrongly_allowed={report.wrongly_allowed}\n{report}",
    )

    assert report.denied_sent > 0
    assert report.denied_connects.total() > 0
    assert (report.lost, report.reset, report.refused, report.wrongly_allowed) == (0, 0, 0, 0), str(report)
    assert all(fate.duplicates == 0 for fate in report.fates), str(report)
