# SPDX-License-Identifier: Apache-2.0
"""Every noun prints Cilium's columns from the agent's answers, and its data in JSON."""

import json

import pytest

LABELS = ["k8s:class=deathstar", "k8s:org=empire"]


def endpoint(number, *, enabled="ingress", revision=5, state="ready", labels=LABELS, ip="10.0.0.2"):
    """One endpoint as the agent describes it."""
    return {
        "id": number,
        "status": {
            "state": state,
            "identity": {"id": 257, "labels": labels},
            "labels": {"security-relevant": labels},
            "networking": {"addressing": [{"ipv4": ip, "ipv6": ""}]},
            "policy": {"realized": {"policy-enabled": enabled, "policy-revision": revision}},
            "external-identifiers": {"pod-name": "default/deathstar", "container-id": "abc"},
        },
    }


def service(number, ip, backends):
    """One service as the agent describes it."""
    spec = {
        "id": number,
        "frontend-address": {"ip": ip, "port": 80, "protocol": "TCP", "scope": "external"},
        "backend-addresses": [
            {"ip": address, "port": 8080, "protocol": "TCP", "state": "active", "nodeName": "n"}
            for address in backends
        ],
        "flags": {"name": "web", "namespace": "default", "type": "ClusterIP", "trafficPolicy": "Cluster"},
    }
    return {"spec": spec, "status": {"realized": spec}}


def test_endpoint_list(agent, run):
    """One line per label, sorted by id, with both enforcement columns."""
    agent.get(
        "endpoint",
        [endpoint(12), endpoint(7, enabled="none", labels=[], state="regenerating", ip="10.0.0.1")],
    )

    assert run.cilium("endpoint", "list") == 0
    assert run.out == (
        "ENDPOINT   POLICY (ingress)   POLICY (egress)   IDENTITY   LABELS (source:key[=value])   IPv6   "
        "IPv4       STATUS\n"
        "           ENFORCEMENT        ENFORCEMENT\n"
        "7          Disabled           Disabled          257        no labels                            "
        "10.0.0.1   regenerating\n"
        "12         Enabled            Disabled          257        k8s:class=deathstar                  "
        "10.0.0.2   ready\n"
        "                                                           k8s:org=empire\n"
    )


@pytest.mark.parametrize(
    "wanted", ["12", "pod-name:default/deathstar", "pod:default/deathstar", "ipv4:10.0.0.2"]
)
def test_endpoint_get_finds_by_any_name(agent, run, wanted):
    """The same endpoint by number, pod and address; a list of one, as Cilium prints."""
    agent.get("endpoint", [endpoint(12)])

    assert run.cilium("endpoint", "get", wanted, "-o", "jsonpath={[0].id}") == 0
    assert run.out == "12\n"


@pytest.mark.parametrize(("wanted", "code"), [("99", 1), ("deathstar", 2), ("colour:red", 2)])
def test_endpoint_get_says_what_it_cannot_find(agent, run, wanted, code):
    """Absent is 1, not understood is 2; both name what was asked for."""
    agent.get("endpoint", [endpoint(12)])

    assert run.cilium("endpoint", "get", wanted) == code
    assert wanted.partition(":")[0] in run.err
    assert "Try:" in run.err


def test_endpoint_delete_asks_by_number(agent, run):
    """The agent is asked for the id that was found."""
    agent.get("endpoint", [endpoint(12)])
    agent.answers["DELETE /v1/endpoint/12"] = (200, b"")

    assert run.cilium("endpoint", "delete", "pod-name:default/deathstar") == 0
    assert agent.requests[-1] == ("DELETE", "/v1/endpoint/12", None)


