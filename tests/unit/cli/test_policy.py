# SPDX-License-Identifier: Apache-2.0
"""``cilium policy``: selectors, explanations and differences as people and scripts read them."""

import json

import pytest


def _labels(**found):
    return [
        {"key": f"io.cilium.k8s.policy.{key.replace('_', '-')}", "value": value, "source": "k8s"}
        for key, value in found.items()
    ]


def test_selectors_are_a_table_as_ciliums(agent, run):
    """An identity a line; policies of the whole cluster have no namespace."""
    agent.get(
        "policy/selectors",
        [
            {
                "selector": "any:app=db",
                "users": 2,
                "identities": [1001, 1002],
                "labels": [
                    _labels(derived_from="CiliumNetworkPolicy", name="web", namespace="shop"),
                    _labels(derived_from="CiliumClusterwideNetworkPolicy", name="all"),
                ],
                "rules": [],
            },
            {"selector": "entity world", "users": 1, "identities": [], "labels": [], "rules": []},
        ],
    )

    assert run.cilium("policy", "selectors") == 0
    assert run.out == (
        "SELECTOR       LABELS         USERS   IDENTITIES\n"
        "any:app=db     shop/web,all   2       1001\n"
        "                                      1002\n"
        "entity world                  1\n"
    )
    assert run.cilium("policy", "selectors", "-v") == 0
    assert "[k8s:io.cilium.k8s.policy.derived-from=CiliumNetworkPolicy " in run.out
    assert run.cilium("policy", "selectors", "-o", "jsonpath={[0].users}") == 0
    assert run.out == "2\n"


