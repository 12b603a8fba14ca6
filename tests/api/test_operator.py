# SPDX-License-Identifier: Apache-2.0
"""
What ``ciliumd operator`` does to a cluster, against a real API server and with no more rights than it says
it needs.
"""

import json
from datetime import UTC, datetime

import pytest

from ciliumd.resources.crd.kinds import KINDS
from lab.apiserver import ApiServer, programs
from lab.k8s.kubectl import Kubectl
from lab.operators import RULES, USER, Operator
from lab.waiting import eventually

TAINT = "node.cilium.io/agent-not-ready"
UP = {"type": "Ready", "status": "True"}
DOWN = {"type": "Ready", "status": "False"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An API server in which the operator has its own rights and no others."""
    with ApiServer(tmp_path_factory.mktemp("server"), users=(USER,)) as one:
        one.grant(USER, list(RULES))
        yield one


@pytest.fixture(scope="module")
def operator(server, tmp_path_factory):
    """An operator that leads."""
    with Operator(server, tmp_path_factory.mktemp("operator"), {"set-cilium-node-taints": "true"}) as one:
        yield one.wait_leading()


@pytest.fixture(scope="module")
def kubectl(server, operator):
    """The administrator's kubectl."""
    return Kubectl(programs() / "kubectl", server.kubeconfig())


@pytest.fixture
def nodes(kubectl):
    """Makes nodes; takes them away afterwards, and waits until nothing of them is left."""
    made = []

    def make(name, *, address="192.0.2.1", taints=(), cilium=True, **spec):
        made.append(name)
        kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": name},
                "spec": {"taints": list(taints), **spec},
            }
        )
        _set_status(kubectl, "node", name, {"addresses": [{"type": "InternalIP", "address": address}]})
        if cilium:
            kubectl.apply(_cilium("CiliumNode", name, {"spec": {}}))

    yield make
    kubectl.delete("node", *made)
    for name in made:
        eventually(lambda name=name: not kubectl.exists("cn", name), f"CiliumNode {name} is collected")


def _cilium(kind, name, body, namespace=None):
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": kind,
        **body,
        "metadata": {**metadata, **body.get("metadata", {})},
    }


def _set_status(kubectl, kind, name, status, namespace="default"):
    patch = json.dumps({"status": status})
    kubectl("patch", kind, name, "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)


def _pod(kubectl, name, *, node, labels, namespace="kube-system", ready=None, **spec):
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "owner", "uid": "1", "controller": True}
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": labels, "ownerReferences": [owner]},
            "spec": {"nodeName": node, "containers": [{"name": "a", "image": "a"}], **spec},
        }
    )
    status = {"phase": "Running", **({"conditions": [ready]} if ready else {})}
    _set_status(kubectl, "pod", name, status, namespace)


def _agent(kubectl, node, ready):
    _pod(kubectl, f"cilium-{node}", node=node, labels={"k8s-app": "cilium"}, ready=ready, hostNetwork=True)


def _remove_pod(kubectl, name, namespace="kube-system"):
    kubectl("delete", "pod", name, "-n", namespace, "--force", "--grace-period=0", "--ignore-not-found")


def _cidrs(kubectl, name):
    return kubectl.get("cn", name)["spec"].get("ipam", {}).get("podCIDRs", [])


def _ipam_error(kubectl, name):
    status = kubectl.get("cn", name).get("status", {})
    return status.get("ipam", {}).get("operator-status", {}).get("error", "")


def _events(kubectl, kind, name):
    rows = kubectl.list("events")
    return [
        (row["type"], row["reason"], row["message"])
        for row in rows
        if (row["involvedObject"]["kind"], row["involvedObject"]["name"]) == (kind, name)
    ]


def _valid(kubectl, kind, name):
    for one in kubectl.get(kind, name).get("status", {}).get("conditions", ()):
        if one["type"] == "Valid":
            return one
    return None


