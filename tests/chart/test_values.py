# SPDX-License-Identifier: Apache-2.0
"""Values: the recipes people have, old and new spellings, contradictions, and what is refused by name."""

import pytest
import yaml

from chart.conftest import CHART
from ciliumd.daemon.config_directory import interpret
from ciliumd.daemon.settings import Settings, read_settings

SERVER = {"k8sServiceHost": "192.0.2.1", "k8sServicePort": "6443"}
PROMETHEUS = {"prometheus.enabled": "true", "operator.prometheus.enabled": "true"}
VXLAN = {
    "tunnel": "vxlan",
    "ipam.mode": "kubernetes",
    "kubeProxyReplacement": "strict",
    **PROMETHEUS,
    **SERVER,
}
NATIVE = {
    "tunnel": "disabled",
    "kubeProxyReplacement": "strict",
    "nativeRoutingCIDR": "10.0.0.0/8",
    "ipam.mode": "kubernetes",
    "ipam.operator.clusterPoolIPv4PodCIDR": "10.0.0.0/8",
    "ipam.operator.clusterPoolIPv4MaskSize": "24",
    "bpf.masquerade": "true",
    "bpf.hostRouting": "false",
    **PROMETHEUS,
    **SERVER,
}

RECIPES = {
    "plain": (
        {"kubeProxyReplacement": "strict", **SERVER},
        {"kube-proxy-replacement": "strict", "enable-node-port": "true", "bpf-lb-sock": "true"},
    ),
    "vxlan": (
        VXLAN,
        {
            "routing-mode": "tunnel",
            "tunnel-protocol": "vxlan",
            "ipam": "kubernetes",
            "kube-proxy-replacement": "strict",
            "prometheus-serve-addr": ":9962",
            "operator-prometheus-serve-addr": ":9963",
            "enable-host-legacy-routing": "false",
        },
    ),
    "native": (
        NATIVE,
        {"routing-mode": "native", "ipv4-native-routing-cidr": "10.0.0.0/8", "enable-bpf-masquerade": "true"},
    ),
    "below global": (
        {"global.tunnel": "vxlan", "global.kubeProxyReplacement": "probe", "global.nodePort.enabled": "true"},
        {"routing-mode": "tunnel", "kube-proxy-replacement": "probe"},
    ),
    "beside kube-proxy": (
        {"kubeProxyReplacement": "disabled"},
        {"kube-proxy-replacement": "disabled", "enable-node-port": "false", "bpf-lb-sock": "false"},
    ),
    "partly": (
        {"kubeProxyReplacement": "partial", "hostServices.enabled": "true", "externalIPs.enabled": "true"},
        {
            "kube-proxy-replacement": "partial",
            "bpf-lb-sock": "true",
            "enable-node-port": "false",
            "enable-external-ips": "true",
            "enable-host-port": "false",
        },
    ),
    "policies tried": (
        {"policyAuditMode": "true", "policyDenyResponse": "icmp"},
        {"policy-audit-mode": "true", "policy-deny-response": "icmp"},
    ),
    "events of some kinds": (
        {"bpf.events.trace.enabled": "false", "bpf.events.policyVerdict.enabled": "false"},
        {
            "bpf-events-drop-enabled": "true",
            "bpf-events-policy-verdict-enabled": "false",
            "bpf-events-trace-enabled": "false",
        },
    ),
    "policies in force": ({}, {"policy-audit-mode": "false", "policy-deny-response": "none"}),
    "in kube-proxy's place": (
        {
            "kubeProxyReplacementHealthzBindAddr": "0.0.0.0:10256",
            "nodePort.enableHealthCheck": "false",
            "nodePort.bindProtection": "false",
            "nodePort.autoProtectPortRange": "false",
        },
        {
            "kube-proxy-replacement-healthz-bind-address": "0.0.0.0:10256",
            "enable-health-check-nodeport": "false",
            "node-port-bind-protection": "false",
            "enable-auto-protect-node-port-range": "false",
        },
    ),
    "sockets": (
        {"socketLB.hostNamespaceOnly": "true", "socketLB.terminatePodConnections": "true"},
        {"bpf-lb-sock-hostns-only": "true", "bpf-lb-sock-terminate-pod-connections": "true"},
    ),
    "services": (
        {"bpf.lbExternalClusterIP": "true", "externalIPs.allow": "{192.0.2.0/24,10.0.0.1/32}"},
        {
            "bpf-lb-external-clusterip": "true",
            "allow-external-addresses": "192.0.2.0/24 10.0.0.1/32",
        },
    ),
    "nodes by labels": (
        {"nodeSelectorLabels": "true", "extraConfig.node-labels": "role"},
        {"enable-node-selector-labels": "true", "node-labels": "role"},
    ),
    "old switches": (
        {"hostServices.enabled": "true", "externalIPs.enabled": "true", "nodePort.enabled": "true"},
        {"bpf-lb-sock": "true"},
    ),
}

