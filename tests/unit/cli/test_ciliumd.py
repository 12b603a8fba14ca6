# SPDX-License-Identifier: Apache-2.0
"""``ciliumd`` makes endpoints through the agent and judges manifests without it."""

import io
import json

import pytest

GOOD = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: rule1, namespace: default}
spec:
  endpointSelector: {matchLabels: {class: deathstar}}
  ingress:
  - fromEndpoints: [{matchLabels: {org: empire}}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
"""
BAD = GOOD.replace('"80"', '"99999"').replace("rule1", "rule2")
L7 = GOOD + "      rules:\n        http: [{method: POST}]\n"


def test_endpoint_add_sends_what_was_given(agent, run):
    """Namespace, pod and address go to the agent; the answer's id and address come back."""
    agent.answers["PUT /v1/endpoint"] = {
        "id": 12,
        "status": {"networking": {"addressing": [{"ipv4": "10.0.0.2", "ipv6": ""}]}},
    }

    assert run.ciliumd("endpoint", "add", "pod1", "--pod", "default/xwing", "--ip", "10.0.0.2") == 0
    assert run.out == "Endpoint 12 default/xwing 10.0.0.2\n"
    assert agent.requests == [
        (
            "PUT",
            "/v1/endpoint",
            {"netns": "/var/run/netns/pod1", "pod": "default/xwing", "ifname": "eth0", "ip": "10.0.0.2"},
        )
    ]


def test_endpoint_add_makes_a_relative_path_absolute(agent, run, tmp_path, monkeypatch):
    """The agent has another working directory."""
    monkeypatch.chdir(tmp_path)
    agent.answers["PUT /v1/endpoint"] = {"id": 1, "status": {"networking": {"addressing": []}}}

    assert run.ciliumd("endpoint", "add", "./ns", "--pod", "default/xwing") == 0
    assert agent.requests[0][2]["netns"] == str(tmp_path / "ns")


@pytest.mark.parametrize("pod", ["xwing", "/xwing", "default/", "a/b/c"])
def test_endpoint_add_refuses_what_names_no_pod(agent, run, pod):
    """Misuse, before the agent is asked."""
    assert run.ciliumd("endpoint", "add", "pod1", "--pod", pod) == 2
    assert "NAMESPACE/NAME" in run.err
    assert agent.requests == []


@pytest.mark.parametrize(
    ("wanted", "path"), [("12", "/v1/endpoint/12"), ("default/xwing", "/v1/endpoint/pod:default%2Fxwing")]
)
def test_endpoint_del_by_number_or_pod(agent, run, wanted, path):
    """Both names the agent knows."""
    agent.answers[f"DELETE {path}"] = (200, b"")

    assert run.ciliumd("endpoint", "del", wanted) == 0
    assert agent.requests == [("DELETE", path, None)]


def test_refusal_of_the_agent_is_passed_on(agent, run):
    """A dead namespace is explained by the agent, in its words."""
    agent.answers["PUT /v1/endpoint"] = (400, {"error": "no network namespace pod1"})

    assert run.ciliumd("endpoint", "add", "pod1", "--pod", "default/xwing") == 1
    assert run.err == "Error: PUT /v1/endpoint: no network namespace pod1\n"


def test_version_is_the_packages(run):
    """Not Cilium's."""
    assert run.ciliumd("version") == 0
    assert run.out.startswith("ciliumd 0.")


def test_valid_manifests_pass(run, tmp_path):
    """Each object with its line."""
    path = tmp_path / "good.yaml"
    path.write_text(f"# comment\n{GOOD}---\n{GOOD}")

    assert run.ciliumd("policy", "validate", str(path)) == 0
    assert run.out == (
        f"{path}:2: CiliumNetworkPolicy/default/rule1: valid\n"
        f"{path}:12: CiliumNetworkPolicy/default/rule1: valid\n"
    )


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        (BAD, 9, "spec.ingress[0].toPorts[0].ports[0].port"),
        (L7, 11, "http"),
        ("a: [1,\nb: 2", 2, "YAML"),
        ("apiVersion: v1\nkind: Gizmo\nmetadata: {name: x}\n", 1, "Gizmo"),
        ("- 1\n- 2\n", 1, "is not an object"),
        ("kind: Pod\n", 1, "apiVersion"),
    ],
)
def test_invalid_manifests_name_file_line_and_field(run, tmp_path, text, line, part):
    """Exit code 1, the place, and what is wrong there."""
    path = tmp_path / "bad.yaml"
    path.write_text(text)

    assert run.ciliumd("policy", "validate", str(path)) == 1
    assert run.out.startswith(f"{path}:{line}: ")
    assert part in run.out
    assert "1 problems in 1 files" in run.err


