# SPDX-License-Identifier: Apache-2.0
"""The options of one node: the ConfigMap, and who overrides what."""

import asyncio

import pytest

from ciliumd.cli import build_config
from ciliumd.cli.build_config import Merged, collect, override, selects, write
from ciliumd.cli.errors import CommandError
from ciliumd.kubernetes.errors import NotFound

LABELS = {"pool": "edge", "kubernetes.io/hostname": "n1"}


def node_config(name, defaults, **selector):
    """A CiliumNodeConfig."""
    return {"metadata": {"name": name}, "spec": {"nodeSelector": selector, "defaults": defaults}}


class Cluster:
    """Answers like the API server's client."""

    def __init__(self, data, configs):
        self._data, self._configs = data, configs
        self.asked = []

    async def get(self, kind, name, *, namespace=""):
        """The ConfigMap, or the node."""
        self.asked.append((kind.plural, name, namespace))
        return {"configmaps": {"data": self._data}, "nodes": {"metadata": {"labels": LABELS}}}[kind.plural]

    async def list(self, kind, *, namespace=""):
        """CiliumNodeConfigs, or their kind is unknown."""
        assert namespace == "kube-system"
        if self._configs is None:
            raise NotFound("list", kind.plural, 404, "not found")
        return self._configs, "1"


def collected(cluster):
    """What is said for node n1."""
    return asyncio.run(collect(cluster, namespace="kube-system", config_map="cilium-config", node="n1"))


@pytest.mark.parametrize("configs", [None, []])
def test_without_node_configs_the_config_map_is_all(configs):
    """Also before the operator has defined the kind; the node is not asked for then."""
    cluster = Cluster({"mtu": "1400"}, configs)
    assert collected(cluster) == Merged({"mtu": "1400"})
    assert cluster.asked == [("configmaps", "cilium-config", "kube-system")]


def test_a_config_map_without_data_is_empty():
    """As the API server leaves it out."""
    assert collected(Cluster(None, [])) == Merged({})


def test_node_configs_that_select_the_node_win_in_the_order_of_their_names():
    """Key by key."""
    configs = [
        node_config("b", {"mtu": "9000"}, matchLabels={"pool": "edge"}),
        node_config("a", {"mtu": "1500", "debug": "true"}),
        node_config("c", {"mtu": "1"}, matchLabels={"pool": "core"}),
    ]
    found = collected(Cluster({"mtu": "1400", "ipam": "kubernetes"}, configs))
    assert found.values == {"mtu": "9000", "ipam": "kubernetes", "debug": "true"}
    assert found.overridden == {"mtu": "CiliumNodeConfig b", "debug": "CiliumNodeConfig a"}


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({}, True),
        ({"matchLabels": {"pool": "edge"}}, True),
        ({"matchLabels": {"pool": "edge", "zone": "a"}}, False),
        ({"matchExpressions": [{"key": "pool", "operator": "In", "values": ["edge", "core"]}]}, True),
        ({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}, False),
        ({"matchExpressions": [{"key": "pool", "operator": "NotIn", "values": ["edge"]}]}, False),
        ({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}, True),
        ({"matchExpressions": [{"key": "pool", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "pool", "operator": "DoesNotExist"}]}, False),
        (
            {
                "matchLabels": {"pool": "edge"},
                "matchExpressions": [{"key": "zone", "operator": "Exists"}],
            },
            False,
        ),
    ],
)
def test_selectors_are_those_of_kubernetes(selector, expected):
    """metav1.LabelSelector; all parts must hold."""
    assert selects(selector, LABELS) is expected


def test_an_operator_that_is_none_is_told():
    """The API server refuses it first; an old object may have it."""
    with pytest.raises(CommandError, match="'Gt'"):
        override(Merged(), [node_config("a", {}, matchExpressions=[{"key": "x", "operator": "Gt"}])], {})


def test_a_file_per_key_and_no_other(tmp_path):
    """What an earlier start left is gone."""
    (tmp_path / "old").write_text("1")
    write(tmp_path, {"mtu": "1400", "devices": ""})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"mtu": "1400", "devices": ""}


@pytest.mark.parametrize("key", ["../escape", ".hidden", "a/b"])
def test_a_key_that_is_no_file_name_is_refused(tmp_path, key):
    """Nothing is written outside of the directory."""
    with pytest.raises(CommandError, match="no names of options"):
        write(tmp_path / "x", {key: "1"})
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_and_says_who_overrode(run, tmp_path, monkeypatch):
    """The log of the init container is where one looks."""

    async def merged(_):
        return Merged({"mtu": "9000", "ipam": "kubernetes"}, {"mtu": "CiliumNodeConfig edge"})

    monkeypatch.setattr(build_config, "_collected", merged)
    assert run.cilium("build-config", "--node-name=n1", f"--dest={tmp_path}") == 0
    assert run.out == f"wrote 2 options to {tmp_path}\n"
    assert run.err == "mtu=9000 by CiliumNodeConfig edge\n"


def test_a_node_must_be_named(run, monkeypatch):
    """By the option or by the environment."""
    monkeypatch.delenv("K8S_NODE_NAME", raising=False)
    assert run.cilium("build-config") == 1
    assert "K8S_NODE_NAME" in run.err


def test_an_api_server_that_is_away_is_told(run, tmp_path):
    """Exit code 3, and what to set where there is no kube-proxy."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n"
        "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n"
        "users: [{name: u, user: {token: t}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n"
    )
    words = ("build-config", "--node-name=n1", f"--kubeconfig={kubeconfig}", f"--dest={tmp_path / 'out'}")
    assert run.cilium(*words) == 3
    assert "k8sServiceHost" in run.err
    assert run.cilium(*words[:2], f"--kubeconfig={tmp_path / 'missing'}") == 3
    assert "missing" in run.err
    assert not (tmp_path / "out").exists()