# -- pod CIDRs -----------------------------------------------------------------------------------


def test_every_node_gets_a_block_of_its_own_and_gives_it_back(kubectl, nodes, operator):
    """Four blocks, four nodes; a fifth waits, is told why, and gets the block of one that goes."""
    names = [f"pool{i}" for i in range(4)]
    for name in names:
        nodes(name)
    blocks = [
        eventually(lambda name=name: _cidrs(kubectl, name), f"{name} has a pod CIDR")[0] for name in names
    ]
    assert sorted(blocks) == [f"10.50.{i}.0/24" for i in range(4)]
    nodes("pool4")
    error = eventually(lambda: _ipam_error(kubectl, "pool4"), "the fifth node is told why it has none")
    assert error == "no free /24 in 10.50.0.0/22: 4 used, 0 free; add a CIDR to cluster-pool-ipv4-cidr"
    eventually(
        lambda: operator.metrics()['cilium_operator_ipam_nodes{category="in-deficit"}'] == 1, "counted"
    )
    assert ("Warning", "PodCIDRConflict", f"pod CIDRs of pool4: {error}") in _events(kubectl, "Node", "pool4")

    kubectl.delete("node", "pool2")
    assert eventually(lambda: _cidrs(kubectl, "pool4"), "the freed block is handed out") == [blocks[2]]
    eventually(lambda: not _ipam_error(kubectl, "pool4"), "nothing is wrong any more")
    assert not kubectl.exists("cn", "pool2")


def test_a_block_with_a_nodes_address_in_it_is_never_handed_out(kubectl, nodes, operator):
    """One block of four holds a node's address, so three nodes get one and the fourth none."""
    names = ["inside", "first", "second", "third"]
    for name, address in zip(names, ("10.50.1.9", "192.0.2.2", "192.0.2.3", "192.0.2.4"), strict=True):
        nodes(name, address=address)
    error = eventually(lambda: [e for e in (_ipam_error(kubectl, n) for n in names) if e], "one has none")
    objection = "10.50.0.0/22 overlaps 10.50.1.9/32, InternalIP of node inside"
    counts = f"3 used, 0 free, 1 refused ({objection})"
    assert error == [f"no free /24 in 10.50.0.0/22: {counts}; add a CIDR to cluster-pool-ipv4-cidr"]
    blocks = [cidr for name in names for cidr in _cidrs(kubectl, name)]
    assert sorted(blocks) == ["10.50.0.0/24", "10.50.2.0/24", "10.50.3.0/24"]
    eventually(lambda: operator.metrics()['cilium_operator_ipam_pod_cidrs{state="refused"}'] == 1, "counted")


@pytest.mark.parametrize(
    ("cidr", "problem"),
    [
        ("10.96.128.0/24", "10.96.128.0/24 overlaps 10.96.0.0/16, the range of service addresses"),
        ("192.0.2.0/24", "192.0.2.0/24 overlaps 192.0.2.1/32, InternalIP of node clash"),
    ],
)
def test_a_pod_cidr_that_is_somebody_elses_is_told_and_left(kubectl, nodes, cidr, problem):
    """What a node has is never taken away: its pods use it."""
    nodes("clash", cilium=False)
    kubectl.apply(_cilium("CiliumNode", "clash", {"spec": {"ipam": {"podCIDRs": [cidr]}}}))
    assert eventually(lambda: _ipam_error(kubectl, "clash"), "the conflict is told") == problem
    assert _cidrs(kubectl, "clash") == [cidr]
    wanted = ("Warning", "PodCIDRConflict", f"pod CIDRs of clash: {problem}")
    eventually(lambda: wanted in _events(kubectl, "Node", "clash"), "the Node has an event")