def test_endpoint_config_is_shown_and_set(agent, run):
    """In Cilium's words; switches in any of the ways it takes."""
    agent.get("endpoint", [endpoint(12)])
    agent.get("endpoint/12/config", {"realized": {"options": {"PolicyAuditMode": "Disabled"}}})
    agent.answers["PATCH /v1/endpoint/12/config"] = {}

    assert run.cilium("endpoint", "config", "12") == 0
    assert run.out == "PolicyAuditMode   Disabled\n"
    assert run.cilium("endpoint", "config", "12", "-o", "jsonpath={.realized.options.PolicyAuditMode}") == 0
    assert run.out == "Disabled\n"
    for text, value in (
        ("PolicyAuditMode=Enabled", "Enabled"),
        ("policyauditmode=true", "Enabled"),
        ("PolicyAuditMode=off", "Disabled"),
    ):
        assert run.cilium("endpoint", "config", "pod-name:default/deathstar", text) == 0
        assert run.out == "Endpoint 12 configuration updated successfully\n"
        body = {"options": {"PolicyAuditMode": value}}
        assert agent.requests[-1] == ("PATCH", "/v1/endpoint/12/config", body)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Debug=Enabled", "unknown option 'Debug'"),
        ("PolicyAuditMode", "sets nothing"),
        ("PolicyAuditMode=perhaps", "PolicyAuditMode=Enabled or =Disabled"),
    ],
)
def test_endpoint_config_refuses_what_it_does_not_know(agent, run, text, said):
    """Before the agent is asked."""
    agent.get("endpoint", [endpoint(12)])

    assert run.cilium("endpoint", "config", "12", text) == 2
    assert said in run.err
    assert agent.requests == []


@pytest.mark.parametrize(
    ("enabled", "shown"),
    [
        ("audit-both", "Disabled (Audit)   Disabled (Audit)"),
        ("audit-ingress", "Disabled (Audit)   Disabled"),
        ("audit-egress", "Disabled   Disabled (Audit)"),
    ],
)
def test_endpoint_list_tells_of_audit(agent, run, enabled, shown):
    """In the directions in which something passes that policy would drop."""
    agent.get("endpoint", [endpoint(12, enabled=enabled, labels=[])])

    assert run.cilium("endpoint", "list", "--no-headers") == 0
    assert shown in run.out


def test_identity_list_and_get(agent, run):
    """Labels below each other, sorted by number."""
    agent.get("identity", [{"id": 257, "labels": LABELS}, {"id": 1, "labels": ["reserved:host"]}])

    assert run.cilium("identity", "list") == 0
    assert run.out == ("ID    LABELS\n1     reserved:host\n257   k8s:class=deathstar\n      k8s:org=empire\n")
    assert run.cilium("identity", "list", "k8s:org=empire", "-o", "jsonpath={[*].id}") == 0
    assert run.out == "257\n"
    assert run.cilium("identity", "get", "1", "-o", "json") == 0
    assert json.loads(run.out) == [{"id": 1, "labels": ["reserved:host"]}]
    assert run.cilium("identity", "get", "5") == 1


def test_service_list_and_get(agent, run):
    """Numbered backends with their state; get -o json has Cilium's keys."""
    web = service(2, "10.96.0.10", ["10.0.0.2", "10.0.0.3"])
    agent.get("service", [web, service(1, "fd00::10", [])])
    agent.get("service/2", web)

    assert run.cilium("service", "list") == 0
    assert run.out == (
        "ID   Frontend            Service Type   Backend\n"
        "1    [fd00::10]:80/TCP   ClusterIP\n"
        "2    10.96.0.10:80/TCP   ClusterIP      1 => 10.0.0.2:8080/TCP (active)\n"
        "                                        2 => 10.0.0.3:8080/TCP (active)\n"
    )
    assert run.cilium("service", "get", "2", "-o", "json") == 0
    assert json.loads(run.out)["status"]["realized"]["frontend-address"]["ip"] == "10.96.0.10"
    assert run.cilium("service", "get", "9") == 1