REFUSED = {
    "native with direct routes": ({**NATIVE, "autoDirectNodeRoutes": "true"}, "autoDirectNodeRoutes=true"),
    "DSR": ({**NATIVE, "loadBalancer.mode": "dsr"}, "loadBalancer.mode=dsr"),
    "hybrid": (
        {
            "tunnel": "disabled",
            "enableIPv4Masquerade": "false",
            "kubeProxyReplacement": "strict",
            "loadBalancer.mode": "hybrid",
        },
        "loadBalancer.mode=hybrid",
    ),
    "no conntrack": (
        {"installNoConntrackIptablesRules": "true", "kubeProxyReplacement": "strict"},
        "installNoConntrackIptablesRules=true",
    ),
    "ip-masq-agent": ({"ipMasqAgent.enabled": "true"}, "ipMasqAgent.enabled=true"),
    "hubble's metrics": ({"hubble.metrics.enabled": "{dns,drop}"}, 'hubble.metrics.enabled=["dns","drop"]'),
    "old node port mode": (
        {"global.nodePort.mode": "dsr", "loadBalancer.mode": "dsr"},
        "loadBalancer.mode=dsr",
    ),
}

CONTRADICTIONS = [
    ({"tunnel": "disabled", "routingMode": "tunnel"}, "tunnel=disabled contradicts routingMode=tunnel"),
    ({"tunnel": "vxlan", "routingMode": "native"}, "tunnel=vxlan contradicts routingMode=native"),
    ({"tunnel": "vxlan", "tunnelProtocol": "geneve"}, "contradicts tunnelProtocol=geneve"),
    ({"tunnel": "geneve"}, "tunnelProtocol=geneve is not supported"),
    ({"ipv4.enabled": "false"}, "ipv4.enabled=false needs ipv6.enabled=true"),
    (
        {"routingMode": "native", "ipv4.enabled": "false", "ipv6.enabled": "true"},
        "routingMode=native with ipv6.enabled needs ipv6NativeRoutingCIDR",
    ),
    (
        {"nativeRoutingCIDR": "10.0.0.0/8", "ipv4NativeRoutingCIDR": "10.0.0.0/9"},
        "nativeRoutingCIDR=10.0.0.0/8 contradicts ipv4NativeRoutingCIDR=10.0.0.0/9",
    ),
    ({"routingMode": "native"}, "routingMode=native needs ipv4NativeRoutingCIDR"),
    (
        {"routingMode": "native", "ipv4NativeRoutingCIDR": "10.0.0.0/8", "ipv6.enabled": "true"},
        "routingMode=native with ipv6.enabled needs ipv6NativeRoutingCIDR",
    ),
    ({"nodePort.enabled": "false"}, "nodePort.enabled=false contradicts kubeProxyReplacement=true"),
    (
        {"externalIPs.enabled": "true", "kubeProxyReplacement": "false"},
        "externalIPs.enabled=true contradicts kubeProxyReplacement=false",
    ),
    ({"nodePort.mode": "dsr"}, "nodePort.mode=dsr"),
    (
        {"hostServices.enabled": "false", "socketLB.enabled": "true"},
        "hostServices.enabled=false contradicts socketLB.enabled=true",
    ),
    (
        {
            "ipam.operator.clusterPoolIPv4PodCIDR": "10.0.0.0/8",
            "ipam.operator.clusterPoolIPv4PodCIDRList": "{10.1.0.0/16}",
        },
        "contradicts clusterPoolIPv4PodCIDRList=10.1.0.0/16",
    ),
    ({"cleanup.enabled": "true", "cleanState": "true"}, "cleanup.enabled=true contradicts cleanState"),
    ({"k8sServicePort": "6443"}, "k8sServicePort needs k8sServiceHost"),
    ({"image.useDigest": "true"}, "needs image.digest"),
]