PROPOSED = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: rule1, namespace: default, creationTimestamp: 2026-01-01T00:00:00Z}
spec: {endpointSelector: {}, ingress: [{}]}
"""
CHANGE = {
    "from": "default/tiefighter",
    "to": "default/deathstar",
    "protocol": "TCP",
    "port": 80,
    "times": 3,
    "last-seen": "2026-01-01T00:00:00.000000000Z",
    "verdict": "allowed",
    "proposed-verdict": "denied",
    "directions": [
        {
            "direction": "egress",
            "endpoint": "default/tiefighter",
            "verdict": "allow",
            "origins": [],
            "proposed-verdict": "allow",
            "proposed-origins": [],
        },
        {
            "direction": "ingress",
            "endpoint": "default/deathstar",
            "verdict": "allow",
            "origins": [],
            "proposed-verdict": "default-deny",
            "proposed-origins": ["cnp:default/rule1"],
        },
    ],
}


def _answer(agent, *changes, **more):
    answer = {"flows": 12, "flows-left-out": 0, "events-lost": 0, "problems": [], "changes": list(changes)}
    agent.answers["POST /v1/policy/diff"] = {**answer, **more}


@pytest.fixture
def proposed(tmp_path):
    """A file with a policy."""
    path = tmp_path / "rule1.yaml"
    path.write_text(PROPOSED)
    return path


def test_diff_sends_documents_and_prints_what_would_change(agent, run, proposed):
    """1 if a flow would fare otherwise; only the direction that decides is shown."""
    _answer(agent, CHANGE)

    assert run.cilium("policy", "diff", "-f", str(proposed), "--delete", "ccnp:old") == 1
    (request,) = agent.requests
    assert request[:2] == ("POST", "/v1/policy/diff")
    assert request[2]["delete"] == ["ccnp:old"]
    assert request[2]["documents"][0]["metadata"]["creationTimestamp"] == "2026-01-01T00:00:00Z"
    assert run.out == (
        "default/tiefighter -> default/deathstar 80/TCP: ALLOWED, would be DENIED "
        "(seen 3 times, last 2026-01-01T00:00:00Z)\n"
        "  ingress of default/deathstar   now    allow          no policy applies in this direction\n"
        "                                 then   default-deny   cnp:default/rule1\n"
    )
    assert run.err == "1 of 12 recorded flows would fare otherwise\n"


def test_diff_without_differences_is_0_and_tells_what_it_does_not_know(agent, run, proposed):
    """As ``diff`` does; what is missing is on stderr."""
    missing = {
        "kind": "CiliumNetworkPolicy",
        "namespace": "default",
        "name": "rule1",
        "field": "spec",
        "message": "names office",
    }
    _answer(agent, problems=[missing], **{"flows-left-out": 2, "events-lost": 7})

    assert run.cilium("policy", "diff", "-f", str(proposed), "-o", "json") == 0
    assert json.loads(run.out)["changes"] == []
    assert run.err == (
        "Warning: CiliumNetworkPolicy default/rule1: spec names office\n"
        "0 of 12 recorded flows would fare otherwise\n"
        "2 flows were left out: an end is no longer who it was\n"
        "7 events were lost so far: the flows may not be all there were\n"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1,\n", "YAML: "),
        (
            PROPOSED.replace("[{}]", "{}"),
            ":4: CiliumNetworkPolicy/default/rule1: spec.ingress must be",
        ),
        ("apiVersion: v1\nkind: Gizmo\n", "is not a kind this agent reads"),
        (None, "No such file or directory"),
    ],
)
def test_diff_of_what_cannot_be_read_is_trouble(agent, run, tmp_path, text, said):
    """2, with file and line, before the agent is asked."""
    path = tmp_path / "bad.yaml"
    if text is not None:
        path.write_text(text)
    assert run.cilium("policy", "diff", "-f", str(path)) == 2
    assert said in run.err
    assert str(path) in run.err
    assert agent.requests == []


def test_diff_refused_by_the_agent_is_trouble(agent, run):
    """2, and not what means that something would change; without anything proposed, too."""
    agent.answers["POST /v1/policy/diff"] = (400, {"message": "there is no policy cnp:a/b"})
    assert run.cilium("policy", "diff", "--delete", "cnp:a/b") == 2
    assert "there is no policy cnp:a/b" in run.err
    assert run.cilium("policy", "diff") == 2
    assert "nothing is proposed" in run.err


def _explained(agent, **suggestion):
    agent.get(
        "policy/explain",
        {
            "verdict": "denied",
            "from": "default/xwing",
            "to": "default/deathstar",
            "protocol": "TCP",
            "port": 80,
            "directions": [],
            "suggestion": {"documents": [], "note": "", **suggestion},
        },
    )


EXPLAIN = ("policy", "explain", "--from", "default/xwing", "--to", "default/deathstar", "--port", "80")


def test_explain_shows_what_would_allow_it_as_yaml(agent, run):
    """To be applied as it is printed."""
    _explained(
        agent, documents=[{"kind": "CiliumNetworkPolicy", "apiVersion": "cilium.io/v2"}, {"kind": "x"}]
    )

    assert run.cilium(*EXPLAIN) == 1
    head, _, printed = run.out.partition("\nThe smallest that would allow it:\n")
    assert head == "default/xwing -> default/deathstar 80/TCP: DENIED\n"
    assert printed == "---\nkind: CiliumNetworkPolicy\napiVersion: cilium.io/v2\n---\nkind: x\n"


def test_explain_shows_how_often_the_row_decided(agent, run):
    """Of that how often this traffic; where events were lost, that it may be more."""
    counters = (
        {"row": 5, "traffic": 3, "last-seen": "2026-01-01T00:00:00Z"},
        {"row": 0, "traffic": 0, "last-seen": ""},
    )
    directions = [
        {"direction": "egress", "endpoint": "a/b", "verdict": "allow", "row": "1", "counter": one}
        for one in counters
    ]
    _explained(agent, note="x")
    agent.answers["GET /v1/policy/explain"] |= {"directions": directions, "events-lost": 2}

    run.cilium(*EXPLAIN)
    assert run.out.splitlines()[3].strip() == (
        "decided 5 times in this version; this traffic 3 times so far, last 2026-01-01T00:00:00Z"
    )
    assert run.out.splitlines()[6].strip() == "decided 0 times in this version; this traffic not so far"
    assert run.err == "2 events were lost so far: the counters may be too low\n"


def test_explain_says_why_nothing_would(agent, run):
    """In a sentence of its own."""
    _explained(agent, note="no rule that allows it helps: cnp:a/b denies it")

    assert run.cilium(*EXPLAIN) == 1
    assert run.out.endswith("\n\nNo rule that allows it helps: cnp:a/b denies it.\n")