def test_unreadable_files_are_findings_too(run, tmp_path):
    """A missing file and one that is not text do not hide the others."""
    binary, good = tmp_path / "binary.yaml", tmp_path / "good.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    good.write_text(GOOD)

    assert (
        run.ciliumd("policy", "validate", str(tmp_path / "none.yaml"), str(binary), str(good), "-o", "json")
        == 1
    )
    rows = json.loads(run.out)
    assert [bool(row["problem"]) for row in rows] == [True, True, False]
    assert rows[0]["problem"] == "No such file or directory"


@pytest.mark.parametrize("option", [(), ("--enable-node-selector-labels",)], ids=["without", "with"])
def test_nodes_are_judged_as_agents_with_the_option_do(option, run, tmp_path):
    """And named, with the option, as agents without it do."""
    path = tmp_path / "nodes.yaml"
    path.write_text(GOOD.replace("fromEndpoints: [{matchLabels: {org: empire}}]", "fromNodes: [{}]"))

    assert run.ciliumd("policy", "validate", *option, str(path)) == (0 if option else 1)
    assert ("enable-node-selector-labels" in run.out) is not bool(option)


NETWORK_POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec: {podSelector: {}, policyTypes: [Ingress]}
"""
CLUSTERWIDE = GOOD.replace("CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy").replace(
    ", namespace: default", ""
)
GROUP = """\
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: office}
spec: {externalCIDRs: [192.0.2.0/24]}
"""


def test_validate_needs_no_agent_and_takes_every_kind(run, tmp_path, agent):
    """Also as ``cilium policy validate``: of one file several documents, also none in between."""
    path = tmp_path / "all.yaml"
    path.write_text(f"{NETWORK_POLICY}---\n{CLUSTERWIDE}---\n# nothing\n---\n{GROUP}")

    assert run.cilium("policy", "validate", str(path)) == 0
    assert [line.split(": ")[1] for line in run.out.splitlines()] == [
        "NetworkPolicy/default/web",
        "CiliumClusterwideNetworkPolicy/rule1",
        "CiliumCIDRGroup/office",
    ]
    assert agent.requests == []


def test_validate_reads_stdin(run, monkeypatch):
    """As ``-``; it has a name of its own in what is found."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(BAD.encode())))

    assert run.cilium("policy", "validate", "-") == 1
    assert run.out.startswith("<stdin>:9: CiliumNetworkPolicy/default/rule2: spec.ingress[0].toPorts[0]")


def test_problems_of_lists_are_on_the_lines_of_their_items(run, tmp_path):
    """As ``kubectl get -o yaml`` writes them; the good ones are told, too."""
    items = "".join(
        "- " + "  ".join(one.splitlines(keepends=True)) for one in (GOOD, BAD.replace("rule1", "rule2"))
    )
    path = tmp_path / "list.yaml"
    path.write_text(f"apiVersion: v1\nkind: List\nitems:\n{items}")

    assert run.cilium("policy", "validate", str(path), "-o", "json") == 1
    good, bad = json.loads(run.out)
    assert (good["line"], good["field"], good["problem"]) == (4, "", "")
    assert bad["line"] == 21
    assert bad["field"] == "spec.ingress[0].toPorts[0].ports[0].port"
    assert bad["problem"].startswith(bad["field"])


@pytest.mark.parametrize(
    ("name", "text", "line", "part"),
    [
        ("twice.yaml", GOOD + "metadata: {name: other}\n", 10, "key 'metadata' is given twice"),
        ("deep.yaml", "a:\n  " + "[" * 200, 2, "is nested too deeply"),
        ("items.yaml", "apiVersion: v1\nkind: List\nitems: {a: 1}\n", 3, "items must be a list"),
        ("odd.yaml", "a: 1\nb: \x01\n", 2, "a character YAML does not allow"),
        ("broken.json", '{"kind":\n}', 2, "JSON: Expecting value"),
        ("policy.json", '{"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy"}', 1, "metadata"),
    ],
)
def test_what_the_agent_would_not_read_is_not_valid(run, tmp_path, name, text, line, part):
    """One reader for both: what a YAML library forgives may be half of a policy."""
    path = tmp_path / name
    path.write_text(text)

    assert run.cilium("policy", "validate", str(path)) == 1
    assert f"{path}:{line}: " in run.out
    assert part in run.out


def test_a_file_without_objects_is_told(run, tmp_path):
    """Not a problem, but hardly what was meant."""
    path = tmp_path / "empty.yaml"
    path.write_text("# to be written\n")

    assert run.cilium("policy", "validate", str(path)) == 0
    assert run.err == "no objects\n"
