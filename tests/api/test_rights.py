# SPDX-License-Identifier: Apache-2.0
"""
What the chart lets its accounts do, as a real API server judges it: the verbs listed and no others, and of
CiliumNodes and CiliumEndpoints an agent's own node's only.

Agents have tokens as the kubelet gets them for their pods; the objects are those helm renders.
"""

import http.client
import itertools
import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from chart.test_objects import AGENT, OPERATOR
from ciliumd.kubernetes.kinds import CILIUM_ENDPOINT, CILIUM_NODE, NODE, POD
from ciliumd.resources.crd.kinds import definitions
from lab.apiserver import ADMIN, ApiServer, programs
from lab.process import REPOSITORY

NAMESPACE = "kube-system"
SHOP = "shop"
VERBS = ("create", "delete", "deletecollection", "get", "impersonate", "list", "patch", "update", "watch")
AGENT_HERE = {("", "configmaps"): {"get"}, ("cilium.io", "ciliumnodeconfigs"): {"list"}}
OPERATOR_HERE = {("coordination.k8s.io", "leases"): {"create", "get", "update"}}
OTHERS = range(2, 12)
RIGHTS = {"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ServiceAccount"}
REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
Json = dict[str, Any]
Rights = dict[tuple[str, str], set[str]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server with the chart's accounts, rights and policies, eleven nodes and a pod on each."""
    home = tmp_path_factory.mktemp("helm")
    words = ("template", "cilium", str(REPOSITORY / "charts/ciliumd"), "--namespace", NAMESPACE)
    rendered = subprocess.run(
        [f"{programs()}/helm", *words, "--kube-version", "1.34.4"],
        env={"HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    with ApiServer(tmp_path_factory.mktemp("rights")) as one:
        for definition in definitions().values():
            one.define(definition)
        one.request("POST", "/api/v1/namespaces", {"metadata": {"name": SHOP}})
        for document in filter(None, yaml.safe_load_all(rendered)):
            if document["kind"] in RIGHTS or document["kind"].startswith("ValidatingAdmission"):
                one.request("POST", collection(document), document)
        for number in (1, *OTHERS):
            populate(one, number)
        yield one


def collection(document: Json) -> str:
    """Where objects of this kind are created."""
    version = document["apiVersion"]
    base = f"/apis/{version}" if "/" in version else f"/api/{version}"
    namespace = document["metadata"].get("namespace")
    plural = f"{document['kind'].lower()}s".replace("policys", "policies")
    return f"{base}/namespaces/{namespace}/{plural}" if namespace else f"{base}/{plural}"


def address(number: int) -> str:
    """A node's."""
    return f"192.0.2.{number}"


def endpoint(name: str, node: str) -> Json:
    """A CiliumEndpoint that tells of a node."""
    return {
        "apiVersion": CILIUM_ENDPOINT.api_version,
        "kind": CILIUM_ENDPOINT.kind,
        "metadata": {"name": name, "namespace": SHOP},
        "status": status(node),
    }


def status(node: str | None, number: int = 7) -> Json:
    """What a CiliumEndpoint tells."""
    networking: Json = {"addressing": [{"ipv4": "10.0.0.9"}]}
    return {"id": number, "networking": networking if node is None else {**networking, "node": node}}


def cilium_node(name: str) -> Json:
    """A CiliumNode."""
    return {
        "apiVersion": CILIUM_NODE.api_version,
        "kind": CILIUM_NODE.kind,
        "metadata": {"name": name},
        "spec": {"addresses": []},
    }


def populate(server: ApiServer, number: int) -> None:
    """A node with its agent's pod, its CiliumNode, and the CiliumEndpoint of a pod on it."""
    name = f"n{number}"
    server.request("POST", NODE.path(), {"metadata": {"name": name}})
    known = {"addresses": [{"type": "InternalIP", "address": address(number)}]}
    server.request("PATCH", f"{NODE.path(name)}/status", {"status": known}, patch=True)
    spec = {"nodeName": name, "serviceAccountName": "cilium", "containers": [{"name": "a", "image": "a"}]}
    pod = {"metadata": {"name": f"cilium-{name}"}, "spec": spec}
    server.request("POST", POD.path(namespace=NAMESPACE), pod)
    server.request("POST", CILIUM_NODE.path(), cilium_node(name))
    server.request("POST", CILIUM_ENDPOINT.path(namespace=SHOP), endpoint(f"pod-{name}", address(number)))


class Agent:
    """Who has the token that the kubelet mounts into an agent's pod."""

    def __init__(self, server: ApiServer, pod: str | None) -> None:
        bound = {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod}} if pod else {}
        path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/cilium/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": bound}
        self._token = server.request("POST", path, body)["status"]["token"]
        self._server = server

    def ask(self, method: str, path: str, body: Json | None = None) -> tuple[int, str]:
        """HTTP's status, and what the server says."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._server.url + path, data, headers, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, context=self._server.context) as answer:  # noqa: S310
                return answer.status, ""
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["message"]


def changed(server: ApiServer, path: str, **fields: Any) -> Json:
    """An object as it is, with other fields."""
    found = server.request("GET", path)
    for name, value in fields.items():
        found[name] = value
    return found


def attempts(server: ApiServer, number: int) -> Iterator[tuple[str, str, Json | None]]:
    """Ten ways in which the agent of n1 could take over what is of another node."""
    theirs, mine = f"n{number}", CILIUM_ENDPOINT.path("pod-n1", namespace=SHOP)
    node, pod = CILIUM_NODE.path(theirs), CILIUM_ENDPOINT.path(f"pod-{theirs}", namespace=SHOP)
    unknown = f"n{100 + number}"
    spec = {"addresses": [{"type": "InternalIP", "ip": address(1)}]}
    yield "PUT", node, changed(server, node, spec=spec)
    yield "PUT", node, changed(server, node, spec={"ipam": {"podCIDRs": ["10.9.0.0/24"]}})
    yield "POST", CILIUM_NODE.path(), cilium_node(unknown)
    yield "POST", CILIUM_NODE.path(), cilium_node(f"{theirs}-copy")
    yield "PUT", pod, changed(server, pod, status=status(address(1)))
    yield "PUT", pod, changed(server, pod, status=status(address(number), 8))
    yield "PUT", pod, changed(server, pod, status=status(None))
    yield "DELETE", pod, None
    yield "PUT", mine, endpoint("pod-n1", address(number))
    yield "POST", CILIUM_ENDPOINT.path(namespace=SHOP), endpoint(f"new-{theirs}", address(number))


def test_an_agent_cannot_write_what_is_of_another_node_100_of_100(server, record_property):
    """Refused by the policy, which says whose it is; everything is as it was."""
    agent = Agent(server, "cilium-n1")
    kept = [
        server.request("GET", CILIUM_NODE.path()),
        server.request("GET", CILIUM_ENDPOINT.path(namespace=SHOP)),
    ]
    refused = []
    for number in OTHERS:
        for method, path, body in attempts(server, number):
            if method == "PUT" and path.endswith("pod-n1"):
                body["metadata"] = server.request("GET", path)["metadata"]
            code, said = agent.ask(method, path, body)
            assert code == 403, (method, path, said)
            assert 'the agent of node "n1" may not write the Cilium' in said
            refused.append(path)
    after = [
        server.request("GET", CILIUM_NODE.path()),
        server.request("GET", CILIUM_ENDPOINT.path(namespace=SHOP)),
    ]

    record_property("data", json.dumps({"case": "S3", "writes to other nodes refused": len(refused)}))
    assert len(refused) == 100
    assert [one["items"] for one in after] == [one["items"] for one in kept]


def test_an_agent_writes_what_is_of_its_own_node(server):
    """Create, change, take away."""
    agent = Agent(server, "cilium-n1")
    node = CILIUM_NODE.path("n1")
    assert agent.ask("PUT", node, changed(server, node, spec={"addresses": [], "bootid": "b"}))[0] == 200
    mine = endpoint("mine", address(1))
    path = CILIUM_ENDPOINT.path("mine", namespace=SHOP)
    assert agent.ask("POST", CILIUM_ENDPOINT.path(namespace=SHOP), mine)[0] == 201
    assert agent.ask("PUT", path, changed(server, path, status=status(address(1), 9)))[0] == 200
    assert agent.ask("DELETE", path)[0] == 200


def test_a_token_that_says_no_node_writes_nothing(server):
    """One that was not made for a pod."""
    agent = Agent(server, None)
    node = CILIUM_NODE.path("n1")
    code, said = agent.ask("PUT", node, changed(server, node, spec={"addresses": [], "bootid": "c"}))
    assert (code, 'the agent of node ""' in said) == (403, True)
    code, said = agent.ask("POST", CILIUM_ENDPOINT.path(namespace=SHOP), endpoint("x", address(1)))
    assert (code, 'the agent of node ""' in said) == (403, True)


def test_others_are_not_meant(server):
    """The operator and administrators write CiliumNodes and CiliumEndpoints of all nodes."""
    path = CILIUM_ENDPOINT.path(namespace=SHOP)
    server.request("POST", path, endpoint("admin", address(5)))
    server.request("DELETE", f"{path}/admin")


# -- who may do what ------------------------------------------------------------------------------


def resources(server: ApiServer) -> Iterator[tuple[str, str]]:
    """Everything the server serves, subresources too, and what it does not serve but would judge about."""
    yield from (("", "users"), ("", "groups"), ("", "serviceaccounts"), ("", "secrets"))
    groups = [("", "/api/v1")]
    named = server.request("GET", "/apis")["groups"]
    groups += [(one["name"], f"/apis/{one['preferredVersion']['groupVersion']}") for one in named]
    for group, path in groups:
        for one in server.request("GET", path)["resources"]:
            yield group, one["name"]


@pytest.fixture(scope="module")
def may(server: ApiServer) -> Iterator[Callable[[str, str], Rights]]:
    """What an account may do in a namespace, verb by verb, over one connection."""
    served = sorted(set(resources(server)))
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=server.context)
    headers = {"Authorization": f"Bearer {server.token(ADMIN)}", "Content-Type": "application/json"}

    def asked(account: str, namespace: str) -> Rights:
        found: Rights = {}
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}", "system:authenticated"]
        for (group, resource), verb in itertools.product(served, VERBS):
            kind, _, sub = resource.partition("/")
            about = {
                "group": group,
                "resource": kind,
                "subresource": sub,
                "verb": verb,
                "namespace": namespace,
            }
            if (group, resource, verb) == ("", "configmaps", "get"):
                about["name"] = "cilium-config"
            user = f"system:serviceaccount:{NAMESPACE}:{account}"
            spec = {"user": user, "groups": groups, "resourceAttributes": about}
            body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
            connection.request("POST", REVIEWS, json.dumps(body), headers)
            if json.load(connection.getresponse())["status"]["allowed"]:
                found.setdefault((group, resource), set()).add(verb)
        return found

    yield asked
    connection.close()


def without(every: Rights, anybody: Rights) -> Rights:
    """What is not everybody's right."""
    rest = {key: verbs - anybody.get(key, set()) for key, verbs in every.items()}
    return {key: verbs for key, verbs in rest.items() if verbs}


@pytest.mark.parametrize(
    ("account", "everywhere", "here"),
    [("cilium", AGENT, AGENT_HERE), ("cilium-operator", OPERATOR, OPERATOR_HERE)],
)
def test_an_account_may_do_what_is_listed_and_nothing_else(
    may, account, everywhere, here, server, record_property
):
    """Every verb on every resource: what the cluster role lists, in its own namespace the role's too."""
    anybody = may("nobody", SHOP)

    found = {
        "elsewhere": (without(may(account, SHOP), anybody), everywhere),
        "in its namespace": (without(may(account, NAMESPACE), anybody), everywhere | here),
    }
    asked = len(found) * len(set(resources(server))) * len(VERBS)
    more = sum(
        len(verbs - listed.get(key, set()))
        for given, listed in found.values()
        for key, verbs in given.items()
    )
    record_property("data", json.dumps({"case": "S3", "questions": asked, "rights not listed": more}))
    for place, (given, listed) in found.items():
        assert given == listed, place