MISTYPED = [
    ({"kubeProxyReplacment": "true"}, "kubeProxyReplacment"),
    ({"bpf.hostroute": "true"}, "hostroute"),
    ({"operator.replica": "1"}, "replica"),
    ({"tunnelPort": "many"}, "/tunnelPort"),
    ({"underlayProtocol": "ipx"}, "/underlayProtocol"),
    ({"routingMode": "bridge"}, "/routingMode"),
    ({"kubeProxyReplacement": "maybe"}, "/kubeProxyReplacement"),
    ({"cluster.name": "East"}, "/cluster/name"),
    ({"cluster.id": "256"}, "/cluster/id"),
    ({"ipv4NativeRoutingCIDR": "10.0.0.0"}, "/ipv4NativeRoutingCIDR"),
    ({"ipv6NativeRoutingCIDR": "10.0.0.0/8"}, "/ipv6NativeRoutingCIDR"),
    ({"ipam.operator.clusterPoolIPv4PodCIDRList": "{10.0.0.0/33}"}, "clusterPoolIPv4PodCIDRList/0"),
    ({"ipam.operator.clusterPoolIPv6PodCIDRList": "{fd00::/129}"}, "clusterPoolIPv6PodCIDRList/0"),
    ({"image.digest": "sha256:12"}, "/image/digest"),
    ({"policyDenyResponse": "reset"}, "/policyDenyResponse"),
    ({"policyAuditMode": "some"}, "/policyAuditMode"),
    ({"operator.identityGCInterval": "often"}, "/operator/identityGCInterval"),
    ({"securityContext.capabilities.ciliumAgent": "{net_admin}"}, "ciliumAgent/0"),
]


def rows():
    """What is refused by name."""
    return yaml.safe_load((CHART / "files" / "unsupported.yaml").read_text())["rows"]


def test_lint(helm):
    """As helm judges it, warnings included."""
    done = helm("lint", "--strict", str(CHART), "--kube-version", "1.34.4")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_render(render, recipe):
    """Each says what it is known for."""
    values, expected = RECIPES[recipe]
    found = render(values).config
    assert {key: found.get(key) for key in expected} == expected


@pytest.mark.parametrize("recipe", REFUSED)
def test_recipes_of_what_is_not_there_are_refused(template, recipe):
    """By the value that cannot be had."""
    values, named = REFUSED[recipe]
    done = template(values)
    assert done.returncode != 0
    assert f"{named} is not supported by this version: " in done.stderr


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["value"])
def test_each_unsupported_value_is_refused_with_its_sentence(template, row):
    """Below global. too; the reason is a reason."""
    wanted = "false" if row.get("accepted") == ["true"] else "true"
    typed = {"ipam.mode": "eni", "cni.chainingMode": "aws-cni", "identityAllocationMode": "kvstore"}
    typed |= {"bpf.datapathMode": "netkit", "nodePort.mode": "dsr"}
    typed |= {
        "loadBalancer.mode": "dsr",
        "loadBalancer.algorithm": "maglev",
        "loadBalancer.acceleration": "native",
    }
    text = typed.get(row["value"], wanted)
    for prefix in ("", "global."):
        done = template({f"{prefix}{row['value']}": text})
        assert done.returncode != 0
        sentence = f"{row['value']}={text} is not supported by this version: {row['reason']}"
        assert sentence in done.stderr


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["value"])
def test_each_unsupported_value_may_be_off(template, row):
    """Cilium's own values files have many of them, switched off."""
    for text in row.get("accepted", ["false"]):
        done = template({row["value"]: "{}" if text.startswith("[") else text})
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("values", "sentence"), CONTRADICTIONS)
def test_contradictions_are_refused(template, values, sentence):
    """Nobody knows what was meant."""
    done = template(values)
    assert done.returncode != 0
    assert sentence in done.stderr


