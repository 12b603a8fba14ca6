# SPDX-License-Identifier: Apache-2.0
"""Status reads as in Cilium, and every line changes with the component behind it."""

import copy
from datetime import UTC, datetime

import pytest

from ciliumd.cli import status

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
FULL = {
    "cilium": {"state": "Ok", "msg": "1.18.0 (v1.18.0-ciliumd.0.1.0)"},
    "kvstore": {"state": "Disabled", "msg": ""},
    "kubernetes": {
        "state": "Ok",
        "msg": "1.21 (v1.21.2) [linux/amd64]",
        "k8s-api-versions": ["core/v1::Service", "cilium/v2::CiliumNetworkPolicy"],
    },
    "kube-proxy-replacement": {
        "mode": "True",
        "deviceList": [{"name": "eth0", "ip": ["10.251.247.131", "fe80::1"]}, {"name": "eth1", "ip": []}],
        "directRoutingDevice": "eth0",
        "features": {
            "socketLB": {"enabled": True},
            "nodePort": {"enabled": False},
            "bpfSocketLBHostnsOnly": False,
        },
    },
    "nodeMonitor": {"cpus": 8, "npages": 2048, "pagesize": 4096, "lost": 0, "unknown": 0},
    "cluster": {"ciliumHealth": {"state": "Ok", "msg": ""}},
    "ipam": {
        "status": "IPv4: 68/254 allocated from 10.0.0.0/24,",
        "allocations": {"10.0.0.7": "default/xwing", "10.0.0.12": "router"},
    },
    "bandwidth-manager": {"enabled": False},
    "host-routing": {"mode": "BPF"},
    "attach-mode": "TCX",
    "masquerading": {
        "mode": "BPF",
        "enabled": True,
        "enabledProtocols": {"ipv4": True, "ipv6": False},
        "snat-exclusion-cidr-v4": "10.0.0.0/24",
    },
    "controllers": [
        {"name": "reconcile", "status": {"consecutive-failure-count": 0}},
        {
            "name": "ct-gc",
            "status": {
                "consecutive-failure-count": 2,
                "last-failure-msg": "no such map",
                "last-failure-timestamp": "2026-01-02T03:03:55Z",
                "last-success-timestamp": "2026-01-02T01:04:00Z",
            },
        },
    ],
    "proxy": {"ip": "10.0.0.167", "port-range": "10000-20000", "total-redirects": 0},
    "hubble": {
        "state": "Ok",
        "observer": {
            "current-flows": 4095,
            "max-flows": 4095,
            "seen-flows": 25725,
            "uptime": 100_000_000_000,
        },
        "metrics": {"state": "Disabled"},
    },
    "encryption": {"mode": "Disabled"},
    "cluster-health": {"reachable": 1, "total": 1, "time": "2021-08-11T09:33:31Z"},
    "datapath": {"policy-maps": 3},
}
TEXT = """\
KVStore:                Disabled
Kubernetes:             Ok         1.21 (v1.21.2) [linux/amd64]
Kubernetes APIs:        ["cilium/v2::CiliumNetworkPolicy", "core/v1::Service"]
KubeProxyReplacement:   True   [eth0 10.251.247.131 fe80::1 (Direct Routing), eth1]
Host firewall:          Disabled
SRv6:                   Disabled
CNI Chaining:           Disabled
Cilium:                 Ok   1.18.0 (v1.18.0-ciliumd.0.1.0)
NodeMonitor:            Listening for events on 8 CPUs with 2048x4096 of shared memory
Cilium health daemon:   Ok
IPAM:                   IPv4: 68/254 allocated from 10.0.0.0/24,
IPv4 BIG TCP:           Disabled
IPv6 BIG TCP:           Disabled
BandwidthManager:       Disabled
Host Routing:           BPF
Attach Mode:            TCX
Masquerading:           BPF   [eth0, eth1]   10.0.0.0/24 [IPv4: Enabled, IPv6: Disabled]
Controller Status:      1/2 healthy
Proxy Status:           OK, ip 10.0.0.167, 0 redirects active on ports 10000-20000
Hubble:                 Ok              Current/Max Flows: 4095/4095 (100.00%), Flows/s: 257.25   \
Metrics: Disabled
Encryption:             Disabled
Cluster health:         1/1 reachable   (2021-08-11T09:33:31Z)
Controllers:
  Name    Last success   Last error   Count   Message
  ct-gc   2h0m5s ago     10s ago      2       no such map
"""


def without(*keys):
    """The full status without *keys*."""
    return {key: value for key, value in FULL.items() if key not in keys}


def changed(path, value):
    """The full status with the value at dotted *path* replaced."""
    document = copy.deepcopy(FULL)
    *parents, last = path.split(".")
    node = document
    for key in parents:
        node = node[key]
    node[last] = value
    return document


