# SPDX-License-Identifier: Apache-2.0
"""
P8: from the API server's acknowledgement of a CiliumNetworkPolicy to the first packet with the new verdict.

One policy lets a client in and is deleted again, over and over, on a node with other pods and many other
policies.  A prober in the client sends a new connection every millisecond; a flow beside it that is always
allowed must lose nothing.
"""

import os
import random
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.machine import process_seconds
from bench.requests import Requests
from bench.result import Figure, Goal, Section
from bench.samples import percentile
from lab import manifests
from lab.child.metronome import Lane
from lab.k8s import people
from lab.k8s.cluster import Cluster
from lab.k8s.kubectl import Object
from lab.k8s.pki import ADMIN
from lab.k8s.pod import ClusterPod
from lab.metronome import Metronome, Side
from lab.waiting import eventually

P50, P99 = Goal(at_most=50), Goal(at_most=300)
NOTHING: Final = Goal(at_most=0)
NAMESPACE: Final = people.NAMESPACE
PROBED, CONTROL = 7001, 7002
# Each probe is a new connection; the control's verdict never changes.
LANES: Final = (Lane(PROBED, fresh=True), Lane(CONTROL))
POLICIES: Final = f"/apis/cilium.io/v2/namespaces/{NAMESPACE}/ciliumnetworkpolicies"
CLIENT, SERVER = "prober", "probed"
TOGGLED: Final = "toggled"
# Pods that many policies are about; each policy names one of them and a peer that no other one names.
BYSTANDER: Final = "bystander"
SETTLE_SECONDS: Final = 30.0
READY_SECONDS: Final = 240.0
# Between two changes, so that they keep no step with anything the agent does at intervals.
PAUSE_SECONDS: Final = (0.2, 0.5)
# Pairs with the new verdict in a row, for those before them to be all there is of the old one.
STEADY: Final = 100
SEED: Final = 8


class Enforced(NamedTuple):
    """One change, in ms: request to acknowledgement, and from there to the first packet judged anew."""

    acknowledged: float
    enforced: float
    # Packets that were judged as before after one had been judged anew.
    old_verdicts: int


def as_admin(cluster: Cluster) -> Requests:
    """The API server of a cluster."""
    tls = ssl.create_default_context(cafile=str(cluster.pki.ca))
    tls.load_cert_chain(cluster.pki.certificate(ADMIN), cluster.pki.key(ADMIN))
    return Requests(HTTPSConnection(str(cluster.plan.node(1)), 6443, context=tls, timeout=30))


@contextmanager
def crowd(cluster: Cluster, *, pods: int, policies: int) -> Iterator[Requests]:
    """A client, a server and that many other pods on node1, and policies about the others; then none."""
    kubectl = cluster.kubectl
    names = [CLIENT, SERVER, *(f"{BYSTANDER}{number}" for number in range(pods))]
    kubectl.apply(manifests.namespace(NAMESPACE))
    try:
        account = "serviceaccount", "default", NAMESPACE
        kubectl.until(lambda: kubectl.exists(*account), "the namespace has its account")
        kubectl.apply(*(people.pod(name, cluster.nodes[0].name, {"app": name}) for name in names))
        running = [f"pod/{name}" for name in names]
        kubectl.wait("--for=condition=Ready", *running, namespace=NAMESPACE, seconds=READY_SECONDS)
        with as_admin(cluster) as api:
            api("POST", POLICIES, _allows("control", SERVER, CLIENT, CONTROL))
            for number in range(policies):
                subject = f"{BYSTANDER}{number % pods}"
                api("POST", POLICIES, _allows(f"other{number}", subject, f"peer{number}", 8000 + number))
            yield api
    finally:
        kubectl.delete("namespace", NAMESPACE, wait=False)