def test_of_two_nodes_with_one_block_the_older_keeps_it(kubectl, nodes):
    """The younger is told whose it is."""
    nodes("older")
    block = eventually(lambda: _cidrs(kubectl, "older"), "a pod CIDR")[0]
    nodes("younger", cilium=False)
    kubectl.apply(_cilium("CiliumNode", "younger", {"spec": {"ipam": {"podCIDRs": [block]}}}))
    problem = eventually(lambda: _ipam_error(kubectl, "younger"), "the conflict is told")
    assert problem == f"{block} overlaps {block}, a pod CIDR of node older"
    assert not _ipam_error(kubectl, "older")


# -- garbage -------------------------------------------------------------------------------------


def test_only_identities_that_no_endpoint_names_are_collected(kubectl, operator):
    """The one in use stays, through many looks; when its endpoint is gone it goes too."""
    _pod(kubectl, "user", node="nowhere", labels={}, namespace="default")
    for number in ("40001", "40002"):
        kubectl.apply(_cilium("CiliumIdentity", number, {"security-labels": {"k8s:app": number}}))
    status = {"identity": {"id": 40001}, "networking": {"addressing": []}}
    kubectl.apply(_cilium("CiliumEndpoint", "user", {"status": status}, "default"))
    eventually(lambda: not kubectl.exists("ciliumid", "40002"), "the unused one is collected", seconds=20)
    runs = 'cilium_operator_identity_gc_runs_total{outcome="success"}'
    seen = operator.metrics()[runs]
    eventually(lambda: operator.metrics()[runs] >= seen + 4, "four more looks", seconds=20)
    assert kubectl.exists("ciliumid", "40001")
    _remove_pod(kubectl, "user", "default")
    eventually(lambda: not kubectl.exists("cep", "user"), "the endpoint goes with its pod", seconds=20)
    eventually(lambda: not kubectl.exists("ciliumid", "40001"), "and its identity after it", seconds=20)


def test_an_identity_that_somebody_writes_is_wanted(kubectl, operator):
    """An agent that takes an identity again writes it; its waiting time begins anew."""
    kubectl.apply(_cilium("CiliumIdentity", "40003", {"security-labels": {"k8s:app": "a"}}))
    runs = 'cilium_operator_identity_gc_runs_total{outcome="success"}'
    end = operator.metrics()[runs] + 5
    beats = 0
    while operator.metrics()[runs] < end:
        beats += 1
        kubectl("annotate", "ciliumid", "40003", "--overwrite", f"io.cilium.heartbeat={beats}")
    assert kubectl.exists("ciliumid", "40003")
    eventually(lambda: not kubectl.exists("ciliumid", "40003"), "without heartbeats it goes", seconds=20)


def test_endpoints_without_a_running_pod_are_collected(kubectl):
    """A pod that ran to its end has no endpoint any more; one that runs keeps it."""
    networking = {"networking": {"addressing": []}}
    for name, phase in (("runs", "Running"), ("done", "Succeeded"), ("broke", "Failed")):
        _pod(kubectl, name, node="nowhere", labels={}, namespace="default")
        _set_status(kubectl, "pod", name, {"phase": phase})
    for name in ("done", "broke", "never", "runs"):
        kubectl.apply(_cilium("CiliumEndpoint", name, {"status": networking}, "default"))
    eventually(
        lambda: [one["metadata"]["name"] for one in kubectl.list("cep")] == ["runs"],
        "the others are collected",
    )
    for name in ("runs", "done", "broke"):
        _remove_pod(kubectl, name, "default")
    eventually(lambda: not kubectl.list("cep"), "all are collected")


def test_a_ciliumnode_without_node_goes_unless_it_says_otherwise(kubectl):
    """Machines that are no Nodes are kept by an annotation, as in Cilium."""
    keep = {"metadata": {"annotations": {"cilium.io/do-not-gc": "true"}}, "spec": {}}
    kubectl.apply(_cilium("CiliumNode", "machine", keep), _cilium("CiliumNode", "orphan", {"spec": {}}))
    eventually(lambda: not kubectl.exists("cn", "orphan"), "the orphan is collected")
    assert kubectl.exists("cn", "machine")
    kubectl.delete("cn", "machine")