def line(document, label):
    """The line of *label*, without it."""
    text = status.render(document, now=NOW)
    return next(row.removeprefix(label).strip() for row in text.splitlines() if row.startswith(label))


def test_full_status_reads_as_in_cilium():
    """Order, wording and alignment, whole."""
    assert status.render(FULL, now=NOW) == TEXT


def test_limits_are_a_line_where_something_is_near_or_beyond_one():
    """What is nearly full is no trouble yet; who has to do without is."""
    assert "Limits:" not in status.render({**FULL, "limits": {"state": "Ok", "msg": ""}}, now=NOW)
    near = {**FULL, "limits": {"state": "Ok", "msg": "nearly full: cidr identities 60000/65536"}}
    assert line(near, "Limits:") == "Ok   nearly full: cidr identities 60000/65536"
    assert status.healthy(near)
    beyond = {**FULL, "limits": {"state": "Warning", "msg": "Endpoint shop/web: nothing passes"}}
    assert status.brief(beyond) == "error in limits: Endpoint shop/web: nothing passes"
    assert not status.healthy(beyond)


def test_nothing_known_is_all_disabled():
    """What is not built or not running says so; nothing is invented."""
    rows = [row.split(":", 1) for row in status.render({}, now=NOW).splitlines()]

    assert {value.strip() for _, value in rows} == {"Disabled"}
    assert [label for label, _ in rows][:2] == ["KVStore", "Kubernetes"]
    assert len(rows) == 21


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("kube-proxy-replacement", "KubeProxyReplacement:"),
        ("cilium", "Cilium:"),
        ("nodeMonitor", "NodeMonitor:"),
        ("cluster", "Cilium health daemon:"),
        ("ipam", "IPAM:"),
        ("host-routing", "Host Routing:"),
        ("attach-mode", "Attach Mode:"),
        ("masquerading", "Masquerading:"),
        ("controllers", "Controller Status:"),
        ("proxy", "Proxy Status:"),
        ("hubble", "Hubble:"),
        ("cluster-health", "Cluster health:"),
    ],
)
def test_missing_component_reads_disabled(key, label):
    """A component that is absent from the answer is disabled in its line."""
    assert line(FULL, label) != "Disabled"
    assert line(without(key), label) == "Disabled"


@pytest.mark.parametrize(
    ("path", "value", "label", "text"),
    [
        ("cilium.state", "Failure", "Cilium:", "Failure   1.18.0 (v1.18.0-ciliumd.0.1.0)"),
        ("host-routing.mode", "Legacy", "Host Routing:", "Legacy"),
        ("kube-proxy-replacement.mode", "False", "KubeProxyReplacement:", "False"),
        ("masquerading.mode", "iptables", "Masquerading:", "IPTables [IPv4: Enabled, IPv6: Disabled]"),
        ("masquerading.enabledProtocols", {"ipv4": False, "ipv6": False}, "Masquerading:", "Disabled"),
        (
            "masquerading.ip-masq-agent",
            True,
            "Masquerading:",
            "BPF (ip-masq-agent)   [eth0, eth1]   10.0.0.0/24 [IPv4: Enabled, IPv6: Disabled]",
        ),
        (
            "bandwidth-manager",
            {"enabled": True, "congestionControl": "cubic", "devices": ["eth0"]},
            "BandwidthManager:",
            "EDT with BPF [CUBIC] [eth0]",
        ),
        ("host-firewall", {"mode": "Enabled", "devices": ["eth0"]}, "Host firewall:", "Enabled   [eth0]"),
        ("encryption", {"mode": "Wireguard", "msg": "2 peers"}, "Encryption:", "Wireguard       2 peers"),
        (
            "cluster.ciliumHealth",
            {"state": "Warning", "msg": "stale"},
            "Cilium health daemon:",
            "Warning   stale",
        ),
        ("attach-mode", "TC", "Attach Mode:", "Legacy TC"),
        (
            "cluster-health.unreachable",
            ["east/b", "east/c"],
            "Cluster health:",
            "1/1 reachable   (2021-08-11T09:33:31Z)   no answer from east/b, east/c",
        ),
        ("stale", {"kvstore": "2026"}, "Stale status:", '"kvstore" since 2026'),
        (
            "routing",
            {
                "inter-host-routing-mode": "Tunnel",
                "tunnel-protocol": "vxlan",
                "intra-host-routing-mode": "BPF",
            },
            "Routing:",
            "Network: Tunnel [vxlan]   Host: BPF",
        ),
    ],
)
def test_line_follows_its_component(path, value, label, text):
    """A changed component changes its line, in Cilium's words."""
    assert line(changed(path, value), label) == text


def test_a_controller_that_never_failed_says_never():
    """The year 1 is how the API spells it."""
    well = {
        "name": "gc",
        "status": {
            "last-failure-timestamp": "0001-01-01T00:00:00Z",
            "last-success-timestamp": "2026-01-02T03:04:04Z",
        },
    }
    text = status.render({**FULL, "controllers": [well]}, now=NOW, verbose=True)
    assert "  gc     1s ago         never        0       no error\n" in text