@pytest.mark.parametrize(("values", "place"), MISTYPED)
def test_values_that_are_none_are_refused_by_the_schema(template, values, place):
    """With the place."""
    done = template(values)
    assert done.returncode != 0
    assert "values don't meet the specifications of the schema" in done.stderr
    assert place in done.stderr


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_agent_understands_what_is_rendered(render, recipe, tmp_path, monkeypatch):
    """Every key is known, none is deprecated, no value is refused."""
    for name in ("CILIUMD_NODE_NAME", "CILIUMD_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    config = render(RECIPES[recipe][0]).config
    found = interpret(config, Settings.model_fields)
    assert (found.unknown, found.deprecated) == ((), ())
    for key, text in config.items():
        (tmp_path / key).write_text(text)
    options = read_settings([f"--config-dir={tmp_path}"])
    assert options.manifests is None
    assert str(options.procfs) == "/host/proc"
    assert options.routing_mode == config["routing-mode"]


def test_the_operator_understands_what_is_rendered(default, tmp_path):
    """It reads the same directory."""
    from ciliumd.operator.settings import read_settings as read_operator

    for key, text in default.config.items():
        (tmp_path / key).write_text(text)
    options = read_operator([f"--config-dir={tmp_path}"])
    assert options.operator_api_serve_addr == "127.0.0.1:9234"
    assert options.operator_prometheus_serve_addr == ":9963"
    assert options.identity_gc_interval == 900.0
    assert options.ipam == "cluster-pool"


def test_false_and_zero_below_global_count(render):
    """They are values, not the absence of one."""
    config = render({"global.enableIPv4Masquerade": "false", "global.cni.exclusive": "false"}).config
    assert (config["enable-ipv4-masquerade"], config["cni-exclusive"]) == ("false", "false")


def test_more_keys(render):
    """extraConfig adds and wins; large numbers stay numbers."""
    config = render({"extraConfig.bpf-events-size": "16777216", "extraConfig.debug": "true"}).config
    assert (config["bpf-events-size"], config["debug"]) == ("16777216", "true")


def test_lists_as_cilium_writes_them(render):
    """Devices as a list or as text; pools as a list, as text, or as the old single value."""
    pool = "ipam.operator.clusterPoolIPv4PodCIDR"
    assert render({"devices": "{eth0,eth1}"}).config["devices"] == "eth0 eth1"
    assert render({"devices": "eth0 eth1"}).config["devices"] == "eth0 eth1"
    for values in (
        {f"{pool}List": "{10.1.0.0/16,10.2.0.0/16}"},
        {f"{pool}List": r"10.1.0.0/16\,10.2.0.0/16"},
    ):
        assert render(values).config["cluster-pool-ipv4-cidr"] == "10.1.0.0/16 10.2.0.0/16"
    assert render({pool: "10.1.0.0/16"}).config["cluster-pool-ipv4-cidr"] == "10.1.0.0/16"
    assert render().config["cluster-pool-ipv4-cidr"] == "10.0.0.0/8"


def test_ipv6_is_off_and_has_a_pool_where_it_is_on(render):
    """Its keys are not there without it, so that older agents know all there are."""
    plain = render().config
    assert plain["enable-ipv6"] == "false"
    assert not [key for key in plain if key.startswith(("cluster-pool-ipv6", "enable-ipv6-masq", "ipv6-"))]
    usual = render({"ipv6.enabled": "true"}).config
    assert (usual["enable-ipv6"], usual["cluster-pool-ipv6-cidr"]) == ("true", "fd00::/104")
    assert usual["cluster-pool-ipv6-mask-size"] == "120"
    assert usual["enable-ipv6-masquerade"] == "true"
    kept = {"ipv6.enabled": "true", "enableIPv6Masquerade": "false", "ipv6NativeRoutingCIDR": "fd00::/8"}
    config = render(kept).config
    assert (config["enable-ipv6-masquerade"], config["ipv6-native-routing-cidr"]) == ("false", "fd00::/8")
    pool = "ipam.operator.clusterPoolIPv6PodCIDRList"
    chosen = {"ipv6.enabled": "true", pool: "{fd00:1::/104,fd00:2::/104}"}
    assert render(chosen).config["cluster-pool-ipv6-cidr"] == "fd00:1::/104 fd00:2::/104"


def test_pods_may_have_ipv6_alone(render):
    """No pool of IPv4, nor a network of it that mode native would need; the tunnel follows, or is told."""
    only = {"ipv4.enabled": "false", "ipv6.enabled": "true"}
    config = render(only).config
    assert (config["enable-ipv4"], config["enable-ipv6"]) == ("false", "true")
    assert not [key for key in config if key.startswith("cluster-pool-ipv4")]
    assert config["cluster-pool-ipv6-cidr"] == "fd00::/104"
    assert "underlay-protocol" not in config
    assert render({**only, "underlayProtocol": "ipv4"}).config["underlay-protocol"] == "ipv4"
    native = render({**only, "routingMode": "native", "ipv6NativeRoutingCIDR": "fd00::/8"}).config
    assert (native["routing-mode"], native["ipv6-native-routing-cidr"]) == ("native", "fd00::/8")
    assert "ipv4-native-routing-cidr" not in native