# -- nodes ---------------------------------------------------------------------------------------


def _taints(kubectl, name):
    return [one["key"] for one in kubectl.get("node", name)["spec"].get("taints", ())]


def test_a_node_is_free_for_pods_when_its_agent_is_ready_and_not_before(kubectl, nodes):
    """Also when the taint comes back later; and what others put there stays."""
    foreign = {"key": "example.org/gpu", "effect": "NoSchedule"}
    nodes("tainted", taints=[{"key": TAINT, "effect": "NoExecute"}, foreign], cilium=False)
    _agent(kubectl, "tainted", DOWN)
    nodes("free", taints=[{"key": TAINT, "effect": "NoSchedule"}], cilium=False)
    _agent(kubectl, "free", UP)
    eventually(lambda: _taints(kubectl, "free") == [], "the ready one is free")
    assert _taints(kubectl, "tainted") == [TAINT, "example.org/gpu"]
    assert "NetworkUnavailable" not in json.dumps(kubectl.get("node", "tainted")["status"])

    _agent(kubectl, "tainted", UP)
    eventually(lambda: _taints(kubectl, "tainted") == ["example.org/gpu"], "the taint is removed")
    conditions = eventually(
        lambda: kubectl.get("node", "tainted")["status"].get("conditions"), "the condition is set"
    )
    assert [{k: v for k, v in one.items() if not k.startswith("last")} for one in conditions] == [
        {
            "type": "NetworkUnavailable",
            "status": "False",
            "reason": "CiliumIsUp",
            "message": "Cilium is running on this node",
        }
    ]
    kubectl("taint", "node", "tainted", f"{TAINT}=true:NoSchedule")
    eventually(lambda: _taints(kubectl, "tainted") == ["example.org/gpu"], "it is removed again")

    _agent(kubectl, "tainted", DOWN)
    eventually(lambda: TAINT in _taints(kubectl, "tainted"), "set-cilium-node-taints: tainted again")
    for name in ("tainted", "free"):
        _remove_pod(kubectl, f"cilium-{name}")


def test_the_taint_stays_without_an_agent(kubectl, nodes, operator):
    """No agent on the node: nobody would make networks for its pods."""
    nodes("bare", taints=[{"key": TAINT, "effect": "NoSchedule"}], cilium=False)
    nodes("witness", taints=[{"key": TAINT, "effect": "NoSchedule"}], cilium=False)
    _agent(kubectl, "witness", UP)
    eventually(lambda: _taints(kubectl, "witness") == [], "the operator has looked at nodes")
    assert _taints(kubectl, "bare") == [TAINT]
    _remove_pod(kubectl, "cilium-witness")


def test_pods_older_than_their_agent_are_restarted_one_at_a_time(kubectl, nodes, operator):
    """Only those with the labels, on a ready node, in the pod network, without endpoint."""
    nodes("dns", cilium=False)
    nodes("other", cilium=False)
    _agent(kubectl, "dns", UP)
    labels = {"k8s-app": "kube-dns"}
    for name in ("managed", "unmanaged"):
        _pod(kubectl, name, node="dns", labels=labels)
    networking = {"status": {"networking": {"addressing": []}}}
    kubectl.apply(_cilium("CiliumEndpoint", "managed", networking, "kube-system"))
    _pod(kubectl, "onhost", node="dns", labels=labels, hostNetwork=True)
    _pod(kubectl, "elsewhere", node="other", labels=labels)
    _pod(kubectl, "app", node="dns", labels={"app": "web"})
    eventually(lambda: operator.metrics()["cilium_operator_unmanaged_pods"] == 1, "it is counted")

    def names():
        pods = kubectl.list("pods", namespace="kube-system")
        return {one["metadata"]["name"] for one in pods if not one["metadata"].get("deletionTimestamp")} - {
            "cilium-dns"
        }

    eventually(lambda: "unmanaged" not in names(), "it is restarted", seconds=20)
    assert names() == {"managed", "onhost", "elsewhere", "app"}
    for name in ("managed", "unmanaged", "onhost", "elsewhere", "app", "cilium-dns"):
        _remove_pod(kubectl, name)