def test_policy_get_prints_revision_and_tells_of_refused_ones(agent, run):
    """Policies in force on stdout, refused ones with field and file on stderr."""
    agent.get(
        "policy",
        {
            "revision": 7,
            "policy": [
                {"kind": "CiliumNetworkPolicy", "namespace": "default", "name": "rule1"},
                {"kind": "NetworkPolicy", "namespace": "shop", "name": "deny"},
            ],
            "problems": [
                {
                    "kind": "CiliumNetworkPolicy",
                    "namespace": "default",
                    "name": "l7",
                    "field": "spec.ingress[0].toPorts[0].rules.http",
                    "message": "is not enforced by this version",
                    "file": "l7.yaml",
                    "line": 9,
                }
            ],
        },
    )

    assert run.cilium("policy", "get", "-o", "jsonpath={.revision}") == 0
    assert run.out == "7\n"
    assert run.cilium("policy", "get", "-n", "shop") == 0
    assert '"name": "deny"' in run.out
    assert "rule1" not in run.out
    assert run.out.endswith("\nRevision: 7\n")
    assert run.err == (
        "Refused: CiliumNetworkPolicy default/l7: spec.ingress[0].toPorts[0].rules.http "
        "is not enforced by this version (l7.yaml:9)\n"
    )


@pytest.mark.parametrize(("verdict", "code"), [("allowed", 0), ("denied", 1)])
def test_policy_explain_names_who_decides(agent, run, verdict, code):
    """Each direction with its verdict and rules; denied is exit code 1."""
    agent.get(
        "policy/explain",
        {
            "verdict": verdict,
            "from": "default/xwing",
            "to": "default/deathstar",
            "protocol": "TCP",
            "port": 80,
            "directions": [
                {"direction": "egress", "endpoint": "default/xwing", "verdict": "allow", "origins": []},
                {
                    "direction": "ingress",
                    "endpoint": "default/deathstar",
                    "verdict": "default-deny",
                    "origins": ["cnp:default/rule1", "cnp:default/rule2"],
                    "row": "class 0 ANY",
                },
            ],
        },
    )
    words = ("policy", "explain", "--from", "default/xwing", "--to", "default/deathstar", "--dport", "80")

    assert run.cilium(*words) == code
    assert agent.requests[-1][1] == (
        "/v1/policy/explain?from=default%2Fxwing&to=default%2Fdeathstar&dport=80%2FTCP"
    )
    assert run.out == (
        f"default/xwing -> default/deathstar 80/TCP: {verdict.upper()}\n"
        "  egress of default/xwing        allow          no policy applies in this direction\n"
        "  ingress of default/deathstar   default-deny   cnp:default/rule1\n"
        "                                                cnp:default/rule2\n"
        "                                                row class 0 ANY\n"
    )


def test_policy_explain_tells_that_audit_lets_it_through(agent, run):
    """The verdict is the policy's; what is allowed needs no audit."""
    denied = {
        "direction": "ingress",
        "endpoint": "b",
        "verdict": "deny",
        "audited": True,
        "origins": ["cnp:x"],
    }
    allowed = {**denied, "direction": "egress", "verdict": "allow"}
    answer = {"from": "a", "to": "b", "protocol": "TCP", "port": 80, "verdict": "denied"}
    agent.get("policy/explain", {**answer, "directions": [allowed, denied]})

    assert run.cilium("policy", "explain", "--from", "a", "--to", "b", "--dport", "80") == 1
    assert run.out == (
        "a -> b 80/TCP: DENIED\n"
        "  egress of b    allow                         cnp:x\n"
        "  ingress of b   deny (audited: let through)   cnp:x\n"
    )


@pytest.mark.parametrize("port", ["http", "70000", "80x/TCP", ""])
def test_policy_explain_refuses_what_is_no_port(run, port):
    """Misuse, before the agent is asked."""
    assert run.cilium("policy", "explain", "--from", "a/b", "--to", "c/d", "--dport", port) == 2
    assert "is no port" in run.err


def test_policy_wait_returns_once_every_endpoint_has_the_revision(agent, run):
    """Ready and at the revision, on all endpoints."""
    agent.get("endpoint", [endpoint(1, revision=5), endpoint(2, revision=6)])

    assert run.cilium("policy", "wait", "5") == 0


