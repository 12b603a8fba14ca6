# SPDX-License-Identifier: Apache-2.0
"""Options of the operator: whose word counts, and what is refused."""

from ipaddress import ip_network

import pytest

from ciliumd.operator.settings import SettingsInvalid, read_settings, seconds


@pytest.fixture
def config(tmp_path):
    """Writes a mounted ConfigMap."""

    def write(**keys):
        for key, text in keys.items():
            (tmp_path / key.replace("_", "-")).write_text(text)
        return tmp_path

    return write


def test_the_command_line_wins_over_environment_directory_and_defaults(config, monkeypatch):
    """In this order."""
    directory = config(
        ipam="kubernetes", k8s_namespace="a", cilium_pod_labels="app=x", nodes_gc_interval="1m", debug="true"
    )
    monkeypatch.setenv("CILIUMD_OPERATOR_K8S_NAMESPACE", "b")
    monkeypatch.setenv("CILIUMD_OPERATOR_CILIUM_POD_LABELS", "app=y")
    found = read_settings([f"--config-dir={directory}", "--cilium-pod-labels", "app=z", "--debug=false"])
    assert (found.cilium_pod_labels, found.k8s_namespace, found.ipam) == ("app=z", "b", "kubernetes")
    assert (found.nodes_gc_interval, found.debug, found.resync_interval) == (60.0, False, 300.0)


def test_the_agents_keys_are_no_mistake_and_empty_ones_say_nothing(config):
    """The ConfigMap is for all."""
    directory = config(
        enable_hubble="false", ipam="", bpf_lb_map_max="1", operator_prometheus_serve_addr=":9963"
    )
    found = read_settings(["--config-dir", str(directory)])
    assert (found.ipam, found.operator_prometheus_serve_addr) == ("cluster-pool", ":9963")


@pytest.mark.parametrize("text", ["10.1.0.0/16 10.2.0.0/16", "10.1.0.0/16,10.2.0.0/16"])
def test_a_list_of_pools(text):
    """As the chart writes it, and as a shell does."""
    found = read_settings([f"--cluster-pool-ipv4-cidr={text}"])
    assert found.cluster_pool_ipv4_cidr == (ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16"))


def test_pool_of_ipv6():
    """Off unless it is asked for; written as that of IPv4."""
    assert read_settings([]).enable_ipv6 is False
    found = read_settings(["--enable-ipv6=true", "--cluster-pool-ipv6-cidr=fd00:1::/104 fd00:2::/104"])
    assert found.enable_ipv6 is True
    assert found.cluster_pool_ipv6_cidr == (ip_network("fd00:1::/104"), ip_network("fd00:2::/104"))
    for words in (
        ["--cluster-pool-ipv6-cidr=fd00::/121"],
        ["--cluster-pool-ipv6-cidr=fd00::/104,fd00::/108"],
    ):
        with pytest.raises(SettingsInvalid, match="cluster-pool-ipv6"):
            read_settings(words)


def test_switches_and_names_as_cilium_writes_them():
    """Deployments of Cilium's operator have them on the command line."""
    words = ["--k8s-kubeconfig-path=/a/b", "--skip-crd-creation=true", "--remove-cilium-node-taints=false"]
    found = read_settings(words)
    assert (str(found.kubeconfig), found.skip_crd_creation, found.remove_cilium_node_taints) == (
        "/a/b",
        True,
        False,
    )


@pytest.mark.parametrize(
    ("text", "value"), [("15m0s", 900.0), ("1h30m", 5400.0), ("0.5s", 0.5), ("7", 7.0), ("0s", 0.0)]
)
def test_durations_are_those_of_go(text, value):
    """A number alone is seconds."""
    assert float(seconds(text)) == value


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--ipam=eni"], "--ipam: Input should be 'cluster-pool' or 'kubernetes'"),
        (["--identity-gc-interval=soon"], "--identity-gc-interval: Input should be a valid number"),
        (["--identity-gc-interval=0"], "--identity-gc-interval: Input should be greater than 0"),
        (["--cluster-pool-ipv4-cidr=10.0.0.0/25"], "mask-size 24 does not fit into 10.0.0.0/25"),
        (["--cluster-pool-ipv4-cidr=10.0.0.0/8,10.1.0.0/16"], "10.1.0.0/16 overlaps 10.0.0.0/8"),
        (["--cluster-pool-ipv4-cidr=pods"], "--cluster-pool-ipv4-cidr"),
        (["--skip-crd-creation=maybe"], "--skip-crd-creation: 'maybe' is neither true nor false"),
        (["--operator-api-serve-addr=here"], "'here' is no address"),
        (["--leader-election-renew-deadline=20s"], "must be shorter than the lease-duration"),
        (["--leader-election-retry-period=10s"], "must be shorter than the renew-deadline"),
        (["--idenity-gc-interval=1m"], "unrecognized arguments"),
        (["--config-dir=/does/not/exist"], "--config-dir /does/not/exist"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(words, text):
    """Before anything is done."""
    with pytest.raises(SettingsInvalid) as caught:
        read_settings(words)
    assert text in str(caught.value)