# -- policies ------------------------------------------------------------------------------------

GOOD = {"endpointSelector": {}, "ingress": [{"fromEndpoints": [{}]}]}
BAD = {"endpointSelector": {}, "egress": [{"toFQDNs": [{"matchName": "example.org"}]}]}


@pytest.mark.parametrize(
    ("kind", "short"), [("CiliumNetworkPolicy", "cnp"), ("CiliumClusterwideNetworkPolicy", "ccnp")]
)
def test_a_policy_says_whether_it_is_in_force(kubectl, kind, short):
    """The condition follows the policy; its time changes with the verdict only."""
    kubectl.apply(_cilium(kind, "judged", {"spec": GOOD}))
    valid = eventually(lambda: _valid(kubectl, short, "judged"), "the policy is judged")
    since = datetime.fromisoformat(valid.pop("lastTransitionTime"))
    assert abs((datetime.now(UTC) - since).total_seconds()) < 60
    assert valid == {
        "type": "Valid",
        "status": "True",
        "reason": "PolicyValid",
        "message": "Policy validation succeeded",
    }
    assert kubectl("get", short, "judged").split()[-1] == "True"
    assert _events(kubectl, kind, "judged") == []

    kubectl.apply(_cilium(kind, "judged", {"spec": BAD}))
    eventually(lambda: _valid(kubectl, short, "judged")["status"] == "False", "it is judged anew")
    message = _valid(kubectl, short, "judged")["message"]
    assert message.startswith("spec.egress[0].toFQDNs is not enforced by this version")
    eventually(
        lambda: _events(kubectl, kind, "judged") == [("Warning", "PolicyInvalid", message)], "one event"
    )

    kubectl("annotate", short, "judged", "touched=1")
    kubectl.apply(_cilium(kind, "judged", {"spec": GOOD}))
    eventually(lambda: _valid(kubectl, short, "judged")["status"] == "True", "it is in force again")
    assert len(_events(kubectl, kind, "judged")) == 1
    kubectl.delete(short, "judged")


def test_a_policy_says_that_its_group_is_missing(kubectl):
    """It is valid, and nobody is meant until the group is there."""
    spec = {"endpointSelector": {}, "ingress": [{"fromCIDRSet": [{"cidrGroupRef": "office"}]}]}
    kubectl.apply(_cilium("CiliumNetworkPolicy", "grouped", {"spec": spec}))
    condition = eventually(lambda: _valid(kubectl, "cnp", "grouped"), "the policy is judged")
    message = "spec.ingress[0] names CiliumCIDRGroup office, which does not exist: it is nobody"
    assert (condition["status"], condition["reason"], condition["message"]) == (
        "True",
        "ReferenceMissing",
        message,
    )
    eventually(
        lambda: (
            _events(kubectl, "CiliumNetworkPolicy", "grouped") == [("Warning", "ReferenceMissing", message)]
        ),
        "one event",
    )

    kubectl.apply(_cilium("CiliumCIDRGroup", "office", {"spec": {"externalCIDRs": ["192.0.2.0/24"]}}))
    eventually(lambda: _valid(kubectl, "cnp", "grouped")["reason"] == "PolicyValid", "it is judged anew")
    kubectl.delete("ccg", "office")
    eventually(lambda: _valid(kubectl, "cnp", "grouped")["reason"] == "ReferenceMissing", "and once more")
    kubectl.delete("cnp", "grouped")