@pytest.mark.parametrize("lagging", [endpoint(2, revision=4), endpoint(2, state="regenerating")])
def test_policy_wait_fails_naming_the_endpoints_that_lag(agent, run, lagging):
    """Exit code 1 after the time given."""
    agent.get("endpoint", [endpoint(1), lagging])

    assert run.cilium("policy", "wait", "5", "--max-wait-time", "0.01") == 1
    assert "endpoints 2 have not reached revision 5" in run.err


def test_policy_wait_without_endpoints_waits_for_the_agent(agent, run):
    """On an empty node the agent's own revision counts."""
    agent.get("endpoint", [])
    agent.get("policy", {"revision": 4, "policy": []})

    assert run.cilium("policy", "wait", "4") == 0
    assert run.cilium("policy", "wait", "5", "--max-wait-time", "0.01") == 1


def test_metrics_list(agent, run):
    """A table, a name pattern, and JSON as jq in the connectivity test reads it."""
    rows = [
        {
            "name": "cilium_drop_count_total",
            "labels": {"reason": "Policy denied", "direction": "INGRESS"},
            "value": 3.0,
        },
        {"name": "cilium_endpoint", "labels": {}, "value": 2.0},
    ]
    agent.get("metrics", rows)

    assert run.cilium("metrics", "list") == 0
    assert run.out == (
        "Metric                    Labels                                       Value\n"
        'cilium_drop_count_total   direction="INGRESS" reason="Policy denied"   3.000000\n'
        "cilium_endpoint                                                        2.000000\n"
    )
    assert run.cilium("metrics", "list", "-p", "drop", "-o", "json") == 0
    assert json.loads(run.out) == rows[:1]
    assert run.cilium("metrics", "list", "-p", "(") == 2


def test_map_list_and_get(agent, run):
    """How full maps are; rows as fields; an unknown map is told by the agent."""
    maps = {
        "maps": [
            {
                "path": "/sys/fs/bpf/ciliumd/maps/cilium_lxc_v1",
                "entries": 2,
                "max-entries": 16384,
                "errors": 0,
            }
        ]
    }
    agent.get("map", maps)
    agent.get("map/cilium_lxc_v1", [{"key": {"addr": "10.0.0.1"}, "value": {"slot": 3, "flags": ["a", "b"]}}])

    assert run.cilium("map", "list") == 0
    assert run.out == (
        "Name            Num entries   Max entries   Num errors\n"
        "cilium_lxc_v1   2             16384         0\n"
    )
    assert run.cilium("map", "get", "cilium_lxc_v1") == 0
    assert run.out == "Key             Value\naddr=10.0.0.1   slot=3 flags=a,b\n"
    assert run.cilium("map", "get", "nothing") == 1


def test_config(agent, run):
    """Live options by default, everything with --all; what is named is changed."""
    agent.get(
        "config",
        {
            "spec": {"options": {"TraceNotification": False}},
            "status": {
                "version": "v",
                "daemonConfigurationMap": {"routing-mode": "native", "devices": ["a", "b"]},
            },
        },
    )

    agent.answers["PATCH /v1/config"] = {}

    assert run.cilium("config") == 0
    assert run.out == "##### Read-write configurations #####\nTraceNotification   Disabled\n"
    assert run.cilium("config", "-a") == 0
    assert "devices        a, b\nrouting-mode   native\n" in run.out
    assert run.cilium("config", "-r") == 0
    assert run.out == "TraceNotification\n"
    assert run.cilium("config", "tracenotification=enabled") == 0
    assert run.out.startswith("Configuration updated successfully")
    assert agent.requests[-1] == ("PATCH", "/v1/config", {"options": {"TraceNotification": "Enabled"}})
    assert run.cilium("config", "Debug=Enabled") == 2
    assert "unknown option 'Debug'" in run.err
    assert [method for method, *_ in agent.requests].count("PATCH") == 1