def test_lost_events_are_told_below_the_monitor():
    """Losses have a line of their own, only when there are any."""
    text = status.render(changed("nodeMonitor.lost", 5), now=NOW)

    assert "\n                        5 events lost, 0 unknown notifications\n" in text


def test_verbose_adds_details():
    """Addresses, all controllers and the service features."""
    text = status.render(FULL, now=NOW, verbose=True)

    assert "Allocated addresses:\n  10.0.0.12 (router)\n  10.0.0.7 (default/xwing)\n" in text
    assert "  reconcile   never          never        0       no error\n" in text
    assert "  Socket LB:              Enabled\n" in text
    assert "  Services:\n  - ClusterIP:      Enabled\n  - NodePort:       Disabled\n" in text
    assert "Datapath:\n  policy-maps:   3\n" in text


BUSY = {"remote": "198.51.100.9", "port": 443, "protocol": "TCP", "address": "192.0.2.1", "of": 32768}
PORTS = {"most": {"ipv4": BUSY | {"used": 32768}}, "exhausted": [BUSY | {"used": 32768}]}


def test_a_destination_without_ports_is_told():
    """In the line of masquerading; who is near it in the details."""
    six = {"remote": "2001:db8::9", "port": 53, "protocol": "UDP", "address": "2001:db8::1", "of": 32768}
    ports = PORTS | {"most": PORTS["most"] | {"ipv6": six | {"used": 8192}}}
    document = changed("masquerading.ports", ports)

    assert line(document, "Masquerading:").endswith("no ports left towards 198.51.100.9:443 TCP")
    details = status.render(document, now=NOW, verbose=True).split("Masquerading Ports:\n", 1)[1]
    assert [row.split() for row in details.splitlines()[:3]] == [
        ["Destination", "Address", "Ports", "used"],
        ["198.51.100.9:443", "TCP", "192.0.2.1", "32768/32768", "(100.0%)", "exhausted"],
        ["[2001:db8::9]:53", "UDP", "2001:db8::1", "8192/32768", "(25.0%)"],
    ]


def test_without_masqueraded_flows_nothing_is_told_of_ports():
    """Neither line nor details."""
    document = changed("masquerading.ports", {"most": {}, "exhausted": []})

    assert "ports left" not in status.render(document, now=NOW)
    assert "Masquerading Ports" not in status.render(document, now=NOW, verbose=True)


@pytest.mark.parametrize(
    ("document", "text", "healthy"),
    [
        (without("controllers"), "OK", True),
        (FULL, "error in controller ct-gc: no such map", True),
        (changed("cilium", {"state": "Failure", "msg": "loading"}), "error in cilium: loading", False),
        (changed("kubernetes", {"state": "Warning", "msg": "slow"}), "error in kubernetes: slow", False),
        (
            changed("cluster.ciliumHealth", {"state": "Failure", "msg": "x"}),
            "error in cilium-health: x",
            False,
        ),
        ({}, "OK", True),
    ],
)
def test_brief_names_the_first_trouble(document, text, healthy):
    """One line for probes; failing controllers are told but do not make the node unhealthy."""
    assert status.brief(document) == text
    assert status.healthy(document) is healthy


@pytest.mark.parametrize(("state", "code"), [("Ok", 0), ("Warning", 1), ("Failure", 1)])
def test_exit_code_follows_health(agent, run, state, code):
    """0 healthy, 1 in trouble, also for --brief and -o json."""
    agent.get("healthz", {"cilium": {"state": state, "msg": "m"}})

    assert run.cilium("status") == code
    assert run.cilium("status", "--brief") == code
    assert run.out == ("OK\n" if code == 0 else "error in cilium: m\n")
    assert run.cilium("status", "-o", "jsonpath={.cilium.state}") == code
    assert run.out == f"{state}\n"


@pytest.mark.parametrize(
    ("audit", "line"),
    [
        ({"node": True, "endpoints": [7, 12]}, "Enabled    audited endpoints: 7, 12"),
        ({"node": False, "endpoints": [7]}, "Disabled   audited endpoints: 7"),
        ({"node": True, "endpoints": []}, "Enabled    audited endpoints: none"),
        (
            {"node": True, "endpoints": list(range(1, 13))},
            "Enabled   audited endpoints: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more",
        ),
    ],
)
def test_audit_has_a_line_where_there_is_some(audit, line):
    """Nobody should find out by accident that nothing is dropped."""
    shown = status.render({"policy-audit": audit}, now=NOW)
    (found,) = [one for one in shown.splitlines() if one.startswith("Policy Audit Mode:")]
    assert found.split() == f"Policy Audit Mode: {line}".split()
    assert "Policy Audit Mode" not in status.render(FULL, now=NOW)