def test_a_networkpolicy_gets_an_event_and_nothing_else(kubectl):
    """What the API server lets pass and we cannot enforce: a selector of labels only agents set."""
    selector = {"matchLabels": {"io.kubernetes.pod.namespace": "kube-system"}}
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "odd"}}
    kubectl.apply({**policy, "spec": {"podSelector": selector, "policyTypes": ["Ingress"]}})
    events = eventually(lambda: _events(kubectl, "NetworkPolicy", "odd"), "an event")
    assert [(kind, reason) for kind, reason, _ in events] == [("Warning", "PolicyInvalid")]
    assert "spec.podSelector.matchLabels" in events[0][2]
    assert "status" not in kubectl.get("netpol", "odd")
    kubectl.delete("netpol", "odd")


# -- services ------------------------------------------------------------------------------------


def _service(name, **spec):
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"ports": [{"port": 80}], **spec},
    }


def _told(kubectl, name):
    """The operator's events on a service; the API server has some of its own."""
    reasons = {"FrontendRefused", "ServiceInvalid"}
    return [event for event in _events(kubectl, "Service", name) if event[1] in reasons]


def test_a_service_that_takes_what_is_of_others_is_told_so(kubectl, nodes):
    """A node's address, another service's; once, and not when it is its own."""
    nodes("victim", address="192.0.2.77")
    spec = {"spec": {"addresses": [{"type": "InternalIP", "ip": "192.0.2.77"}]}}
    kubectl.apply(_cilium("CiliumNode", "victim", spec))
    kubectl.apply(_service("honest", externalIPs=["198.51.100.7"]))
    cluster_ip = kubectl.get("service", "honest")["spec"]["clusterIP"]
    wanted = {
        "of-a-node": ("192.0.2.77", "192.0.2.77 is an address of node victim"),
        "of-a-service": (cluster_ip, f"{cluster_ip} is the cluster address of service default/honest"),
        "of-its-own": ("198.51.100.7", "198.51.100.7:80/TCP belongs to service default/honest"),
    }
    for name, (address, _) in wanted.items():
        kubectl.apply(_service(name, externalIPs=[address]))
    for name, (_, message) in wanted.items():
        expected = [("Warning", "FrontendRefused", f"spec.externalIPs: {message}")]
        eventually(
            lambda name=name, expected=expected: _told(kubectl, name) == expected,
            f"{name} is told",
        )
    kubectl("annotate", "service", "of-a-node", "touched=1")
    kubectl.apply(_service("of-a-node", externalIPs=["198.51.100.7", "192.0.2.77"]))
    eventually(lambda: len(_told(kubectl, "of-a-node")) == 2, "what is new is told")
    assert _told(kubectl, "honest") == []
    kubectl.delete("service", "honest", *wanted)


# -- the operator itself -------------------------------------------------------------------------


def test_it_installs_what_it_serves(kubectl):
    """Kinds without an implementation do not exist."""
    assert {one["metadata"]["name"] for one in kubectl.list("crd")} == {kind.name for kind in KINDS}


def test_health_metrics_and_log(operator):
    """Where probes and Prometheus look; and the log has no fault in it."""
    assert operator.health() == "ok: leading\n"
    metrics = operator.metrics()
    assert metrics["cilium_operator_leader"] == 1
    assert metrics["cilium_operator_process_resident_memory_bytes"] > 1 << 20
    assert "level=error" not in operator.text()
    assert "Traceback" not in operator.text()


def test_it_asks_for_nothing_it_may_not_do_and_has_no_right_it_does_not_use(server, operator):
    """The audit log of all tests above: the rules are exact."""
    asked = server.requests(USER)
    assert [one for one in asked if one.status in {401, 403}] == []
    used = {(one.verb, one.resource) for one in asked if one.resource and not one.resource.startswith("/")}
    rights = {
        (verb, kind.partition("/")[0])
        for rule in RULES
        for kind in rule["resources"]
        for verb in rule["verbs"]
    }
    # A watch is for kinds it follows; a new kind's update is an upgrade of a definition (see test_crds).
    assert used <= rights
    assert rights - used <= {("update", "customresourcedefinitions")}