def measure(cluster: Cluster, api: Requests, *, agent: int, changes: int, crowd_size: str) -> Section:
    """That many times allowed and as often taken back; *agent* is the process that has to enforce it."""
    section = Section("enforcement", f"P8  policy acknowledged to enforced, {crowd_size} on the node")
    chance = random.Random(SEED)
    added, removed = [], []
    with Metronome(*_sides(cluster), LANES, first=True) as prober:
        record = prober.record
        _until(prober, record.count, allowed=False)
        # One watch tells of policies in their order: what is enforced now comes after all the others.
        behind = _change(api, prober, allowed=True).enforced
        _change(api, prober, allowed=False)
        first, spent, waited = record.count, process_seconds(agent), waiting_seconds(agent)
        for _ in range(changes):
            for samples, allowed in ((added, True), (removed, False)):
                time.sleep(chance.uniform(*PAUSE_SECONDS))
                samples.append(_change(api, prober, allowed=allowed))
        spent, waited = process_seconds(agent) - spent, waiting_seconds(agent) - waited
        last = record.count - STEADY
        lost, pause = record.control_lost(first, last), record.longest_pause(first, last)
        probes = last - first
        seconds = (record.sent_at(last) - record.sent_at(first)) / 1e9
    for what, samples in (("allow added", added), ("allow removed", removed)):
        enforced = [one.enforced for one in samples]
        acknowledged = percentile([one.acknowledged for one in samples], 0.5)
        p50, p90, p99 = (percentile(enforced, share) for share in (0.5, 0.9, 0.99))
        section.add(
            Figure.of(f"{what}: acknowledged to enforced, p50 of {changes}", p50, "ms", goal=P50),
            Figure.of(f"{what}: acknowledged to enforced, p90", p90, "ms"),
            Figure.of(f"{what}: acknowledged to enforced, p99", p99, "ms", goal=P99),
            Figure.of(f"{what}: request to acknowledgement, p50", acknowledged, "ms"),
        )
    returned = sum(one.old_verdicts for one in (*added, *removed))
    section.add(
        Figure.of("a policy right behind all the others: acknowledged to enforced", behind, "ms"),
        Figure.of("packets judged as before after the first judged anew", returned, goal=NOTHING),
        Figure.of("packets lost that were allowed throughout", lost, goal=NOTHING, note=f"of {probes}"),
        Figure.of("probes per second", probes / seconds, note=f"longest pause {pause / 1e6:.1f} ms"),
        Figure.of("agent's CPU time per change", 500 * spent / changes, "ms"),
        Figure.of(
            "agent ready but without a core, per change", 500 * waited / changes, "ms", note="others' load"
        ),
        Figure.of("load average over the last minute", os.getloadavg()[0], note="in the end"),
    )
    section.data = {
        "added": [one._asdict() for one in added],
        "removed": [one._asdict() for one in removed],
        "probes": probes,
    }
    return section


def waiting_seconds(pid: int) -> float:
    """How long threads of a process were ready to run while others had the cores."""
    tasks = Path(f"/proc/{pid}/task")
    return sum(int((task / "schedstat").read_text().split()[1]) for task in tasks.iterdir()) / 1e9


def _change(api: Requests, prober: Metronome, *, allowed: bool) -> Enforced:
    """Make the policy or delete it, and wait until that is seen."""
    began = time.monotonic_ns()
    if allowed:
        api("POST", POLICIES, _allows(TOGGLED, SERVER, CLIENT, PROBED))
    else:
        api("DELETE", f"{POLICIES}/{TOGGLED}")
    acknowledged = time.monotonic_ns()
    anew, old = _until(prober, prober.record.since(began), allowed=allowed)
    enforced = prober.record.sent_at(anew) - acknowledged
    return Enforced((acknowledged - began) / 1e6, enforced / 1e6, old)


def _until(prober: Metronome, first: int, *, allowed: bool) -> tuple[int, int]:
    """The first pair from *first* on with this verdict, and how many had the other one after it."""

    def seen() -> tuple[int, int] | None:
        anew, old, row = None, 0, 0
        assert prober.running, "the prober has ended"
        for number, let_through in prober.record.judged(first):
            if let_through == allowed:
                anew, row = number if anew is None else anew, row + 1
            elif anew is not None:
                old, row = old + 1, 0
        return (anew, old) if anew is not None and row >= STEADY else None

    what = f"a prober in a pod is {'let through' if allowed else 'refused'}"
    found = eventually(seen, what, seconds=SETTLE_SECONDS)
    assert found is not None
    return found


def _sides(cluster: Cluster) -> tuple[Side, Side, str]:
    """Where the client is, where the server is, and its address."""
    client, server = (cluster.pod(name, NAMESPACE) for name in (CLIENT, SERVER))
    return _side(client), _side(server), server.address


def _side(pod: ClusterPod) -> Side:
    return Side(pod.netns, pod.cgroup)


def _allows(name: str, subject: str, peer: str, port: int) -> Object:
    """A CiliumNetworkPolicy that lets one app in to another's port."""
    rule: dict[str, Any] = {
        "fromEndpoints": [{"matchLabels": {"app": peer}}],
        "toPorts": manifests.to_ports((port, "UDP")),
    }
    spec = {"endpointSelector": {"matchLabels": {"app": subject}}, "ingress": [rule]}
    return manifests.cilium_policy(name, spec, namespace=NAMESPACE)
