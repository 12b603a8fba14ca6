# SPDX-License-Identifier: Apache-2.0
"""Operators come and go, and so does the API server; what was decided stays as it is."""

import json
import time

import pytest

from ciliumd.operator.leader import NAME
from lab.apiserver import ApiServer, programs
from lab.k8s.kubectl import Kubectl
from lab.operators import RULES, USER, Operator
from lab.waiting import eventually

LEASE_SECONDS = 8.0
RENEW_SECONDS = 6.0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An API server in which operators have their rights."""
    with ApiServer(tmp_path_factory.mktemp("server"), users=(USER,)) as one:
        one.grant(USER, list(RULES))
        yield one


@pytest.fixture(scope="module")
def kubectl(server):
    """The administrator's kubectl."""
    return Kubectl(programs() / "kubectl", server.kubeconfig())


@pytest.fixture
def operators(server, tmp_path):
    """Makes operators, and ends them."""
    made = []

    def make(options=None):
        made.append(Operator(server, tmp_path / str(len(made)), options))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.end()


def _node(kubectl, name, **spec):
    kubectl.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": spec})


def _join(kubectl, name, **spec):
    _node(kubectl, name, **spec)
    kubectl.apply(
        {"apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": {"name": name}, "spec": {}}
    )


def _cidrs(kubectl):
    return {
        one["metadata"]["name"]: one["spec"].get("ipam", {}).get("podCIDRs", []) for one in kubectl.list("cn")
    }


def _holder(kubectl):
    return kubectl.get("lease", NAME, "kube-system")["spec"]["holderIdentity"]


def test_the_next_one_leads_when_the_leader_is_killed(kubectl, operators):
    """Not before the lease is over, soon after it; and it finds everything as it was."""
    first = operators().wait_leading()
    _join(kubectl, "n1")
    before = eventually(lambda: _cidrs(kubectl).get("n1") and _cidrs(kubectl), "n1 has a pod CIDR")
    second = operators().wait_standby()
    holder = _holder(kubectl)
    first.kill()
    killed = time.monotonic()
    assert second.state == "waiting for the lease"
    second.wait_leading()
    waited = time.monotonic() - killed
    # The leader may have renewed up to half a second before its end; the other looks as often.
    assert LEASE_SECONDS - 1.0 <= waited <= LEASE_SECONDS + 8.0
    assert _holder(kubectl) != holder
    assert kubectl.get("lease", NAME, "kube-system")["spec"]["leaseTransitions"] == 1
    _join(kubectl, "n2")
    after = eventually(lambda: _cidrs(kubectl).get("n2") and _cidrs(kubectl), "n2 has a pod CIDR")
    assert after["n1"] == before["n1"] != after["n2"]


def test_a_leader_that_is_asked_to_end_hands_over_at_once(kubectl, operators):
    """It gives the lease back and ends without an error."""
    first = operators().wait_leading()
    second = operators().wait_standby()
    assert first.end() == 0
    ended = time.monotonic()
    eventually(lambda: second.state == "leading", "the second leads")
    assert time.monotonic() - ended < LEASE_SECONDS


def test_a_leader_whose_lease_is_taken_ends(kubectl, operators):
    """It must not go on beside another one."""
    one = operators().wait_leading()
    stolen = json.dumps({"spec": {"holderIdentity": "thief", "leaseDurationSeconds": 1}})
    kubectl("patch", "lease", NAME, "-n", "kube-system", "--type=merge", "-p", stolen)
    assert one.code() == 1
    assert "thief has the lease" in one.text()


def test_a_leader_cut_off_from_the_api_gives_up(server, kubectl, operators):
    """And the next one takes over when the API server is back."""
    one = operators().wait_leading()
    server.stop_server()
    try:
        cut = time.monotonic()
        assert one.code(seconds=20) == 1
        # It stopped working then; its watches are given a second to end.
        assert time.monotonic() - cut < RENEW_SECONDS + 5.0
        assert "the lease was not renewed for 6 s" in one.text()
        waiting = operators().wait_standby()
    finally:
        server.start()
    waiting.wait_leading()


def test_a_short_absence_of_the_api_is_made_up_for(server, kubectl, operators):
    """What changes while it is back and watches are not, is seen; what was deleted is gone."""
    patient = {
        "leader-election-lease-duration": "60s",
        "leader-election-renew-deadline": "50s",
        "leader-election-retry-period": "1s",
    }
    one = operators(patient).wait_leading()
    _join(kubectl, "stays")
    eventually(lambda: _cidrs(kubectl)["stays"], "it works")
    server.stop_server()
    time.sleep(2)  # longer than one look at anything
    server.start()
    _join(kubectl, "comes")
    kubectl.delete("node", "stays")
    eventually(lambda: _cidrs(kubectl).get("comes"), "it works again", seconds=30)
    eventually(lambda: "stays" not in _cidrs(kubectl), "what was deleted is collected", seconds=30)
    assert one.running


def test_a_restart_writes_nothing(server, kubectl, operators):
    """Everything is as it should be, so there is nothing to do."""
    one = operators().wait_leading()
    policy = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy"}
    for name, egress in (("good", []), ("bad", [{"toFQDNs": [{"matchName": "a.b"}]}])):
        kubectl.apply(
            {**policy, "metadata": {"name": name}, "spec": {"endpointSelector": {}, "egress": egress}}
        )
    _join(kubectl, "calm")
    eventually(lambda: _cidrs(kubectl)["calm"], "all is done")
    eventually(lambda: "event" in one.text(), "the bad policy has its event")
    assert one.end() == 0

    def versions():
        rows = [row for kind in ("cn", "cnp", "node", "events", "crd") for row in kubectl.list(kind)]
        return {row["metadata"]["uid"]: row["metadata"]["resourceVersion"] for row in rows}

    before = versions()
    again = operators().wait_leading()
    runs = 'cilium_operator_identity_gc_runs_total{outcome="success"}'
    eventually(lambda: again.metrics().get(runs, 0) >= 3, "it has looked at everything", seconds=20)
    assert versions() == before


def test_in_mode_kubernetes_pod_cidrs_are_those_of_the_node(kubectl, operators):
    """And a Node without any is told."""
    operators({"ipam": "kubernetes"}).wait_leading()
    _join(kubectl, "given", podCIDR="10.77.3.0/24", podCIDRs=["10.77.3.0/24"])
    _join(kubectl, "bare")
    assert eventually(lambda: _cidrs(kubectl)["given"], "copied") == ["10.77.3.0/24"]

    def problem():
        status = kubectl.get("cn", "bare").get("status", {})
        return status.get("ipam", {}).get("operator-status", {}).get("error", "")

    assert "the Node has no spec.podCIDRs" in eventually(problem, "told")
    assert _cidrs(kubectl)["bare"] == []


def test_bad_options_are_named(server, tmp_path):
    """Before anything is done."""
    one = Operator(server, tmp_path, {"cluster-pool-ipv4-cidr": "10.0.0.0/8 10.1.0.0/16", "ipam": "eni"})
    one.start()
    assert one.code() == 2
    assert "--ipam: Input should be 'cluster-pool' or 'kubernetes'" in one.text()
