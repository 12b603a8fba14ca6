# SPDX-License-Identifier: Apache-2.0
"""The definitions in a real API server: accepted, upgraded, never downgraded, and as strict as Cilium's."""

import asyncio
import copy
import json
from pathlib import Path

import pytest
import yaml

from ciliumd.kubernetes.client import Api
from ciliumd.kubernetes.config import load
from ciliumd.operator.definitions import DefinitionRefused, install, packaged
from ciliumd.resources.crd.__main__ import DIRECTORY, drift
from ciliumd.resources.crd.kinds import KINDS, SCHEMA_VERSION, VERSION_LABEL
from lab.apiserver import ApiServer, programs
from lab.k8s.kubectl import Kubectl

SPEC = {"endpointSelector": {"matchLabels": {"app": "web"}}}
SAMPLES = {
    "CiliumNetworkPolicy": {"spec": {**SPEC, "ingress": [{"fromEndpoints": [{}]}]}},
    "CiliumClusterwideNetworkPolicy": {"spec": {**SPEC, "egressDeny": [{"toCIDR": ["10.0.0.0/8"]}]}},
    "CiliumCIDRGroup": {"spec": {"externalCIDRs": ["192.0.2.0/24", "2001:db8::/32"]}},
    "CiliumNode": {
        "spec": {
            "addresses": [
                {"type": "CiliumInternalIP", "ip": "10.0.1.1"},
                {"type": "InternalIP", "ip": "192.0.2.1"},
            ]
        },
        "status": {},
    },
    "CiliumIdentity": {
        "metadata": {"name": "1234", "labels": {"io.kubernetes.pod.namespace": "shop"}},
        "security-labels": {"k8s:app": "web"},
    },
    "CiliumEndpoint": {
        "status": {
            "id": 12,
            "identity": {"id": 1234, "labels": ["k8s:app=web"]},
            "networking": {"addressing": [{"ipv4": "10.0.1.7"}], "node": "192.0.2.1"},
            "policy": {"ingress": {"enforcing": True, "state": "enforcing"}},
            "state": "ready",
            "named-ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        }
    },
    "CiliumNodeConfig": {"spec": {"nodeSelector": {"matchLabels": {"a": "b"}}, "defaults": {"mtu": "1400"}}},
}
COLUMNS = {
    "cnp": ("NAME", "AGE", "VALID"),
    "ccnp": ("NAME", "VALID"),
    "ccg": ("NAME", "AGE"),
    "cn": ("NAME", "CILIUMINTERNALIP", "INTERNALIP", "AGE"),
    "ciliumid": ("NAME", "NAMESPACE", "AGE"),
    "cep": ("NAME", "SECURITY IDENTITY", "ENDPOINT STATE", "IPV4", "IPV6"),
    "ciliumnodeconfigs": ("NAME", "AGE"),
}
REFUSED = {
    "no spec's selector": ("CiliumNetworkPolicy", {"spec": {"ingress": [{}]}}, "spec"),
    "a number for a port": (
        "CiliumNetworkPolicy",
        {"spec": {**SPEC, "ingress": [{"toPorts": [{"ports": [{"port": 80}]}]}]}},
        "spec.ingress[0].toPorts[0].ports[0].port",
    ),
    "an unknown protocol": (
        "CiliumNetworkPolicy",
        {"spec": {**SPEC, "ingress": [{"toPorts": [{"ports": [{"port": "80", "protocol": "HTTP"}]}]}]}},
        "spec.ingress[0].toPorts[0].ports[0].protocol",
    ),
    "an unknown operator": (
        "CiliumClusterwideNetworkPolicy",
        {"spec": {"endpointSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}},
        "spec.endpointSelector.matchExpressions[0].operator",
    ),
    "a name for a network": (
        "CiliumNetworkPolicy",
        {"spec": {**SPEC, "egress": [{"toCIDR": ["example.org"]}]}},
        "spec.egress[0].toCIDR[0]",
    ),
    "more ports than the maps hold": (
        "CiliumNetworkPolicy",
        {"spec": {**SPEC, "egress": [{"toPorts": [{"ports": [{"port": str(i)} for i in range(41)]}]}]}},
        "spec.egress[0].toPorts[0].ports",
    ),
    "a group, named and selected": (
        "CiliumNetworkPolicy",
        {"spec": {**SPEC, "egress": [{"toCIDRSet": [{"cidrGroupRef": "a", "cidrGroupSelector": {}}]}]}},
        "spec.egress[0].toCIDRSet[0]",
    ),
    "a group without prefixes": ("CiliumCIDRGroup", {"spec": {}}, "spec.externalCIDRs"),
    "a name in a group": (
        "CiliumCIDRGroup",
        {"spec": {"externalCIDRs": ["example.org"]}},
        "spec.externalCIDRs[0]",
    ),
    "no labels of an identity": ("CiliumIdentity", {}, "security-labels"),
    "a state nobody knows": ("CiliumEndpoint", {"status": {"state": "fine"}}, "status.state"),
    "a node without spec": ("CiliumNode", {}, "spec"),
    "no defaults": ("CiliumNodeConfig", {"spec": {"nodeSelector": {}}}, "spec.defaults"),
}
NOT_ENFORCED = {
    "DNS names": {"egress": [{"toFQDNs": [{"matchName": "example.org"}]}]},
    "HTTP": {"ingress": [{"toPorts": [{"ports": [{"port": "80"}], "rules": {"http": [{"method": "GET"}]}}]}]},
    "mutual authentication": {"ingress": [{"fromEndpoints": [{}], "authentication": {"mode": "required"}}]},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An API server without any definition."""
    with ApiServer(tmp_path_factory.mktemp("server")) as one:
        yield one


@pytest.fixture(scope="module")
def kubectl(server):
    """The administrator's kubectl, once the definitions are installed."""
    _install(server)
    return Kubectl(programs() / "kubectl", server.kubeconfig())


def _install(server):
    async def installed():
        async with Api(load(server.kubeconfig())) as api:
            await install(api)

    asyncio.run(installed())


def _document(kind, body, name="sample"):
    api = {"apiVersion": "cilium.io/v2", "kind": kind, "metadata": {"name": name}}
    merged = {**api, **body}
    merged["metadata"] = {**api["metadata"], **body.get("metadata", {})}
    return merged


def test_the_files_are_what_the_models_say():
    """``python -m ciliumd.resources.crd`` was run after the last change."""
    assert drift(DIRECTORY) == []


def test_a_change_of_a_model_is_noticed(tmp_path):
    """Different, missing and left-over files."""
    for path in DIRECTORY.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text().replace("maxItems: 40", "maxItems: 41"))
    (tmp_path / "ciliumnothings.yaml").write_text("kind: CustomResourceDefinition\n")
    assert drift(tmp_path) == [
        "ciliumclusterwidenetworkpolicies.yaml",
        "ciliumnetworkpolicies.yaml",
        "ciliumnothings.yaml",
    ]


def test_all_are_established_and_structural(kubectl):
    """No condition NonStructuralSchema; dry runs would not tell."""
    conditions = {
        one["metadata"]["name"]: {c["type"]: c["status"] for c in one["status"]["conditions"]}
        for one in kubectl.list("crd")
    }
    assert conditions == {kind.name: {"NamesAccepted": "True", "Established": "True"} for kind in KINDS}


@pytest.mark.parametrize("kind", [kind.kind for kind in KINDS])
def test_a_valid_object_comes_back_as_it_was_written(kubectl, kind):
    """Nothing is pruned, nothing is defaulted."""
    document = _document(kind, SAMPLES[kind], name="1234" if kind == "CiliumIdentity" else "valid")
    kubectl("apply", "--validate=strict", "-f", "-", stdin=json.dumps(document))
    back = kubectl.get(kind, document["metadata"]["name"])
    for part in document.keys() - {"metadata", "status"}:
        assert back[part] == document[part]
    if kind == "CiliumEndpoint":  # its status is no subresource, as in Cilium
        assert back["status"] == document["status"]


@pytest.mark.parametrize("what", REFUSED)
def test_a_bad_object_is_refused_where_it_is_written(kubectl, what):
    """By the API server, before anybody acts on it."""
    kind, body, where = REFUSED[what]
    done = kubectl.run("create", "-f", "-", stdin=json.dumps(_document(kind, body)), check=False)
    assert done.returncode
    assert where in done.stderr


def test_a_misspelt_field_is_refused_by_clients_that_ask_for_it(kubectl):
    """As kubectl does."""
    document = _document("CiliumNetworkPolicy", {"spec": {**SPEC, "ingres": []}})
    done = kubectl.run("create", "-f", "-", stdin=json.dumps(document), check=False)
    assert 'unknown field "spec.ingres"' in done.stderr


@pytest.mark.parametrize("what", NOT_ENFORCED)
def test_what_is_not_enforced_is_kept_to_be_refused_by_name(kubectl, what):
    """Pruned, it would be another policy."""
    spec = {**SPEC, **NOT_ENFORCED[what]}
    kubectl.apply(_document("CiliumNetworkPolicy", {"spec": spec}, name="not-enforced"))
    assert kubectl.get("cnp", "not-enforced")["spec"] == spec
    kubectl.delete("cnp", "not-enforced")


def test_fields_of_other_writers_are_kept(kubectl):
    """Kinds that agents write for each other may have more than we know."""
    spec = {"addresses": [{"type": "InternalIP", "ip": "192.0.2.1", "rank": 1}], "eni": {"vpc-id": "a"}}
    kubectl.apply(_document("CiliumNode", {"spec": spec}, name="cloudy"))
    assert kubectl.get("cn", "cloudy")["spec"] == spec


@pytest.mark.parametrize("short", COLUMNS)
def test_columns_are_those_people_know(kubectl, short):
    """Of ``kubectl get``, in Cilium's order."""
    header = kubectl("get", short, "-A").splitlines()[0]
    assert (
        tuple(part.strip() for part in header.split("  ") if part.strip())[-len(COLUMNS[short]) :]
        == (COLUMNS[short])
    )


def test_values_of_columns(kubectl):
    """The paths lead somewhere."""
    row = kubectl("get", "cep", "valid", "-o", "wide").splitlines()[1].split()
    assert row == ["valid", "1234", "enforcing", "ready", "10.0.1.7"]
    assert kubectl("get", "cn", "valid").splitlines()[1].split()[:3] == ["valid", "10.0.1.1", "192.0.2.1"]
    assert kubectl("get", "ciliumid", "1234").splitlines()[1].split()[:2] == ["1234", "shop"]


def test_categories_list_them_together(kubectl):
    """``kubectl get cilium`` and ``kubectl get ciliumpolicy``."""
    listed = set(kubectl("get", "cilium", "-A", "-o", "name").split())
    assert {"ciliumnode.cilium.io/valid", "ciliumendpoint.cilium.io/valid"} <= listed
    policies = kubectl("get", "ciliumpolicy", "-A", "-o", "name").split()
    assert {one.partition(".")[0] for one in policies} == {
        "ciliumnetworkpolicy",
        "ciliumclusterwidenetworkpolicy",
    }


def test_status_of_policies_is_written_apart(kubectl):
    """Who may write policies may not say that they are valid."""
    kubectl.apply(_document("CiliumNetworkPolicy", {"spec": SPEC}, name="apart"))
    condition = {"type": "Valid", "status": "True", "message": "Policy validation succeeded"}
    patch = json.dumps({"status": {"conditions": [condition]}})
    kubectl("patch", "cnp", "apart", "--type=merge", "-p", patch)
    assert "status" not in kubectl.get("cnp", "apart")
    kubectl("patch", "cnp", "apart", "--type=merge", "--subresource=status", "-p", patch)
    assert kubectl.get("cnp", "apart")["status"]["conditions"] == [condition]


@pytest.mark.parametrize(
    ("present", "wanted"),
    [("0.9.9", SCHEMA_VERSION), ("1.31.1", "1.31.1"), ("", SCHEMA_VERSION), ("newest", SCHEMA_VERSION)],
)
def test_the_version_label_decides_about_an_upgrade(kubectl, server, present, wanted):
    """Older and unreadable versions are replaced, newer ones stay; labels of others stay."""
    name = "ciliumnodeconfigs.cilium.io"
    labels = json.dumps({"metadata": {"labels": {VERSION_LABEL: present or None, "mine": "stays"}}})
    kubectl("patch", "crd", name, "--type=merge", "-p", labels)
    foreign = json.dumps([{"op": "replace", "path": "/spec/names/shortNames", "value": ["cnc"]}])
    kubectl(
        "patch", "crd", name, "--type=merge", "-p", json.dumps({"spec": {"names": {"shortNames": ["x"]}}})
    )
    kubectl("patch", "crd", name, "--type=json", "-p", foreign)
    try:
        _install(server)
        after = kubectl.get("crd", name)
        assert after["metadata"]["labels"] == {VERSION_LABEL: wanted, "mine": "stays"}
        upgraded = wanted == SCHEMA_VERSION
        assert ("shortNames" not in after["spec"]["names"]) == upgraded
        assert kubectl.exists("ciliumnodeconfig", "valid"), "objects survive an upgrade"
    finally:
        kubectl(
            "patch",
            "crd",
            name,
            "--type=merge",
            "-p",
            json.dumps({"metadata": {"labels": {VERSION_LABEL: "0"}}}),
        )
        _install(server)


def test_a_definition_the_server_cannot_serve_is_an_error_that_says_why(kubectl, server, monkeypatch):
    """In the API server's words."""
    broken = copy.deepcopy(yaml.safe_load(Path(DIRECTORY / "ciliumnodeconfigs.yaml").read_text()))
    broken["metadata"]["name"] = "ciliumthings.cilium.io"
    broken["spec"]["names"] |= {"plural": "ciliumthings", "singular": "ciliumthing", "listKind": "ThingList"}
    monkeypatch.setattr("ciliumd.operator.definitions.packaged", lambda: [broken])
    try:
        with pytest.raises(
            DefinitionRefused, match=r'ciliumthings\.cilium\.io: .*"CiliumNodeConfig" is already in use'
        ):
            _install(server)
    finally:
        kubectl("delete", "crd", "ciliumthings.cilium.io")


def test_every_kind_is_packaged():
    """What is installed is what is in the table."""
    assert sorted(one["metadata"]["name"] for one in packaged()) == sorted(kind.name for kind in KINDS)
